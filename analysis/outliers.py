"""Runs that are no outcome of the sweep they stand in: failed ones, or ones measured on other data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.discrepancy import OUTLIER, krige
from analysis.fitting import fit_law
from analysis.laws import Law
from analysis.values import Exclusion, Runs

PASSES = 3
"""Assumption: a gross outlier hides at most two others from the fit."""


def screen(runs: Runs, laws: Sequence[Law]) -> tuple[Runs, tuple[Exclusion, ...]]:
    """The runs without those that lie more than OUTLIER standard errors from what the other runs say,
    by the first of `laws` that the runs can determine; and the latter with their reasons.

    A run is judged by its prediction from all others, law and discrepancy together, so that a steep
    corner of the table is no outlier as long as its neighbours are steep too.
    """
    exclusions: list[Exclusion] = []
    for _ in range(PASSES):
        found = _surprises(runs, laws)
        bad = np.abs(found) > OUTLIER  # False where a run was not judged (NaN)
        if not bad.any():
            break
        exclusions += [
            Exclusion(
                runs.run_id[i],
                f"its loss of {runs.loss[i]:.4g} lies {abs(found[i]):.0f} standard errors "
                f"{'above' if found[i] > 0 else 'below'} what the other runs say",
            )
            for i in np.flatnonzero(bad)
        ]
        runs = runs.take(~bad)
    return runs, tuple(exclusions)


def _surprises(runs: Runs, laws: Sequence[Law]) -> np.ndarray:
    """float64[run]; zeros where no law can be fitted."""
    for law in laws:
        try:
            _, theta, problem = fit_law(law, runs)
        except ValueError:
            continue
        return krige(problem, theta, runs.cluster).surprise
    return np.zeros(len(runs))
