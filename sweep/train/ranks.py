"""One run on several GPUs of a machine (or, through gloo, by several processes of a CPU): a rank for each.

The worker forks the ranks, which meet as torchrun's do, and waits for them. Each makes all updates of `train` on its
share of every batch: DistributedDataParallel averages the gradients, or `fully_shard` (FSDP2) where a GPU lacks room
for the whole model. What clocks, signals or memory decide is decided by all together. Rank 0 alone writes files, in
the form in which one process writes them: a run may go on with another number of ranks.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from multiprocessing.connection import Connection, Pipe, wait
from typing import NoReturn, Protocol

import torch
import torch.distributed as dist

from models.count import count_parameters
from sweep.files import RunFolder
from sweep.plan.spec import RunSpec
from sweep.train import distributed
from sweep.train.out_of_memory import MicroBatch, is_out_of_memory
from sweep.train.result import RunResult
from sweep.train.shared_memory import SharedMemory
from sweep.train.train import Execution, Stopped, train

LOOK_SECONDS = 0.2  # assumption: how late a request to stop may be passed on; an update takes as long
SETTLE_SECONDS = 2.0  # assumption: what one rank's end does to the others shows within this
ORPHAN_SECONDS = 120.0  # assumption: ranks that have lost their worker agree and save a checkpoint within this
COLLECTIVE_TIMEOUT = timedelta(days=1)  # that a run hangs is seen by its coordinator (executor.hang_minutes)


class StopRequest(Protocol):
    """sweep.worker's: true once this process was told to stop or lost its parent."""

    orphaned: Callable[[], bool]

    def __call__(self) -> bool: ...


class RankLost(Exception):
    """A rank was killed, or ended without a word: exit status `status`, the negative of a signal's number."""

    def __init__(self, rank: int, status: int) -> None:
        super().__init__(f"rank {rank} was lost (exit status {status}), and with it the others")
        self.status = status


def train_on_ranks(spec: RunSpec, execution: Execution, folder: RunFolder, stop: StopRequest) -> RunResult:
    """`train` by `execution.ranks` processes: the same losses but for rounding, and the same files.

    Raises what `train` raises, whichever rank it happened on, and RankLost. A rank that runs out of memory ends all,
    for the others wait for it within a collective; they start again from the checkpoint, with half the micro-batch.
    """
    micro_batch = MicroBatch(execution.micro_batch_sequences, execution.oom_halvings)
    while True:
        try:
            return _try(spec, execution, folder, stop)
        except Exception as error:
            if not is_out_of_memory(error) or not micro_batch.halve():
                raise
        execution = replace(
            execution, micro_batch_sequences=micro_batch.sequences, oom_halvings=micro_batch.halvings
        )


def _try(spec: RunSpec, execution: Execution, folder: RunFolder, stop: StopRequest) -> RunResult:
    launcher = os.getpid()
    processes: list[int] = []
    pipes: list[Connection] = []
    if execution.device == "cpu":
        distributed.shared_memory = SharedMemory(execution.ranks, count_parameters(spec.shape).total)
    with tempfile.TemporaryDirectory() as meeting:
        try:
            for rank in range(execution.ranks):
                reader, writer = Pipe(duplex=False)
                sys.stdout.flush(), sys.stderr.flush()  # or both would write what is in them
                process = os.fork()
                if process == 0:
                    _be(rank, launcher, f"file://{meeting}/store", spec, execution, folder, stop, writer)
                writer.close()
                processes.append(process)
                pipes.append(reader)
            outcomes = _wait(processes, pipes, stop)
        finally:
            statuses = [_end(process) for process in processes]
    return _verdict(outcomes, statuses)


def _be(
    rank: int,
    launcher: int,
    store: str,
    spec: RunSpec,
    execution: Execution,
    folder: RunFolder,
    stop: StopRequest,
    pipe: Connection,
) -> NoReturn:
    """Be this rank: train, tell the launcher what came of it, and wait to be ended with the others."""
    try:
        stop.orphaned = lambda: os.getppid() != launcher
        threading.Thread(target=_end_with, args=(stop,), daemon=True).start()
        try:
            device = join(rank, execution.ranks, execution.device, store)
            outcome = train(spec, replace(execution, device=device), folder, stop)
        except Exception as error:
            outcome = _portable(error, rank)
        sys.stdout.flush(), sys.stderr.flush()
        pipe.send((time.monotonic(), outcome))
        while not stop.orphaned():
            time.sleep(LOOK_SECONDS)
    finally:
        os._exit(1)


def _end_with(stop: StopRequest) -> None:
    """End this rank, though it may hang in a collective, some time after the worker was killed."""
    while not stop.orphaned():
        time.sleep(LOOK_SECONDS)
    time.sleep(ORPHAN_SECONDS)
    os._exit(1)


def join(rank: int, count: int, device: str, store: str) -> str:
    """Meet the other ranks; returns this one's device. Raises ValueError where there are fewer GPUs than ranks.

    Gloo carries what is on a CPU, flags and losses to report too, and NCCL what is on GPUs.
    """
    backend = "gloo"
    if device == "cuda":
        if torch.cuda.device_count() < count:
            raise ValueError(
                f"a run of {count} GPUs sees {torch.cuda.device_count()} here; lower executor.gpus_per_run, or have "
                "that many on one machine"
            )
        device, backend = f"cuda:{rank}", "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(rank)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this machine
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=count, timeout=COLLECTIVE_TIMEOUT)
    return device


def _portable(error: Exception, rank: int) -> Exception:
    """The error with where it happened, as one that goes through a pipe."""
    where = "".join(traceback.format_exception(error)).rstrip()
    with suppress(Exception):
        same = pickle.loads(pickle.dumps(error))
        if (type(same), str(same)) == (type(error), str(error)):
            same.add_note(f"on rank {rank}:\n{where}")
            return same
    words = RuntimeError(f"{type(error).__name__}: {error}")
    words.add_note(f"on rank {rank}:\n{where}")
    return words


Outcome = tuple[float, RunResult | Exception]
"""What came of a rank, and when (the machine's monotonic clock)."""


def _wait(processes: list[int], pipes: list[Connection], stop: StopRequest) -> dict[int, Outcome | None]:
    """What came of each rank, once it is known what came of the run: None for one that ended without a word."""
    outcomes: dict[int, Outcome | None] = {}
    told, settled = False, None
    while len(outcomes) < len(pipes) and (settled is None or time.monotonic() < settled):
        for pipe in wait([pipe for rank, pipe in enumerate(pipes) if rank not in outcomes], LOOK_SECONDS):
            rank = pipes.index(pipe)
            try:
                outcomes[rank] = pipe.recv()
            except EOFError:
                outcomes[rank] = None
        if settled is None and any(_decides(rank, outcome) for rank, outcome in outcomes.items()):
            settled = time.monotonic() + SETTLE_SECONDS
        if stop() and not told:
            told = True
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)
    return outcomes


def _decides(rank: int, outcome: Outcome | None) -> bool:
    """Whether there is no more to wait for: of an end that all ranks come to, the first one's, who writes files."""
    return rank == 0 or outcome is None or not isinstance(outcome[1], RunResult | Stopped)


def _verdict(outcomes: dict[int, Outcome | None], statuses: list[int]) -> RunResult:
    first = outcomes.get(0)
    if first is not None and isinstance(first[1], RunResult):
        return first[1]
    if first is not None and isinstance(first[1], Stopped):
        raise first[1]
    lost = [rank for rank, outcome in outcomes.items() if outcome is None]
    if lost:  # what the others then say is that they miss it
        raise RankLost(lost[0], statuses[lost[0]])
    errors = [outcome for outcome in outcomes.values() if isinstance(outcome[1], Exception)]
    raise min(errors, key=lambda outcome: outcome[0])[1]


def _end(process: int) -> int:
    """End the rank now, where it has not ended; its exit status, as `subprocess` has it."""
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
