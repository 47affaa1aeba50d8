"""On a cluster's node: start the worker of one run, pass on what it is told, and say how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from sweep.execute.environment import common_environment
from sweep.execute.executor import Ended, process_ended
from sweep.files import RunFolder, read_json, write_json
from sweep.hardware import oom_kills

LOOK_SECONDS = 0.2  # assumption: how late an end may be noticed; an update takes as long


def worker_environment(device: str, threads: int) -> dict[str, str]:
    """What a worker's environment is given beyond its node's: the same threads as everywhere, since the
    order of a sum depends on them, and on the CPU no GPU. Raises ValueError for an unknown device."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is none of cpu, cuda. Nothing was launched.")
    return common_environment(threads) | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})


def start_worker(run: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """The worker of this run, its output added to the run's log. It stops at a checkpoint should this
    process die."""
    folder = RunFolder(run)
    with open(folder.log, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "sweep.worker", str(run)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )


def attend_interruptibly(run: str, environment: Mapping[str, str]) -> Ended:
    """Run the worker to its end and return how it ended. KeyboardInterrupt, which is how Ray cancels a task, is
    passed on as SIGTERM: the worker saves a checkpoint and stops."""
    kills, process = oom_kills(), start_worker(Path(run), environment)
    while True:
        try:
            return process_ended(process.wait(LOOK_SECONDS), kills)
        except subprocess.TimeoutExpired:
            continue
        except KeyboardInterrupt:
            process.terminate()


def attend_job(run: str, environment: Mapping[str, str]) -> int:
    """Run the worker to its end within a SLURM job, and leave in the run's folder which job this was and
    how it ended (`ended.json`). SIGTERM, which SLURM sends before the time limit and before it takes the
    node away, is passed on: the worker saves a checkpoint and stops."""
    told: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        if process is not None and process.poll() is None:
            process.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    kills, process = oom_kills(), start_worker(Path(run), environment)
    if told:
        process.terminate()
    while True:
        try:
            status = process.wait(LOOK_SECONDS)
            break
        except subprocess.TimeoutExpired:
            continue
    write_json(RunFolder(Path(run)).ended, {"job": this_job(), **asdict(process_ended(status, kills))})
    return status


def this_job() -> str:
    """The SLURM job this process is in, as squeue names it: "1234", or "1234_5" of an array."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def read_ended(folder: RunFolder, job: str) -> Ended | None:
    """What this job left for its run of how the worker ended; None where it has left nothing (yet)."""
    try:
        said = read_json(folder.ended)
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(said, dict) or said.pop("job", None) != job:
        return None
    return Ended(said["status"], out_of_memory=said.get("out_of_memory", False))
