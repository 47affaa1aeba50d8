"""One robust solver for every law: log-Huber, many starts or resamples at once, no silent failure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from analysis.laws import Law
from analysis.solver import Problem, Solution, huber, solve
from analysis.values import LawFit, Parameter, Runs, Status

DELTA = 1e-3
"""Huber knee in log-loss (about 0.1% of a loss): Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3."""

STATIONARY = 1e-5
"""Largest cosine-like scaled gradient that counts as an optimum; see `Solution`."""

SAME_OPTIMUM = 1e-6
"""Relative difference in the objective within which two starts ended in the same optimum."""


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
