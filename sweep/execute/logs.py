"""`sweep logs DIR RUN`: what a run's workers printed, and what came of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sweep.execute.ledger import read_result
from sweep.execute.status import read_plan
from sweep.files import SweepFolder

DEFAULT_LINES = 200  # assumption: the last traceback, with what led to it


def main(argv: Sequence[str]) -> int:
    """0; 1 where the run has no log yet. Raises ValueError where RUN is none of the sweep's, or several."""
    parser = argparse.ArgumentParser(prog="sweep logs", description=__doc__)
    parser.add_argument("folder", type=Path, help="outputs/<sweep>")
    parser.add_argument("run", help="its id, or what it starts with (see sweep status)")
    parser.add_argument("-n", "--lines", type=int, default=DEFAULT_LINES, help="at most so many, the last (%(default)s)")
    arguments = parser.parse_args(argv)
    folder = SweepFolder(arguments.folder)
    run = folder.run(find_run(folder, arguments.run))
    result = read_result(run)
    state = "no result yet" if result is None else f"{result['status']} {result.get('reason') or ''}".rstrip()
    print(f"{run.path.name}: {state}", flush=True)
    if result is not None and result.get("traceback"):
        print(result["traceback"].rstrip())
    try:
        lines = run.log.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        print(f"{run.log} is not there: no worker has started for this run", file=sys.stderr)
        return 1
    for line in lines[max(0, len(lines) - arguments.lines) :]:
        print(line)
    return 0


def find_run(folder: SweepFolder, start: str) -> str:
    """The id of the one planned run whose id starts so. Raises ValueError for none, and for several."""
    runs = [planned.run_id for planned in read_plan(folder)]
    found = [run_id for run_id in runs if start and run_id.startswith(start)]
    if len(found) == 1:
        return found[0]
    said = f"starts {len(found)} of them: {', '.join(found[:5])}, ..." if found else f"is none of them: {runs[0]}, ..."
    raise ValueError(f"{folder.path} has {len(runs)} runs, and {start!r} {said}")
