"""What a law leaves, and what that says of new runs: size effects, a smooth discrepancy, noise.

    log L_i = law(theta; N_i, D_i) + u[cluster_i] + g(log N_i, log D_i) + e_i

u is normal and one number for a cluster (a size, a trunk), g a Gaussian process, e noise. No law is
exact: what it leaves is alike in runs that are near one another or share a trunk, so residuals are
evidence on runs nearby and no independent evidence on theta. This is universal kriging (Cressie
1993, section 3.4; Rasmussen & Williams 2006, section 2.7) with a law for its trend, g being Kennedy
& O'Hagan's (2001) model discrepancy. Far from all runs u and g fade, and the law remains, with g's
variance in the interval.

theta is linearised around its optimum; the variances are averaged over by marginal likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular

from analysis.fitting import Problem
from analysis.laws import Law
from analysis.values import Runs

CLUSTER_VARIANCES = (0.0, 0.3, 1.0, 3.0, 10.0, 30.0)
SMOOTH_VARIANCES = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Variances of u and of g over the noise's. Assumption: from nothing to where the noise hardly counts,
in steps of about sqrt(10), finer than a table of a hundred runs can tell."""

REACHES = (1.0, 2.0, 4.0)
"""Distances in log N and log D, in e-folds, over which g stays alike. Assumption: shorter ones are
noise to a sweep's spacing of 1.5x to 3x, and longer ones are the law's own affair."""

NOISE_STEPS = np.linspace(-3.0, 1.5, 19)
"""Log of noise sd over the law's robust residual scale. Assumption: g may explain all but 5% of it."""

SMALLEST_SCALE = 1e-5
"""Residual scale below which losses are exact to their printed digits. Assumption."""

VAGUE = 10.0
"""Prior sd of an unknown that no prior speaks of: logarithms and exponents of e^±10 say nothing."""

FREEDOM = 4.0
"""Of the Student t whose weights (nu + 1)/(nu + t²) tame large residuals: Lange, Little & Taylor
1989's default for robust regression."""

OUTLIER = 6.0
"""Leave-one-out standard errors beyond which a run is taken for a failed one, or one of other data.
Assumption: no normal error gets there, and a smaller one is tamed by its weight."""

GROSS = 10.0
"""Robust residual scales from which a run begins with less weight. Assumption: the misfits of a law that
a size effect explains stay below it, and failed runs do not."""

ROUNDS = 3
"""Of variances, theta and weights in turn. Assumption: by then outliers have lost their weight."""

NEGLIGIBLE = 5.0
"""Log likelihood under the best from which variances are left out of the average (weight < 1%)."""

MOST_RUNS = 800
"""Runs whose covariance is worked with; beyond it the dearest half of as many and a seeded draw of
the others stand for all. Assumption: more runs hardly narrow what g leaves open."""


@dataclass(frozen=True)
class Variances:
    """Of u and of g, over the noise's own; reach of g in e-folds."""

    cluster: float
    smooth: float
    reach: float


@dataclass(frozen=True, eq=False)
class Candidate:
    """One setting of the variances: its share of the average, the noise variance, theta [unknown]
    under it, and the Cholesky factor of the covariance of all runs, over the noise variance."""

    share: float
    variances: Variances
    noise: float
    theta: np.ndarray
    factor: np.ndarray


@dataclass(frozen=True, eq=False)
class Forecast:
    """log L expected of new runs [point], and the variances that its error is made of: the law's
    parameters, the discrepancy (u, g and the spread between candidates), and one run's noise."""

    log_loss: np.ndarray
    parameters: np.ndarray
    discrepancy: np.ndarray
    noise: np.ndarray

    @property
    def variance(self) -> np.ndarray:
        return self.parameters + self.discrepancy + self.noise


@dataclass(frozen=True, eq=False)
class Kriged:
    """A law with its discrepancy, fitted to runs. `surprise` [run] is how many standard errors each
    run lies above (+) or below what the others say; `used` [run] says which carry the covariance."""

    law: Law
    centre: np.ndarray
    X: np.ndarray
    residual_of: np.ndarray
    cluster: tuple[str, ...]
    weights: np.ndarray
    prior_sd: np.ndarray
    candidates: tuple[Candidate, ...]
    surprise: np.ndarray
    used: np.ndarray

    def forecast(self, log_variables: np.ndarray, cluster: Sequence[str]) -> Forecast:
        """At log variables float64[point, variable] (the law's own, uncentred), of new runs in these
        clusters; a label that no fitted run has is a cluster of its own."""
        X = log_variables - self.centre
        share = np.array([candidate.share for candidate in self.candidates])
        parts = [self._one(candidate, X, cluster) for candidate in self.candidates]
        mean, parameters, discrepancy, noise = (np.stack(part) for part in zip(*parts, strict=True))
        middle = share @ mean
        return Forecast(
            log_loss=middle,
            parameters=share @ parameters,
            discrepancy=share @ (discrepancy + (mean - middle) ** 2),
            noise=share @ noise,
        )

    def _one(self, c: Candidate, X: np.ndarray, cluster: Sequence[str]) -> tuple[np.ndarray, ...]:
        there, slope_there = self.law.evaluate(c.theta[None], self.X)
        here, slope_here = self.law.evaluate(c.theta[None], X)
        between = _covariance(self.X, self.cluster, X, cluster, c.variances)
        kriging = cho_solve((c.factor, True), between)
        unexplained = slope_here[0] - kriging.T @ slope_there[0]
        whitened = solve_triangular(c.factor, slope_there[0], lower=True)
        precision = whitened.T @ whitened / c.noise + np.diag(self.prior_sd**-2.0)
        parameters = np.einsum("ij,jk,ik->i", unexplained, np.linalg.inv(precision), unexplained)
        explained = np.einsum("ij,ij->j", between, kriging)
        alone = c.variances.cluster + c.variances.smooth
        discrepancy = c.noise * np.maximum(alone - explained, 0.0)
        mean = here[0] + kriging.T @ (self.residual_of - there[0])
        return mean, parameters, discrepancy, np.full(len(X), c.noise)


def log_variables(law: Law, runs: Runs) -> np.ndarray:
    """log of the columns that the law is a function of, float64[run, variable]."""
    return np.log(np.column_stack([getattr(runs, name) for name in law.variables]))


def krige(problem: Problem, theta: np.ndarray, cluster: Sequence[str]) -> Kriged:
    """Fit `problem`'s law anew together with its discrepancy, beginning at theta [unknown], the
    robust fit that takes residuals for independent.

    Unknowns without a prior get a vague one around theta, which keeps the algebra proper.
    """
    used = _representatives(problem)
    X, log_loss = problem.X[used], problem.log_loss[used]
    labels = tuple(cluster[i] for i in np.flatnonzero(used))
    prior_mean, prior_sd = _prior(problem, theta)
    work = _Work(problem, X, log_loss, labels, prior_mean, prior_sd)
    value, _ = problem.law.evaluate(theta[None], X)
    scale = SMALLEST_SCALE + 1.4826 * float(np.median(np.abs(value[0] - log_loss)))
    weights = 1 / np.maximum(1.0, ((value[0] - log_loss) / (GROSS * scale)) ** 2)
    for _ in range(ROUNDS):
        _, variances, noise = max(work.evidence(theta, weights, scale), key=lambda found: found[0])
        theta = work.optimum(theta, work.factor(variances, weights), noise)
        weights, surprise = work.reweigh(theta, weights, variances, noise)
    found = work.evidence(theta, weights, scale)
    best = max(score for score, *_ in found)
    kept = [(np.exp(score - best), v, noise) for score, v, noise in found if score > best - NEGLIGIBLE]
    total = sum(share for share, *_ in kept)
    candidates = []
    for share, variances, noise in kept:
        factor = work.factor(variances, weights)
        candidates.append(
            Candidate(share / total, variances, noise, work.optimum(theta, factor, noise), factor)
        )
    everywhere = np.full(len(used), np.nan)
    everywhere[used] = surprise
    return Kriged(
        problem.law,
        problem.centre,
        X,
        log_loss,
        labels,
        weights,
        prior_sd,
        tuple(candidates),
        everywhere,
        used,
    )


class _Work:
    """The numbers that every step of one fit shares."""

    def __init__(
        self,
        problem: Problem,
        X: np.ndarray,
        log_loss: np.ndarray,
        cluster: tuple[str, ...],
        prior_mean: np.ndarray,
        prior_sd: np.ndarray,
    ) -> None:
        self.problem, self.X, self.log_loss = problem, X, log_loss
        self.prior_mean, self.prior_sd = prior_mean, prior_sd
        self.same = _same_cluster(cluster, cluster)
        self.smooth = {reach: _smooth(X, X, reach) for reach in REACHES}
        clustered = self.same.sum() > len(X)
        self.grid = [
            Variances(u, g, reach)
            for u in (CLUSTER_VARIANCES if clustered else (0.0,))
            for g in SMOOTH_VARIANCES
            for reach in (REACHES if g else REACHES[:1])
        ]

    def log_prior(self, v: Variances) -> float:
        """A half of the prior for no u, a half for no g, the rest in equal parts: a law that is exact
        must be able to say so, or its intervals are too wide."""
        of_cluster = 1.0 if v.cluster == 0 else 1 / (len(CLUSTER_VARIANCES) - 1)
        of_smooth = 1.0 if v.smooth == 0 else 1 / (len(SMOOTH_VARIANCES) - 1) / len(REACHES)
        return float(np.log(of_cluster * of_smooth))

    def factor(self, v: Variances, weights: np.ndarray) -> np.ndarray:
        """Lower Cholesky factor [run, run] of the covariance over the noise variance."""
        matrix = v.cluster * self.same + v.smooth * self.smooth[v.reach]
        matrix[np.diag_indices_from(matrix)] += 1 / weights
        return cholesky(matrix, lower=True, check_finite=False)

    def evidence(
        self, theta: np.ndarray, weights: np.ndarray, scale: float
    ) -> list[tuple[float, Variances, float]]:
        """For each variances, the log marginal likelihood at its best noise variance, with that
        (Rasmussen & Williams 2006, equation 2.43, the law linearised at theta)."""
        value, slope = self.problem.law.evaluate(theta[None], self.X)
        design = slope[0] * self.prior_sd
        wanted = self.log_loss - value[0] + slope[0] @ (theta - self.prior_mean)
        noise = (scale * np.exp(NOISE_STEPS)) ** 2
        found = []
        for variances in self.grid:
            factor = self.factor(variances, weights)
            white = solve_triangular(
                factor, np.column_stack([design, wanted]), lower=True, check_finite=False
            )
            eigenvalues, basis = np.linalg.eigh(white[:, :-1].T @ white[:, :-1])
            eigenvalues = np.maximum(eigenvalues, 0.0)
            moment = basis.T @ (white[:, :-1].T @ white[:, -1])
            explained = (moment**2 / (eigenvalues + noise[:, None])).sum(axis=1)
            score = -0.5 * (
                (white[:, -1] @ white[:, -1] - explained) / noise
                + 2 * np.log(np.diag(factor)).sum()
                + len(wanted) * np.log(noise)
                + np.log1p(eigenvalues / noise[:, None]).sum(axis=1)
            )
            best = int(np.argmax(score))
            found.append((float(score[best]) + self.log_prior(variances), variances, float(noise[best])))
        return found

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # a trial step may leave a law's range
    def optimum(self, theta: np.ndarray, factor: np.ndarray, noise: float) -> np.ndarray:
        """theta of highest posterior density under one covariance, by damped Gauss-Newton steps."""
        evaluate = self.problem.law.evaluate

        def cost(theta: np.ndarray) -> float:
            residual = self.log_loss - evaluate(theta[None], self.X)[0][0]
            if not np.isfinite(residual).all():
                return np.inf
            white = solve_triangular(factor, residual, lower=True, check_finite=False)
            away = (theta - self.prior_mean) / self.prior_sd
            return float(white @ white / noise + away @ away)

        here = cost(theta)
        for _ in range(40):
            value, slope = evaluate(theta[None], self.X)
            columns = np.column_stack([slope[0] * self.prior_sd, self.log_loss - value[0]])
            white = solve_triangular(factor, columns, lower=True, check_finite=False)
            curvature = white[:, :-1].T @ white[:, :-1] / noise + np.eye(len(theta))
            pull = white[:, :-1].T @ white[:, -1] / noise - (theta - self.prior_mean) / self.prior_sd
            step = self.prior_sd * np.linalg.solve(curvature, pull)
            for halving in 0.5 ** np.arange(14):
                trial = np.clip(theta + halving * step, self.problem.lower, self.problem.upper)
                there = cost(trial)
                if there < here:
                    break
            else:
                return theta
            gained, theta, here = here - there, trial, there
            if gained < 1e-6:  # of minus twice a log density: far below what any interval can show
                return theta
        return theta

    def reweigh(
        self, theta: np.ndarray, weights: np.ndarray, v: Variances, noise: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Student-t weights [run] and leave-one-out standard errors [run] (Rasmussen & Williams 2006,
        equation 5.12). A residual left out cannot be explained away by the discrepancy around itself."""
        residual = self.log_loss - self.problem.law.evaluate(theta[None], self.X)[0][0]
        for _ in range(3):
            inverse = cho_solve((self.factor(v, weights), True), np.eye(len(weights)))
            alone = 1 / np.diag(inverse)
            variance = noise * (alone - 1 / weights + 1)  # of a run that counts fully
            surprise = alone * (inverse @ residual) / np.sqrt(variance)
            weights = np.minimum(1.0, (FREEDOM + 1) / (FREEDOM + surprise**2))
            weights = np.where(np.abs(surprise) > OUTLIER, 1e-6, weights)
        return weights, surprise


def _prior(problem: Problem, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd [unknown] of independent normals; E's vague one is in units of the loss."""
    vague = np.full(len(theta), VAGUE)
    for i, name in enumerate(problem.law.unknowns):
        if name == "E":
            vague[i] *= float(np.exp(np.median(problem.log_loss)))
    if problem.prior is None:
        return theta.copy(), vague
    mean, sd = np.array(problem.prior.mean), np.array(problem.prior.sd)
    said = np.isfinite(sd)
    return np.where(said, mean, theta), np.where(said, sd, vague)


def _representatives(problem: Problem) -> np.ndarray:
    """bool[run]: all, or MOST_RUNS of them: the dearest half, by the sum of log variables, and a draw."""
    count = len(problem.log_loss)
    if count <= MOST_RUNS:
        return np.ones(count, dtype=bool)
    order = np.argsort(-problem.X.sum(axis=1), kind="stable")
    rest = np.random.default_rng(count).permutation(order[MOST_RUNS // 2 :])
    used = np.zeros(count, dtype=bool)
    used[order[: MOST_RUNS // 2]] = used[rest[: MOST_RUNS - MOST_RUNS // 2]] = True
    return used


def _covariance(
    X: np.ndarray, cluster: Sequence[str], X_new: np.ndarray, cluster_new: Sequence[str], v: Variances
) -> np.ndarray:
    """Of u + g, over the noise variance; float64[run, new run]."""
    return v.cluster * _same_cluster(cluster, cluster_new) + v.smooth * _smooth(X, X_new, v.reach)


def _same_cluster(one: Sequence[str], other: Sequence[str]) -> np.ndarray:
    return (np.array(one, dtype=object)[:, None] == np.array(other, dtype=object)[None, :]).astype(np.float64)


def _smooth(X: np.ndarray, Y: np.ndarray, reach: float) -> np.ndarray:
    """Squared exponential correlation (Rasmussen & Williams 2006, equation 4.9)."""
    apart = ((X[:, None, :] - Y[None, :, :]) ** 2).sum(axis=-1)
    return np.exp(-apart / (2 * reach**2))
