"""Workers as SLURM jobs, submitted through submitit (the only module that imports it)."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweep.execute.attend import attend_job, read_ended, worker_environment
from sweep.execute.environment import SOURCE_ROOT
from sweep.execute.executor import Ended, SubmitError
from sweep.execute.squeue import Queue, QueueError
from sweep.files import RunFolder, SweepFolder, read_json, write_json
from sweep.plan.spec import digest

COMMANDS = ("sbatch", "srun", "squeue", "scancel")
MOST_IN_ARRAY = 1000  # SLURM's default MaxArraySize of 1001 allows the indices 0 to 1000
VISIBLE_SECONDS = 30.0
"""How long after a job has left the queue its exit status may still appear. Assumption: above the 3 to 60
seconds that NFS clients keep attributes (nfs(5), acregmin and acdirmin of 3 and 30)."""
REFUSED_SECONDS = 600.0  # assumption: a busy controller, or a limit on submitted jobs, gives way within this
AGAIN_SECONDS = 30.0  # assumption: between two tries of a submission


@dataclass(frozen=True)
class SlurmOptions:
    """What each run's job asks for. None leaves it to the cluster.

    gpus: of a run, all on one node; cpus: cores of a run; minutes: time limit of a job, after which the run goes on
    in another one; checkpoint_minutes: how long before the limit the worker is told to save its state;
    extra: further sbatch options by name (`{qos: high, constraint: a100}`), passed through as they are.
    """

    gpus: int
    cpus: int
    minutes: int
    checkpoint_minutes: int
    partition: str | None = None
    account: str | None = None
    memory_gb: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class SlurmExecutor:
    """Queues a job for each run, many of them as one array.

    Jobs carry the sweep's id in their names, and `jobs/<batch>.json` says which run each is: a coordinator
    that is started again finds those of the one before (`adopt`). How a worker ended is read from
    `ended.json` in the run's folder; a job that has left the queue without it was killed. SLURM is told not
    to requeue: a worker that is stopped at its time limit or by a preemption saves a checkpoint, and the
    coordinator submits the run again.

    Args:
        slots: jobs to hold in the queue at one time, waiting or running.
        device: "cpu" or "cuda".
        poll_seconds: between two looks at the queue.
    Raises:
        ValueError: submitit is not installed, or SLURM's commands are not here.
    """

    def __init__(
        self,
        folder: SweepFolder,
        options: SlurmOptions,
        *,
        slots: int,
        device: str,
        threads: int = 1,
        poll_seconds: float = 10.0,
    ) -> None:
        require_slurm()
        self._folder = folder
        self._options = options
        self._slots = slots
        self._environment = worker_environment(device, threads)
        self._prefix = sweep_prefix(folder)
        self._queue = Queue(self._prefix, poll_seconds)
        self._unsubmitted: list[SlurmJob] = []
        self._submitted = False
        self._try_after = -float("inf")
        self._running_before: dict[str, str] | None = None

    @property
    def capacity(self) -> int:
        return self._slots

    def adopt(self, folder: RunFolder) -> SlurmJob | None:
        """The job that an earlier coordinator submitted for this run and that is in the queue still.

        Raises SubmitError where squeue has no answer at the start: without it a run might be submitted twice.
        """
        if self._running_before is None:
            try:
                self._running_before = jobs_of_runs(self._folder, self._queue)
            except QueueError as error:
                raise SubmitError(f"cannot tell which runs SLURM holds already: {error}") from error
        job = self._running_before.pop(folder.path.name, None)
        return None if job is None else SlurmJob(self, folder, job)

    def submit(self, folder: RunFolder) -> SlurmJob:
        """The run is submitted with all others of this round once one of them is polled."""
        folder.ended.unlink(missing_ok=True)
        job = SlurmJob(self, folder)
        self._unsubmitted.append(job)
        return job

    def look(self) -> Queue:
        """Submit what waits for it, and the queue as last seen."""
        if self._unsubmitted and time.monotonic() >= self._try_after:
            self._submit_waiting()
        self._queue.look()
        return self._queue

    def _submit_waiting(self) -> None:
        jobs = [job for job in self._unsubmitted if job.ended is None]
        self._unsubmitted = []
        for start in range(0, len(jobs), MOST_IN_ARRAY):
            batch = jobs[start : start + MOST_IN_ARRAY]
            try:
                names = self._submit_batch([job.folder for job in batch])
            except (OSError, subprocess.SubprocessError, RuntimeError) as error:
                self._refused(jobs[start:], str(error))
                return
            self._submitted = True
            for job, name in zip(batch, names, strict=True):
                job.name, job.since = name, time.monotonic()

    def _refused(self, jobs: Sequence[SlurmJob], words: str) -> None:
        """Raises ValueError where nothing was ever taken: what is asked for can't be had."""
        if not self._submitted and not self._queue.jobs:
            raise ValueError(
                f"sbatch refuses {self._options}: {words.strip()}\nMend executor.partition, account, time, "
                "gpus_per_run or extra. No job was submitted."
            )
        self._try_after = time.monotonic() + AGAIN_SECONDS
        for job in jobs:
            if time.monotonic() - job.since > REFUSED_SECONDS:
                job.ended = Ended(None, f"sbatch has refused it for {REFUSED_SECONDS:.0f} s: {words.strip()}")
            else:
                self._unsubmitted.append(job)

    def _submit_batch(self, folders: Sequence[RunFolder]) -> list[str]:
        """Submit these runs as one array (as one job, where it is one); the jobs, as squeue names them."""
        import submitit

        batch = os.urandom(4).hex()
        # before sbatch, so that there is no moment in which a job is in the queue and nobody knows its run
        write_json(_batch_file(self._folder, batch), [folder.path.name for folder in folders])
        with _without_job_variables():
            executor = submitit.SlurmExecutor(folder=self._folder.jobs.resolve())
            executor.update_parameters(
                **sbatch_parameters(self._options), job_name=self._prefix + batch, array_parallelism=len(folders)
            )
            runs = [str(folder.path.resolve()) for folder in folders]
            jobs = executor.map_array(attend_job, runs, [self._environment] * len(runs))
        return [str(job.job_id) for job in jobs]


class SlurmJob:
    """One run's job: `name` as squeue has it, None until it is submitted."""

    def __init__(self, executor: SlurmExecutor, folder: RunFolder, name: str | None = None) -> None:
        self._executor = executor
        self.folder, self.name = folder, name
        self.since = time.monotonic()
        self.ended: Ended | None = None
        self._gone: float | None = None
        self._told = False

    def poll(self) -> Ended | None:
        """Raises ValueError where SLURM takes not even the first job."""
        queue = self._executor.look()
        if self.ended is None and self.name is not None:
            self.ended = read_ended(self.folder, self.name) or self._vanished(queue)
        return self.ended

    def cancel(self) -> None:
        """A job that waits leaves the queue; one that runs gets SIGTERM."""
        self._stop(now=False)

    def kill(self) -> None:
        """A job that waits leaves the queue; one that runs gets SIGKILL."""
        self._stop(now=True)

    def _stop(self, now: bool) -> None:
        """Fire and forget: a job that has ended meanwhile is none to stop."""
        self._told = True
        if self.name is None:
            self.ended = self.ended or Ended(None, "cancelled before it was submitted")
        elif self.ended is None:
            quiet = subprocess.DEVNULL
            for command in stop_commands(self.name, now):
                subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)

    def _vanished(self, queue: Queue) -> Ended | None:
        """That it left the queue without a word, once the word can't be on its way any more."""
        if self.name in queue.jobs or queue.seen <= self.since:
            self._gone = None
            return None
        self._gone = self._gone or time.monotonic()
        if time.monotonic() - self._gone < (0.0 if self._told else VISIBLE_SECONDS):
            return None
        how = "cancelled" if self._told else "killed, out of time or memory, or its node was lost"
        return read_ended(self.folder, self.name) or Ended(None, f"SLURM job {self.name} left the queue without an exit status: {how}")


def require_slurm() -> None:
    """Raise ValueError, with what to do, unless jobs can be submitted from here."""
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"executor=slurm needs submitit ({error}). Install it: pip install 'scaling-sweep[slurm]', "
            "or say executor=local. Nothing was launched."
        ) from error
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        raise ValueError(
            f"executor=slurm needs SLURM's commands, and {', '.join(missing)} cannot be found here. Run the "
            "sweep on a login node of the cluster, or say executor=local. Nothing was launched."
        )


def sweep_prefix(folder: SweepFolder) -> str:
    """What the names of this sweep's jobs start with: its name, and an id of where it lies."""
    path = folder.path.resolve()
    return f"{path.name}-{digest(str(path))[:8]}-"


def stop_commands(job: str, now: bool) -> list[list[str]]:
    """A job that waits leaves the queue; one that runs gets SIGTERM, or SIGKILL with `now`."""
    running = ["--signal=KILL", "--full"] if now else ["--signal=TERM"]
    return [["scancel", "--state=PENDING", job], ["scancel", "--state=RUNNING", *running, job]]


def jobs_of_runs(folder: SweepFolder, queue: Queue) -> dict[str, str]:
    """The job of each run that SLURM holds, by run id. Raises QueueError."""
    prefix = sweep_prefix(folder)
    found = {}
    for job in queue.read().values():
        try:
            runs = read_json(_batch_file(folder, job.name.removeprefix(prefix)))
            found[runs[int(job.job.partition("_")[2] or 0)]] = job.job
        except (OSError, ValueError, IndexError):  # not a job of ours, or its file was removed
            continue
    return found


def sbatch_parameters(options: SlurmOptions) -> dict[str, Any]:
    """The parameters of submitit's SlurmExecutor. SLURM itself sends SIGTERM before the limit."""
    signal_seconds = 60 * options.checkpoint_minutes
    asked: dict[str, Any] = {
        "time": options.minutes,
        "cpus_per_task": options.cpus,
        "nodes": 1,
        "ntasks_per_node": 1,
        "gpus_per_node": options.gpus or None,
        "partition": options.partition,
        "account": options.account,
        "mem": None if options.memory_gb is None else f"{round(options.memory_gb * 1024)}MB",
        "setup": [f"export PYTHONPATH={shlex.quote(str(SOURCE_ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"],
        # srun does not take over --cpus-per-task from sbatch since SLURM 22.05
        "srun_args": [f"--cpus-per-task={options.cpus}"],
        "stderr_to_stdout": True,
        "additional_parameters": {
            "signal": f"TERM@{signal_seconds}",
            "no-requeue": True,
            **{name.replace("_", "-"): value for name, value in options.extra.items()},
        },
    }
    return {name: value for name, value in asked.items() if value is not None}


@contextlib.contextmanager
def _without_job_variables() -> Iterator[None]:
    """sbatch hands its environment down: without what a job around this process has set there. (Not submitit's
    clean_env, which takes away SLURM_CONF too.)"""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("SLURM_", "SUBMITIT_")) and name != "SLURM_CONF":
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _batch_file(folder: SweepFolder, batch: str) -> Path:
    return folder.jobs / f"batch-{batch}.json"
