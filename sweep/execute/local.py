"""Workers as processes on this machine, one run to a slot."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence

from sweep.execute.environment import common_environment
from sweep.execute.executor import Ended, SubmitError, process_ended
from sweep.execute.forking import ForkedJob, fork_worker
from sweep.files import RunFolder
from sweep.hardware import oom_kills, usable_cores


class LocalExecutor:
    """Runs workers, with as many at a time as there are slots.

    Args:
        device: "cpu", "cuda" or "mps".
        slots:  runs at a time; None: cores this process may use // `threads` on "cpu", `per_device`
            on each visible GPU otherwise.
        per_device: runs on each GPU; 1 on "cpu", where `slots` says it.
        gpus_per_run: GPUs that a worker sees; per_device is 1 where they are several.
        threads: OpenMP and MKL threads of each worker. The order of a sum depends on it, and so the
            loss in its last digits: it never follows from the number of slots. (How many processes share a
            lone target does, sweep/places.py.)
        worker_command: what the run's folder is appended to; None: workers are forked from a process
            that has imported what they need (sweep/execute/forking.py).
    Raises:
        ValueError: a count below 1, an unknown device, more slots than `per_device` allows, or
            "cuda" with no GPU in sight.

    Each worker leads a session of its own, so that Ctrl-C in the terminal reaches the coordinator
    alone, which then asks its workers to checkpoint. A worker that outlives its coordinator ends itself.
    """

    def __init__(
        self,
        device: str,
        slots: int | None = None,
        per_device: int = 1,
        threads: int = 1,
        worker_command: Sequence[str] | None = None,
        gpus_per_run: int = 1,
    ) -> None:
        counts = {"slots": slots, "per_device": per_device, "threads": threads, "gpus_per_run": gpus_per_run}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}. Nothing was launched.")
        self._worker_command = worker_command
        self._environment = common_environment(threads)
        self._slots = slot_environments(device, slots, per_device, threads, gpus_per_run=gpus_per_run)
        self._taken: dict[int, LocalJob | ForkedJob] = {}

    @property
    def capacity(self) -> int:
        return len(self._slots)

    def adopt(self, folder: RunFolder) -> None:
        """None, always: a worker ends with the coordinator that started it."""

    def submit(self, folder: RunFolder) -> LocalJob | ForkedJob:
        """Raises SubmitError when every slot is taken, or the process cannot be started."""
        slot = self._free_slot()
        if self._worker_command is None:
            self._taken[slot] = fork_worker(folder, self._slots[slot], self._environment)
        else:
            self._taken[slot] = self._spawn(folder, {**os.environ, **self._environment, **self._slots[slot]})
        return self._taken[slot]

    def _spawn(self, folder: RunFolder, environment: dict[str, str]) -> LocalJob:
        try:
            with open(folder.log, "ab") as log:
                process = subprocess.Popen(
                    [*self._worker_command, str(folder.path.resolve())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            raise SubmitError(f"{folder.path}: its worker cannot be started: {error}") from error
        return LocalJob(process)

    def _free_slot(self) -> int:
        for slot in range(len(self._slots)):
            job = self._taken.get(slot)
            if job is None or job.poll() is not None:
                return slot
        raise SubmitError(f"all {len(self._slots)} slots are taken")


class LocalJob:
    """One worker process, the leader of its own process group."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process, self._oom_kills = process, oom_kills()

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> Ended | None:
        status = self._process.poll()
        return None if status is None else process_ended(status, self._oom_kills)

    def cancel(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)


def slot_environments(
    device: str,
    slots: int | None,
    per_device: int,
    threads: int,
    environ: Mapping[str, str] = os.environ,
    gpus_per_run: int = 1,
) -> list[dict[str, str]]:
    """The environment that each slot adds to its worker's. Raises ValueError as LocalExecutor does."""
    if device == "cpu":
        if per_device != 1:
            raise ValueError(f"per_device={per_device} is for GPUs; on device=cpu set slots instead")
        # Hidden, since a worker on the CPU that initialises a GPU takes memory there for nothing.
        return [{"CUDA_VISIBLE_DEVICES": ""}] * (slots or max(1, usable_cores() // threads))
    if device == "mps":
        places: list[dict[str, str]] = [{}]
    elif device == "cuda":
        gpus = visible_gpus(environ)
        groups = [gpus[i : i + gpus_per_run] for i in range(0, len(gpus) - gpus_per_run + 1, gpus_per_run)]
        places = [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]
        if not places:
            raise ValueError(f"a run takes {gpus_per_run} GPUs, and {len(gpus)} are visible. Nothing was launched.")
    else:
        raise ValueError(f"device {device!r} is none of cpu, cuda, mps. Nothing was launched.")
    held = "device(s)" if gpus_per_run == 1 else f"group(s) of {gpus_per_run} GPUs"
    if slots is not None and slots > len(places) * per_device:
        raise ValueError(
            f"slots={slots}, but {len(places)} {held} x per_device={per_device} hold "
            f"{len(places) * per_device}. Lower slots or raise per_device. Nothing was launched."
        )
    # Round robin, so that two runs on two GPUs never share one.
    return (places * per_device)[:slots]


def visible_gpus(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Names of the GPUs a worker can be given: those of an outer CUDA_VISIBLE_DEVICES, else all that
    nvidia-smi lists (MIG slices in the place of a GPU cut into them). Raises ValueError on none."""
    outer = environ.get("CUDA_VISIBLE_DEVICES")
    if outer is not None:
        gpus = [name.strip() for name in outer.split(",") if name.strip()]
        gpus = gpus[: gpus.index("-1")] if "-1" in gpus else gpus  # CUDA ignores what follows a -1
        source = f"CUDA_VISIBLE_DEVICES={outer!r}"
    else:
        gpus, source = _gpus_of_driver(), "nvidia-smi -L"
    if not gpus:
        raise ValueError(
            f"device=cuda, but {source} names no GPU. Set device=cpu, or name the GPUs in "
            "CUDA_VISIBLE_DEVICES. Nothing was launched."
        )
    return gpus


def _gpus_of_driver() -> list[str]:
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_gpu_listing(listing)


def parse_gpu_listing(listing: str) -> list[str]:
    """UUIDs in the output of `nvidia-smi -L`: a line a GPU, followed by an indented one a MIG slice."""
    gpus: list[str] = []
    whole: str | None = None
    for line in listing.splitlines():
        found = re.search(r"UUID: ((?:GPU|MIG)-[^)\s]+)", line)
        if found is None:
            continue
        if found[1].startswith("GPU-"):
            whole = found[1]
        elif gpus and gpus[-1] == whole:
            gpus.pop()
        gpus.append(found[1])
    return gpus
