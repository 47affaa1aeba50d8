"""Is there structure in residuals that a law of the right form would not leave?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.resample import SEED

FLIPS = 999
"""Random sign patterns of the wild bootstrap: p-values to 0.001."""

OUTLYING = 3.0
"""Residuals are clipped at this many robust standard deviations, so that one wild run is no trend."""


def trend(
    residuals: np.ndarray, base: np.ndarray, columns: np.ndarray, clusters: Sequence[str]
) -> tuple[float, float]:
    """How probable as much of a trend along `columns` [run, k] is by chance, and its root mean square.

    The share of the residuals' variance that `columns` explain beyond `base`, against its distribution
    over random signs of each cluster's residuals (the wild cluster bootstrap with the null imposed,
    Cameron, Gelbach & Miller 2008, Review of Economics and Statistics 90(3)). Few clusters leave few
    patterns, and so no small probability.
    """
    beneath, columns = _orthonormal(_unit(base)), _unit(columns)
    beyond = _orthonormal(columns - beneath @ (beneath.T @ columns))
    cluster = np.unique(clusters, return_inverse=True)[1].ravel()
    signs = np.random.default_rng(SEED).choice([-1.0, 1.0], size=(FLIPS, cluster.max() + 1))
    drawn = np.vstack([residuals, signs[:, cluster] * residuals])
    explained = ((drawn @ beyond) ** 2).sum(axis=1)
    total = (drawn**2).sum(axis=1) - ((drawn @ beneath) ** 2).sum(axis=1)
    share = explained / np.maximum(total, 1e-300)
    chance = float(np.mean(share[1:] >= share[0] * (1 - 1e-9)))
    return max(chance, 1 / (FLIPS + 1)), float(np.sqrt(explained[0] / len(residuals)))


def _unit(columns: np.ndarray) -> np.ndarray:
    return columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300)


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """A basis of what `columns` [run, k], of length 1 or less, span; directions they hardly have dropped."""
    left, singular, _ = np.linalg.svd(columns, full_matrices=False)
    return left[:, singular > 1e-6]


def clipped(residuals: np.ndarray) -> np.ndarray:
    """Residuals held within OUTLYING robust standard deviations of their median."""
    middle, scale = np.median(residuals), OUTLYING * robust_sd(residuals)
    return np.clip(residuals, middle - scale, middle + scale) if scale > 0 else residuals


def robust_sd(residuals: np.ndarray) -> float:
    """1.4826 median absolute deviations: a normal's standard deviation."""
    return 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))
