"""Several laws fitted to the same runs and the same resamples; those that predict speak with one voice.

The fit's own residuals do not tell which law extrapolates best. What tells is how each has
extrapolated inside the sweep (analysis/rollout.py), so that is what weighs those that predict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.discrepancy import Kriged, krige, log_variables
from analysis.fitting import Problem, fit_law
from analysis.laws import COUPLED, REPEATED, SEPARABLE, SHRUNK, Law
from analysis.resample import RESAMPLES, SEED, cluster_weights, refit, with_intervals
from analysis.values import LawFit, Runs, Skipped

SURFACES = (SEPARABLE, COUPLED, SHRUNK)
"""The laws of (N, D) that are fitted and shown beside those that predict."""

AUTOMATIC = (SHRUNK,)
"""What law=auto predicts with: on eight public tables it erred less, with its discrepancy, than the free
laws without (scripts/score_splits.py)."""

REPEATS = 1.1
"""Epochs from which a run's data count as repeated. Assumption: a tenth of a second epoch is no matter."""


def automatic(runs: Runs) -> tuple[Law, ...]:
    """AUTOMATIC, and where the runs repeat their data and all say how often, also the law that knows of
    it, each weighed by its backtests."""
    repeated = runs.tokens > REPEATS * runs.unique_tokens
    told = np.isfinite(runs.unique_tokens).all() and len(runs) > len(REPEATED.unknowns)
    return (*AUTOMATIC, REPEATED) if told and repeated.any() else AUTOMATIC


@dataclass(frozen=True, eq=False)
class Member:
    """One law: its fit, the solver's theta [unknown], and its refits to resamples, draws [resample,
    unknown]. Draw i of every member of an ensemble saw the same resample. `kriged` is there where
    the law predicts: the same law with its discrepancy."""

    law: Law
    fit: LawFit
    problem: Problem
    theta: np.ndarray
    draws: np.ndarray
    kriged: Kriged | None = None

    def log_loss(self, runs: Runs) -> tuple[np.ndarray, np.ndarray]:
        """log L of the law alone at these runs: of the fit, [run], and of the draws, [resample, run]."""
        X = log_variables(self.law, runs) - self.problem.centre
        return self.law.evaluate(self.theta[None], X)[0][0], self.law.evaluate(self.draws, X)[0]


@dataclass(frozen=True, eq=False)
class Voice:
    """log L expected of new runs [run], what each law alone says, and the variances (in log L, [run])
    that its error is made of: the law's parameters, its discrepancy, one run's noise, and the
    disagreement between the laws that predict."""

    log_loss: np.ndarray
    by_law: Mapping[str, np.ndarray]
    parameters: np.ndarray
    discrepancy: np.ndarray
    noise: np.ndarray
    laws: np.ndarray

    @property
    def variance(self) -> np.ndarray:
        return self.parameters + self.discrepancy + self.noise + self.laws


def fit_members(
    runs: Runs,
    predicting: Sequence[Law] = AUTOMATIC,
    *,
    beside: Sequence[Law] = SURFACES,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[tuple[Member, ...], tuple[Skipped, ...]]:
    """Fit the laws that predict, and those `beside` them; a law that the runs cannot determine is skipped with its
    reason. `resamples` may be 0: then parameters have no intervals."""
    fitted, skipped = [], []
    for law in {law.name: law for law in (*beside, *predicting)}.values():
        try:
            fitted.append((law, *fit_law(law, runs)))
        except ValueError as error:
            skipped.append(Skipped(f"law '{law.name}'", str(error)))
    if not fitted:
        return (), tuple(skipped)
    names = {law.name for law in predicting}
    weights = (
        cluster_weights(runs, max(len(law.unknowns) for law, *_ in fitted), resamples, seed)
        if resamples
        else None
    )
    members = []
    for law, fit, theta, problem in fitted:
        draws = np.empty((0, len(theta)))
        if weights is not None:
            draws = refit(problem, theta, weights)
            fit = with_intervals(fit, law, problem, draws)
        kriged = krige(problem, theta, runs.cluster) if law.name in names else None
        members.append(Member(law, fit, problem, theta, draws, kriged))
    return tuple(members), tuple(skipped)


def forecast(members: Sequence[Member], weights: Mapping[str, float], runs: Runs) -> Voice:
    """The weighted mean of what the members that predict expect of these runs (their losses are not
    looked at), with what it may be off by.

    `weights` holds those of the members that predict, summing to 1; `by_law` tells what all say, those
    that predict with their discrepancy.
    """
    by_law = {member.law.name: member.log_loss(runs)[0] for member in members}
    share, said = [], []
    for member in members:
        if member.law.name in weights:
            share.append(weights[member.law.name])
            said.append(member.kriged.forecast(log_variables(member.law, runs), runs.cluster))
            by_law[member.law.name] = said[-1].log_loss
    share = np.array(share)
    centre = np.stack([one.log_loss for one in said])
    mean = share @ centre
    return Voice(
        log_loss=mean,
        by_law=by_law,
        parameters=share @ np.stack([one.parameters for one in said]),
        discrepancy=share @ np.stack([one.discrepancy for one in said]),
        noise=share @ np.stack([one.noise for one in said]),
        laws=share @ (centre - mean) ** 2,
    )
