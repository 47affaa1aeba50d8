"""E + A/N^alpha + B/D^beta, theta = (E, a, b, alpha, beta): a, b are logarithms at the centre."""

from __future__ import annotations

import numpy as np

from analysis.laws.law import (
    EXPONENT_RANGE,
    SMALLEST_TERM,
    Bounds,
    Law,
    as_bounds,
    nonnegative_least_squares,
    separate,
)


def evaluate_separable(theta: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    slope = np.empty((5, len(theta), len(X)))
    by_E, by_a, by_b, by_alpha, by_beta = slope
    x, y = X[:, 0], X[:, 1]
    np.matmul(theta[:, [1, 3]], np.stack([np.ones(len(X)), -x]), out=by_a)  # a - alpha·x
    np.matmul(theta[:, [2, 4]], np.stack([np.ones(len(X)), -y]), out=by_b)
    np.exp(slope[1:3], out=slope[1:3])
    loss = by_a + by_b
    loss += theta[:, :1]
    np.divide(1.0, loss, out=by_E)
    slope[1:3] *= by_E
    np.multiply(by_a, -x, out=by_alpha)
    np.multiply(by_b, -y, out=by_beta)
    return np.log(loss, out=loss), slope.transpose(1, 2, 0)


def start_separable(X: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> np.ndarray:
    grid = np.geomspace(0.03, 2.0, 28)
    alpha, beta = (side.ravel() for side in np.meshgrid(grid, grid, indexing="ij"))
    powers = np.stack(
        [
            np.ones((len(alpha), len(loss))),
            np.exp(-alpha[:, None] * X[:, 0]),
            np.exp(-beta[:, None] * X[:, 1]),
        ],
        axis=-1,
    )
    linear, error = nonnegative_least_squares(powers, loss, weights)
    best = separate(np.argsort(error, kind="stable"), np.log(np.stack([alpha, beta], axis=1)), count=12)
    log_terms = np.log(np.maximum(linear[best, 1:], SMALLEST_TERM * np.median(loss)))
    return np.column_stack([linear[best, 0], log_terms, alpha[best], beta[best]])


def natural_separable(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    E, a, b, alpha, beta = theta.T
    return np.stack([E, np.exp(a + alpha * centre[0]), np.exp(b + beta * centre[1]), alpha, beta], axis=-1)


def bounds_separable(loss: np.ndarray) -> Bounds:
    term = np.log(SMALLEST_TERM * np.median(loss)), np.log(10 * loss.max())
    return as_bounds((0.0, loss.min()), term, term, EXPONENT_RANGE, EXPONENT_RANGE)


SEPARABLE = Law(
    name="separable",
    equation="L(N, D) = E + A/N^alpha + B/D^beta",
    source="Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3, approach 3",
    variables=("params", "tokens"),
    unknowns=("E", "A", "B", "alpha", "beta"),
    evaluate=evaluate_separable,
    start=start_separable,
    natural=natural_separable,
    bounds=bounds_separable,
    loss=lambda v, N, D: v["E"] + v["A"] * N ** -v["alpha"] + v["B"] * D ** -v["beta"],
)
