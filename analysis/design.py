"""Which runs would help most: those after which the target is predicted with the least variance.

A V-optimal design for one point of a nonlinear law, linearised at its fit (Pukelsheim 1993, Optimal
Design of Experiments, chapter 2; Chaloner & Verdinelli 1995, Statistical Science 10(3), with the
prior that keeps it defined where the runs alone determine nothing).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from analysis.cost import CostRule, cost_rule
from analysis.laws import SEPARABLE
from analysis.units import count, power
from analysis.values import HelpfulRun, LawFit, Runs, Status, Target

HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
"""Hoffmann et al. 2022 (arXiv 2203.15556), equation 10: the law where the runs determine none."""

NOISE, LEAST_NOISE = 0.005, 0.0005
"""Standard deviation of log L of one run, where no fit tells, and at least. Assumption: seeds differ by
0.1 to 1%."""

PRIOR_SD = {"E": 1.0, "A": 1.0, "B": 1.0, "alpha": 0.2, "beta": 0.2}
"""What is believed before any run: E in nats, A and B as log of their term at the runs' middle, the
exponents as they are. Assumption, the exponents' as in `laws.SHRUNK`."""

REACH, STEPS = 8.0, 15
"""Candidates lie on a grid of STEPS sizes by STEPS token counts, from 1/REACH of the least to REACH
times the most that were run. Assumption."""

FEWEST_RATIO, MOST_RATIO = 1.0, 1000.0
"""Tokens a parameter of a candidate, unless the runs go beyond. Assumption: cells below one are ruled
by warm-up (see `table.Rules`), and above a thousand nobody trains."""

BEST = 3
"""How many are named."""


def helpful_runs(
    runs: Runs,
    target: Target,
    fit: LawFit | None = None,
    *,
    dearest: float | None = None,
    best: int = BEST,
) -> tuple[HelpfulRun, ...]:
    """The `best` cells to add, one after another, each the best beside those before it; the same cell
    again means another seed of it.

    Args:
        fit: the separable law's, of these runs; HOFFMANN and NOISE stand in for one that is missing or
            did not converge.
        dearest: FLOPs that one run may cost at most; those of the dearest run where not given.
    Raises ValueError: no run at all, from which no size could be named.
    """
    if not len(runs):
        raise ValueError("there are no runs to start from: plan a first grid of sizes and budgets instead")
    values, noise = HOFFMANN, NOISE
    if fit and fit.status == Status.CONVERGED:
        values = fit.values
        freedom = max(fit.n - len(fit.parameters), 1)
        noise = max(float(np.sqrt(np.sum(fit.log_residuals**2) / freedom)), LEAST_NOISE)
    rule = cost_rule(runs)
    params, tokens, flops = _candidates(runs, rule, dearest or float(runs.flops.max()))
    centre = np.log([np.mean(runs.params), np.mean(runs.tokens)])
    precision = _information(values, centre, runs.params, runs.tokens, noise)
    precision += np.diag([PRIOR_SD[name] ** -2 for name in SEPARABLE.unknowns])
    slope = _gradient(values, centre, np.array([target.params]), np.array([target.tokens]))[0]
    rows = _gradient(values, centre, params, tokens) / noise
    before = float(slope @ np.linalg.solve(precision, slope))
    chosen = []
    for _ in range(best):
        along = np.linalg.solve(precision, np.column_stack([slope, rows.T]))
        # Sherman & Morrison: what one more row takes off slope' precision^-1 slope.
        taken = (rows @ along[:, 0]) ** 2 / (1 + np.einsum("cp,pc->c", rows, along[:, 1:]))
        pick = int(np.argmax(taken))
        precision = precision + np.outer(rows[pick], rows[pick])
        left = float(slope @ np.linalg.solve(precision, slope))
        chosen.append(
            HelpfulRun(
                float(params[pick]), float(tokens[pick]), float(flops[pick]), float(np.sqrt(left / before))
            )
        )
    return tuple(chosen)


def in_words(runs: Sequence[HelpfulRun]) -> str:
    """One clause that names them."""
    seeds = Counter((run.params, run.tokens, run.flops) for run in runs)
    cells = [
        f"{f'{n} seeds of ' if n > 1 else ''}N={count(params)}, D={count(tokens)} ({power(flops)} FLOPs)"
        for (params, tokens, flops), n in seeds.items()
    ]
    left = runs[-1].error_left
    return (
        f"{'; '.join(cells)}: together they would leave {100 * left:.0f}% of the prediction's standard error "
        "that comes from the parameters"
    )


def advice(runs: Runs) -> str:
    """For runs that determine no law: which would help most to predict 10x the dearest one, as a
    sentence; "" where there is no run to start from."""
    if not len(runs):
        return ""
    top = int(np.argmax(runs.flops))
    beyond = np.sqrt(10.0)  # N and D in equal parts: a = 0.5, Hoffmann et al. 2022, approach 1
    target = Target(beyond * runs.params[top], beyond * runs.tokens[top], 10 * runs.flops[top])
    return f"The runs that would help most: {in_words(helpful_runs(runs, target))}."


def _candidates(runs: Runs, rule: CostRule, dearest: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, D and C of the cells that may be run: no dearer than `dearest`, no cheaper than the cheapest."""
    sides = [
        np.geomspace(column.min() / REACH, column.max() * REACH, STEPS)
        for column in (runs.params, runs.tokens)
    ]
    params, tokens = (side.ravel() for side in np.meshgrid(*sides, indexing="ij"))
    # Along the dearest budget too, which the grid need not touch: the best cells lie there.
    params = np.append(params, sides[0])
    tokens = np.append(tokens, rule.tokens(dearest, sides[0]))
    flops = tokens * np.exp(rule.log(np.log(params))[0])
    ratio, seen = tokens / params, runs.tokens / runs.params
    allowed = (flops <= dearest * (1 + 1e-9)) & (flops >= runs.flops.min() * (1 - 1e-9))
    allowed &= (ratio >= min(FEWEST_RATIO, seen.min())) & (ratio <= max(MOST_RATIO, seen.max()))
    return params[allowed], tokens[allowed], flops[allowed]


def _gradient(
    values: Mapping[str, float], centre: np.ndarray, params: np.ndarray, tokens: np.ndarray
) -> np.ndarray:
    """d log L / d theta at (N, D) [point], in the solver's coordinates about `centre`; [point, unknown]."""
    theta = np.array(
        [
            values["E"],
            np.log(values["A"]) - values["alpha"] * centre[0],
            np.log(values["B"]) - values["beta"] * centre[1],
            values["alpha"],
            values["beta"],
        ]
    )
    return SEPARABLE.evaluate(theta[None], np.log(np.column_stack([params, tokens])) - centre)[1][0]


def _information(
    values: Mapping[str, float], centre: np.ndarray, params: np.ndarray, tokens: np.ndarray, noise: float
) -> np.ndarray:
    """The runs' precision of theta, [unknown, unknown]."""
    rows = _gradient(values, centre, params, tokens) / noise
    return rows.T @ rows
