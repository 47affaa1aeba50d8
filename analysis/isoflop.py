"""Approach 2: the minimum of each budget's isoFLOP curve, and the power law through the minima.

Hoffmann et al. 2022 (arXiv 2203.15556), section 3.2, read each minimum off a parabola in log N. Where
the curve is not symmetric about its minimum that reading is biased (Czech et al. 2026, arXiv
2603.22339; analysis/bias.py measures by how much), so there are two more ways to read it: a cubic for
each budget, and one shape shared by all budgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from analysis.bands import line_band
from analysis.cost import CostRule
from analysis.joint import by_joint, fit_joint
from analysis.resample import estimate
from analysis.units import count
from analysis.values import Allocation, Estimate, Isoflop, Runs, Skipped
from analysis.windows import (
    FEWEST_SIZES,
    Reading,
    Window,
    by_cubic,
    by_parabola,
    design_of,
    groups,
    minimum_draws,
    window_of,
    windows_of,
)

SAME_LABEL = 1.5
"""Largest ratio of FLOPs within a labelled budget. The label says that they were meant to be equal;
they differ where it follows another convention than the column. Assumption."""

READINGS: Mapping[str, Reading] = {"parabola": by_parabola, "cubic": by_cubic, "joint": by_joint}
"""The ways to read the minima, by their names in `Allocation.method`."""


def isoflops(runs: Runs, rule: CostRule) -> tuple[tuple[Isoflop, ...], np.ndarray, tuple[Skipped, ...]]:
    """A parabola for each budget of FEWEST_SIZES sizes or more.

    Runs of one `group` are one budget; without groups, runs within 10% of each other's FLOPs.
    The minimum's interval comes from resampling residuals, pooled over budgets because one has
    only a few (Efron & Tibshirani 1993, section 9.4).

    Returns: the curves, cheapest first; draws of log N_opt, float64[resample, curve] (NaN where a
        curve is not bracketed); and the groups that are no isoFLOP curve, with reasons: where none is one,
        those alone that were meant to be.
    """
    found, skipped, meant = [], [], []
    for name, index in groups(runs):
        sizes = len(np.unique(runs.params[index]))
        spread = runs.flops[index].max() / runs.flops[index].min()
        if spread > SAME_LABEL:
            reason = f"its runs' FLOPs differ by {count(spread)}x"
        elif sizes < FEWEST_SIZES:
            reason = f"it has {sizes} size{'s' * (sizes != 1)}; a parabola needs {FEWEST_SIZES}"
        else:
            found.append((name, index))
            continue
        skipped.append(Skipped(f"isoFLOP curve of '{name}'", reason))
        meant += [skipped[-1]] * _trades(runs, index)
    found.sort(key=lambda curve: runs.flops[curve[1]].mean())
    windows = [window_of(runs, index) for _, index in found]
    draws = minimum_draws(windows, degree=2)
    curves = tuple(
        _isoflop(runs, rule, name, index, window, draws[:, i])
        for i, ((name, index), window) in enumerate(zip(found, windows, strict=True))
    )
    for i, curve in enumerate(curves):
        if not curve.bracketed:
            draws[:, i] = np.nan
    return curves, draws, tuple(skipped if found else meant)


def _trades(runs: Runs, index: np.ndarray) -> bool:
    """Do the group's larger models take fewer tokens, as on a budget? By the slope of log D over log N, which
    is -1 there, and 0 where sizes and token counts are crossed."""
    log_n, log_d = np.log(runs.params[index]), np.log(runs.tokens[index])
    centred = log_n - log_n.mean()
    return bool(centred @ log_d < -0.5 * centred @ centred)


def _isoflop(
    runs: Runs, rule: CostRule, name: str, index: np.ndarray, window: Window, draws: np.ndarray
) -> Isoflop:
    design, centre = design_of(window, degree=2)
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


# --- the power law through the minima -----------------------------------------------------------------


def by_isoflops(curves: Sequence[Isoflop], draws: np.ndarray, rule: CostRule) -> Allocation | Skipped:
    """Approach 2: a line through the bracketed minima of the parabolas."""
    good = [i for i, curve in enumerate(curves) if curve.bracketed]
    if len(good) < 2:
        none = f"no group of runs is a budget of {FEWEST_SIZES} sizes"
        had = f"{len(good)} of {len(curves)} are" if curves else none
        return Skipped("approach 2", f"it needs 2 bracketed isoFLOP curves; {had}")
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
    log_n = np.vstack([minima, minimum_draws(windows, degree=3)])
    log_d = np.log(flops) - rule.log(log_n)[0]
    return line_allocation(2, flops, log_n, log_d, len(inside), "", method="cubic")


def _by_shape(windows: Sequence[Window], rule: CostRule) -> Allocation | Skipped:
    fitted = fit_joint(windows)
    if isinstance(fitted, Skipped):
        return fitted
    log_flops = np.array([window.log_flops for window in windows])
    log_n = fitted.log_params(log_flops)
    log_d = log_flops - rule.log(log_n)[0]
    outside = sum(
        not window.log_params.min() < optimum < window.log_params.max()
        for window, optimum in zip(windows, log_n[0], strict=True)
    )
    reason = (
        f"its optimum lies outside the sizes run in {outside} of {len(windows)} budgets" if outside else ""
    )
    return line_allocation(2, np.exp(log_flops), log_n, log_d, len(windows), reason, method="joint")


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
        band=line_band(flops, log_n[1:], log_d[1:]),
    )


def _of_draws(values: np.ndarray) -> Estimate:
    return estimate(values[0], values[1:])
