"""Laws of one variable: a·C^b, a·C^b + E, and one broken power law."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from analysis.laws.law import (
    EXPONENT_RANGE,
    SMALLEST_TERM,
    Bounds,
    Law,
    as_bounds,
    as_slope,
    nonnegative_least_squares,
    separate,
)

# --- a·C^b, theta = (log a at the centre, -b): a line in logarithms ---------------------------------


def evaluate_power(theta: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    value = theta[:, :1] - theta[:, 1:] * X[:, 0]
    return value, as_slope(np.ones_like(value), np.broadcast_to(-X[:, 0], value.shape))


def start_power(X: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted least-squares line; one start, since nothing is in its way to the optimum."""
    root = np.sqrt(weights)
    design = np.column_stack([np.ones(len(loss)), -X[:, 0]])
    return np.linalg.lstsq(design * root[:, None], np.log(loss) * root, rcond=None)[0][None]


def bounds_power(loss: np.ndarray) -> Bounds:
    return as_bounds((np.log(0.1 * loss.min()), np.log(10 * loss.max())), EXPONENT_RANGE)


def _natural_power(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    a, gamma = theta.T
    return np.stack([np.exp(a + gamma * centre[0]), -gamma], axis=-1)


POWER = Law(
    name="power",
    equation="L(C) = a·C^b",
    source="Kaplan et al. 2020 (arXiv 2001.08361), equation 1.3, with a = C_c^alpha_C and b = -alpha_C",
    variables=("flops",),
    unknowns=("a", "b"),
    evaluate=evaluate_power,
    start=start_power,
    natural=_natural_power,
    bounds=bounds_power,
    loss=lambda v, C: np.exp(np.log(v["a"]) + v["b"] * np.log(C)),
)
"""C times k: a times k^-b. L times k: a times k."""


# --- a·C^b + E, theta = (E, log a at the centre, -b) ------------------------------------------------


def _evaluate_compute(theta: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    E, a, gamma = (column[:, None] for column in theta.T)
    x = X[:, 0]
    reducible = np.exp(a - gamma * x)
    loss = E + reducible
    share = reducible / loss
    return np.log(loss), as_slope(1 / loss, share, -x * share)


def _start_compute(X: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> np.ndarray:
    gamma = np.geomspace(0.015, 2.0, 60)
    powers = np.stack([np.ones((len(gamma), len(loss))), np.exp(-gamma[:, None] * X[:, 0])], axis=-1)
    linear, error = nonnegative_least_squares(powers, loss, weights)
    best = separate(np.argsort(error, kind="stable"), np.log(gamma)[:, None], count=8)
    return np.column_stack(
        [linear[best, 0], np.log(np.maximum(linear[best, 1], SMALLEST_TERM * np.median(loss))), gamma[best]]
    )


def _natural_compute(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    E, a, gamma = theta.T
    return np.stack([E, np.exp(a + gamma * centre[0]), -gamma], axis=-1)


def _bounds_compute(loss: np.ndarray) -> Bounds:
    term = np.log(SMALLEST_TERM * np.median(loss)), np.log(10 * loss.max())
    return as_bounds((0.0, loss.min()), term, EXPONENT_RANGE)


COMPUTE = Law(
    name="compute",
    equation="L(C) = E + a·C^b",
    source="Henighan et al. 2020 (arXiv 2010.14701), equation 1.1",
    variables=("flops",),
    unknowns=("E", "a", "b"),
    evaluate=_evaluate_compute,
    start=_start_compute,
    natural=_natural_compute,
    bounds=_bounds_compute,
    loss=lambda v, C: v["E"] + v["a"] * C ** v["b"],
)

"""C times k: a times k^-b. L times k: a and E times k."""


# --- E + b·C^-c0·(1 + (C/d)^(1/f))^(-c1·f), theta = (E, log b at the centre, c0, c1, log d, log f) ----

BREAK_RANGE = (-15.0, 15.0)
"""Where log d is sought about the centre; assumption: beyond, no run of any table sees the break."""

SHARPNESS_RANGE = (0.2, 5.0)
"""Where f is sought; assumption: a bend within a factor e^0.2 of C lies between two runs of most tables,
where it would follow their noise; one across e^5 is no break."""

SLOPE_RANGE = (-3.0, 3.0)
"""Where the change of exponent c1 is sought: as the exponents themselves, to either side."""


def _evaluate_broken(theta: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    E, b, c0, c1, d, log_f = (column[:, None] for column in theta.T)
    f = np.exp(log_f)
    x = X[:, 0]
    z = (x - d) / f
    bend = np.logaddexp(0.0, z)
    passed = np.exp(z - bend)  # logistic(z)
    reducible = np.exp(b - c0 * x - c1 * f * bend)
    loss = E + reducible
    share = reducible / loss
    slope = as_slope(
        1 / loss,
        share,
        -x * share,
        -f * bend * share,
        c1 * passed * share,
        -c1 * f * (bend - z * passed) * share,
    )
    return np.log(loss), slope


def _start_broken(X: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> np.ndarray:
    x = X[:, 0]
    breaks = np.quantile(x, [0.15, 0.3, 0.5, 0.7, 0.85])
    changes = np.array([-0.4, -0.15, -0.05, 0.05, 0.15, 0.4, 1.0])
    axes = np.meshgrid(np.geomspace(0.02, 1.5, 10), changes, breaks, [0.1, 0.5, 1.5], indexing="ij")
    c0, c1, d, f = (axis.ravel() for axis in axes)
    bent = -c0[:, None] * x - (c1 * f)[:, None] * np.logaddexp(0.0, (x - d[:, None]) / f[:, None])
    powers = np.stack([np.ones_like(bent), np.exp(bent)], axis=-1)
    linear, error = nonnegative_least_squares(powers, loss, weights)
    place = np.stack([2 * np.log(c0), 2 * c1, d / max(np.ptp(x), 1e-9) * 2, np.log(f)], axis=1)
    best = separate(np.argsort(error, kind="stable"), place, count=16)
    term = np.log(np.maximum(linear[best, 1], SMALLEST_TERM * np.median(loss)))
    return np.column_stack([linear[best, 0], term, c0[best], c1[best], d[best], np.log(f[best])])


def _natural_broken(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    E, b, c0, c1, d, log_f = theta.T
    return np.stack([E, np.exp(b + c0 * centre[0]), c0, c1, np.exp(d + centre[0]), np.exp(log_f)], axis=-1)


def _bounds_broken(loss: np.ndarray) -> Bounds:
    term = np.log(SMALLEST_TERM * np.median(loss)), np.log(10 * loss.max())
    sharpness = tuple(np.log(SHARPNESS_RANGE))
    return as_bounds((0.0, loss.min()), term, EXPONENT_RANGE, SLOPE_RANGE, BREAK_RANGE, sharpness)


def _loss_broken(v: Mapping[str, float], C: np.ndarray) -> np.ndarray:
    x = np.log(C)
    bend = np.logaddexp(0.0, (x - np.log(v["d"])) / v["f"])
    return v["E"] + np.exp(np.log(v["b"]) - v["c0"] * x - v["c1"] * v["f"] * bend)


BROKEN = Law(
    name="broken",
    equation="L(C) = E + b·C^-c0·(1 + (C/d)^(1/f))^(-c1·f)",
    source="Caballero et al. 2023 (arXiv 2210.14891), equation 1, with one break",
    variables=("flops",),
    unknowns=("E", "b", "c0", "c1", "d", "f"),
    evaluate=_evaluate_broken,
    start=_start_broken,
    natural=_natural_broken,
    bounds=_bounds_broken,
    loss=_loss_broken,
)
"""The exponent goes from -c0 far before the break at d to -(c0 + c1) far beyond; f is how gradually, in
log C. C times k: d times k, b times k^c0. L times k: E and b times k."""
