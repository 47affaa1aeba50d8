"""From a law and runs to a LawFit: what is minimised, from which starts, and what is said of the end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from analysis.laws import Law
from analysis.optimum import condition, polish
from analysis.penalty import huber, penalty, sides
from analysis.solver import Problem, Solution, solve
from analysis.values import Basin, LawFit, Parameter, Runs, Status

__all__ = ["DELTA", "LOSSES", "Problem", "as_problem", "fit_law", "huber", "solve", "with_prior"]

DELTA = 1e-3
"""Huber knee in log-loss (about 0.1% of a loss): Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3."""

LOSSES = ("huber", "least_squares", "asymmetric")
"""Penalties of a residual by name; see `fit_law`."""

TAU = 0.25
"""Of the asymmetric penalty where none is given: a run above the fit costs a third of one below it, since
what goes wrong in training raises a loss. Assumption."""

STATIONARY = 1e-5
"""Largest cosine-like scaled gradient that counts as an optimum; see `Solution`."""

SAME_OPTIMUM = 1e-6
"""Relative difference in the objective within which two starts ended in the same optimum."""


BASIN_WITHIN = 0.01
"""Share of the best objective within which other optima are listed."""

SAME_BASIN = 1e-5
"""Largest difference in fitted log-loss at any run between two ends in one basin. Assumption: a hundredth
of the usual knee, below any loss's own digits."""


def as_problem(
    law: Law, runs: Runs, delta: float = DELTA, *, tau: float = 0.5, weights: np.ndarray | None = None
) -> Problem:
    """What `solve` minimises; see `fit_law` for the arguments.

    Raises ValueError: a value that is not finite and positive, or fewer distinct points than
    unknowns plus one (where any residual at all is left to judge the law by)."""
    columns = {name: getattr(runs, name) for name in (*law.variables, "loss")}
    for name, column in columns.items():
        bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
        if len(bad):
            raise ValueError(
                f"law '{law.name}': {name} of run {runs.run_id[bad[0]]} is {column[bad[0]]}; wanted a finite "
                "number above 0. Exclude the run or mend the table. Nothing was fitted."
            )
    if weights is not None:
        weights = np.asarray(weights, dtype=np.float64)
        if weights.shape != (len(runs),) or not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(
                f"law '{law.name}': wanted {len(runs)} finite weights of 0 or more, one a run; found shape "
                f"{weights.shape}, least {weights.min(initial=np.inf)}. Nothing was fitted."
            )
    log_variables = np.log(np.column_stack([columns[name] for name in law.variables]))
    counted = np.ones(len(runs), dtype=bool) if weights is None else weights > 0
    distinct, needed = len(np.unique(log_variables[counted].round(9), axis=0)), len(law.unknowns) + 1
    if distinct < needed:
        raise ValueError(
            f"law '{law.name}' has {len(law.unknowns)} unknowns and needs at least {needed} runs of distinct "
            f"({', '.join(law.variables)}); there are {distinct}. Add runs, or fit a law with fewer "
            "unknowns. Nothing was fitted."
        )
    centre = law.centre(log_variables)
    lower, upper = law.bounds(columns["loss"])
    return Problem(
        law=law,
        X=np.asfortranarray(log_variables - centre),  # laws take it by column
        log_loss=np.log(columns["loss"]),
        centre=centre,
        lower=lower,
        upper=upper,
        delta=delta,
        precision=np.zeros(len(law.unknowns)),
        prior=law.prior_for(columns["loss"]),
        tau=tau,
        weights=np.ones(len(runs)) if weights is None else weights,
    )


def with_prior(problem: Problem, theta: np.ndarray) -> Problem:
    """`problem` with its law's prior, weighed against the noise that the fit theta [unknown] leaves.

    Huber's objective is a negative log-likelihood in units of a temperature t, at which
    mean(r·psi(r)) = t (the virial theorem for density ∝ exp(-Huber/t)): the noise variance for a
    soft knee, knee times mean absolute residual for a hard one.
    """
    value, _ = problem.law.evaluate(theta[None], problem.X)
    residual = value[0] - problem.log_loss
    weights = problem.weights * sides(residual, problem.tau)
    freedom = max(problem.weights.sum() - len(theta), 1)
    temperature = float(residual @ (weights * huber(residual, problem.delta)[1])) / freedom
    return replace(problem, precision=temperature / np.square(problem.prior.sd))


def fit_law(
    law: Law,
    runs: Runs,
    *,
    delta: float | None = None,
    loss: str = "huber",
    tau: float | None = None,
    weights: np.ndarray | None = None,
) -> tuple[LawFit, np.ndarray, Problem]:
    """Fit one law to `runs` from its own starts.

    Minimises the weighted sum over runs of a penalty of r = log L_fit - log L:
    "huber": r²/2 up to |r| = delta, delta·(|r| - delta/2) beyond (Hoffmann et al. 2022, arXiv
        2203.15556, section 3.3);
    "least_squares": r²/2;
    "asymmetric": Huber's, times 2·tau where the run lies above the fit (r < 0) and 2·(1 - tau) where
        it lies below (Newey & Powell 1987; Dabney et al. 2018, arXiv 1710.10044, equation 10).

    Args:
        delta: the knee, in log-loss; DELTA where None. Not for least squares.
        tau: between 0 and 1; TAU where None. Only for the asymmetric penalty.
        weights: float64[run], 0 or more; a weight of 2 is the run twice. Where None and
            `runs.loss_se` is known for some run, runs weigh as the inverse of the variance
            that standard error and scatter make together, with mean 1 (see `noise_weights`).
    Returns:
        the LawFit, without intervals (analysis/resample.py adds them), theta float64[unknown], and
        the Problem that it solves.
    Raises:
        ValueError: as `as_problem`; an unknown penalty, or an option that it does not have.

    Rescaling a variable or the loss changes no prediction: the solver sees logarithms about their
    means, and E relative to the loss.
    """
    delta, tau = _penalty_options(loss, delta, tau)
    problem = as_problem(law, runs, delta, tau=tau, weights=weights)
    starts = law.start(problem.X, runs.loss, problem.weights)
    ones = np.ones(len(runs))
    solution = solve(problem, starts, ones)
    if weights is None and (known := noise_weights(runs, _residual(problem, _best(solution)))) is not None:
        problem, starts = replace(problem, weights=known), np.vstack([starts, _best(solution)])
        solution = solve(problem, starts, ones)
    if law.prior:
        free = _best(solution)
        problem, starts = with_prior(problem, free), np.vstack([starts, free])
        solution = solve(problem, starts, ones)
    polished = polish(problem, _best(solution))
    theta = polished.theta[0]
    floor = len(runs) * (1e-9 * min(delta, DELTA))  # objective of residuals far below any loss's own digits
    floor *= min(delta, DELTA)
    same = solution.objective <= polished.objective[0] * (1 + SAME_OPTIMUM) + floor
    at_bound = (theta <= problem.lower) | (theta >= problem.upper)
    natural = law.natural(theta[None], problem.centre)[0]
    status, reason = _status(law, polished, len(starts), at_bound, natural, floor)
    residual = _residual(problem, theta)
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
        objective=float(problem.weights @ penalty(residual, delta, tau)),
        delta=delta,
        n=len(runs),
        starts=len(starts),
        starts_at_optimum=int(same.sum()),
        log_residuals=-residual,
        run_ids=runs.run_id,
        loss=loss,
        tau=tau,
        condition=condition(problem, theta),
        basins=_basins(problem, solution, floor),
        weights=problem.weights,
    )
    return fit, theta, problem


def noise_weights(runs: Runs, residual: np.ndarray) -> np.ndarray | None:
    """Weights from known standard errors, float64[run] with mean 1; None where none is known.

    A run's log-loss varies by its standard error s_i/L_i and by what the law leaves, sigma, so it
    weighs as 1/(sigma² + (s_i/L_i)²) (two-step feasible weighted least squares). sigma² is what a
    first fit's `residual` [run] shows (1.4826 times its median size, squared: Huber & Ronchetti
    2009, section 5.1) beyond the typical s_i/L_i. Where s_i is unknown, or 0, the median stands in.
    """
    relative = runs.loss_se / runs.loss
    known = np.isfinite(relative) & (relative > 0)
    if not known.any():
        return None
    typical = float(np.median(relative[known]))
    variance = np.where(known, relative, typical) ** 2
    scatter = (1.4826 * float(np.median(np.abs(residual)))) ** 2
    weights = 1 / (max(scatter - typical**2, 0.0) + variance)
    return weights / weights.mean()


def _penalty_options(loss: str, delta: float | None, tau: float | None) -> tuple[float, float]:
    if loss not in LOSSES:
        raise ValueError(f"no penalty '{loss}'; wanted one of {', '.join(LOSSES)}. Nothing was fitted.")
    if loss == "least_squares" and delta is not None:
        raise ValueError(f"least squares has no knee, but delta={delta} was given. Nothing was fitted.")
    if loss != "asymmetric" and tau is not None:
        raise ValueError(f"penalty '{loss}' has no tau, but tau={tau} was given. Nothing was fitted.")
    tau = 0.5 if loss != "asymmetric" else TAU if tau is None else tau
    delta = float("inf") if loss == "least_squares" else DELTA if delta is None else delta
    if not (0 < tau < 1 and delta > 0):
        raise ValueError(f"wanted tau between 0 and 1 and delta above 0; found {tau}, {delta}")
    return delta, tau


def _best(solution: Solution) -> np.ndarray:
    return solution.theta[int(np.argmin(solution.objective))]


def _residual(problem: Problem, theta: np.ndarray) -> np.ndarray:
    return problem.law.evaluate(theta[None], problem.X)[0][0] - problem.log_loss


def _basins(problem: Problem, solution: Solution, floor: float) -> tuple[Basin, ...]:
    """The distinct optima within BASIN_WITHIN of the best; ends that are no optimum are none."""
    law, least = problem.law, solution.objective.min()
    optimum = (solution.gradient <= STATIONARY) | (solution.objective <= floor)
    near = np.flatnonzero(optimum & (solution.objective <= least * (1 + BASIN_WITHIN) + floor))
    near = near[np.argsort(solution.objective[near], kind="stable")]
    fitted = law.evaluate(solution.theta[near], problem.X)[0]
    natural = law.natural(solution.theta[near], problem.centre)
    found: list[tuple[int, int]] = []
    for i in range(len(near)):
        for k, (first, count) in enumerate(found):
            if np.abs(fitted[i] - fitted[first]).max() <= SAME_BASIN:
                found[k] = first, count + 1
                break
        else:
            found.append((i, 1))
    return tuple(
        Basin(
            float(solution.objective[near[i]]),
            dict(zip(law.unknowns, map(float, natural[i]), strict=True)),
            count,
        )
        for i, count in found
    )


def _status(
    law: Law, end: Solution, starts: int, at_bound: np.ndarray, natural: np.ndarray, floor: float
) -> tuple[Status, str]:
    if at_bound.any():
        where = ", ".join(
            f"{name} = {value:.3g}"
            for name, value, bound in zip(law.unknowns, natural, at_bound, strict=True)
            if bound
        )
        return Status.AT_BOUND, f"the best fit lies on the edge of what was allowed ({where})"
    if end.gradient[0] > STATIONARY and end.objective[0] > floor:
        return Status.NOT_CONVERGED, (
            f"the best of {starts} starts stopped where the objective still slopes "
            f"(scaled gradient {end.gradient[0]:.1e}, wanted below {STATIONARY:.0e})"
        )
    return Status.CONVERGED, ""
