"""Where to spend a budget: the compute-optimal N and D, by Hoffmann et al.'s three approaches.

Hoffmann et al. 2022 (arXiv 2203.15556), sections 3.1 to 3.3. All three end in
N_opt ∝ C^a and D_opt ∝ C^b; where C = 6·N·D, a + b = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from analysis.bands import line_band
from analysis.ensemble import Member
from analysis.resample import RESAMPLES, SEED, cluster_weights, estimate
from analysis.rollout import SAME_BUDGET, budgets
from analysis.values import Allocation, Envelope, Estimate, Isoflop, Runs, Skipped

SAME_LABEL = 1.5
"""Largest ratio of FLOPs within a labelled budget. The label says that they were meant to be equal;
they differ where it follows another convention than the column. Assumption."""

FEWEST_SIZES = 4
"""Distinct sizes of an isoFLOP curve: one more than a parabola's three coefficients."""


@dataclass(frozen=True)
class CostRule:
    """Training FLOPs a token as a function of N: c0 + c1·sqrt(N) + c2·N, fitted to the runs.

    For decoders of one depth the matrices cost 6·N and attention goes with the width, so with
    sqrt(N); a table with C = 6·N·D gives (0, 0, 6). `worst` is the largest relative misfit.
    """

    c0: float
    c1: float
    c2: float
    worst: float

    def log(self, log_params: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log of FLOPs a token and its derivative by log N, shapes of `log_params`."""
        N = np.exp(log_params)
        total = self.c0 + self.c1 * np.sqrt(N) + self.c2 * N
        return np.log(total), (self.c1 * np.sqrt(N) / 2 + self.c2 * N) / total

    def tokens(self, flops: np.ndarray, params: np.ndarray) -> np.ndarray:
        """D that a budget buys at N."""
        return flops / np.exp(self.log(np.log(params))[0])


def cost_rule(runs: Runs) -> CostRule:
    """Non-negative least squares on relative residuals."""
    per_token = runs.flops / runs.tokens
    unit = np.exp(np.mean(np.log(runs.params)))
    basis = np.column_stack([np.ones(len(runs)), np.sqrt(runs.params / unit), runs.params / unit])
    coefficients, _ = nnls(basis / per_token[:, None], np.ones(len(runs)))
    worst = float(np.abs(basis @ coefficients / per_token - 1).max())
    c0, c1, c2 = coefficients / np.array([1.0, np.sqrt(unit), unit])
    return CostRule(float(c0), float(c1), float(c2), worst)


# --- approach 3: the minimum of a fitted surface along a budget -------------------------------------


def optimal_log_params(member: Member, theta: np.ndarray, rule: CostRule, flops: np.ndarray) -> np.ndarray:
    """log N that minimises L(N, C/cost(N)) for each of theta [draw, unknown] and C [budget].

    At the minimum the two terms trade evenly: with x = log N, s = d log cost / d log N,
    log(A·a) - a·x = log(B·b) + log s - b·(log C - log cost(x)); the left side less the right falls
    in x, so halving an interval finds its zero. The coupling k drops out (it multiplies both).

    Returns: float64[draw, budget].
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


def by_surface(member: Member, rule: CostRule, runs: Runs) -> Allocation:
    """Approach 3: the fitted law's own optimum over the range of the runs' budgets."""
    flops = np.geomspace(runs.flops.min(), runs.flops.max(), 9)
    log_n = optimal_log_params(member, np.vstack([member.theta, member.draws]), rule, flops)
    log_d = np.log(flops) - rule.log(log_n)[0]
    reason = "" if not member.fit.reason else f"{member.law.name} law: {member.fit.reason}"
    return _allocation(3, flops, log_n, log_d, len(runs), reason)


# --- approach 2: a parabola in log N for each budget ----------------------------------------------


def isoflops(runs: Runs, rule: CostRule) -> tuple[tuple[Isoflop, ...], np.ndarray, tuple[Skipped, ...]]:
    """A parabola for each budget of FEWEST_SIZES sizes or more.

    Runs of one `group` are one budget; without groups, runs within 10% of each other's FLOPs.
    The minimum's interval comes from resampling residuals, pooled over budgets because one has
    only a few (Efron & Tibshirani 1993, section 9.4).

    Returns: the curves, cheapest first; draws of log N_opt, float64[resample, curve] (NaN where a
        curve is not bracketed); and the groups that are no isoFLOP curve, with reasons.
    """
    fitted, skipped = [], []
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
            fitted.append((name, index, *_parabola(runs, index)))
    fitted.sort(key=lambda curve: runs.flops[curve[1]].mean())
    draws = _minimum_draws(fitted)
    curves = tuple(
        _isoflop(runs, rule, name, index, design, centre, coefficients, draws[:, i])
        for i, (name, index, design, centre, coefficients, _) in enumerate(fitted)
    )
    for i, curve in enumerate(curves):
        if not curve.bracketed:
            draws[:, i] = np.nan
    return curves, draws, tuple(skipped)


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


def _parabola(runs: Runs, index: np.ndarray) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
    """design [run, 3], centre, coefficients [3] and residuals of log L, scaled for lost freedom."""
    log_n = np.log(runs.params[index])
    centre = float(np.exp(log_n.mean()))
    x = log_n - log_n.mean()
    design = np.column_stack([np.ones_like(x), x, x * x])
    coefficients = np.linalg.lstsq(design, np.log(runs.loss[index]), rcond=None)[0]
    residual = np.log(runs.loss[index]) - design @ coefficients
    return design, centre, coefficients, residual * np.sqrt(len(x) / (len(x) - 3))


def _minimum_draws(fitted: Sequence[tuple]) -> np.ndarray:
    """log N_opt by refitting each parabola to pooled residuals; float64[resample, curve]."""
    generator = np.random.default_rng(SEED)
    if not fitted:
        return np.empty((RESAMPLES, 0))
    pool = np.concatenate([curve[5] for curve in fitted])
    columns = []
    for _, _, design, centre, coefficients, _ in fitted:
        noise = generator.choice(pool, size=(RESAMPLES, len(design)))
        drawn = coefficients + noise @ np.linalg.pinv(design).T
        # A draw that opens downwards has no minimum: it says that N_opt is unbounded on its side.
        vertex = -drawn[:, 1] / (2 * np.where(drawn[:, 2] > 0, drawn[:, 2], np.nan))
        vertex = np.where(np.isnan(vertex), np.where(drawn[:, 1] > 0, -30.0, 30.0), vertex)
        columns.append(np.log(centre) + np.clip(vertex, -30.0, 30.0))
    return np.column_stack(columns)


def _isoflop(
    runs: Runs,
    rule: CostRule,
    name: str,
    index: np.ndarray,
    design: np.ndarray,
    centre: float,
    coefficients: np.ndarray,
    draws: np.ndarray,
) -> Isoflop:
    order = index[np.argsort(runs.params[index], kind="stable")]
    flops = float(np.exp(np.mean(np.log(runs.flops[index]))))
    c0, c1, c2 = (float(c) for c in coefficients)
    sizes = runs.params[order]
    curve = Isoflop(
        group=name,
        flops=flops,
        run_ids=tuple(runs.run_id[i] for i in order),
        params=sizes,
        loss=runs.loss[order],
        centre=centre,
        coefficients=(c0, c1, c2),
        bracketed=False,
        params_opt=None,
        tokens_opt=None,
        loss_min=None,
        reason="",
    )
    if c2 <= 0:
        return replace(curve, reason="the losses do not curve upwards over these sizes: no minimum to find")
    optimum = centre * np.exp(-c1 / (2 * c2))
    if not sizes[0] < optimum < sizes[-1]:
        side = "below the smallest" if optimum <= sizes[0] else "above the largest"
        return replace(curve, reason=f"the minimum lies {side} size that was run; add sizes on that side")
    return replace(
        curve,
        bracketed=True,
        params_opt=estimate(optimum, np.exp(draws)),
        tokens_opt=float(rule.tokens(flops, optimum)),
        loss_min=float(curve.loss_at(optimum)),
    )


def by_isoflops(curves: Sequence[Isoflop], draws: np.ndarray, rule: CostRule) -> Allocation | Skipped:
    """Approach 2: a line through the bracketed minima."""
    good = [i for i, curve in enumerate(curves) if curve.bracketed]
    if len(good) < 2:
        return Skipped("approach 2", f"it needs 2 bracketed isoFLOP curves; {len(good)} of {len(curves)} are")
    flops = np.array([curves[i].flops for i in good])
    log_n = np.vstack([[np.log(curves[i].params_opt.value) for i in good], draws[:, good]])
    log_d = np.log(flops) - rule.log(log_n)[0]
    reasons = []
    if len(good) < 3:
        reasons.append("two points determine a line whatever they are")
    if len(good) < len(curves):
        reasons.append(f"{len(curves) - len(good)} of {len(curves)} curves are not bracketed and left out")
    return _allocation(2, flops, log_n, log_d, len(good), "; ".join(reasons))


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
    order = np.lexsort((loss, flops))
    lowest = np.minimum.accumulate(loss[order])
    falling = order[np.append(True, lowest[1:] < lowest[:-1])]
    kept = [falling[-1]]
    for i in falling[-2::-1]:
        if SAME_BUDGET * flops[i] <= flops[kept[-1]]:
            kept.append(i)
    return np.array(kept[::-1])


def by_envelope(runs: Runs) -> Allocation | Skipped:
    """Approach 1: a line through the envelope, with finished runs for want of whole training curves.

    Where the sweep runs a few sizes a budget, N can only take those, so this is the coarsest.
    """
    points = envelope(runs)
    sizes, levels = len(np.unique(points.params)), len(budgets(points.flops))
    if min(sizes, levels) < 3:
        return Skipped(
            "approach 1", f"the envelope holds {sizes} sizes at {levels} cost levels; it needs 3 of both"
        )
    weights = cluster_weights(runs, 2, RESAMPLES, SEED)
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


def _allocation(
    approach: int, flops: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, points: int, reason: str
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
        band=line_band(flops, log_n[1:], log_d[1:]),
    )


def _of_draws(values: np.ndarray) -> Estimate:
    return estimate(values[0], values[1:])
