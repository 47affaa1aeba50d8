"""Approach 2: the minimum of each budget's isoFLOP curve, and the power law through the minima.

Hoffmann et al. 2022 (arXiv 2203.15556), section 3.2, read each minimum off a parabola in log N. Where
the curve is not symmetric about its minimum that reading is biased (Czech et al. 2026, arXiv
2603.22339; analysis/bias.py measures by how much), so there are two more ways to read it: a cubic for
each budget, and one shape shared by all budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares

from analysis.cost import CostRule
from analysis.resample import RESAMPLES, SEED, estimate
from analysis.rollout import SAME_BUDGET
from analysis.values import Allocation, Estimate, Isoflop, Runs, Skipped

SAME_LABEL = 1.5
"""Largest ratio of FLOPs within a labelled budget. The label says that they were meant to be equal;
they differ where it follows another convention than the column. Assumption."""

FEWEST_SIZES = 4
"""Distinct sizes of an isoFLOP curve: one more than a parabola's three coefficients."""

STEEPNESS = (0.01, 3.0)
"""Where the two exponents of the shared shape are sought, as `laws.EXPONENT_RANGE`."""

DECLINE = (-0.5, 1.0)
"""Where the exponent by which curves flatten with C is sought: it is alpha·beta/(alpha + beta) of a
separable surface, 0.15 for Hoffmann et al.'s. Assumption."""

UNEQUAL = 1e-6
"""Range of log C within budgets below which all runs of one cost the same: rounding of FLOPs in a table."""

FARTHEST = 30.0
"""|log N_opt - window's centre| at most: a draw without a minimum is put here, on the falling side."""


@dataclass(frozen=True, eq=False)
class Window:
    """One budget's curve: the mean log C, and log C, log N and log L of its runs, float64[run]."""

    log_flops: float
    log_costs: np.ndarray
    log_params: np.ndarray
    log_loss: np.ndarray


Reading = Callable[[Sequence[Window]], np.ndarray]
"""Windows -> log N_opt, float64[window], NaN where there is no minimum to read."""


def isoflops(runs: Runs, rule: CostRule) -> tuple[tuple[Isoflop, ...], np.ndarray, tuple[Skipped, ...]]:
    """A parabola for each budget of FEWEST_SIZES sizes or more.

    Runs of one `group` are one budget; without groups, runs within 10% of each other's FLOPs.
    The minimum's interval comes from resampling residuals, pooled over budgets because one has
    only a few (Efron & Tibshirani 1993, section 9.4).

    Returns: the curves, cheapest first; draws of log N_opt, float64[resample, curve] (NaN where a
        curve is not bracketed); and the groups that are no isoFLOP curve, with reasons.
    """
    found, skipped = [], []
    for name, index in _groups(runs):
        sizes = len(np.unique(runs.params[index]))
        spread = runs.flops[index].max() / runs.flops[index].min()
        if spread > SAME_LABEL:
            skipped.append(Skipped(f"isoFLOP curve of '{name}'", f"its runs' FLOPs differ by {spread:.2g}x"))
        elif sizes < FEWEST_SIZES:
            skipped.append(
                Skipped(
                    f"isoFLOP curve of '{name}'", f"it has {sizes} sizes; a parabola needs {FEWEST_SIZES}"
                )
            )
        else:
            found.append((name, index))
    found.sort(key=lambda curve: runs.flops[curve[1]].mean())
    windows = [_window(runs, index) for _, index in found]
    draws = _minimum_draws(windows, degree=2)
    curves = tuple(
        _isoflop(runs, rule, name, index, window, draws[:, i])
        for i, ((name, index), window) in enumerate(zip(found, windows, strict=True))
    )
    for i, curve in enumerate(curves):
        if not curve.bracketed:
            draws[:, i] = np.nan
    return curves, draws, tuple(skipped)


def windows_of(runs: Runs, curves: Sequence[Isoflop]) -> tuple[Window, ...]:
    """The runs behind each curve, in the curve's order."""
    place = {run_id: i for i, run_id in enumerate(runs.run_id)}
    return tuple(_window(runs, np.array([place[run_id] for run_id in curve.run_ids])) for curve in curves)


def _groups(runs: Runs) -> list[tuple[str, np.ndarray]]:
    labels = np.array(runs.group)
    if (labels != "").any():
        return [(str(name), np.flatnonzero(labels == name)) for name in dict.fromkeys(runs.group) if name]
    order = np.argsort(runs.flops, kind="stable")
    windows: list[list[int]] = []
    for i in order:
        if not windows or runs.flops[i] > SAME_BUDGET * runs.flops[windows[-1][0]]:
            windows.append([])
        windows[-1].append(int(i))
    sets = [(f"{runs.flops[window].mean():.2e}", np.array(window)) for window in windows]
    return [(name, index) for name, index in sets if len(np.unique(runs.params[index])) >= FEWEST_SIZES]


def _window(runs: Runs, index: np.ndarray) -> Window:
    log_costs = np.log(runs.flops[index])
    return Window(float(log_costs.mean()), log_costs, np.log(runs.params[index]), np.log(runs.loss[index]))


# --- a polynomial in log N for each budget ----------------------------------------------------------


def by_parabola(windows: Sequence[Window]) -> np.ndarray:
    """The vertex of a parabola in each window; see `Reading`."""
    return np.array([_polynomial_minimum(window, degree=2) for window in windows])


def by_cubic(windows: Sequence[Window]) -> np.ndarray:
    """The local minimum of a cubic in each window: its third coefficient takes up the asymmetry that
    moves a parabola's vertex, at the price of more noise. See `Reading`."""
    return np.array([_polynomial_minimum(window, degree=3) for window in windows])


def _polynomial_minimum(window: Window, degree: int) -> float:
    if len(np.unique(window.log_params)) < degree + 2:
        return float("nan")
    design, centre = _design(window, degree)
    coefficients = np.linalg.lstsq(design, window.log_loss, rcond=None)[0]
    return centre + float(_lowest(coefficients[None])[0])


def _design(window: Window, degree: int) -> tuple[np.ndarray, float]:
    """Powers of log N - centre, [run, degree + 1], and the centre, the window's mean log N."""
    centre = float(window.log_params.mean())
    return np.vander(window.log_params - centre, degree + 1, increasing=True), centre


def _lowest(coefficients: np.ndarray) -> np.ndarray:
    """Where c0 + c1·x + c2·x² (+ c3·x³) has its local minimum, [draw] from [draw, 3 or 4]; NaN for none."""
    c1, c2 = coefficients[:, 1], coefficients[:, 2]
    c3 = coefficients[:, 3] if coefficients.shape[1] > 3 else np.zeros_like(c1)
    discriminant = c2 * c2 - 3 * c1 * c3
    # The root of the derivative where the second derivative is positive, without cancellation.
    denominator = c2 + np.sqrt(np.maximum(discriminant, 0.0))
    there = (discriminant > 0) & (denominator > 0)
    return np.where(there, -c1 / np.where(there, denominator, 1.0), np.nan)


def _minimum_draws(windows: Sequence[Window], degree: int) -> np.ndarray:
    """log N_opt by refitting each polynomial to pooled residuals; float64[resample, window]."""
    if not windows:
        return np.empty((RESAMPLES, 0))
    generator = np.random.default_rng(SEED)
    fitted, pool = [], []
    for window in windows:
        design, centre = _design(window, degree)
        coefficients = np.linalg.lstsq(design, window.log_loss, rcond=None)[0]
        freedom = max(len(design) - degree - 1, 1)
        pool.append((window.log_loss - design @ coefficients) * np.sqrt(len(design) / freedom))
        fitted.append((design, centre, coefficients))
    residuals, columns = np.concatenate(pool), []
    for design, centre, coefficients in fitted:
        noise = generator.choice(residuals, size=(RESAMPLES, len(design)))
        drawn = coefficients + noise @ np.linalg.pinv(design).T
        # A draw without a minimum says that N_opt is unbounded on the side that falls.
        vertex = _lowest(drawn)
        vertex = np.where(np.isnan(vertex), np.where(drawn[:, 1] > 0, -FARTHEST, FARTHEST), vertex)
        columns.append(centre + np.clip(vertex, -FARTHEST, FARTHEST))
    return np.column_stack(columns)


def _isoflop(
    runs: Runs, rule: CostRule, name: str, index: np.ndarray, window: Window, draws: np.ndarray
) -> Isoflop:
    design, centre = _design(window, degree=2)
    c0, c1, c2 = (float(c) for c in np.linalg.lstsq(design, window.log_loss, rcond=None)[0])
    order = index[np.argsort(runs.params[index], kind="stable")]
    sizes = runs.params[order]
    curve = Isoflop(
        group=name,
        flops=float(np.exp(window.log_flops)),
        run_ids=tuple(runs.run_id[i] for i in order),
        params=sizes,
        loss=runs.loss[order],
        centre=float(np.exp(centre)),
        coefficients=(c0, c1, c2),
        bracketed=False,
        params_opt=None,
        tokens_opt=None,
        loss_min=None,
        reason="",
    )
    if c2 <= 0:
        return replace(curve, reason="the losses do not curve upwards over these sizes: no minimum to find")
    optimum = curve.centre * np.exp(-c1 / (2 * c2))
    if not sizes[0] < optimum < sizes[-1]:
        side = "below the smallest" if optimum <= sizes[0] else "above the largest"
        return replace(curve, reason=f"the minimum lies {side} size that was run; add sizes on that side")
    return replace(
        curve,
        bracketed=True,
        params_opt=estimate(optimum, np.exp(draws)),
        tokens_opt=float(rule.tokens(curve.flops, optimum)),
        loss_min=float(curve.loss_at(optimum)),
    )


# --- one shape for all budgets ------------------------------------------------------------------------


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


# --- the power law through the minima -----------------------------------------------------------------

READINGS: Mapping[str, Reading] = {"parabola": by_parabola, "cubic": by_cubic, "joint": by_joint}


def by_isoflops(curves: Sequence[Isoflop], draws: np.ndarray, rule: CostRule) -> Allocation | Skipped:
    """Approach 2: a line through the bracketed minima of the parabolas."""
    good = [i for i, curve in enumerate(curves) if curve.bracketed]
    if len(good) < 2:
        return Skipped("approach 2", f"it needs 2 bracketed isoFLOP curves; {len(good)} of {len(curves)} are")
    flops = np.array([curves[i].flops for i in good])
    log_n = np.vstack([[np.log(curves[i].params_opt.value) for i in good], draws[:, good]])
    reasons = []
    if len(good) < 3:
        reasons.append("two points determine a line whatever they are")
    if len(good) < len(curves):
        reasons.append(f"{len(curves) - len(good)} of {len(curves)} curves are not bracketed and left out")
    log_d = np.log(flops) - rule.log(log_n)[0]
    return line_allocation(2, flops, log_n, log_d, len(good), "; ".join(reasons), method="parabola")


def remedies(
    runs: Runs, curves: Sequence[Isoflop], rule: CostRule
) -> tuple[tuple[Allocation, ...], tuple[Skipped, ...]]:
    """Approach 2 again with a cubic for each budget, and with one shape for all; those that can't be."""
    windows = windows_of(runs, curves)
    found = (_by_cubics(curves, windows, rule), _by_shape(windows, rule))
    return (
        tuple(item for item in found if isinstance(item, Allocation)),
        tuple(item for item in found if isinstance(item, Skipped)),
    )


def _by_cubics(curves: Sequence[Isoflop], windows: Sequence[Window], rule: CostRule) -> Allocation | Skipped:
    windows = [
        window
        for curve, window in zip(curves, windows, strict=True)
        if curve.bracketed and len(np.unique(curve.params)) > FEWEST_SIZES
    ]
    minima = by_cubic(windows)
    inside = [
        i for i, window in enumerate(windows) if window.log_params.min() < minima[i] < window.log_params.max()
    ]
    if len(inside) < 2:
        return Skipped(
            "approach 2 with cubics",
            f"it needs 2 curves of {FEWEST_SIZES + 1} sizes with a minimum inside; there are {len(inside)}",
        )
    windows, minima = [windows[i] for i in inside], minima[inside]
    flops = np.exp([window.log_flops for window in windows])
    log_n = np.vstack([minima, _minimum_draws(windows, degree=3)])
    log_d = np.log(flops) - rule.log(log_n)[0]
    return line_allocation(2, flops, log_n, log_d, len(inside), "", method="cubic")


def _by_shape(windows: Sequence[Window], rule: CostRule) -> Allocation | Skipped:
    fitted = fit_joint(windows)
    if isinstance(fitted, Skipped):
        return fitted
    log_flops = np.array([window.log_flops for window in windows])
    log_n = fitted.log_params(log_flops)
    log_d = log_flops - rule.log(log_n)[0]
    return line_allocation(2, np.exp(log_flops), log_n, log_d, len(windows), "", method="joint")


def line_allocation(
    approach: int,
    flops: np.ndarray,
    log_n: np.ndarray,
    log_d: np.ndarray,
    points: int,
    reason: str,
    method: str = "",
) -> Allocation:
    """Lines through log N and log D against log C [budget]; row 0 is the estimate, the rest draws."""
    x = np.log(flops)
    centred = x - x.mean()
    a, b = (rows @ centred / (centred @ centred) for rows in (log_n, log_d))
    return Allocation(
        approach=approach,
        a=_of_draws(a),
        b=_of_draws(b),
        params_factor=float(np.exp(log_n[0].mean() - a[0] * x.mean())),
        tokens_factor=float(np.exp(log_d[0].mean() - b[0] * x.mean())),
        points=points,
        reason=reason,
        method=method,
    )


def _of_draws(values: np.ndarray) -> Estimate:
    return estimate(values[0], values[1:])
