"""Runs that differ by nothing but their seeds: how far chance moves a log loss, with its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from analysis.values import LEVEL, Estimate, RunRow

TAIL = (1 - LEVEL) / 2


def cells(rows: Sequence[RunRow]) -> list[list[RunRow]]:
    """Rows that share everything a table tells of a run but its seeds, in the table's order."""
    found: dict[tuple, list[RunRow]] = {}
    for row in rows:
        shape = (row.params, row.n_layer, row.d_model, row.n_head, row.d_ff)
        found.setdefault((*shape, row.tokens, row.batch_tokens, row.lr, row.param), []).append(row)
    return list(found.values())


def order_of(row: RunRow) -> str:
    """Which order its data come in: a seed of their own, or that of the initialisation."""
    return row.order_seed or row.seed


@dataclass(frozen=True)
class Pooled:
    """Squares of log losses about the mean of their set, and their degrees of freedom."""

    squares: float
    freedom: float

    @property
    def variance(self) -> float:
        return self.squares / self.freedom

    @property
    def sd_pct(self) -> Estimate:
        """Standard deviation of one run's loss, %, with its 90% chi-square interval (normal log losses)."""
        if not self.freedom:
            raise ValueError(
                "no two runs differ by their seed alone, so that nothing tells how far chance moves a loss"
            )
        lo, hi = (
            100 * math.sqrt(self.squares / chi2.ppf(1 - tail, self.freedom)) for tail in (TAIL, 1 - TAIL)
        )
        sd = 100 * math.sqrt(self.variance)
        return Estimate(sd, lo, hi, sd / math.sqrt(2 * self.freedom))

    def plus(self, other: Pooled) -> Pooled:
        """The sum of two independent sources: their variances add, with Satterthwaite's (1946) degrees of
        freedom."""
        total = self.variance + other.variance
        parts = self.variance**2 / self.freedom + other.variance**2 / other.freedom
        freedom = total**2 / parts if parts else self.freedom + other.freedom
        return Pooled(total * freedom, freedom)


def pooled(sets: Iterable[Sequence[RunRow]]) -> Pooled:
    """Of sets of runs [set][run], each about its own mean."""
    squares, freedom = 0.0, 0
    for rows in sets:
        losses = np.log([row.loss for row in rows])
        squares += float(np.sum((losses - losses.mean()) ** 2)) if len(rows) > 1 else 0.0
        freedom += max(len(rows) - 1, 0)
    return Pooled(squares, freedom)
