"""All isoFLOP curves read at once: one asymmetric shape, its minimum on a power law in C."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from analysis.resample import RESAMPLES, SEED
from analysis.values import Skipped
from analysis.windows import FARTHEST, Window, by_parabola

STEEPNESS = (0.01, 3.0)
"""Where the two exponents of the shared shape are sought, as `laws.EXPONENT_RANGE`."""

DECLINE = (-0.5, 1.0)
"""Where the exponent by which curves flatten with C is sought: it is alpha·beta/(alpha + beta) of a
separable surface, 0.15 for Hoffmann et al.'s. Assumption."""

UNEQUAL = 1e-6
"""Range of log C within budgets below which all runs of one cost the same: rounding of FLOPs in a table."""


@dataclass(frozen=True, eq=False)
class Joint:
    """One asymmetric shape for all budgets, its minimum on a power law in C:

        L = m_j + C^-decline · [s·h(log N - log N_opt(C)) + t·(log C - log C_j)],
        log N_opt = level + slope·(log C - log_centre),
        h(w) = [right·(e^(-left·w) - 1) + left·(e^(right·w) - 1)] / [left·right·(left + right)/2] = w² + O(w³).

    m_j is each budget's own least loss, and t takes up what runs cost more or less than their budget's
    mean C_j. Along a budget of 6·N·D a separable surface is exactly this, with left = alpha, right =
    beta and decline = alpha·beta/(alpha + beta) (Hoffmann et al. 2022, equation 4, put into equation 2),
    but slope and level are free of them. theta = (level, slope, log left, log right, decline); `draws`
    [resample, 5] are one Gauss-Newton step to resampled residuals.
    """

    theta: np.ndarray
    draws: np.ndarray
    log_centre: float

    def log_params(self, log_flops: np.ndarray) -> np.ndarray:
        """log N_opt: row 0 the estimate, the others draws; float64[1 + resample, budget]."""
        every = np.vstack([self.theta, self.draws])
        return every[:, :1] + every[:, 1:2] * (np.asarray(log_flops) - self.log_centre)


def fit_joint(windows: Sequence[Window]) -> Joint | Skipped:
    """Least squares on relative residuals over all budgets, bracketed or not, the linear m_j, s and t by
    variable projection. Needs two budgets and two runs more than its unknowns."""
    count = sum(len(window.log_loss) for window in windows)
    needed = len(windows) + 7 + 2
    if len(windows) < 2 or count < needed:
        return Skipped(
            "joint isoFLOP fit",
            f"{len(windows)} curves with {count} runs; it needs 2 curves and, for so many, {needed} runs",
        )
    problem = _JointProblem(windows)
    solutions = [
        least_squares(
            problem.residuals,
            [*problem.line(), np.log(left), np.log(right), 0.15],
            bounds=tuple(np.transpose([(-np.inf, np.inf)] * 2 + [tuple(np.log(STEEPNESS))] * 2 + [DECLINE])),
            x_scale="jac",
            xtol=1e-12,
            ftol=1e-12,
            gtol=1e-12,
            max_nfev=300,
        )
        for left, right in ((0.35, 0.35), (0.8, 0.2), (0.2, 0.8))  # assumption: both skews and none
    ]
    best = min(solutions, key=lambda solution: solution.cost)
    freedom = max(count - needed + 2, 1)
    noise = np.random.default_rng(SEED).choice(best.fun * np.sqrt(count / freedom), size=(RESAMPLES, count))
    draws = best.x - noise @ np.linalg.pinv(best.jac).T
    return Joint(best.x, draws, problem.log_centre)


def by_joint(windows: Sequence[Window]) -> np.ndarray:
    """The optimum of the joint fit at each window's budget; see `Reading`."""
    fitted = fit_joint(windows)
    if isinstance(fitted, Skipped):
        return np.full(len(windows), np.nan)
    return fitted.log_params(np.array([window.log_flops for window in windows]))[0]


class _JointProblem:
    def __init__(self, windows: Sequence[Window]):
        self.windows = windows
        self.log_flops = np.array([window.log_flops for window in windows])
        self.log_centre = float(self.log_flops.mean())
        sizes = [len(window.log_loss) for window in windows]
        self.x = np.concatenate([window.log_params for window in windows])
        self.c = np.concatenate([window.log_costs for window in windows]) - self.log_centre
        self.dearer = self.c - np.repeat(self.log_flops - self.log_centre, sizes)
        self.inverse_loss = np.exp(-np.concatenate([window.log_loss for window in windows]))
        self.member = np.repeat(np.eye(len(windows)), sizes, axis=0) * self.inverse_loss[:, None]
        self.member /= np.linalg.norm(self.member, axis=0)

    def line(self) -> tuple[float, float]:
        """level and slope to begin with: through the parabolas' minima, held within their windows."""
        minima = by_parabola(self.windows)
        centres = np.array([window.log_params.mean() for window in self.windows])
        reach = np.array([np.ptp(window.log_params) for window in self.windows])
        minima = np.where(np.isnan(minima), centres, np.clip(minima, centres - reach, centres + reach))
        c = self.log_flops - self.log_centre
        return float(minima.mean()), float(c @ minima / (c @ c)) if c.any() else 0.5

    def residuals(self, theta: np.ndarray) -> np.ndarray:
        """(L - fit)/L [run], at the best m_j, s and t of this theta."""
        level, slope, log_left, log_right, decline = theta
        left, right = np.exp(log_left), np.exp(log_right)
        w = np.clip(self.x - level - slope * self.c, -FARTHEST, FARTHEST)
        shape = (right * np.expm1(-left * w) + left * np.expm1(right * w)) / (
            left * right * (left + right) / 2
        )
        flattening = np.exp(-decline * self.c) * self.inverse_loss
        curve, ones = self._within(flattening * shape), self._within(np.ones_like(w))
        if np.ptp(self.dearer) > UNEQUAL:
            cost = self._within(flattening * self.dearer)
            cost /= np.linalg.norm(cost)
            curve, ones = curve - cost * (cost @ curve), ones - cost * (cost @ ones)
        scale = max(float(curve @ ones), 0.0) / max(float(curve @ curve), 1e-300)
        return ones - scale * curve

    def _within(self, column: np.ndarray) -> np.ndarray:
        """`column` [run] less what the budgets' own least losses can take up."""
        return column - self.member @ (self.member.T @ column)
