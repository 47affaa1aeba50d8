"""Runs that are no outcome of the sweep they stand in: failed ones, or ones measured on other data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.discrepancy import OUTLIER, Kriged, krige, log_variables
from analysis.fitting import fit_law
from analysis.laws import Law
from analysis.values import Exclusion, Runs

SUSPECT = 4.0
"""Standard errors from which a run is judged once more, by the others without it. Assumption: a clean
table of a thousand runs holds no such normal error in 19 of 20 draws."""

PASSES = 3
"""Assumption: a gross outlier hides at most two others from the fit."""


def screen(runs: Runs, laws: Sequence[Law]) -> tuple[Runs, tuple[Exclusion, ...]]:
    """The runs without those that lie more than OUTLIER standard errors from what the other runs say,
    by the first of `laws` that the runs can determine; and the latter with their reasons.

    A run is judged by its prediction from all others, law and discrepancy together, so that a steep
    corner of the table is no outlier as long as its neighbours are steep too. Suspects are judged by a
    fit that has seen none of them: in a small table one bad run inflates the very noise it is held
    against (an externally studentised residual; Cook & Weisberg 1982, section 2.2.1).
    """
    exclusions: list[Exclusion] = []
    for _ in range(PASSES):
        errors = _errors(runs, laws)
        bad = np.abs(errors) > OUTLIER  # False where a run was not judged (NaN)
        if not bad.any():
            break
        exclusions += [
            Exclusion(
                runs.run_id[i],
                f"its loss of {runs.loss[i]:.4g} lies {abs(errors[i]):.0f} standard errors "
                f"{'above' if errors[i] > 0 else 'below'} what the other runs say",
            )
            for i in np.flatnonzero(bad)
        ]
        runs = runs.take(~bad)
    return runs, tuple(exclusions)


def _errors(runs: Runs, laws: Sequence[Law]) -> np.ndarray:
    """Standard errors from what the others say, float64[run]; zeros where no law can be fitted."""
    for law in laws:
        try:
            found = _fitted(runs, law)
        except ValueError:
            continue
        errors = found.surprise.copy()
        suspect = np.abs(errors) > SUSPECT
        if suspect.any():
            try:
                without = _fitted(runs.take(~suspect), law)
            except ValueError:  # too few are left to judge by
                return errors
            judged = runs.take(suspect)
            said = without.forecast(log_variables(law, judged), judged.cluster)
            errors[suspect] = (np.log(judged.loss) - said.log_loss) / np.sqrt(said.variance)
        return errors
    return np.zeros(len(runs))


def _fitted(runs: Runs, law: Law) -> Kriged:
    _, theta, problem = fit_law(law, runs)
    return krige(problem, theta, runs.cluster)
