"""How far the sweep is: by FLOPs done and their measured rate, never by how many runs are alive."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from models.count import count_parameters
from sweep.execute.metrics import MetricsTail
from sweep.files import SweepFolder
from sweep.plan.spec import PlannedRun
from sweep.plan.trunks import own_flops
from sweep.units import duration, quantity

REFRESH_SECONDS = 0.5  # assumption: as often as a reader wants it
HEARTBEAT_SECONDS = 600.0  # assumption: how long a log file may be silent during one long run


@dataclass
class ActiveRun:
    """A run with a worker. `flops` and `tokens` are done, resumed work and its trunk's included; times in
    seconds."""

    planned: PlannedRun
    tail: MetricsTail
    flops_total: float
    flops_of_trunk: float
    began: float
    flops_before: float | None = None
    flops: float = 0.0
    tokens: int = 0
    loss: float | None = None

    def read(self) -> None:
        line = self.tail.read()
        if line is not None:
            self.flops, self.tokens, self.loss = float(line["flops"]), int(line["tokens"]), line["loss"]
            if self.flops_before is None or self.flops < self.flops_before:
                self.flops_before = self.flops

    @property
    def own(self) -> float:
        """FLOPs done, its trunk's left out."""
        return max(0.0, self.flops - self.flops_of_trunk)

    @property
    def measured(self) -> float:
        """FLOPs done since the first line seen of this worker."""
        return self.flops - (self.flops_before or 0.0)

    def seconds_left(self, now: float) -> float | None:
        rate = self.measured / max(now - self.began, 1e-9)
        return (self.flops_total - self.flops) / rate if rate > 0 else None


class Tally:
    """FLOPs planned, settled and under way, and the time the rest will take at the measured rate."""

    def __init__(
        self,
        folder: SweepFolder,
        runs: Sequence[PlannedRun],
        settled: Collection[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`runs` are distinct; `settled` are the ids of those that need no work any more."""
        self._folder = folder
        self._clock = clock
        self._began = clock()
        self._measured = 0.0
        self._own = 0.0  # of the active runs, kept rather than summed at each of 10,000 events
        self.active: dict[str, ActiveRun] = {}
        self.runs = len(runs)
        self.settled = 0
        self.flops_total = self.flops_settled = 0.0
        for planned in runs:
            own = own_flops([planned])
            self.flops_total += own
            if planned.run_id in settled:
                self.settled += 1
                self.flops_settled += own

    def start(self, planned: PlannedRun) -> None:
        run = ActiveRun(
            planned,
            MetricsTail(self._folder.run(planned.run_id).metrics),
            planned.spec.flops,
            planned.spec.flops - own_flops([planned]),
            self._clock(),
        )
        run.flops = run.flops_of_trunk
        run.read()
        run.flops_before = run.flops
        self._own += run.own
        self.active[planned.run_id] = run

    def end(self, planned: PlannedRun, settled: bool) -> None:
        """`settled`: it needs no more work, whether it reached its end or not."""
        run = self.active.pop(planned.run_id, None)
        if run is not None:
            own, measured = run.own, run.measured
            run.read()
            self._own -= own
            self._measured += run.measured - measured
        if settled:
            self.settled += 1
            self.flops_settled += own_flops([planned])

    def read(self) -> None:
        for run in self.active.values():
            own, measured = run.own, run.measured
            run.read()
            self._own += run.own - own
            self._measured += run.measured - measured

    @property
    def fraction(self) -> float:
        """FLOPs done / FLOPs planned, 0 to 1."""
        done = self.flops_settled + self._own
        return min(1.0, done / self.flops_total) if self.flops_total else 1.0

    @property
    def seconds_left(self) -> float | None:
        """At the rate measured in this session, but not before the slowest active run is through;
        None before anything was measured."""
        now = self._clock()
        if self._measured <= 0:
            return None
        rate = self._measured / max(now - self._began, 1e-9)
        alone = (run.seconds_left(now) for run in self.active.values())
        return max([(1 - self.fraction) * self.flops_total / rate, *(left for left in alone if left)])

    def seconds_left_of(self, run: ActiveRun) -> float | None:
        return run.seconds_left(self._clock())


class Progress:
    """What the coordinator tells whoever watches. This one keeps the tally and says nothing."""

    tally: Tally

    def begin(self, folder: SweepFolder, runs: Sequence[PlannedRun], settled: Collection[str]) -> None:
        self.tally = Tally(folder, runs, settled)

    def started(self, planned: PlannedRun) -> None:
        """A worker of this run was submitted."""
        self.tally.start(planned)

    def stopped(self, planned: PlannedRun) -> None:
        """Its worker ended, and the run is not done."""
        self.tally.end(planned, settled=False)

    def settled(self, planned: PlannedRun, result: dict[str, Any]) -> None:
        """There is a result; no worker may have run (a run that an earlier worker brought to its end)."""
        self.tally.end(planned, settled=True)

    def update(self) -> None:
        """Called at every poll."""

    def note(self, text: str) -> None:
        """Something the user must know."""

    def end(self) -> None:
        """Called once for each `begin`, whatever happened."""


class LineProgress(Progress):
    """A line for each event, for log files."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._last_said = time.monotonic()

    def begin(self, folder: SweepFolder, runs: Sequence[PlannedRun], settled: Collection[str]) -> None:
        super().begin(folder, runs, settled)
        self.note(
            f"{folder.path.name}: {self.tally.runs} runs, {self.tally.flops_total:.3g} FLOPs; "
            f"{self.tally.settled} done before"
        )

    def started(self, planned: PlannedRun) -> None:
        super().started(planned)
        self.note(f"start    {describe(planned)}")

    def settled(self, planned: PlannedRun, result: dict[str, Any]) -> None:
        super().settled(planned, result)
        self.note(f"{describe_result(planned, result)}; {totals(self.tally)}")

    def update(self) -> None:
        if time.monotonic() - self._last_said > HEARTBEAT_SECONDS:
            self.tally.read()
            self.note(f"running  {', '.join(self.tally.active) or 'nothing'}; {totals(self.tally)}")

    def note(self, text: str) -> None:
        self._last_said = time.monotonic()
        print(text, file=self._stream, flush=True)


class LiveProgress(Progress):
    """The active runs and the totals, redrawn in place; what ended scrolls by above."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live: Live | None = None
        self._drawn = 0.0

    def begin(self, folder: SweepFolder, runs: Sequence[PlannedRun], settled: Collection[str]) -> None:
        super().begin(folder, runs, settled)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def settled(self, planned: PlannedRun, result: dict[str, Any]) -> None:
        super().settled(planned, result)
        self.note(describe_result(planned, result))

    def update(self) -> None:
        now = time.monotonic()
        if self._live is not None and now - self._drawn >= REFRESH_SECONDS:
            self._drawn = now
            self.tally.read()
            self._live.update(self.render(), refresh=True)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def render(self) -> Group:
        """The active runs, as many as the terminal has room for, and the totals."""
        table = Table(box=None, pad_edge=False)
        for heading in ("run", "N non-emb", "tokens", "of", "loss", "left"):
            table.add_column(heading, justify="left" if heading == "run" else "right", no_wrap=True)
        room = max(1, self._console.height - 4)
        active = list(self.tally.active.values())
        for run in active[:room]:
            spec = run.planned.spec
            table.add_row(
                run.planned.run_id,
                quantity(count_parameters(spec.shape).non_embedding),
                quantity(run.tokens),
                quantity(spec.tokens),
                "" if run.loss is None else f"{run.loss:.4f}",
                duration(self.tally.seconds_left_of(run)),
            )
        if len(active) > room:
            table.add_row(f"and {len(active) - room} more", "", "", "", "", "")
        foot = Table.grid(padding=(0, 1))
        foot.add_row(ProgressBar(total=1.0, completed=self.tally.fraction, width=16), totals(self.tally))
        return Group(table, foot)


def progress_for(stream: TextIO | None = None) -> Progress:
    """Live on a terminal, lines elsewhere. `stream`: standard output unless said otherwise."""
    stream = stream or sys.stdout
    console = Console(file=stream)
    return LiveProgress(console) if console.is_terminal else LineProgress(stream)


def describe(planned: PlannedRun) -> str:
    spec = planned.spec
    params = quantity(count_parameters(spec.shape).non_embedding)
    return f"{planned.run_id}  N={params} D={quantity(spec.tokens)} C={spec.flops:.3g} ({planned.group})"


def describe_result(planned: PlannedRun, result: dict[str, Any]) -> str:
    status = result["status"]
    said = f"{status:<8} {describe(planned)}: "
    if status != "finished":
        return said + str(result.get("reason") or "no reason was given")
    error = result.get("loss_se")
    if result["loss"] is not None:  # a trunk has none
        said += f"loss {result['loss']:.4f}" + ("" if error is None else f" ± {error:.4f}")
    seconds = result.get("wall_seconds")
    return said if seconds is None else f"{said} in {duration(seconds)}"


def totals(tally: Tally) -> str:
    return (
        f"{tally.settled} of {tally.runs} runs, {tally.fraction:.1%} of {tally.flops_total:.3g} FLOPs, "
        f"{duration(tally.seconds_left)} left"
    )
