"""`sweep status DIR`: what came of a sweep's runs so far, how far the others are, and how long they will take.

Read from what lies on disk, so that it works beside a coordinator, on another machine, and after a crash. How
far a run is, its metrics say: the tokens that it has seen. No process is asked.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from models.count import count_parameters
from sweep.execute.ledger import read_result
from sweep.execute.lock import holder, is_held
from sweep.execute.metrics import MetricsTail, read_history
from sweep.files import RunFolder, SweepFolder, read_json
from sweep.plan.spec import PlannedRun, RunSpec
from sweep.plan.trunks import own_flops
from sweep.tables import console
from sweep.units import duration, quantity

RECENT_SECONDS = 120.0
"""A run whose metrics grew within this counts as running. Assumption: log_every updates take less; a slower run
shows as waiting between two lines where its lock can't be seen from here."""


@dataclass(frozen=True)
class RunStatus:
    """state: "finished", "diverged", "failed", "running" or "waiting"; tokens: seen so far, its trunk's
    included; rate: training FLOP/s between its last lines, None where they don't tell."""

    planned: PlannedRun
    state: str
    tokens: int
    loss: float | None
    rate: float | None
    reason: str | None

    @property
    def flops_left(self) -> float:
        """Of its own: what its trunk does for it is the trunk's."""
        if self.state in ("finished", "diverged", "failed"):
            return 0.0
        spec = self.planned.spec
        return min(own_flops([self.planned]), spec.flops * (1.0 - self.tokens / spec.tokens))


def read_plan(folder: SweepFolder) -> list[PlannedRun]:
    """The runs of plan.json, in order, one for each id. Raises ValueError where the folder holds no sweep."""
    try:
        entries = read_json(folder.plan)["runs"]
    except FileNotFoundError:
        raise ValueError(f"{folder.path} holds no sweep (no {folder.plan.name}); give the folder that out= named") from None
    try:
        specs = {entry["run_id"]: RunSpec.from_json(entry["spec"]) for entry in entries}
        runs = [
            PlannedRun(specs[entry["run_id"]], entry["group"], entry["role"], specs.get(entry["parent"]))
            for entry in entries
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder.plan} was written by another version of this package ({error}); give the sweep's own command "
            "with plan_only=true to have it checked"
        ) from error
    return list({run.run_id: run for run in runs}.values())


def status_of(folder: SweepFolder, planned: PlannedRun, now: float) -> RunStatus:
    """`now`: seconds since the epoch, which the times of files are held against."""
    run = folder.run(planned.run_id)
    result = read_result(run)
    line = MetricsTail(run.metrics).read()
    tokens = 0 if line is None else int(line["tokens"])
    loss = None if line is None else line["loss"]
    if result is not None:
        held_out = result.get("loss")
        return RunStatus(planned, result["status"], int(result["tokens"]), held_out, None, result.get("reason"))
    if is_held(run.lock) or _is_recent(run, now):
        return RunStatus(planned, "running", tokens, loss, training_rate(run), None)
    return RunStatus(planned, "waiting", tokens, loss, None, None)


def training_rate(run: RunFolder) -> float | None:
    """FLOP/s of the last stretch that one worker trained without a stop; None before its second line."""
    lines = [line for line in read_history(run.metrics) if "loss" in line]
    if len(lines) < 2:
        return None
    last, before = lines[-1], lines[max(0, len(lines) - 20)]
    seconds = last["seconds"] - before["seconds"]
    return (last["flops"] - before["flops"]) / seconds if seconds > 0 else None


def seconds_left(statuses: Sequence[RunStatus]) -> float | None:
    """What is left to train over the rates of the runs under way together, but no less than the slowest of
    those needs; 0 with nothing left, None with nothing under way."""
    left = sum(status.flops_left for status in statuses)
    if left == 0:
        return 0.0
    going = [(status.flops_left, status.rate) for status in statuses if status.state == "running" and status.rate]
    if not going:
        return None
    return max(left / sum(rate for _, rate in going), *(flops / rate for flops, rate in going))


def main(argv: Sequence[str]) -> int:
    """0 where the sweep is done or under way; 1 where a run failed, or some wait and nothing runs."""
    parser = argparse.ArgumentParser(prog="sweep status", description=__doc__)
    parser.add_argument("folder", type=Path, help="outputs/<sweep>")
    parser.add_argument("--all", action="store_true", help="list the runs that are done or wait, too")
    arguments = parser.parse_args(argv)
    folder = SweepFolder(arguments.folder)
    statuses = [status_of(folder, planned, time.time()) for planned in read_plan(folder)]
    out = console()
    shown = [s for s in statuses if arguments.all or s.state in ("running", "failed", "diverged")]
    if shown:
        out.print(_table(shown))
    counts = Counter(status.state for status in statuses)
    total = sum(own_flops([status.planned]) for status in statuses)
    done = 1.0 - sum(status.flops_left for status in statuses) / total if total else 1.0
    left = seconds_left(statuses)
    out.print(
        f"{folder.path.name}: {', '.join(f'{count} {state}' for state, count in counts.most_common())}; "
        f"{done:.1%} of {total:.3g} FLOPs, {'time left unknown' if left is None else duration(left) + ' left'}",
        markup=False,
    )
    coordinated = is_held(folder.lock)
    if coordinated:
        out.print(f"coordinator: {holder(folder.lock)}", markup=False)
    elif counts["waiting"] or counts["running"]:
        out.print("no coordinator is running (none that can be seen from here): the sweep's command goes on from here")
    return 1 if counts["failed"] or counts["waiting"] and not (coordinated or counts["running"]) else 0


def _table(statuses: Sequence[RunStatus]) -> Table:
    table = Table(box=None, header_style="bold")
    for name in ("run", "group", "N non-emb.", "tokens", "of", "loss", "left", ""):
        table.add_column(name, justify="left" if name in ("run", "group", "") else "right", no_wrap=name != "")
    for status in statuses:
        spec, left = status.planned.spec, None
        if status.rate:
            left = status.flops_left / status.rate
        table.add_row(
            status.planned.run_id,
            status.planned.group,
            quantity(count_parameters(spec.shape).non_embedding),
            quantity(status.tokens),
            quantity(spec.tokens),
            "" if status.loss is None else f"{status.loss:.4f}",
            "" if left is None else duration(left),
            _first_line(f"{status.state}: {status.reason}" if status.reason else status.state),
        )
    return table


def _first_line(text: Any) -> str:
    return str(text).splitlines()[0]


def _is_recent(run: RunFolder, now: float) -> bool:
    try:
        return abs(now - run.metrics.stat().st_mtime) < RECENT_SECONDS
    except FileNotFoundError:
        return False
