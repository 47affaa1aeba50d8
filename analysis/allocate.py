"""Where to spend a budget: the compute-optimal N and D, by Hoffmann et al.'s three approaches.

Hoffmann et al. 2022 (arXiv 2203.15556), sections 3.1 to 3.3. All three end in
N_opt ∝ C^a and D_opt ∝ C^b; where C = 6·N·D, a + b = 1.
"""

from __future__ import annotations

import numpy as np

from analysis.bands import line_band
from analysis.cost import CostRule, cost_rule
from analysis.ensemble import Member
from analysis.isoflop import by_isoflops, isoflops, line_allocation
from analysis.resample import RESAMPLES, SEED, cluster_weights, estimate
from analysis.rollout import SAME_BUDGET, budgets
from analysis.values import Allocation, Envelope, Runs, Skipped

__all__ = [
    "CostRule",
    "by_envelope",
    "by_isoflops",
    "by_surface",
    "cost_rule",
    "envelope",
    "isoflops",
    "optimal_log_params",
]

SEARCHED, SPACING = 16.0, 0.1
"""Where a law has no closed form: |log N_opt - mean log N of the runs| at most, seven decades, and the
grid's spacing, from which a parabola finds the minimum to 0.1% of N (tested)."""


# --- approach 3: the minimum of a fitted surface along a budget -------------------------------------


def optimal_log_params(member: Member, theta: np.ndarray, rule: CostRule, flops: np.ndarray) -> np.ndarray:
    """log N that minimises L(N, C/cost(N)) for each of theta [draw, unknown] and C [budget].

    Returns: float64[draw, budget].
    """
    names = set(member.law.unknowns)
    if {"A", "B", "alpha", "beta"} <= names or {"A", "B", "a", "b", "k"} <= names:
        return _where_terms_trade_evenly(member, theta, rule, flops)
    return _by_search(member, theta, rule, flops)


def _where_terms_trade_evenly(
    member: Member, theta: np.ndarray, rule: CostRule, flops: np.ndarray
) -> np.ndarray:
    """For E + (A/N^a + B/D^b)^k.

    At the minimum the two terms trade evenly: with x = log N, s = d log cost / d log N,
    log(A·a) - a·x = log(B·b) + log s - b·(log C - log cost(x)); the left side less the right falls
    in x, so halving an interval finds its zero. The coupling k drops out (it multiplies both).
    """
    natural = dict(zip(member.law.unknowns, member.law.natural(theta, member.problem.centre).T, strict=True))
    a = natural.get("alpha", natural.get("a"))[:, None]
    b = natural.get("beta", natural.get("b"))[:, None]
    of_size, of_data = np.log(natural["A"][:, None]) + np.log(a), np.log(natural["B"][:, None]) + np.log(b)
    log_flops = np.log(flops)[None, :]
    low = np.full(np.broadcast_shapes(a.shape, log_flops.shape), -20.0)
    high = np.full_like(low, 100.0)  # N between 2e-9 and 3e43: wide enough for any fit to be seen as absurd
    for _ in range(60):
        x = (low + high) / 2
        cost, elasticity = rule.log(x)
        slope = of_size - a * x - of_data - np.log(np.maximum(elasticity, 1e-300)) + b * (log_flops - cost)
        low, high = np.where(slope > 0, x, low), np.where(slope > 0, high, x)
    return (low + high) / 2


def _by_search(member: Member, theta: np.ndarray, rule: CostRule, flops: np.ndarray) -> np.ndarray:
    """For any other law of (N, D): the least of a grid in log N about the runs, and the vertex of the
    parabola through it and its neighbours; on the grid's edge where the loss falls to there."""
    x = member.problem.centre[0] + np.arange(-SEARCHED, SEARCHED + SPACING / 2, SPACING)
    rows = np.arange(len(theta))
    found = np.empty((len(theta), len(flops)))
    for j, log_flops in enumerate(np.log(flops)):
        X = np.column_stack([x, log_flops - rule.log(x)[0]]) - member.problem.centre
        loss, _ = member.law.evaluate(theta, X)
        best = np.clip(loss.argmin(axis=1), 1, len(x) - 2)
        before, at, after = (loss[rows, best + step] for step in (-1, 0, 1))
        bend = np.maximum(before - 2 * at + after, 1e-300)
        found[:, j] = x[best] + SPACING * np.clip((before - after) / (2 * bend), -1.0, 1.0)
    return found


def by_surface(member: Member, rule: CostRule, runs: Runs) -> Allocation:
    """Approach 3: the fitted law's own optimum over the range of the runs' budgets."""
    flops = np.geomspace(runs.flops.min(), runs.flops.max(), 9)
    log_n = optimal_log_params(member, np.vstack([member.theta, member.draws]), rule, flops)
    log_d = np.log(flops) - rule.log(log_n)[0]
    reason = "" if not member.fit.reason else f"{member.law.name} law: {member.fit.reason}"
    return line_allocation(3, flops, log_n, log_d, len(runs), reason)


# --- approach 1: the envelope of all runs -----------------------------------------------------------


def envelope(runs: Runs) -> Envelope:
    """The runs that no run of the same or lower cost beats, by increasing C. FLOPs within SAME_BUDGET
    are the same cost: rounding to whole steps must not put a budget's worse sizes on the envelope."""
    index = _on_envelope(runs.flops, runs.loss)
    return Envelope(
        run_ids=tuple(runs.run_id[i] for i in index),
        flops=runs.flops[index],
        params=runs.params[index],
        tokens=runs.tokens[index],
        loss=runs.loss[index],
    )


def _on_envelope(flops: np.ndarray, loss: np.ndarray) -> np.ndarray:
    if not len(flops):
        return np.empty(0, dtype=np.int64)
    order = np.lexsort((loss, flops))
    lowest = np.minimum.accumulate(loss[order])
    falling = order[np.append(True, lowest[1:] < lowest[:-1])]
    kept = [falling[-1]]
    for i in falling[-2::-1]:
        if SAME_BUDGET * flops[i] <= flops[kept[-1]]:
            kept.append(i)
    return np.array(kept[::-1])


def by_envelope(runs: Runs, resamples: int = RESAMPLES) -> Allocation | Skipped:
    """Approach 1: a line through the envelope, with finished runs for want of whole training curves.

    Where the sweep runs a few sizes a budget, N can only take those, so this is the coarsest.
    """
    points = envelope(runs)
    sizes, levels = len(np.unique(points.params)), len(budgets(points.flops))
    if min(sizes, levels) < 3:
        return Skipped(
            "approach 1", f"the envelope holds {sizes} sizes at {levels} cost levels; it needs 3 of both"
        )
    weights = cluster_weights(runs, 2, resamples, SEED)
    lines = []
    for weight in weights:
        drawn = np.flatnonzero(weight)
        index = drawn[_on_envelope(runs.flops[drawn], runs.loss[drawn])]
        if len(budgets(runs.flops[index])) >= 2:
            x = np.log(runs.flops[index])
            lines.append([_line(x, np.log(side[index])) for side in (runs.params, runs.tokens)])
    n_lines, d_lines = np.array(lines).transpose(1, 0, 2)
    x, log_n, log_d = np.log(points.flops), np.log(points.params), np.log(points.tokens)
    (log_params_factor, a), (log_tokens_factor, b) = _line(x, log_n), _line(x, log_d)
    ends = np.array([runs.flops.min(), runs.flops.max()])
    return Allocation(
        approach=1,
        a=estimate(a, n_lines[:, 1]),
        b=estimate(b, d_lines[:, 1]),
        params_factor=float(np.exp(log_params_factor)),
        tokens_factor=float(np.exp(log_tokens_factor)),
        points=len(points.flops),
        reason="from finished runs: N takes only the sizes that were run",
        band=line_band(ends, *(side[:, :1] + side[:, 1:] * np.log(ends) for side in (n_lines, d_lines))),
    )


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of the least-squares line."""
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    return float(y.mean() - slope * x.mean()), slope
