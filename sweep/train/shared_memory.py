"""What the ranks of a run on one CPU tell each other at every update goes through memory that they share.

A collective of gloo goes through a socket, and threads of its own that find no core free where every core has a rank.
"""

import mmap
import multiprocessing

import torch
import torch.distributed as dist
from torch import Tensor

FLAGS = 8  # that the ranks may agree on at a time
TURNS = 2
"""Rows that are written in turn: until all have come to a meeting, none is two ahead of another, and what one reads
another does not write over."""


class SharedMemory:
    """Made before the ranks are forked, for `parameters` gradients of each of `ranks` processes."""

    def __init__(self, ranks: int, parameters: int) -> None:
        self._gradients = _shared(TURNS, ranks, parameters)
        self._flags = _shared(TURNS, ranks, FLAGS)
        self._met = [[multiprocessing.Semaphore(0) for _ in range(ranks)] for _ in range(ranks)]
        self._turn = self._offset = self._asked = 0

    def average(self, gradients: Tensor) -> Tensor:
        """The ranks' mean of float32[part], in its place. All bring the same parts in the same order, until they
        have brought all parameters of an update."""
        end = self._offset + len(gradients)
        rows = self._gradients[self._turn, :, self._offset : end]
        rows[dist.get_rank()].copy_(gradients)
        self._meet()
        torch.sum(rows, dim=0, out=gradients)
        self._offset = end % self._gradients.shape[2]
        if self._offset == 0:
            self._turn = (self._turn + 1) % TURNS
        return gradients.div_(len(rows))

    def agreed(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag as true where any rank has it so."""
        rows = self._flags[self._asked % TURNS, :, : len(flags)]
        self._asked += 1
        rows[dist.get_rank()] = torch.tensor(flags, dtype=rows.dtype)
        self._meet()
        return tuple(rows.amax(0).bool().tolist())

    def hook(self, _: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """DistributedDataParallel's communication hook."""
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(self.average(bucket.buffer()))
        return done

    def _meet(self) -> None:
        """Come back when all ranks are here. What each wrote before, all can read then: a semaphore sees to that."""
        here = dist.get_rank()
        others = [rank for rank in range(len(self._met)) if rank != here]
        for other in others:
            self._met[here][other].release()
        for other in others:
            self._met[other][here].acquire()


def _shared(*shape: int) -> Tensor:
    """Zeros, float32, of an anonymous mapping: a process that is forked has the same memory, not a copy."""
    numbers = torch.Size(shape).numel()
    return torch.frombuffer(mmap.mmap(-1, 4 * max(1, numbers)), dtype=torch.float32)[:numbers].view(shape)
