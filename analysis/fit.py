"""One robust solver for every law: log-Huber, many starts or resamples at once, no silent failure."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from analysis.laws import Law
from analysis.values import LawFit, Parameter, Runs, Status

DELTA = 1e-3
"""Huber knee in log-loss (about 0.1% of a loss): Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3."""

KNEES = (64.0, 16.0, 4.0, 1.0)
"""Multiples of the knee that are solved in turn. A soft knee is nearly least squares, smooth and
with one valley; each solution starts the next. Assumption: factors of 4 follow the path."""

ITERATIONS, ITERATIONS_SOFT = 200, 8
"""At most at the last knee, and at each softer one. Assumption: the 240 Chinchilla points take 30."""

EXACT = 1e-13
"""Relative gain below which a step counts as stalled: a few digits above rounding."""

STALLED = 8
"""Stalled steps in a row that end a solve; each raises the damping 5-fold. Assumption."""

STATIONARY = 1e-5
"""Largest cosine-like scaled gradient that counts as an optimum; see `_scaled_gradient`."""

SAME_OPTIMUM = 1e-6
"""Relative difference in the objective within which two starts ended in the same optimum."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What is fitted: centred log-variables X [run, variable], log-loss [run], and the limits.

    precision: [unknown], what (theta - anchor)²/2 weighs in the objective; 0 without a prior.
    """

    law: Law
    X: np.ndarray
    log_loss: np.ndarray
    centre: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    delta: float
    precision: np.ndarray


@dataclass(frozen=True, eq=False)
class Solution:
    """theta [batch, unknown] with its objective and scaled gradient, each [batch]."""

    theta: np.ndarray
    objective: np.ndarray
    gradient: np.ndarray


def huber(residual: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray]:
    """Huber's function and its derivative: r²/2 up to |r| = delta, then delta·(|r| - delta/2)."""
    clipped = np.clip(residual, -delta, delta)
    return clipped * (residual - clipped / 2), clipped


def as_problem(law: Law, runs: Runs, delta: float = DELTA) -> Problem:
    """Raises ValueError: a value that is not finite and positive, or fewer distinct points than
    unknowns plus one (where any residual at all is left to judge the law by)."""
    columns = {name: getattr(runs, name) for name in (*law.variables, "loss")}
    for name, column in columns.items():
        bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
        if len(bad):
            raise ValueError(
                f"law '{law.name}': {name} of run {runs.run_id[bad[0]]} is {column[bad[0]]}; wanted a finite "
                "number above 0. Exclude the run or mend the table. Nothing was fitted."
            )
    log_variables = np.log(np.column_stack([columns[name] for name in law.variables]))
    distinct, needed = len(np.unique(log_variables.round(9), axis=0)), len(law.unknowns) + 1
    if distinct < needed:
        raise ValueError(
            f"law '{law.name}' has {len(law.unknowns)} unknowns and needs at least {needed} runs of distinct "
            f"({', '.join(law.variables)}); there are {distinct}. Add runs, or fit a law with fewer "
            "unknowns. Nothing was fitted."
        )
    centre = log_variables.mean(axis=0)
    lower, upper = law.bounds(columns["loss"])
    unpenalised = np.zeros(len(law.unknowns))
    return Problem(
        law, log_variables - centre, np.log(columns["loss"]), centre, lower, upper, delta, unpenalised
    )


def with_prior(problem: Problem, theta: np.ndarray) -> Problem:
    """`problem` with its law's prior, weighed against the noise that the fit theta [unknown] leaves.

    Huber's objective is a negative log-likelihood in units of a temperature t, at which
    mean(r·psi(r)) = t (the virial theorem for density ∝ exp(-Huber/t)): the noise variance for a
    soft knee, knee times mean absolute residual for a hard one.
    """
    value, _ = problem.law.evaluate(theta[None], problem.X)
    residual = value[0] - problem.log_loss
    freedom = max(len(residual) - len(theta), 1)
    temperature = float(residual @ huber(residual, problem.delta)[1]) / freedom
    return replace(problem, precision=temperature / np.square(problem.law.prior.sd))


def solve(
    problem: Problem,
    theta: np.ndarray,
    weights: np.ndarray,
    anchors: np.ndarray | None = None,
    knees: tuple[float, ...] = KNEES,
) -> Solution:
    """Minimise sum_i w_i Huber(log L_fit(i) - log L_i) from each start, from soft knee to hard.

    With a prior, sum_j precision_j·(theta_j - anchor_j)²/2 is added.

    Args:
        theta: float64[batch, unknown], starts; weights: float64[batch, run] or [run], 0 or more.
        anchors: float64[batch, unknown], the prior's mean where None.
        knees: multiples of the knee to solve in turn, ending in 1.
    Returns:
        Solution, in the order of the starts.
    """
    theta = np.clip(theta, problem.lower, problem.upper)
    weights = np.broadcast_to(weights, (len(theta), len(problem.log_loss)))
    if anchors is None:
        anchors = problem.law.prior.mean if problem.law.prior else np.zeros(theta.shape[1])
    anchors = np.broadcast_to(anchors, theta.shape)
    for knee in knees:
        iterations = ITERATIONS if knee == knees[-1] else ITERATIONS_SOFT
        theta = _levenberg_marquardt(problem, theta, weights, anchors, knee * problem.delta, iterations)
    objective, gradient, curvature, _ = _derivatives(problem, theta, weights, anchors, problem.delta)
    return Solution(theta, objective, _scaled_gradient(problem, theta, objective, gradient, curvature))


def _derivatives(
    problem: Problem, theta: np.ndarray, weights: np.ndarray, anchors: np.ndarray, delta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Objective [batch], gradient [batch, unknown] and two curvatures [batch, unknown, unknown]:
    the majorising one of reweighted least squares, and the objective's own (Gauss-Newton)."""
    value, slope = problem.law.evaluate(theta, problem.X)
    residual = value - problem.log_loss
    cost, pull = huber(residual, delta)
    size = np.abs(residual)
    majorising = weights * (delta / np.maximum(size, delta))
    own = weights * (size <= delta)
    away = theta - anchors
    gradient = np.einsum("bn,bnp->bp", weights * pull, slope) + problem.precision * away
    penalty = np.diag(problem.precision)
    curvatures = [(slope * h[..., None]).transpose(0, 2, 1) @ slope + penalty for h in (majorising, own)]
    objective = (weights * cost).sum(axis=1) + (problem.precision * away**2).sum(axis=1) / 2
    return objective, gradient, curvatures[0], curvatures[1]


def _objective(
    problem: Problem, theta: np.ndarray, weights: np.ndarray, anchors: np.ndarray, delta: float
) -> np.ndarray:
    value, _ = problem.law.evaluate(theta, problem.X)
    cost = (weights * huber(value - problem.log_loss, delta)[0]).sum(axis=1)
    return cost + (problem.precision * (theta - anchors) ** 2).sum(axis=1) / 2


def _levenberg_marquardt(
    problem: Problem,
    theta: np.ndarray,
    weights: np.ndarray,
    anchors: np.ndarray,
    delta: float,
    iterations: int,
) -> np.ndarray:
    """Damped steps within the bounds, the better of two curvatures at each, for a whole batch.

    The majorising curvature always descends but closes in slowly where most residuals lie beyond
    the knee; the objective's own closes in fast near the optimum. Parameters on a bound that the
    gradient pushes outward are held (projected Newton, Bertsekas 1982).
    """
    theta = theta.copy()
    damping = np.full((len(theta), 2), 1e-3)
    stalled = np.zeros(len(theta), dtype=int)
    active = np.arange(len(theta))
    for _ in range(iterations):
        here, w, anchor = theta[active], weights[active], anchors[active]
        objective, gradient, majorising, own = _derivatives(problem, here, w, anchor, delta)
        tried, reached = [], []
        for which, curvature in enumerate((majorising, own)):
            step = _step(problem, here, gradient, curvature, majorising, damping[active, which])
            trial = np.clip(here + step, problem.lower, problem.upper)
            tried.append(trial)
            reached.append(_objective(problem, trial, w, anchor, delta))
            improved = reached[-1] < objective
            damping[active, which] = np.clip(
                damping[active, which] * np.where(improved, 0.2, 5.0), 1e-12, 1e8
            )
        choice = np.argmin(reached, axis=0)
        lowest = np.min(reached, axis=0)
        better = lowest < objective
        theta[active[better]] = np.stack(tried)[choice, np.arange(len(here))][better]
        gained = np.where(better, objective - lowest, 0.0)
        stalled[active] = np.where(gained > EXACT * objective, 0, stalled[active] + 1)
        active = active[stalled[active] < STALLED]
        if not len(active):
            break
    return theta


def _held(problem: Problem, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """bool[batch, unknown]: on a bound that descent would cross."""
    return ((theta <= problem.lower) & (gradient > 0)) | ((theta >= problem.upper) & (gradient < 0))


def _step(
    problem: Problem,
    theta: np.ndarray,
    gradient: np.ndarray,
    curvature: np.ndarray,
    scaling: np.ndarray,
    damping: np.ndarray,
) -> np.ndarray:
    """-(H + damping·diag)⁻¹ g on the parameters that are free to move; float64[batch, unknown]."""
    held = _held(problem, theta, gradient)
    diagonal = np.einsum("bpp->bp", scaling)
    diagonal = np.sqrt(np.maximum(diagonal, 1e-30 + 1e-14 * diagonal.max(axis=1, keepdims=True)))
    scaled = curvature / (diagonal[:, :, None] * diagonal[:, None, :])
    scaled = np.where(held[:, :, None] | held[:, None, :], 0.0, scaled)
    identity = np.eye(theta.shape[1])
    scaled = scaled + identity * (damping[:, None, None] + held[:, :, None] + 1e-13)
    push = np.where(held, 0.0, gradient / diagonal)
    return -np.linalg.solve(scaled, push[..., None])[..., 0] / diagonal


def _scaled_gradient(
    problem: Problem, theta: np.ndarray, objective: np.ndarray, gradient: np.ndarray, curvature: np.ndarray
) -> np.ndarray:
    """max_j |g_j| / sqrt(2·objective·H_jj) over free parameters, [batch]: dimensionless, 0 at an
    optimum, about 1 where a step along one parameter alone would remove the objective."""
    scale = np.sqrt(2 * objective[:, None] * np.einsum("bpp->bp", curvature)) + 1e-300
    return np.where(_held(problem, theta, gradient), 0.0, np.abs(gradient) / scale).max(axis=1)


def fit_law(law: Law, runs: Runs, *, delta: float = DELTA) -> tuple[LawFit, np.ndarray, Problem]:
    """Fit one law to `runs` from its own starts.

    Returns:
        the LawFit, without intervals (analysis/resample.py adds them), theta float64[unknown], and
        the Problem that it solves.
    Raises:
        ValueError: as `as_problem`.
    """
    problem = as_problem(law, runs, delta)
    ones = np.ones(len(runs))
    starts = law.start(problem.X, runs.loss, ones)
    solution = solve(problem, starts, ones)
    if law.prior:
        free = solution.theta[int(np.argmin(solution.objective))]
        problem, starts = with_prior(problem, free), np.vstack([starts, free])
        solution = solve(problem, starts, ones)
    best = int(np.argmin(solution.objective))
    theta = solution.theta[best]
    floor = len(runs) * (1e-9 * delta)  # objective of residuals far below any loss's own digits
    same = solution.objective <= solution.objective[best] * (1 + SAME_OPTIMUM) + floor * delta
    at_bound = (theta <= problem.lower) | (theta >= problem.upper)
    natural = law.natural(theta[None], problem.centre)[0]
    status, reason = _status(law, solution, best, at_bound, natural, floor * delta)
    value, _ = law.evaluate(theta[None], problem.X)
    fit = LawFit(
        law=law.name,
        equation=law.equation,
        source=law.source,
        variables=law.variables,
        parameters=tuple(
            Parameter(name, float(number), None, bool(bound))
            for name, number, bound in zip(law.unknowns, natural, at_bound, strict=True)
        ),
        status=status,
        reason=reason,
        objective=float(huber(value[0] - problem.log_loss, delta)[0].sum()),
        delta=delta,
        n=len(runs),
        starts=len(starts),
        starts_at_optimum=int(same.sum()),
        log_residuals=problem.log_loss - value[0],
        run_ids=runs.run_id,
    )
    return fit, theta, problem


def _status(
    law: Law, solution: Solution, best: int, at_bound: np.ndarray, natural: np.ndarray, floor: float
) -> tuple[Status, str]:
    if at_bound.any():
        where = ", ".join(
            f"{name} = {value:.3g}"
            for name, value, bound in zip(law.unknowns, natural, at_bound, strict=True)
            if bound
        )
        return Status.AT_BOUND, f"the best fit lies on the edge of what was allowed ({where})"
    if solution.gradient[best] > STATIONARY and solution.objective[best] > floor:
        return Status.NOT_CONVERGED, (
            f"the best of {len(solution.objective)} starts stopped where the objective still slopes "
            f"(scaled gradient {solution.gradient[best]:.1e}, wanted below {STATIONARY:.0e})"
        )
    return Status.CONVERGED, ""
