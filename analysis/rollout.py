"""Backtests inside the sweep: fit the cheaper runs, predict the dearer, at every cut.

They do two things for the prediction: weigh the laws by how each has extrapolated, and scale the
interval by how far off the forecasts were for what they claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.ensemble import AUTOMATIC, SURFACES, Member, Voice, fit_members, forecast
from analysis.laws import Law
from analysis.values import LEVEL, BacktestRow, Runs

SAME_BUDGET = 1.1
"""Runs whose FLOPs differ by less than this ratio are of one budget: rounding to whole steps moves
a cell by a few per cent. Assumption."""

CUTS = 5
"""At most. Assumption: more cuts share nearly all their runs."""

CHEAPEST_SHARE, DEAREST_SHARE = 0.3, 0.9
"""Shares of the runs before the first cut, and before the last of a table without budgets.
Assumption: enough to fit before the one, enough to test after the other."""

PRIOR_CUTS = 2.0
"""Pseudo-cuts at which all laws erred alike, so that one cut does not decide. Assumption."""

SHARPNESS = 2.0
"""Laws weigh as (mean squared rollout error)^-2. Assumption: 1 to 4 gave the same errors within
4% on public and synthetic sweeps."""

TYPICAL_SCALE, PRIOR_FREEDOM = 1.0, 2.0
"""Scale of forecast variances before any rollout, and how many cuts that belief counts for (scaled
inverse chi-square, Gelman et al., Bayesian Data Analysis, section 2.6). Assumption: a forecast's own
variance is right until rollouts say otherwise. On public tables of real runs intervals then held 89% of
new runs, on synthetic sweeps (scripts/coverage.py) a few more."""

SMALLEST_SCALE = 0.5
"""Luck inside the sweep narrows an interval to no less. Assumption."""

FREEDOM = 10.0
"""Of the Student t that an interval is of. Assumption: a scale learnt from a few correlated cuts is
known to about 40%, which is what a chi-square of 10 is."""


@dataclass(frozen=True, eq=False)
class Rollout:
    """One cut: what the runs up to `cut_flops` said of the dearer ones [run], law by law."""

    cut_flops: float
    n_fit: int
    members: tuple[Member, ...]
    dearer: Runs
    errors: Mapping[str, np.ndarray]
    """log(predicted / measured) by law, float64[run]."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the rollouts earned: weights by law, summing to 1, and `scale`, by which forecast
    variances are multiplied."""

    weights: Mapping[str, float]
    scale: float
    cuts: int

    def half_width(self, said: Voice) -> np.ndarray:
        """Half the 90% interval of a new run's log loss, [point]."""
        return stats.t.ppf((1 + LEVEL) / 2, FREEDOM) * np.sqrt(self.scale * said.variance)


def budgets(flops: np.ndarray) -> list[np.ndarray]:
    """The runs of each budget, int64[run of the budget], cheapest budget first: chains of runs whose
    neighbours' FLOPs differ by a ratio below SAME_BUDGET."""
    order = np.argsort(flops, kind="stable")
    ordered = flops[order]
    return np.split(order, np.flatnonzero(ordered[1:] / ordered[:-1] >= SAME_BUDGET) + 1)


def in_budgets(runs: Runs) -> bool:
    """Do the runs' FLOPs stand in tight groups, of three runs on average or more?"""
    found = [runs.flops[index] for index in budgets(runs.flops)]
    return len(runs) >= 3 * len(found) and all(
        budget.max() / budget.min() < SAME_BUDGET**2 for budget in found
    )


def levels(values: np.ndarray, same: float) -> int:
    """Levels that lie apart by the ratio `same` or more: each begins at its least value, so that a dense
    cloud counts for the range it covers."""
    count, least = 0, 0.0
    for value in np.sort(values):
        if not count or value >= same * least:
            count, least = count + 1, value
    return count


def cuts(runs: Runs) -> list[float]:
    """FLOPs to cut at, ascending: after the second budget and each later one but the last, or where
    the runs form no budgets (fewer than three to each, or one that spreads as far as the next), at
    quantiles of their FLOPs."""
    flops = np.sort(runs.flops)
    if in_budgets(runs):
        tops = [float(runs.flops[budget].max()) for budget in budgets(runs.flops)[1:-1]]
    else:
        shares = np.linspace(CHEAPEST_SHARE, DEAREST_SHARE, CUTS)
        tops = sorted({float(np.quantile(flops, share, method="lower")) for share in shares})
    return [top for top in tops if np.mean(flops <= top) >= CHEAPEST_SHARE][-CUTS:]


def roll(
    runs: Runs, predicting: Sequence[Law] = AUTOMATIC, beside: Sequence[Law] = SURFACES
) -> tuple[Rollout, ...]:
    """Fit the laws that predict, and those `beside` them that only show their errors, at every cut that
    leaves enough runs for all that predict."""
    names = {law.name for law in predicting}
    rollouts = []
    for cut in cuts(runs):
        cheaper = runs.flops <= cut
        if cheaper.all():
            continue
        members, _ = fit_members(runs.take(cheaper), predicting, beside=beside, resamples=0)
        if not names <= {member.law.name for member in members}:
            continue
        dearer = runs.take(~cheaper)
        said = forecast(members, {name: 1 / len(names) for name in names}, dearer).by_law
        errors = {name: log_loss - np.log(dearer.loss) for name, log_loss in said.items()}
        rollouts.append(Rollout(cut, int(cheaper.sum()), members, dearer, errors))
    return tuple(rollouts)


def weigh(rollouts: Sequence[Rollout], names: Sequence[str], upto: float = np.inf) -> dict[str, float]:
    """Each predicting law's weight from its errors on runs that cost at most `upto` FLOPs."""
    squared = []
    for rollout in rollouts:
        seen = rollout.dearer.flops <= upto
        if seen.any():
            squared.append([np.mean(rollout.errors[name][seen] ** 2) for name in names])
    if not squared or len(names) == 1:
        return {name: 1 / len(names) for name in names}
    mean = np.mean(squared, axis=0)
    mean = (PRIOR_CUTS * mean.mean() + len(squared) * mean) / (PRIOR_CUTS + len(squared))
    weight = (mean / mean.min()) ** -SHARPNESS
    return {name: float(share) for name, share in zip(names, weight / weight.sum(), strict=True)}


def calibrate(
    rollouts: Sequence[Rollout], predicting: Sequence[Law] = AUTOMATIC
) -> tuple[Calibration, tuple[BacktestRow, ...]]:
    """Weights, scale and the rows to show.

    At each cut the laws are weighed, and the interval scaled, by the earlier cuts alone, so that no
    forecast knows what it is scored on. Errors at one cut share its fit, so a cut counts as one
    observation of the scale: with m_j the mean of error²/variance at cut j, the scale is
    (v·s + sum m_j)/(v + J), v = PRIOR_FREEDOM and s = TYPICAL_SCALE.
    """
    names = [law.name for law in predicting]
    ratios: list[float] = []
    rows: list[BacktestRow] = []
    for index, rollout in enumerate(rollouts):
        weights = weigh(rollouts[:index], names, rollout.cut_flops)
        said = forecast(rollout.members, weights, rollout.dearer)
        half = Calibration(weights, _scale(ratios), len(ratios)).half_width(said)
        for name, errors in rollout.errors.items():
            rows += _rows(rollout, name, errors + np.log(rollout.dearer.loss), None)
        rows += _rows(rollout, "combined", said.log_loss, half)
        errors = said.log_loss - np.log(rollout.dearer.loss)
        ratios.append(float(np.mean(errors**2 / said.variance)))
    return Calibration(weigh(rollouts, names), _scale(ratios), len(ratios)), tuple(rows)


def _scale(ratios: Sequence[float]) -> float:
    learnt = (PRIOR_FREEDOM * TYPICAL_SCALE + sum(ratios)) / (PRIOR_FREEDOM + len(ratios))
    return max(SMALLEST_SCALE, learnt)


def _rows(rollout: Rollout, law: str, log_loss: np.ndarray, half: np.ndarray | None) -> list[BacktestRow]:
    runs, rows = rollout.dearer, []
    for i, run_id in enumerate(runs.run_id):
        lo, hi = (
            (None, None) if half is None else (np.exp(log_loss[i] - half[i]), np.exp(log_loss[i] + half[i]))
        )
        rows.append(
            BacktestRow(
                run_id=run_id,
                law=law,
                cut_flops=rollout.cut_flops,
                n_fit=rollout.n_fit,
                flops=float(runs.flops[i]),
                distance=float(np.log(runs.flops[i] / rollout.cut_flops)),
                predicted=float(np.exp(log_loss[i])),
                measured=float(runs.loss[i]),
                lo90=None if lo is None else float(lo),
                hi90=None if hi is None else float(hi),
                inside=None if lo is None else bool(lo <= runs.loss[i] <= hi),
            )
        )
    return rows
