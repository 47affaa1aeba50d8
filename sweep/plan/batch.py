"""How many sequences go into each update: one number, or one that doubles as the run goes on.

The critical batch grows about as the square root of the tokens seen, and hardly with the size (Zhang et al. 2024,
arXiv 2410.21676; Merrill et al. 2025, 2505.23971, who double the batch as it grows). A batch of the run's
own length would give each budget a trunk of its own; one of the tokens seen so far is the same for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchSpec:
    """`sequences` at first. `doubles_at`: sequences seen when the batch doubles for the first time; it does
    so again each time that four times as many have been seen. None: it never does.

    Raises ValueError: a first doubling that is no even multiple of the batch, and so inside of an update.
    """

    sequences: int
    doubles_at: int | None = None

    def __post_init__(self) -> None:
        if self.sequences < 1:
            raise ValueError(f"a batch of {self.sequences} sequences: at least 1 is wanted")
        if self.doubles_at is not None and (self.doubles_at < 1 or self.doubles_at % (2 * self.sequences)):
            raise ValueError(f"doubles_at={self.doubles_at} is no even multiple of the batch of {self.sequences}")

    def at(self, step: int) -> int:
        """Sequences in update `step`, counted from 0."""
        return self.sequences << self._doublings(step)

    def seen(self, step: int) -> int:
        """Sequences in all updates before `step`."""
        doublings = self._doublings(step)
        if not doublings:
            return step * self.sequences
        return self._starts_seen(doublings) + (step - self._starts(doublings)) * (self.sequences << doublings)

    def steps(self, sequences: float) -> int:
        """The whole number of updates that comes nearest to seeing this many."""
        doublings = 0
        if self.doubles_at is not None and sequences >= self.doubles_at:
            doublings = 1 + int(math.log2(sequences / self.doubles_at) / 2)
        seen, start = (self._starts_seen(doublings), self._starts(doublings)) if doublings else (0, 0)
        return start + round((sequences - seen) / (self.sequences << doublings))

    def _doublings(self, step: int) -> int:
        """How often the batch has doubled before update `step`."""
        if self.doubles_at is None or step < self._starts(1):
            return 0
        first = self._starts(1)  # from here 3/2 · first · 2^k updates at each batch
        return 1 + int(math.log2(1 + (step - first) / (1.5 * first)))

    def _starts(self, doublings: int) -> int:
        """The update from which the batch has doubled so often, 1 or more."""
        first = self.doubles_at // self.sequences
        return first + 3 * first * (2 ** (doublings - 1) - 1) // 2

    def _starts_seen(self, doublings: int) -> int:
        return self.doubles_at * 4 ** (doublings - 1)


def growing(batch: float, at_sequences: float, least: int = 1) -> BatchSpec:
    """The doubling batch nearest to batch · sqrt(sequences seen / at_sequences), all in sequences, and `least` of
    them until then.

    It stays within a factor of sqrt(2) of that law, but for the rounding of the first doubling.
    """
    doubles_at = 2.0 * at_sequences * (least / batch) ** 2  # where the law is sqrt(2) · least
    return BatchSpec(least, 2 * least * max(1, round(doubles_at / (2 * least))))
