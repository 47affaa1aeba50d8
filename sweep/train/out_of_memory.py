"""Going on when memory runs out: the same batch in smaller parts."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch

from sweep.train.distributed import ranks

MOST_HALVINGS = 4  # assumption: a plan that is off by more than 16 is wrong, and its user must know
SAID = ("out of memory", "can't allocate memory", "not enough memory")
"""What RuntimeErrors of torch say of it: of CUDA's libraries, and of its allocator on a CPU."""


@dataclass
class MicroBatch:
    """How many sequences go through the model at once. The gradient is the whole batch's whatever their
    number, but for rounding."""

    sequences: int
    halvings: int = 0

    def halve(self) -> bool:
        """Take half as many from now on; False where that is no remedy, as for one rank by itself."""
        if ranks() > 1 or self.sequences == 1 or self.halvings == MOST_HALVINGS:
            return False
        self.sequences, self.halvings = -(-self.sequences // 2), self.halvings + 1
        print(f"out of memory: {self.sequences} sequences go through the model at once from here", flush=True)
        return True


def is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)


def release() -> None:
    """Give back what the failed attempt left, and what the allocator keeps for later."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
