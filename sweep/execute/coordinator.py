"""Plan minus ledger -> submit, wait, retry: brings every run of a plan to a result, once."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from sweep.execute.executor import CHECKPOINTED, Ended, Executor, Job, SubmitError
from sweep.execute.interrupts import Interrupted, Interrupts
from sweep.execute.ledger import FINAL, Ledger, Result, failure
from sweep.execute.lock import holder, is_held, kill_holder
from sweep.execute.metrics import last_step
from sweep.execute.progress import Progress
from sweep.execute.pulse import Pulse, stamp
from sweep.files import SweepFolder, write_json
from sweep.plan.order import Queue, parent_id, ranks
from sweep.plan.spec import PlannedRun
from sweep.plan.trunks import own_flops
from sweep.units import duration

POLL_SECONDS = 0.15  # assumption: far below the seconds that the smallest run takes
WRITE_SECONDS_PER_ROW = 0.005  # assumption: a thousand times what a row takes to write
HELD_SECONDS = 1.0  # assumption: a worker of a killed coordinator goes on for many of these
LOOKS_FOR_HANGING = 0.05  # assumption: of hang_seconds, between two looks; late by so little is no harm
MOST_HALVINGS = 4  # as in sweep/train/out_of_memory.py, which is not to be imported here
LOG_TAIL_BYTES = 2000  # assumption: holds a traceback's last frames


@dataclass(frozen=True)
class Outcome:
    """What came of one run. `attempts` is how many workers this call started for it: 0 when the
    ledger had its result. `result` is what result.json holds, or would hold if it could be written."""

    run_id: str
    status: str
    reason: str | None
    attempts: int
    result: Result


class Messenger(Protocol):
    def messages(self) -> list[str]:
        """Lines to show the user, each once."""


def execute(
    folder: SweepFolder,
    runs: Sequence[PlannedRun],
    executor: Executor,
    execution_settings_for: Callable[[PlannedRun], dict[str, Any]],
    *,
    plan: Sequence[PlannedRun] | None = None,
    retries: int = 2,
    longest_first: bool = True,
    hang_seconds: float | None = None,
    progress: Progress | None = None,
    mirror: Messenger | None = None,
    poll_seconds: float = POLL_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Outcome]:
    """Bring every run to a result. The caller holds the CoordinatorLock.

    runs.csv is rewritten, whole, in intervals that grow with its rows, and when all is done or stopped: what a
    kill leaves of it is whole but may lack the last results, which the next command reads from their files.

    A finished or diverged run is never run again; one that failed under an earlier command is, since
    its cause may have been mended. A worker that dies without a result is started again from its
    checkpoint, `retries` times, and then recorded as failed; one that raised has recorded it itself. One that the
    kernel killed for want of memory goes on with its micro-batch halved, which result.json tells, at most
    MOST_HALVINGS times beyond the retries.
    Other runs go on all the while. A run starts once its trunk is done; one whose trunk came to nothing
    gets the trunk's status, since it would have come to the same. A run that a worker of a killed coordinator still holds is waited for.

    Args:
        runs: to be run; one that is named twice is run once.
        execution_settings_for: the "execution" part of a run's spec.json: where and how, not what.
        plan: the rows of runs.csv, where they are more than `runs`.
        longest_first: start the runs first that most FLOPs wait for, their own and those of what branches
            off them, so that none is left over at the end; False: in the order given.
        hang_seconds: a worker that gives no sign of life for so long (sweep/execute/pulse.py) is killed, three
            times as long before its first, which counts as its death; None: it is waited for.
        clock, sleep: seconds that only grow, and how to wait for them to; a simulation brings its own.
    Returns:
        One outcome for each distinct run, in the order given.
    Raises:
        Interrupted: after the first SIGINT or SIGTERM, when every worker has checkpointed and stopped;
            after a second one, when every worker is killed.
        OSError: runs.csv could not be written. Raised when all is done; the results are on disk.
    """
    distinct: dict[str, PlannedRun] = {}
    for planned in runs:
        distinct.setdefault(planned.run_id, planned)
    ledger = Ledger(folder, runs if plan is None else plan)
    missing = [run_id for run_id in distinct if run_id not in ledger]
    if missing:
        raise ValueError(f"{len(missing)} runs are not in the plan: {missing[0]}, ... Nothing was launched.")
    settings = _Settings(execution_settings_for, retries, longest_first, hang_seconds, poll_seconds, clock, sleep)
    execution = _Execution(folder, distinct, executor, ledger, settings, progress or Progress(), mirror)
    with Interrupts() as interrupts:
        return execution.run(interrupts)


@dataclass(frozen=True)
class _Settings:
    execution_for: Callable[[PlannedRun], dict[str, Any]]
    retries: int
    longest_first: bool
    hang_seconds: float | None
    poll_seconds: float
    clock: Callable[[], float]
    sleep: Callable[[float], None]


@dataclass(frozen=True)
class _Attempt:
    planned: PlannedRun
    job: Job
    from_step: int
    saved: tuple[int, int] | None  # the stamp of the checkpoint that it goes on from


class _Execution:
    """The state of one `execute`: each run is waiting, held by a worker of an earlier coordinator,
    active, or settled."""

    def __init__(
        self,
        folder: SweepFolder,
        runs: dict[str, PlannedRun],
        executor: Executor,
        ledger: Ledger,
        settings: _Settings,
        progress: Progress,
        mirror: Messenger | None,
    ) -> None:
        self.folder, self.runs, self.executor, self.ledger = folder, runs, executor, ledger
        self.settings, self.progress, self.mirror = settings, progress, mirror
        self.held: dict[str, PlannedRun] = {}
        self.held_due = self.write_due = self.hang_due = -float("inf")
        self.pulses: dict[str, Pulse] = {}
        self.hung: set[str] = set()
        self.active: dict[str, _Attempt] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.attempts: Counter[str] = Counter()
        self.deaths: Counter[str] = Counter()
        self.halvings: Counter[str] = Counter()
        self.stale = True  # runs.csv is
        self.unwritten: OSError | None = None

    def run(self, interrupts: Interrupts) -> list[Outcome]:
        failed_before = self._take_from_ledger()
        gc.freeze()  # to look through a plan of 10,000 runs for garbage takes a tenth of a second, each time
        self.progress.begin(self.folder, list(self.runs.values()), set(self.outcomes))
        try:
            if failed_before:
                self.progress.note(f"{failed_before} runs that failed before are run again")
            while self.queue or self.held or self.active:
                if interrupts.count:
                    self._stop(interrupts)
                self._release_held()
                self._submit()
                self._keep_ledger()
                self._end_hung()
                self._pause()
                self._collect()
            self.stale |= self.unwritten is not None
            self._write_ledger()
        finally:
            for attempt in self.active.values():  # none, unless an error broke the loop
                attempt.job.cancel()
            self.progress.end()
            gc.unfreeze()
        if self.unwritten is not None:
            raise self.unwritten
        return [self.outcomes[run_id] for run_id in self.runs]

    def _take_from_ledger(self) -> int:
        """Settle what is final, let the rest wait; how many of the latter had failed."""
        failed, waiting = 0, []
        for run_id, planned in self.runs.items():
            result = self.ledger.result(run_id)
            if result is not None and result["status"] in FINAL:
                self.outcomes[run_id] = _outcome(result, attempts=0)
            else:
                failed += result is not None
                waiting.append(run_id)
        runs = list(self.runs.values())
        in_order = {run_id: -float(place) for place, run_id in enumerate(self.runs)}
        rank = ranks(runs, lambda run: own_flops([run])) if self.settings.longest_first else in_order
        self.queue = Queue(runs, rank, waiting)
        return failed

    def _submit(self) -> None:
        while self.queue and len(self.active) < self.executor.capacity:
            deaths = self.deaths.total()
            planned = self.queue.pop()
            lock = self.folder.run(planned.run_id).lock
            if self._adopt(planned):
                pass
            elif is_held(lock):
                self.held[planned.run_id] = planned
                self.progress.note(
                    f"{planned.run_id} is still held by a worker of an earlier command ({holder(lock)}); "
                    "it will go on when that one has ended"
                )
            else:
                self._start(planned)
            if self.deaths.total() > deaths:
                return  # a place that refused one run may refuse them all: the next poll tries again

    def _adopt(self, planned: PlannedRun) -> bool:
        """Whether a job of an earlier coordinator has this run, and is now ours; or cannot be told of."""
        run = self.folder.run(planned.run_id)
        try:
            job = self.executor.adopt(run)
        except SubmitError as error:
            self._died(planned, str(error))
            return True
        if job is None:
            return False
        self.attempts[planned.run_id] += 1
        self.active[planned.run_id] = _Attempt(planned, job, last_step(run.metrics), stamp(run.checkpoint))
        self.progress.started(planned)
        self.progress.note(f"{planned.run_id} was started by an earlier command; going on with its job")
        return True

    def _release_held(self) -> None:
        if not self.held or self.settings.clock() < self.held_due:
            return
        self.held_due = self.settings.clock() + HELD_SECONDS
        most = self.settings.hang_seconds
        for run_id in list(self.held):
            lock = self.folder.run(run_id).lock
            if not is_held(lock):
                self.queue.put_back(self.held.pop(run_id))
                self.pulses.pop(run_id, None)
            elif most is not None and self._silent_seconds(run_id) > most and kill_holder(lock):
                self.progress.note(f"{run_id}: its worker of an earlier command gave no sign of life and was killed")

    def _start(self, planned: PlannedRun) -> None:
        run = self.folder.run(planned.run_id)
        # The lock is free now, so what lies here is whole: an orphan may have finished since the
        # ledger was read.
        result = self.ledger.refresh(planned.run_id) if run.result.exists() else None
        if result is not None and result["status"] in FINAL:
            return self._settle(planned, result)
        trunk = self._result_of_trunk(planned)
        if trunk is not None and trunk["status"] != "finished":
            return self._follow(planned, trunk)
        self.attempts[planned.run_id] += 1
        try:
            if run.result.exists():
                os.replace(run.result, run.superseded_result)
                self.ledger.refresh(planned.run_id)
                self.stale = True
            write_json(
                run.spec,
                {"run_id": planned.run_id, "spec": planned.spec.to_json(), "execution": self._execution_for(planned)},
                durable=False,  # written again by whoever starts the run again
            )
            job = self.executor.submit(run)
        except (SubmitError, OSError) as error:
            return self._died(planned, str(error))
        self.active[planned.run_id] = _Attempt(planned, job, last_step(run.metrics), stamp(run.checkpoint))
        self.progress.started(planned)

    def _execution_for(self, planned: PlannedRun) -> dict[str, Any]:
        execution, halvings = self.settings.execution_for(planned), self.halvings[planned.run_id]
        if halvings:
            sequences = -(-execution["micro_batch_sequences"] // 2**halvings)
            execution = {**execution, "micro_batch_sequences": sequences, "oom_halvings": halvings}
        return execution

    def _halve(self, planned: PlannedRun) -> bool:
        """Have the run go on with half its micro-batch; False where that is no remedy any more."""
        if self.halvings[planned.run_id] == MOST_HALVINGS or self._execution_for(planned)["micro_batch_sequences"] == 1:
            return False
        self.halvings[planned.run_id] += 1
        sequences = self._execution_for(planned)["micro_batch_sequences"]
        self.progress.note(
            f"{planned.run_id} was killed since memory ran out; it goes on with {sequences} sequences at a time"
        )
        self.queue.put_back(planned)
        return True

    def _result_of_trunk(self, planned: PlannedRun) -> Result | None:
        trunk = parent_id(planned)
        if trunk in self.outcomes:
            return self.outcomes[trunk].result
        return self.ledger.result(trunk) if trunk is not None and trunk in self.ledger else None

    def _follow(self, planned: PlannedRun, trunk: Result) -> None:
        """Give a run the status of its trunk, whose updates are its own."""
        reason = f"its trunk {trunk['run_id']} {trunk['status']}: {trunk.get('reason')}"
        self._record(planned, failure(planned, reason, trunk["step"], resumes=0, status=trunk["status"]))

    def _record(self, planned: PlannedRun, result: Result) -> None:
        """Settle a run for which no worker could write a result."""
        run = self.folder.run(planned.run_id)
        try:
            if not run.spec.exists():
                write_json(run.spec, {"run_id": planned.run_id, "spec": planned.spec.to_json(), "execution": None})
            write_json(run.result, result)
            self.ledger.refresh(planned.run_id)
        except OSError as error:
            self.progress.note(f"{run.result} cannot be written ({error}); the failure is not recorded")
        self._settle(planned, result)

    def _collect(self) -> None:
        for run_id, attempt in list(self.active.items()):
            ended = attempt.job.poll()
            if ended is None:
                continue
            del self.active[run_id]
            self.pulses.pop(run_id, None)
            was_hung = run_id in self.hung
            self.hung.discard(run_id)
            if self._take_what_came(attempt.planned):
                continue
            if was_hung:
                hung = f"it gave no sign of life for {duration(self.settings.hang_seconds)} and was killed"
                self._died(attempt.planned, hung)
            elif self._advanced(attempt, ended):
                self.progress.note(f"{run_id} was told to stop by another, at a checkpoint; it goes on")
                self.queue.put_back(attempt.planned)
            elif not (ended.out_of_memory and self._halve(attempt.planned)):
                self._died(attempt.planned, str(ended))

    def _end_hung(self) -> None:
        """Kill the workers that hang. `_collect` hears of their end."""
        most = self.settings.hang_seconds
        if most is None or self.settings.clock() < self.hang_due:
            return
        self.hang_due = self.settings.clock() + most * LOOKS_FOR_HANGING
        for run_id, attempt in self.active.items():
            if self._silent_seconds(run_id) > most:
                self.hung.add(run_id)
                attempt.job.kill()

    def _silent_seconds(self, run_id: str) -> float:
        if run_id not in self.pulses:
            self.pulses[run_id] = Pulse(self.folder.run(run_id), self.settings.clock)
        return self.pulses[run_id].silent_seconds()

    def _advanced(self, attempt: _Attempt, ended: Ended) -> bool:
        """Whether the worker was stopped, by a queue's preemption say, after it had moved on: that
        is no death, and cannot repeat for ever."""
        run = self.folder.run(attempt.planned.run_id)
        saved = stamp(run.checkpoint) not in (None, attempt.saved)  # between two log lines, perhaps
        return ended.status == CHECKPOINTED and (saved or last_step(run.metrics) > attempt.from_step)

    def _died(self, planned: PlannedRun, how: str) -> None:
        self.deaths[planned.run_id] += 1
        deaths, allowed = self.deaths[planned.run_id], self.settings.retries
        if deaths <= allowed:
            self.progress.note(f"{planned.run_id} died ({how}); retry {deaths} of {allowed}")
            self.queue.put_back(planned)
            return
        run = self.folder.run(planned.run_id)
        reason = f"its worker died {deaths} times without a result, at last: {how}. {_log_tail(run.log)}"
        self._record(planned, failure(planned, reason, last_step(run.metrics), resumes=deaths - 1))

    def _settle(self, planned: PlannedRun, result: Result) -> None:
        self.outcomes[planned.run_id] = _outcome(result, self.attempts[planned.run_id])
        self.stale = True
        self.queue.settle(planned.run_id)
        self.progress.settled(planned, result)

    def _keep_ledger(self) -> None:
        """Keep runs.csv in step, but not at every result: that would take time as the square of the runs."""
        if self.stale and self.settings.clock() >= self.write_due:
            self._write_ledger(durable=False)  # the disk may take longer than all that a decision does
            gc.freeze()  # nor are the results that came since looked through, for 10 ms each time
            self.write_due = self.settings.clock() + WRITE_SECONDS_PER_ROW * self.ledger.rows

    def _write_ledger(self, durable: bool = True) -> None:
        """A disk that is full ends no run: it is said once, tried again after a later result, and raised at the
        end."""
        if not self.stale:
            return
        self.stale = False
        try:
            self.ledger.write(durable)
        except OSError as error:
            if self.unwritten is None:
                self.progress.note(f"{self._unwritten_message(error)} Training goes on.")
            self.unwritten = OSError(error.errno, self._unwritten_message(error))
        else:
            self.unwritten = None

    def _unwritten_message(self, error: OSError) -> str:
        return (
            f"{self.folder.runs_csv} cannot be written ({error.strerror}). Nothing is lost: each result is "
            "in runs/*/result.json. Make room, or the folder writable, and give the same command again."
        )

    def _pause(self) -> None:
        self.progress.update()
        for line in self.mirror.messages() if self.mirror else ():
            self.progress.note(line)
        self.settings.sleep(self.settings.poll_seconds)

    def _stop(self, interrupts: Interrupts) -> NoReturn:
        """Have every worker checkpoint and stop; kill those that hang, or all at a second signal; raises Interrupted."""
        asked = len(self.active)
        self.progress.note(f"Stopping: {asked} workers save a checkpoint; Ctrl-C again kills them.")
        for attempt in self.active.values():
            attempt.job.cancel()
        killed, ended = False, 0
        while self.active:
            if interrupts.count > 1 and not killed:
                killed = True
                for attempt in self.active.values():
                    attempt.job.kill()
            self._end_hung()
            self._pause()
            for run_id, attempt in list(self.active.items()):
                if attempt.job.poll() is not None:
                    del self.active[run_id]
                    ended += self._take_what_came(attempt.planned)
        self._write_ledger()
        how = "killed; they go on from their last checkpoint" if killed else "stopped, at a checkpoint"
        raise Interrupted(
            f"Interrupted by {interrupts.first.name}: {len(self.outcomes)} of {len(self.runs)} runs are "
            f"done, {asked - ended} were {how}. Give the same command to go on from there.",
            interrupts.first,
        )

    def _take_what_came(self, planned: PlannedRun) -> bool:
        """Whether the run reached a result before it stopped."""
        result = self.ledger.refresh(planned.run_id)
        if result is None:
            self.progress.stopped(planned)
        else:
            self._settle(planned, result)
        return result is not None


def _outcome(result: Result, attempts: int) -> Outcome:
    return Outcome(result["run_id"], result["status"], result.get("reason"), attempts, result)


def _log_tail(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_TAIL_BYTES))
            tail = file.read().decode("utf-8", errors="replace").strip()
    except OSError as error:
        return f"Its log cannot be read: {error}"
    return f"End of {path}:\n{tail}" if tail else f"{path} is empty."
