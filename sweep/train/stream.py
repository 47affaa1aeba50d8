"""Batches on the training device; on a GPU made ready ahead, while it is at work."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from sweep.data.batches import TokenBatches


class BatchStream:
    """Batch by step, as `TokenBatches` makes it, on `device`.

    On a GPU the batch of the next step is cut from the corpus by a thread, into pinned memory, and copied
    without waiting (`ahead`; by default wherever the device is none of the CPU's). Steps may be asked for in
    any order; only the one after the last is at hand.
    """

    def __init__(self, batches: TokenBatches, device: torch.device, ahead: bool | None = None) -> None:
        self._batches, self._device = batches, device
        ahead = device.type != "cpu" if ahead is None else ahead
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches") if ahead else None
        self._next: tuple[int, Future[Tensor]] | None = None

    def batch(self, step: int) -> Tensor:
        """int64[batch, seq_len + 1]."""
        if self._thread is None:
            return self._cut(step).to(self._device)
        ready = self._next[1] if self._next and self._next[0] == step else self._thread.submit(self._cut, step)
        self._next = step + 1, self._thread.submit(self._cut, step + 1)
        return ready.result().to(self._device, non_blocking=True)

    def _cut(self, step: int) -> Tensor:
        tokens = torch.from_numpy(self._batches.batch(step))
        return tokens.pin_memory() if self._device.type == "cuda" else tokens
