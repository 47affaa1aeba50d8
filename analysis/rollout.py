"""Backtests inside the sweep: fit the cheaper runs, predict the dearer, at every cut.

They do two things for the prediction: weigh the laws by how each has extrapolated, and scale the
interval by how far off the forecasts were for what they claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.ensemble import PREDICTING, Forecast, Member, fit_members, forecast
from analysis.values import LEVEL, BacktestRow, Runs

RESAMPLES = 200
"""For each cut. Assumption: only a variance is taken of them, good to 10%."""

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

PRIOR_SCALE = 3.0
"""Degrees of freedom of the prior that forecast variances are right (scaled inverse chi-square with
mean scale 1). Assumption: 2 to 5 changed widths by less than 8% on public and synthetic sweeps."""


@dataclass(frozen=True, eq=False)
class Rollout:
    """One cut: what the runs up to `cut_flops` said of the dearer ones [run], law by law."""

    cut_flops: float
    n_fit: int
    members: tuple[Member, ...]
    dearer: Runs

    def log_errors(self, law: str, mask: np.ndarray | slice = slice(None)) -> np.ndarray:
        member = next(m for m in self.members if m.law.name == law)
        said, _ = member.log_loss(self.dearer.params[mask], self.dearer.tokens[mask])
        return said - np.log(self.dearer.loss[mask])


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the rollouts earned: weights by law, summing to 1; `scale`, by which forecast variances
    are multiplied; `freedom`, degrees of freedom of the Student t that the interval is of."""

    weights: Mapping[str, float]
    scale: float
    freedom: float
    cuts: int

    def half_width(self, said: Forecast) -> np.ndarray:
        """Half the 90% interval of a new run's log loss, [point]."""
        quantile = stats.t.ppf((1 + LEVEL) / 2, self.freedom)
        return quantile * np.sqrt(self.scale * said.variance)


def budgets(flops: np.ndarray) -> list[np.ndarray]:
    """The runs of each budget, int64[run of the budget], cheapest budget first: chains of runs whose
    neighbours' FLOPs differ by a ratio below SAME_BUDGET."""
    order = np.argsort(flops, kind="stable")
    ordered = flops[order]
    return np.split(order, np.flatnonzero(ordered[1:] / ordered[:-1] >= SAME_BUDGET) + 1)


def cuts(runs: Runs) -> list[float]:
    """FLOPs to cut at, ascending: after the second budget and each later one but the last, or where
    the runs form no budgets (fewer than three to each, or one that spreads as far as the next), at
    quantiles of their FLOPs."""
    flops = np.sort(runs.flops)
    levels = [runs.flops[index] for index in budgets(runs.flops)]
    formed = len(runs) >= 3 * len(levels) and all(
        level.max() / level.min() < SAME_BUDGET**2 for level in levels
    )
    if formed:
        tops = [float(level.max()) for level in levels[1:-1]]
    else:
        shares = np.linspace(CHEAPEST_SHARE, DEAREST_SHARE, CUTS)
        tops = sorted({float(np.quantile(flops, share, method="lower")) for share in shares})
    return [top for top in tops if np.mean(flops <= top) >= CHEAPEST_SHARE][-CUTS:]


def roll(runs: Runs, *, resamples: int = RESAMPLES) -> tuple[Rollout, ...]:
    """Fit every law at every cut that leaves enough runs for all of them."""
    rollouts = []
    for cut in cuts(runs):
        cheaper = runs.flops <= cut
        if cheaper.all():
            continue
        members, skipped = fit_members(runs.take(cheaper), resamples=resamples)
        if not skipped:
            rollouts.append(Rollout(cut, int(cheaper.sum()), members, runs.take(~cheaper)))
    return tuple(rollouts)


def weigh(rollouts: Sequence[Rollout], upto: float = np.inf) -> dict[str, float]:
    """Each law's weight from its errors on runs that cost at most `upto` FLOPs."""
    names = [law.name for law in PREDICTING]
    squared = []
    for rollout in rollouts:
        seen = rollout.dearer.flops <= upto
        if seen.any():
            squared.append([np.mean(rollout.log_errors(name, seen) ** 2) for name in names])
    if not squared:
        return {name: 1 / len(names) for name in names}
    mean = np.mean(squared, axis=0)
    mean = (PRIOR_CUTS * mean.mean() + len(squared) * mean) / (PRIOR_CUTS + len(squared))
    weight = (mean / mean.min()) ** -SHARPNESS
    return {name: float(share) for name, share in zip(names, weight / weight.sum(), strict=True)}


def calibrate(rollouts: Sequence[Rollout]) -> tuple[Calibration, tuple[BacktestRow, ...]]:
    """Weights, scale and the rows to show.

    At each cut the laws are weighed by the earlier cuts alone, on runs that the later cut had
    seen, so that no forecast knows what it is scored on. Errors at one cut share its fit, so a cut
    counts as one observation of the scale: with m_j the mean of error²/variance at cut j, the
    posterior scale is (v·1 + sum m_j)/(v + J), v = PRIOR_SCALE, and a new run's error is Student t
    with v + J degrees of freedom (Gelman et al., Bayesian Data Analysis, section 2.6). A scale below
    1 is not taken: luck inside the sweep must not make an interval narrower than its parts.
    """
    ratios: list[float] = []
    rows: list[BacktestRow] = []
    for index, rollout in enumerate(rollouts):
        weights = weigh(rollouts[:index], rollout.cut_flops)
        said = forecast(rollout.members, weights, rollout.dearer.params, rollout.dearer.tokens)
        before = Calibration(weights, _scale(ratios), PRIOR_SCALE + len(ratios), len(ratios))
        half = before.half_width(said)
        errors = said.log_loss - np.log(rollout.dearer.loss)
        for name in said.by_law:
            rows += _rows(rollout, name, said.by_law[name], None)
        rows += _rows(rollout, "combined", said.log_loss, half)
        ratios.append(float(np.mean(errors**2 / said.variance)))
    calibration = Calibration(weigh(rollouts), _scale(ratios), PRIOR_SCALE + len(ratios), len(ratios))
    return calibration, tuple(rows)


def _scale(ratios: Sequence[float]) -> float:
    return max(1.0, (PRIOR_SCALE + sum(ratios)) / (PRIOR_SCALE + len(ratios)))


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
