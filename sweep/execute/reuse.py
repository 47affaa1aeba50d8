"""Runs that another sweep beside this one has brought to an end: taken over, not trained again.

A run's id is a digest of all that determines its result, so under one id lies one result, whichever grid
asked for it. Files are linked where the file system can, else copied: neither sweep changes a finished run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sweep.execute.ledger import FINAL, read_result
from sweep.files import RunFolder, SweepFolder, read_json, write_json
from sweep.plan.spec import PlannedRun

PLACE = {
    *("device", "threads", "data_folder", "micro_batch_sequences", "checkpoint_seconds", "compile", "compile_mode"),
    *("parent", "ranks", "shard"),
}
"""Settings of a run that change nothing of what it records. In the others (how often it logs, say) a run that is
taken over must agree; one that was evaluated more often will do where the wanted places are among its own."""

RECORD = "reused.json"
"""Beside a run's result: which sweep trained it."""


def reusable(
    folder: SweepFolder, runs: Sequence[PlannedRun], execution_for: Callable[[PlannedRun], dict[str, Any]]
) -> dict[str, RunFolder]:
    """Where each run that this sweep has not begun lies finished, or diverged, in a sweep beside it."""
    wanted = {run.run_id: run for run in runs if not folder.run(run.run_id).path.exists()}
    found: dict[str, RunFolder] = {}
    for runs_there in sorted(folder.path.absolute().parent.glob("*/runs")) if wanted else ():
        for run_id in wanted.keys() & set(os.listdir(runs_there)) - found.keys():
            there = RunFolder(runs_there / run_id)
            if _is_same(there, execution_for(wanted[run_id])):
                found[run_id] = there
    return found


def _is_same(there: RunFolder, execution: dict[str, Any]) -> bool:
    result = read_result(there)  # checks that it answers the spec beside it, whose digest is its id
    if result is None or result["status"] not in FINAL:
        return False
    before = read_json(there.spec)["execution"] or {}
    # evaluations divide a run into equal parts, so that those of a coarser division are among a finer one's
    finer = (before.get("evaluations", 0) + 1) % (execution["evaluations"] + 1) == 0
    return finer and all(before.get(key) == value for key, value in execution.items() if key not in {*PLACE, "evaluations"})


def take_over(folder: SweepFolder, found: dict[str, RunFolder]) -> list[str]:
    """Put these runs into `folder`, each whole or not at all; returns a sentence for each sweep they are from.
    Raises OSError."""
    taken: dict[str, int] = {}
    for run_id, there in found.items():
        here = folder.run(run_id)
        sweep = there.path.parent.parent.name
        temporary = here.path.with_name(f".{run_id}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        here.path.parent.mkdir(parents=True, exist_ok=True)
        kept = RunFolder(temporary)
        for path, copy in zip(_files(there), _files(kept), strict=True):
            if path.is_dir():
                shutil.copytree(path, copy, copy_function=_link)
            elif path.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                _link(path, copy)
        write_json(temporary / RECORD, {"sweep": sweep, "run": str(there.path.absolute())})
        os.replace(temporary, here.path)
        taken[sweep] = taken.get(sweep, 0) + 1
    return [f"{count} runs were taken over from sweep {sweep}, which has trained them" for sweep, count in taken.items()]


def _files(run: RunFolder) -> tuple[Path, ...]:
    return run.spec, run.metrics, run.log, run.checkpoint, run.result


def _link(source: str | Path, destination: str | Path) -> None:
    try:
        os.link(source, destination)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, destination)
