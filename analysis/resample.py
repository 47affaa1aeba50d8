"""The bootstrap: the same fit over resampled clusters, all resamples solved together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from analysis.laws import Law
from analysis.solver import Problem, solve_near
from analysis.values import LEVEL, Estimate, LawFit, Runs

RESAMPLES = 1000
"""Assumption: enough for the 5% and 95% quantiles to move by less than a tenth of the interval."""

SEED = 20221115
"""Of the bootstrap's generator; any number does, and one that stands here makes results repeat."""


def cluster_weights(runs: Runs, needed: int, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """How often each run is drawn when whole clusters are drawn with replacement.

    Runs that share a size (or a trunk) share its luck, so they are drawn together (Efron &
    Tibshirani 1993, chapter 8). Where there are fewer than `needed` clusters, which could not
    carry the fit, runs are drawn one by one. A resample with fewer than `needed` distinct
    (params, tokens) determines no fit and is drawn again.

    Returns: float64[resample, run].
    Raises ValueError: fewer than `needed` distinct runs are there to draw.
    """
    generator = np.random.default_rng(seed)
    cluster = np.unique(runs.cluster, return_inverse=True)[1]
    if cluster.max() + 1 < needed:
        cluster = np.arange(len(runs))
    clusters = cluster.max() + 1
    points = np.column_stack([runs.params, runs.tokens])
    point = np.unique(points, axis=0, return_inverse=True)[1].ravel()
    distinct = int(point.max()) + 1
    if distinct < needed:
        raise ValueError(f"the bootstrap needs {needed} distinct runs; there are {distinct}")
    kept: list[np.ndarray] = []
    while sum(map(len, kept)) < resamples:
        drawn = generator.integers(0, clusters, (resamples, clusters))
        drawn += np.arange(resamples)[:, None] * clusters
        counts = np.bincount(drawn.ravel(), minlength=resamples * clusters).reshape(resamples, clusters)
        weights = counts[:, cluster].astype(np.float64)
        kept.append(weights[_distinct(weights > 0, point, distinct) >= needed])
    return np.concatenate(kept)[:resamples]


def _distinct(there: np.ndarray, point: np.ndarray, points: int) -> np.ndarray:
    """How many of `points` the runs that are there [resample, run] lie at, int64[resample]."""
    if points == len(point):
        return there.sum(axis=1)
    membership = np.zeros((len(point), points))
    membership[np.arange(len(point)), point] = 1.0
    return ((there @ membership) > 0).sum(axis=1)


def refit(problem: Problem, theta: np.ndarray, weights: np.ndarray, seed: int = SEED) -> np.ndarray:
    """Solve `problem` under each row of weights [resample, run], begun at theta [unknown], the fit
    to all runs.

    Where the law has a prior, each resample is anchored at a draw from it instead of its mean, so
    that what only the prior knows varies as much as the prior does (randomised maximum a
    posteriori, Bardsley et al. 2014; exact for a linear law).

    Returns theta, float64[resample, unknown].
    """
    anchors = np.zeros((len(weights), len(theta)))
    if problem.prior:
        sd = np.array(problem.prior.sd)
        spread = np.where(np.isfinite(sd), sd, 0.0)
        generator = np.random.default_rng([seed, 1])  # not the stream that the weights came from
        anchors = problem.prior.mean + spread * generator.standard_normal(anchors.shape)
    return solve_near(problem, theta, weights, anchors)


def estimate(value: float, draws: np.ndarray) -> Estimate:
    """`value` with the percentile interval and standard deviation of its bootstrap draws [resample]."""
    lo, hi = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    unit = float(np.abs(draws).max()) or 1.0  # factors of a law reach 1e200, whose square overflows
    return Estimate(float(value), float(lo), float(hi), unit * float(np.std(draws / unit, ddof=1)))


def with_intervals(fit: LawFit, law: Law, problem: Problem, draws: np.ndarray) -> LawFit:
    """`fit` with the interval of each natural parameter from solver draws [resample, unknown]."""
    natural = law.natural(draws, problem.centre)
    parameters = tuple(
        replace(parameter, interval=estimate(parameter.value, natural[:, i]))
        for i, parameter in enumerate(fit.parameters)
    )
    return replace(fit, parameters=parameters)
