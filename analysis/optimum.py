"""At an optimum: its last digits, and how well the runs pin it down."""

from __future__ import annotations

import numpy as np

from analysis.solver import (
    EXACT,
    Problem,
    Solution,
    anchors_of,
    derivatives,
    held,
    look,
    newton_step,
    solution_at,
)

POLISHES, POLISH_STEP = 12, 1e-6
"""At most, and how far in log-loss the central differences reach: far inside any knee. Assumption."""


def polish(problem: Problem, theta: np.ndarray) -> Solution:
    """The optimum that theta [unknown] is near, to rounding; a Solution of one.

    Newton's method on the gradient, with the objective's full curvature by central differences of
    it: the objective itself is flat to half its digits around an optimum.
    """
    weights, anchors = _once(problem, theta)
    here = solution_at(problem, theta[None], weights, anchors)
    for _ in range(POLISHES):
        _, slope = problem.law.evaluate(here.theta, problem.X)
        size = np.sqrt(np.mean(slope[0] ** 2, axis=0))
        nudge = POLISH_STEP / np.maximum(size, POLISH_STEP * size.max())
        around = np.vstack([here.theta + np.diag(nudge), here.theta - np.diag(nudge), here.theta])
        state = look(problem, around, np.repeat(weights, len(around), 0), anchors, problem.delta)
        gradient, _ = derivatives(problem, state, around, anchors, np.zeros(len(around)))
        count = len(theta)
        curvature = (gradient[:count] - gradient[count:-1]) / (2 * nudge[:, None])
        curvature = (curvature + curvature.T)[None] / 2
        if not (np.isfinite(curvature).all() and (np.einsum("bpp->bp", curvature) > 0).all()):
            break
        step, _ = newton_step(held(problem, here.theta, gradient[-1:]), gradient[-1:], curvature, 0.0)
        there = np.clip(here.theta + step, problem.lower, problem.upper)
        then = solution_at(problem, there, weights, anchors)
        level = then.objective[0] <= here.objective[0] * (1 + 10 * EXACT)
        if not (level and then.gradient[0] < here.gradient[0]):
            break
        here = then
    return here


def condition(problem: Problem, theta: np.ndarray) -> float:
    """Condition number of the curvature of reweighted least squares at theta [unknown], scaled to a unit
    diagonal, over the parameters on no bound; inf where one of them changes no fitted loss."""
    weights, anchors = _once(problem, theta)
    state = look(problem, theta[None], weights, anchors, problem.delta)
    _, curvature = derivatives(problem, state, theta[None], anchors, np.ones(1))
    free = (theta > problem.lower) & (theta < problem.upper)
    curvature = curvature[0][np.ix_(free, free)]
    scale = np.sqrt(np.diag(curvature))
    if not len(scale) or (scale == 0).any():
        return float("inf") if len(scale) else 1.0
    return float(np.linalg.cond(curvature / scale / scale[:, None]))


def _once(problem: Problem, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every run once, [1, run], and the prior's mean, [1, unknown]."""
    weights = np.ones((1, len(problem.log_loss))) * problem.weights
    return weights, anchors_of(problem, None, (1, len(theta)))
