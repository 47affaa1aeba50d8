"""A value and its interval. Frozen; re-exported by analysis.values, as are the values of law_fit and
compute_optimal."""

from __future__ import annotations

from dataclasses import dataclass

LEVEL = 0.90
"""Probability that every interval here is meant to hold; assumption: the customary choice."""


@dataclass(frozen=True)
class Estimate:
    """A value and its 90% interval; `se` is its standard error (over bootstrap refits)."""

    value: float
    lo: float
    hi: float
    se: float
