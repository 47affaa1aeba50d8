"""Farseer: a law of D at each N, whose three coefficients follow stretched exponentials of N."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from analysis.laws.law import EXPONENT_RANGE, SMALLEST_TERM, Bounds, Law, as_bounds, as_slope
from analysis.laws.separable import start_separable

REFERENCE = float(np.log(1e10))
"""log D at which the solver's coefficient of the data term is taken; 1e10 tokens lies within most
sweeps, and any other number only makes the fit's parameters hang together more."""

STRETCH_RANGE = (-1.5, 1.5)
"""Where gamma, beta and alpha are sought; assumption: the paper finds -0.1 to 0.17."""

STEEPNESS_RANGE = (-3.0, 3.0)
"""Where the slopes of the three logarithms by log N at the centre are sought, as exponents elsewhere."""

STIRRED = 1e-3
"""|g·x| below which a Taylor series stands in for a difference that would cancel."""

# a·N^g + b = p + s·(e^(g·x) - 1)/g with x = log N about the centre: p is the value there and s its slope
# by x, so that g = 0, a power law, is nothing special. theta = (p3, s3, gamma, p2, s2, beta, p1, s1,
# alpha); p2 is log of the data term at the centre and REFERENCE.


def _stretch(g: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(e^(g·x) - 1)/g and its derivative by g, float64[batch, run]."""
    z = g * x
    small = np.abs(z) < STIRRED
    safe = np.where(g == 0, 1.0, g)
    value = np.where(small, x * (1 + z / 2 + z * z / 6 + z**3 / 24), np.expm1(z) / safe)
    slope = np.where(small, x * x * (0.5 + z / 3 + z * z / 8 + z**3 / 30), (x * np.exp(z) - value) / safe)
    return value, slope


def _evaluate_farseer(theta: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p3, s3, gamma, p2, s2, beta, p1, s1, alpha = (column[:, None] for column in theta.T)
    x, y = X[:, 0], X[:, 1]
    (f3, g3), (f2, g2), (f1, g1) = (_stretch(g, x) for g in (gamma, beta, alpha))
    exponent, middle = np.exp(p1 + s1 * f1), np.exp(p1)
    rest = p3 + s3 * f3
    data = p2 + s2 * f2 - exponent * y + middle * REFERENCE
    value = np.logaddexp(rest, data)
    of_rest, of_data = np.exp(rest - value), np.exp(data - value)
    pulled = -of_data * exponent * y
    slope = as_slope(
        of_rest,
        of_rest * f3,
        of_rest * s3 * g3,
        of_data,
        of_data * f2,
        of_data * s2 * g2,
        pulled + of_data * middle * REFERENCE,
        pulled * f1,
        pulled * s1 * g1,
    )
    return value, slope


def _start_farseer(X: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """From the separable law: E + A/N^alpha, expanded about the centre, is the part that D leaves."""
    middle = X[:, 1].mean()
    E, a, b, alpha, beta = start_separable(X - [0, middle], loss, weights)[:3].T
    size = np.exp(a)
    rest = np.maximum(E + size, SMALLEST_TERM * np.median(loss))
    share = size / rest
    zero = np.zeros_like(E)
    starts = []
    for stretch in (-alpha * (1 - share), zero + 0.15):
        for s1, stretch1 in ((0.0, 0.1), (-0.05, 0.1), (0.05, -0.1)):
            p2 = b + beta * (middle - REFERENCE)
            columns = [np.log(rest), -alpha * share, stretch, p2, zero, zero - 0.1]
            starts.append(np.column_stack([*columns, np.log(beta), zero + s1, zero + stretch1]))
    return np.vstack(starts)


def _natural_farseer(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    p3, s3, gamma, p2, s2, beta, p1, s1, alpha = theta.T
    columns = []
    for p, s, g in ((p3, s3, gamma), (p2 + np.exp(p1) * REFERENCE, s2, beta), (p1, s1, alpha)):
        g = np.where(np.abs(g) < 1e-12, 1e-12, g)  # a power law has a = s/g and b = p - s/g without end
        columns += [s / g * np.exp(-g * centre[0]), p - s / g, g]
    return np.stack(columns, axis=-1)


def _bounds_farseer(loss: np.ndarray) -> Bounds:
    rest = np.log(SMALLEST_TERM * np.median(loss)), np.log(loss.max())
    term = (
        np.log(SMALLEST_TERM * np.median(loss)),
        np.log(1000 * loss.max()),
    )  # 1e10 may be far from the sweep
    tail = STEEPNESS_RANGE, STRETCH_RANGE
    return as_bounds(rest, *tail, term, *tail, tuple(np.log(EXPONENT_RANGE)), *tail)


def _loss_farseer(v: Mapping[str, float], N: np.ndarray, D: np.ndarray) -> np.ndarray:
    exponent = np.exp(v["a1"] * N ** v["alpha"] + v["b1"])
    data = v["a2"] * N ** v["beta"] + v["b2"] - exponent * np.log(D)
    return np.exp(v["a3"] * N ** v["gamma"] + v["b3"]) + np.exp(data)


FARSEER = Law(
    name="farseer",
    equation="L(N, D) = exp(a3·N^gamma + b3) + exp(a2·N^beta + b2)·D^-exp(a1·N^alpha + b1)",
    source="Li et al. 2025, Farseer (arXiv 2506.10972), the law of that name",
    variables=("params", "tokens"),
    unknowns=("a3", "b3", "gamma", "a2", "b2", "beta", "a1", "b1", "alpha"),
    evaluate=_evaluate_farseer,
    start=_start_farseer,
    natural=_natural_farseer,
    bounds=_bounds_farseer,
    loss=_loss_farseer,
    centred_on=(0, None),
)
"""N times k: a1, a2 and a3 times k^-alpha, k^-beta and k^-gamma. L times k: b2 and b3 plus log k. D must be
in tokens: the law is another one in another unit of D, unless a1 is 0."""
