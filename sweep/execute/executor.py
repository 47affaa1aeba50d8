"""What the coordinator asks of a place that runs workers: this machine, SLURM, Ray."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Protocol

from sweep.files import RunFolder
from sweep.hardware import oom_kills

CHECKPOINTED = 75
"""Exit status (EX_TEMPFAIL of sysexits.h) of a worker that checkpointed and stopped when told to."""


@dataclass(frozen=True)
class Ended:
    """How a worker's process ended. What came of the run is in its result.json, not in here.

    status: exit status; the negative of a signal's number where a signal killed it (as in
        `subprocess`); None where the place cannot tell, and then `detail` says what it knows.
    out_of_memory: it was killed because the memory of its machine ran out.
    """

    status: int | None
    detail: str = ""
    out_of_memory: bool = False

    def __str__(self) -> str:
        if self.status is None:
            return self.detail or "ended in an unknown way"
        if self.status < 0:
            return f"killed by {_signal_name(-self.status)}" + (", out of memory" if self.out_of_memory else "")
        return f"exit status {self.status}"


def process_ended(status: int, oom_kills_before: int) -> Ended:
    """How a process of this machine ended, which was started when `oom_kills` was that: SIGKILL is all that the
    kernel says to one that it kills for want of memory, but it counts them."""
    return Ended(status, out_of_memory=status == -signal.SIGKILL and oom_kills() > oom_kills_before)


class SubmitError(RuntimeError):
    """The place did not take the run."""


class Job(Protocol):
    """One worker that was started or queued."""

    def poll(self) -> Ended | None:
        """None while it waits or runs. Never blocks."""

    def cancel(self) -> None:
        """Ask it to checkpoint and stop (SIGTERM). Returns at once; it may have ended already."""

    def kill(self) -> None:
        """End it now. Returns at once; it may have ended already."""


class Executor(Protocol):
    """A place that runs workers. The run's folder holds spec.json when `submit` is called."""

    @property
    def capacity(self) -> int:
        """Jobs to hold in it at one time, at least 1."""

    def adopt(self, folder: RunFolder) -> Job | None:
        """The worker that an earlier coordinator queued or started here for this run and that is not gone;
        None where there is none, or where workers end with their coordinator. Raises SubmitError where
        that cannot be told."""

    def submit(self, folder: RunFolder) -> Job:
        """Start or queue the worker of this run. Raises SubmitError where the place refuses it."""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
