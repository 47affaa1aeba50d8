"""Kaplan et al. 2020: L(N, D) without an irreducible loss, and its limits L(N) and L(D)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from analysis.laws.coupled import evaluate_coupled
from analysis.laws.law import (
    EXPONENT_RANGE,
    SMALLEST_TERM,
    Bounds,
    Law,
    as_bounds,
    nonnegative_least_squares,
    separate,
)
from analysis.laws.power import bounds_power, evaluate_power, start_power
from analysis.laws.separable import evaluate_separable

# --- [(Nc/N)^(aN/aD) + Dc/D]^aD, theta = (a, b, aN, aD): a = aN·log Nc and b = aD·log Dc about the
# centre. It is the coupled law at E = 0 and k = its exponent of D.


def _evaluate_kaplan(theta: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    coupled = np.column_stack([np.zeros(len(theta)), theta, np.log(theta[:, 3])])
    value, slope = evaluate_coupled(coupled, X)
    slope[..., 4] += slope[..., 5] / theta[:, 3, None]
    return value, slope[..., 1:5]


def _start_kaplan(X: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """L^(1/aD) is linear in Nc^(aN/aD) and Dc, so that two exponents are searched, as for the separable law."""
    grid = np.geomspace(0.02, 1.0, 20)
    size, data = (side.ravel() for side in np.meshgrid(grid, grid, indexing="ij"))
    middle = np.log(np.median(loss))
    powered = (np.log(loss) - middle) / data[:, None]
    powers = np.exp(np.stack([-(size / data)[:, None] * X[:, 0] - powered, -X[:, 1] - powered], axis=-1))
    linear, error = nonnegative_least_squares(powers, np.ones(len(loss)), weights)
    best = separate(
        np.argsort(error * data**2, kind="stable"), np.log(np.stack([size, data], axis=1)), count=12
    )
    terms = middle + data[best, None] * np.log(np.maximum(linear[best], 1e-300))
    return np.column_stack([np.maximum(terms, middle + np.log(SMALLEST_TERM)), size[best], data[best]])


def _natural_kaplan(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    a, b, size, data = theta.T
    return np.stack([np.exp(a / size + centre[0]), np.exp(b / data + centre[1]), size, data], axis=-1)


def _bounds_kaplan(loss: np.ndarray) -> Bounds:
    term = np.log(SMALLEST_TERM * np.median(loss)), np.log(10 * loss.max())
    return as_bounds(term, term, EXPONENT_RANGE, EXPONENT_RANGE)


def _loss_kaplan(v: Mapping[str, float], N: np.ndarray, D: np.ndarray) -> np.ndarray:
    size = v["alpha_N"] / v["alpha_D"] * (np.log(v["N_c"]) - np.log(N))
    return np.exp(v["alpha_D"] * np.logaddexp(size, np.log(v["D_c"]) - np.log(D)))


KAPLAN = Law(
    name="kaplan",
    equation="L(N, D) = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D",
    source="Kaplan et al. 2020 (arXiv 2001.08361), equation 1.5",
    variables=("params", "tokens"),
    unknowns=("N_c", "D_c", "alpha_N", "alpha_D"),
    evaluate=_evaluate_kaplan,
    start=_start_kaplan,
    natural=_natural_kaplan,
    bounds=_bounds_kaplan,
    loss=_loss_kaplan,
)
"""N times k: N_c times k. D times k: D_c times k. L times k: N_c and D_c times k^(1/alpha_N) and
k^(1/alpha_D). There is no irreducible loss: far enough out, the law says 0."""


# --- (Nc/N)^aN + (Sc/S)^aS, theta = (log of each term at the centre, aN, aS): the separable law at E = 0 -


def _evaluate_steps(theta: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    value, slope = evaluate_separable(np.column_stack([np.zeros(len(theta)), theta]), X)
    return value, slope[..., 1:]


def _start_steps(X: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> np.ndarray:
    grid = np.geomspace(0.02, 2.0, 24)
    size, steps = (side.ravel() for side in np.meshgrid(grid, grid, indexing="ij"))
    powers = np.exp(np.stack([-size[:, None] * X[:, 0], -steps[:, None] * X[:, 1]], axis=-1))
    linear, error = nonnegative_least_squares(powers, loss, weights)
    best = separate(np.argsort(error, kind="stable"), np.log(np.stack([size, steps], axis=1)), count=12)
    terms = np.log(np.maximum(linear[best], SMALLEST_TERM * np.median(loss)))
    return np.column_stack([terms, size[best], steps[best]])


KAPLAN_STEPS = Law(
    name="kaplan_steps",
    equation="L(N, S_min) = (N_c/N)^alpha_N + (S_c/S_min)^alpha_S",
    source="Kaplan et al. 2020 (arXiv 2001.08361), equation 1.6",
    variables=("params", "tokens"),
    unknowns=("N_c", "S_c", "alpha_N", "alpha_S"),
    evaluate=_evaluate_steps,
    start=_start_steps,
    natural=_natural_kaplan,
    bounds=_bounds_kaplan,
    loss=lambda v, N, S: np.exp(v["alpha_N"] * (np.log(v["N_c"]) - np.log(N)))
    + np.exp(v["alpha_S"] * (np.log(v["S_c"]) - np.log(S))),
)
"""Of runs whose `tokens` hold S_min, the steps at a batch far above the critical one; in no list of laws that are
fitted to tokens."""


# --- (Xc/X)^alpha, theta = (log L at the centre, alpha) -------------------------------------------


def _natural_limit(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    a, alpha = theta.T
    return np.stack([np.exp(a / alpha + centre[0]), alpha], axis=-1)


KAPLAN_PARAMS = Law(
    name="kaplan_params",
    equation="L(N) = (N_c/N)^alpha_N",
    source="Kaplan et al. 2020 (arXiv 2001.08361), equation 1.1: enough data, trained to convergence",
    variables=("params",),
    unknowns=("N_c", "alpha_N"),
    evaluate=evaluate_power,
    start=start_power,
    natural=_natural_limit,
    bounds=bounds_power,
    loss=lambda v, N: np.exp(v["alpha_N"] * (np.log(v["N_c"]) - np.log(N))),
)

KAPLAN_TOKENS = Law(
    name="kaplan_tokens",
    equation="L(D) = (D_c/D)^alpha_D",
    source="Kaplan et al. 2020 (arXiv 2001.08361), equation 1.2: a large model, stopped early",
    variables=("tokens",),
    unknowns=("D_c", "alpha_D"),
    evaluate=evaluate_power,
    start=start_power,
    natural=_natural_limit,
    bounds=bounds_power,
    loss=lambda v, D: np.exp(v["alpha_D"] * (np.log(v["D_c"]) - np.log(D))),
)
