"""Muennighoff et al. 2023: the separable law of effective parameters and effective data, where tokens
are repeated.

With U = min(unique tokens, D) and R_D = D/U - 1 repetitions, D' = U + U·rd·(1 - exp(-R_D/rd)). With
U_N = min(N, N_opt(U)), where N_opt(U) is the size that is compute-optimal for U tokens by the separable
law of the same A, B, alpha and beta, and R_N = N/U_N - 1, N' = U_N + U_N·rn·(1 - exp(-R_N/rn)).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from analysis.laws.law import Bounds, Law, as_slope
from analysis.laws.separable import bounds_separable, start_separable

HALVING_RANGE = (0.1, 1000.0)
"""Where rd and rn are sought; assumption: at 0.1 a repetition is worth nothing, at 1000 as much as new
data in any table (Muennighoff et al. find 15.4 and 5.3)."""

# theta = (E, a, b, alpha, beta, log rd, log rn): the separable law's, and the two scales of decay.


def _saturate(ratio: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log(1 + s·(1 - exp(-r/s))) for r = exp(ratio) - 1, and its derivatives by `ratio` and log s."""
    repeats = np.expm1(ratio)
    left = np.exp(-repeats / scale)
    worth = scale * -np.expm1(-repeats / scale)
    by_ratio = left * (1 + repeats) / (1 + worth)
    return np.log1p(worth), by_ratio, (worth - repeats * left) / (1 + worth)


def _evaluate_repeated(theta: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    E, a, b, alpha, beta, log_rd, log_rn = (column[:, None] for column in theta.T)
    x, y, unique = X[:, 0], X[:, 1], np.minimum(X[:, 2], X[:, 1])
    gained, _, data_by_rd = _saturate(y - unique, np.exp(log_rd))
    data = unique + gained
    # alpha·A/N^alpha = beta·B/U^beta at the compute-optimal N (C = 6·N·U)
    optimal = (np.log(alpha / beta) + a - b + beta * unique) / alpha
    used = np.minimum(x, optimal)
    gained, by_ratio, size_by_rn = _saturate(x - used, np.exp(log_rn))
    size = used + gained
    by_optimal = np.where(optimal < x, 1 - by_ratio, 0.0)
    of_size, of_data = np.exp(a - alpha * size), np.exp(b - beta * data)
    loss = E + of_size + of_data
    of_size, of_data = of_size / loss, of_data / loss
    pulled = -alpha * of_size * by_optimal  # d log L / d log N_opt
    slope = as_slope(
        1 / loss,
        of_size + pulled / alpha,
        of_data - pulled / alpha,
        -size * of_size + pulled * (1 / alpha - optimal) / alpha,
        -data * of_data + pulled * (unique - 1 / beta) / alpha,
        -beta * of_data * data_by_rd,
        -alpha * of_size * size_by_rn,
    )
    return np.log(loss), slope


def _start_repeated(X: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The separable law's starts on the effective data of a few rd, N as it is."""
    unique = np.minimum(X[:, 2], X[:, 1])
    starts = []
    for rd in (2.0, 10.0, 50.0):
        data = unique + _saturate(X[:, 1] - unique, np.array(rd))[0]
        separable = start_separable(np.column_stack([X[:, 0], data]), loss, weights)[:3]
        for rn in (3.0, 30.0):
            starts.append(np.column_stack([separable, np.tile(np.log([rd, rn]), (len(separable), 1))]))
    return np.vstack(starts)


def _natural_repeated(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    E, a, b, alpha, beta, log_rd, log_rn = theta.T
    A, B = np.exp(a + alpha * centre[0]), np.exp(b + beta * centre[1])
    return np.stack([E, A, B, alpha, beta, np.exp(log_rd), np.exp(log_rn)], axis=-1)


def _bounds_repeated(loss: np.ndarray) -> Bounds:
    lower, upper = bounds_separable(loss)
    lowest, highest = np.log(HALVING_RANGE)
    return np.append(lower, [lowest] * 2), np.append(upper, [highest] * 2)


def _loss_repeated(v: Mapping[str, float], N: np.ndarray, D: np.ndarray, U: np.ndarray) -> np.ndarray:
    unique = np.minimum(U, D)
    data = unique * (1 - v["rd"] * np.expm1(-(D / unique - 1) / v["rd"]))
    optimal = (v["alpha"] * v["A"] / (v["beta"] * v["B"]) * unique ** v["beta"]) ** (1 / v["alpha"])
    used = np.minimum(N, optimal)
    size = used * (1 - v["rn"] * np.expm1(-(N / used - 1) / v["rn"]))
    return v["E"] + v["A"] * size ** -v["alpha"] + v["B"] * data ** -v["beta"]


REPEATED = Law(
    name="repeated",
    equation="L(N, D, U) = E + A/N'^alpha + B/D'^beta, N' and D' the effective parameters and data",
    source="Muennighoff et al. 2023 (arXiv 2305.16264), section 3.2 and appendix A; all seven fitted at once",
    variables=("params", "tokens", "unique_tokens"),
    unknowns=("E", "A", "B", "alpha", "beta", "rd", "rn"),
    evaluate=_evaluate_repeated,
    start=_start_repeated,
    natural=_natural_repeated,
    bounds=_bounds_repeated,
    loss=_loss_repeated,
    centred_on=(0, 1, 1),
)
"""N times k: A times k^alpha. D and U times k: B times k^beta. L times k: E, A and B times k."""
