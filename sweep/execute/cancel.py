"""`sweep cancel DIR`: stop a sweep that runs, with everything checkpointed; its own command goes on from there."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sweep.execute.lock import holder, holding_process, is_held
from sweep.execute.status import read_plan
from sweep.files import SweepFolder

WAIT_SECONDS = 60.0  # assumption: workers save a checkpoint, and the last uploads to wandb end, within this


def main(argv: Sequence[str]) -> int:
    """0 once nothing of the sweep runs (nothing may have to begin with); 1 where it still does, with what to do.

    A coordinator on this machine gets SIGTERM, as from Ctrl-C: its workers save their state and stop. Without a
    coordinator, jobs that a killed one left in SLURM are told so themselves.
    """
    parser = argparse.ArgumentParser(prog="sweep cancel", description=__doc__)
    parser.add_argument("folder", type=Path, help="outputs/<sweep>")
    parser.add_argument("--now", action="store_true", help="kill the workers; they go on from their last checkpoint")
    arguments = parser.parse_args(argv)
    folder = SweepFolder(arguments.folder)
    read_plan(folder)
    if is_held(folder.lock):
        return _stop_coordinator(folder, arguments.now)
    told = cancel_slurm_jobs(folder, arguments.now)
    print(f"no coordinator is running; {told} SLURM jobs were told to stop")
    return 0


def _stop_coordinator(folder: SweepFolder, now: bool) -> int:
    process, host = holding_process(folder.lock)
    if process is None or host != socket.gethostname():
        print(
            f"the sweep is run by {holder(folder.lock)}, which cannot be stopped from {socket.gethostname()}; "
            "give this command there. Nothing was stopped.",
            file=sys.stderr,
        )
        return 1
    os.kill(process, signal.SIGTERM)
    if now:
        time.sleep(1.0)  # two signals of one kind at once are one
        os.kill(process, signal.SIGTERM)
    print(f"told {holder(folder.lock)} to stop; waiting for its workers to save their state")
    deadline = time.monotonic() + WAIT_SECONDS
    while is_held(folder.lock):
        if time.monotonic() > deadline:
            print(
                f"after {WAIT_SECONDS:.0f} s it has not ended: a worker is far from its next log line, perhaps. "
                f"`sweep status {folder.path}` shows how it goes; `sweep cancel --now {folder.path}` kills the workers.",
                file=sys.stderr,
            )
            return 1
        time.sleep(0.2)
    print("stopped; the sweep's own command goes on from here")
    return 0


def cancel_slurm_jobs(folder: SweepFolder, now: bool) -> int:
    """Tell the jobs of this sweep that SLURM holds to stop; how many. None can be where it never used SLURM.

    Raises OSError where squeue gives no answer.
    """
    from sweep.execute.slurm import jobs_of_runs, stop_commands, sweep_prefix
    from sweep.execute.squeue import Queue, QueueError

    if not folder.jobs.is_dir():
        return 0
    if shutil.which("squeue") is None:
        raise OSError(f"{folder.path} has used SLURM, whose commands are not here; give this command on a login node")
    try:
        jobs = jobs_of_runs(folder, Queue(sweep_prefix(folder), 0.0))
    except QueueError as error:
        raise OSError(f"{error}. Nothing was stopped; try again") from error
    for job in jobs.values():
        for command in stop_commands(job, now):
            subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return len(jobs)
