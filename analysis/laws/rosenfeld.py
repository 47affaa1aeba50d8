"""Rosenfeld et al. 2020: a separable law under an envelope that no loss exceeds.

The paper has eps~(m, n) = a·n^-alpha + b·m^-beta + c and eps^ = eps0·|eps~/(eps~ - i·eta)|, with m the
size and n the data, i the imaginary unit. Only the ratios of a, b and c to eta change eps^: here
eta = eps0, so that eps~ is the loss itself where that is far below eps0, the loss of a model that
knows nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from analysis.laws.law import Bounds, Law
from analysis.laws.separable import bounds_separable, evaluate_separable, start_separable

CEILING_RANGE = (1.0, 100.0)
"""Where eps0 is sought, in the largest loss; assumption: at 100 the envelope lowers that by 0.005%."""

FLOOR = 3.0
"""Largest c, in the least loss: eps~ exceeds the loss it stands for. Assumption."""

# theta = (c, log b, log a at the centre, beta, alpha, log eps0): the separable law's, and the ceiling.


def _evaluate_rosenfeld(theta: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    value, slope = evaluate_separable(theta[:, :5], X)
    over = np.logaddexp(0.0, 2 * (value - theta[:, 5:]))  # log(1 + (eps~/eps0)²)
    below = np.exp(-over)
    slope = np.concatenate([slope.transpose(2, 0, 1) * below, [1 - below]]).transpose(1, 2, 0)
    return value - over / 2, slope


def _start_rosenfeld(X: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The separable law's starts for the eps~ that each of a few ceilings takes the losses for."""
    starts = []
    for ceiling in loss.max() * np.array([1.02, 1.1, 1.3, 2.0, 5.0, 50.0]):
        lifted = loss / np.sqrt(1 - (loss / ceiling) ** 2)
        separable = start_separable(X, lifted, weights)[:4]
        starts.append(np.column_stack([separable, np.full(len(separable), np.log(ceiling))]))
    return np.vstack(starts)


def _natural_rosenfeld(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    c, b, a, beta, alpha, ceiling = theta.T
    a, b = np.exp(a + alpha * centre[1]), np.exp(b + beta * centre[0])
    return np.stack([c, b, a, beta, alpha, np.exp(ceiling)], axis=-1)


def _bounds_rosenfeld(loss: np.ndarray) -> Bounds:
    lower, upper = bounds_separable(loss)
    upper[0] *= FLOOR
    upper[1:3] += np.log(100.0)  # under a ceiling near the largest loss, eps~ is far above it
    lowest, highest = np.log(loss.max()) + np.log(CEILING_RANGE)
    return np.append(lower, lowest), np.append(upper, highest)


def _loss_rosenfeld(v: Mapping[str, float], N: np.ndarray, D: np.ndarray) -> np.ndarray:
    free = v["c"] + v["b"] * N ** -v["beta"] + v["a"] * D ** -v["alpha"]
    return free / np.sqrt(1 + (free / v["eps0"]) ** 2)


ROSENFELD = Law(
    name="rosenfeld",
    equation="L(N, D) = eps0·|e/(e - i·eps0)|, e = c + b/N^beta + a/D^alpha",
    source="Rosenfeld et al. 2020 (arXiv 1909.12673), equations 4 and 5, with eta = eps0",
    variables=("params", "tokens"),
    unknowns=("c", "b", "a", "beta", "alpha", "eps0"),
    evaluate=_evaluate_rosenfeld,
    start=_start_rosenfeld,
    natural=_natural_rosenfeld,
    bounds=_bounds_rosenfeld,
    loss=_loss_rosenfeld,
)
"""N times k: b times k^beta. D times k: a times k^alpha. L times k: a, b, c and eps0 times k. The
irreducible loss is c/sqrt(1 + (c/eps0)²)."""
