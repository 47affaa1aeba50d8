"""The isoFLOP curve of one budget, and its minimum read off a polynomial in log N."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.resample import RESAMPLES, SEED
from analysis.rollout import SAME_BUDGET, in_budgets, levels
from analysis.values import Isoflop, Runs

FEWEST_SIZES = 4
"""Distinct sizes of an isoFLOP curve: one more than a parabola's three coefficients."""

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


def windows_of(runs: Runs, curves: Sequence[Isoflop]) -> tuple[Window, ...]:
    """The runs behind each curve, in the curve's order."""
    place = {run_id: i for i, run_id in enumerate(runs.run_id)}
    return tuple(window_of(runs, np.array([place[run_id] for run_id in curve.run_ids])) for curve in curves)


def groups(runs: Runs) -> list[tuple[str, np.ndarray]]:
    """(name, int64[run of the group]): the table's groups, or runs within 10% of each other's FLOPs where
    they are of FEWEST_SIZES sizes or more."""
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


def planned_budgets(runs: Runs) -> bool:
    """Were the runs planned as budgets, each spent on several sizes? By their labels, or by FLOPs that stand
    in tight groups and on fewer levels than D: where a few sizes cross a few token counts it is the other
    way around, and runs of nearly equal cost, which meet by chance, need not have a minimum among them."""
    if any(runs.group):
        return True
    return in_budgets(runs) and levels(runs.flops, SAME_BUDGET) < levels(runs.tokens, SAME_BUDGET)


def window_of(runs: Runs, index: np.ndarray) -> Window:
    """The runs at `index`, in that order."""
    log_costs = np.log(runs.flops[index])
    return Window(float(log_costs.mean()), log_costs, np.log(runs.params[index]), np.log(runs.loss[index]))


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
    design, centre = design_of(window, degree)
    coefficients = np.linalg.lstsq(design, window.log_loss, rcond=None)[0]
    return centre + float(_lowest(coefficients[None])[0])


def design_of(window: Window, degree: int) -> tuple[np.ndarray, float]:
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


def minimum_draws(windows: Sequence[Window], degree: int) -> np.ndarray:
    """log N_opt by refitting each polynomial to pooled residuals; float64[resample, window]."""
    if not windows:
        return np.empty((RESAMPLES, 0))
    generator = np.random.default_rng(SEED)
    fitted, pool = [], []
    for window in windows:
        design, centre = design_of(window, degree)
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
