"""One process, one run: `python -m sweep.worker RUN_DIR` does what RUN_DIR/spec.json says.

Ends with status 0 once result.json is written, whatever it says; with 75 (EX_TEMPFAIL) after a
checkpoint when it was told to stop (SIGTERM, SIGINT, or the death of the process that started it).
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from sweep.files import RunFolder, describe_holder, read_json

EX_TEMPFAIL = 75  # sysexits.h
LOCK_WAIT_SECONDS = 60.0  # assumption: an orphaned worker notices its parent's death well within this


def main(argv: list[str] | None = None, orphaned: Callable[[], bool] | None = None) -> int:
    """Run one run. `orphaned` tells whether whoever started this process is gone; by default, whether its
    parent is. Raises SystemExit with a usage line for anything but one folder."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        raise SystemExit("usage: python -m sweep.worker RUN_DIR")
    folder = RunFolder(Path(arguments[0]))
    request = read_json(folder.spec)
    stop = StopRequest(orphaned)
    # not truncated: it names the holder until the lock is taken
    lock = os.fdopen(os.open(folder.lock, os.O_RDWR | os.O_CREAT, 0o644), "r+")
    if not _lock(lock, folder, stop):
        return EX_TEMPFAIL
    return _run(folder, request, stop)


def _run(folder: RunFolder, request: dict, stop: StopRequest) -> int:
    # torch takes seconds to import: the signal handlers and the lock come first
    import torch

    from sweep.plan.spec import RunSpec
    from sweep.train.checkpoint import discard_checkpoint, discard_previous
    from sweep.train.ranks import RankLost, train_on_ranks
    from sweep.train.result import result_for
    from sweep.train.train import Execution, Stopped, train

    spec, execution = RunSpec.from_json(request["spec"]), Execution(**request["execution"])
    torch.set_num_threads(execution.threads)
    try:
        result = (train if execution.ranks == 1 else train_on_ranks)(spec, execution, folder, stop)
    except Stopped:
        return EX_TEMPFAIL
    except RankLost as lost:
        print(lost, flush=True)
        return _end_as(lost.status)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        result = result_for(spec, "failed", 0, reason=reason, traceback=traceback.format_exc())
        traceback.print_exc()
    result.write(folder)
    # a failure's cause may be mended, and the run go on from there; branches go on from a trunk's
    if result.status == "diverged" or result.status == "finished" and not spec.is_trunk:
        discard_checkpoint(folder)
    elif result.status == "finished":
        discard_previous(folder)
    return 0


def _end_as(status: int) -> int:
    """End by the signal that `status` is the negative of; else the exit status to end with, which is not 0."""
    if status < 0:
        if status != -signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status or 1


class StopRequest:
    """Callable: true once this process was told to stop or lost its parent."""

    def __init__(self, orphaned: Callable[[], bool] | None = None) -> None:
        parent = os.getppid()
        self.told, self.orphaned = False, orphaned or (lambda: os.getppid() != parent)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._tell)

    def _tell(self, number: int, frame: object) -> None:
        self.told = True

    def __call__(self) -> bool:
        return self.told or self.orphaned()


def _lock(file: TextIO, folder: RunFolder, stop: StopRequest) -> bool:
    """Take the run's lock, waiting for an orphan of a killed coordinator to leave it; False when told
    to stop meanwhile."""
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            describe_holder(file.fileno())
            return True
        except BlockingIOError:
            if stop():
                return False
            if time.monotonic() > deadline:
                raise SystemExit(f"{folder.path}: another worker has held this run for {LOCK_WAIT_SECONDS:.0f} s")
            time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
