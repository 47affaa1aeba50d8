"""How far approach 2 is off on the grid at hand, were a fitted surface the truth.

Fitted to a window of an isoFLOP curve that is not symmetric about its minimum (alpha != beta), or whose
middle is not the minimum, a parabola has its vertex elsewhere, with no noise at all (Czech et al.
2026, arXiv 2603.22339, sections 4 and 5). Here the fitted surface is read, noiselessly, at the very
(N, D) of the runs, and again on grids from which one cause is removed at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from analysis.allocate import optimal_log_params
from analysis.cost import CostRule
from analysis.ensemble import Member
from analysis.isoflop import READINGS
from analysis.values import Isoflop, IsoflopBias, ReadingBias, Runs, Skipped
from analysis.windows import Reading, Window, by_parabola, windows_of

NARROW = 0.1
"""Width of the narrow windows, as a share of the run ones: the bias of a centred window goes with the
square of its width, so a hundredth of it is left."""

Surface = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(N, D) -> log L, arrays of one shape."""


def isoflop_bias(
    runs: Runs, curves: Sequence[Isoflop], rule: CostRule, member: Member, flops: float
) -> IsoflopBias | Skipped:
    """The bias of every reading of READINGS in a, b and in N_opt extrapolated to `flops`.

    Only bracketed budgets are compared, as they alone enter approach 2's line; the joint fit sees all. The truth's own exponents are those
    of a line through its optima at the same budgets, so that the bend of an optimum that follows no
    exact power law (attention's share of the cost) counts at `flops` only.
    """
    what = f"bias of approach 2 on the {member.law.name} surface"
    bracketed = np.array([curve.bracketed for curve in curves], dtype=bool)
    if bracketed.sum() < 2:
        return Skipped(what, f"it needs 2 bracketed isoFLOP curves; {bracketed.sum()} of {len(curves)} are")
    budgets = np.array([curve.flops for curve in curves])
    optima = optimal_log_params(member, member.theta[None], rule, np.append(budgets, flops))[0]
    truth, at_target = optima[:-1], float(optima[-1])
    outside = [
        curve.group
        for curve, optimum in zip(curves, np.exp(truth), strict=True)
        if curve.bracketed
        and not curve.params[0] ** 2 / curve.params[-1] < optimum < curve.params[-1] ** 2 / curve.params[0]
    ]
    if outside:
        return Skipped(what, f"that surface's own optimum lies far from the sizes of budget {outside[0]}")

    def surface(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        X = np.log(np.column_stack([params, tokens])) - member.problem.centre
        return member.law.evaluate(member.theta[None], X)[0][0]

    def measured(grid: str, method: str, reading: Reading, windows: Sequence[Window]) -> ReadingBias:
        read = np.where(bracketed, reading(windows), np.nan)
        return _compare(grid, method, read, truth, at_target, budgets, flops, rule)

    noiseless = replace(runs, loss=np.exp(surface(runs.params, runs.tokens)))
    as_run = windows_of(noiseless, curves)
    other = _without_causes(curves, truth, rule, surface)
    methods = tuple(measured("as run", name, reading, as_run) for name, reading in READINGS.items())
    if all(bias.log_params is None for bias in methods):
        return Skipped(what, "no reading finds a minimum on it in two of the budgets")
    a, b = _exponents(truth[bracketed], budgets[bracketed], rule)
    return IsoflopBias(
        law=member.law.name,
        flops=flops,
        params=float(np.exp(at_target)),
        a=a,
        b=b,
        groups=tuple(curve.group for curve in curves),
        methods=methods,
        grids=tuple(measured(grid, "parabola", by_parabola, windows) for grid, windows in other.items()),
    )


def _without_causes(
    curves: Sequence[Isoflop], optima: np.ndarray, rule: CostRule, surface: Surface
) -> Mapping[str, list[Window]]:
    """Windows by the name of what was changed, each change on top of the one before, but for the last:
    the surface with only its even part about the optimum, on the windows of equal cost."""
    windows: dict[str, list[Window]] = {"equal cost": [], "centred": [], "narrow": [], "symmetric": []}
    for curve, optimum in zip(curves, optima, strict=True):

        def along(log_params: np.ndarray, flops: float = curve.flops) -> np.ndarray:
            params = np.exp(log_params)
            return surface(params, rule.tokens(flops, params))

        x = np.log(curve.params)
        offsets = x - x.mean()
        log_flops = float(np.log(curve.flops))
        costs = np.full(len(x), log_flops)
        for name, where in (
            ("equal cost", x),
            ("centred", optimum + offsets),
            ("narrow", optimum + NARROW * offsets),
        ):
            windows[name].append(Window(log_flops, costs, where, along(where)))
        even = (along(x) + along(2 * optimum - x)) / 2
        windows["symmetric"].append(Window(log_flops, costs, x, even))
    return windows


def _compare(
    grid: str,
    method: str,
    read: np.ndarray,
    truth: np.ndarray,
    at_target: float,
    budgets: np.ndarray,
    flops: float,
    rule: CostRule,
) -> ReadingBias:
    """What was read, log N_opt [budget], against the truth."""
    seen = np.isfinite(read)
    minima = tuple(float(error) if np.isfinite(error) else None for error in read - truth)
    if seen.sum() < 2:
        return ReadingBias(method, grid, None, None, None, minima)
    a, b = _exponents(read[seen], budgets[seen], rule)
    true_a, true_b = _exponents(truth[seen], budgets[seen], rule)
    x = np.log(budgets[seen])
    extrapolated = read[seen].mean() + a * (np.log(flops) - x.mean())
    return ReadingBias(method, grid, a - true_a, b - true_b, float(extrapolated - at_target), minima)


def _exponents(log_params: np.ndarray, budgets: np.ndarray, rule: CostRule) -> tuple[float, float]:
    x = np.log(budgets) - np.log(budgets).mean()
    log_tokens = np.log(budgets) - rule.log(log_params)[0]
    return float(x @ log_params / (x @ x)), float(x @ log_tokens / (x @ x))
