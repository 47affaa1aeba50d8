"""Several laws of (N, D) fitted to the same runs and the same resamples, speaking with one voice.

The fit's own residuals do not tell which law extrapolates best. What tells is how each has
extrapolated inside the sweep (analysis/rollout.py), so that is what weighs those that predict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.fit import Problem, fit_law
from analysis.laws import COUPLED, SEPARABLE, SHRUNK, Law
from analysis.resample import RESAMPLES, SEED, cluster_weights, refit, with_intervals
from analysis.values import LawFit, Runs, Skipped

SURFACES = (SEPARABLE, COUPLED, SHRUNK)
"""The laws of (N, D) that are fitted and shown; a new one joins here."""

PREDICTING = (SHRUNK,)
"""Those of them that predict. On public and synthetic sweeps this one alone erred less, with narrower
intervals that held as often, than weighted together with the separable law or than both free laws."""


@dataclass(frozen=True, eq=False)
class Member:
    """One law: its fit, the solver's theta [unknown], and its refits to resamples, draws [resample,
    unknown]. Draw i of every member of an ensemble saw the same resample."""

    law: Law
    fit: LawFit
    problem: Problem
    theta: np.ndarray
    draws: np.ndarray

    def log_loss(self, params: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log L at N, D [point]: of the fit, [point], and of the draws, [resample, point]."""
        X = np.log(np.column_stack([params, tokens])) - self.problem.centre
        return self.law.evaluate(self.theta[None], X)[0][0], self.law.evaluate(self.draws, X)[0]


@dataclass(frozen=True, eq=False)
class Forecast:
    """log L at each point, and the variances (in log L, [point]) that make its error up:
    parameters (spread of the resampled fits), laws (their disagreement), noise (of one run)."""

    log_loss: np.ndarray
    by_law: Mapping[str, np.ndarray]
    parameters: np.ndarray
    laws: np.ndarray
    noise: float

    @property
    def variance(self) -> np.ndarray:
        return self.parameters + self.laws + self.noise


def fit_members(
    runs: Runs, *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[tuple[Member, ...], tuple[Skipped, ...]]:
    """Fit every law of SURFACES to `runs`; a law that they cannot determine is skipped with its reason."""
    fitted, skipped = [], []
    for law in SURFACES:
        try:
            fitted.append((law, *fit_law(law, runs)))
        except ValueError as error:
            skipped.append(Skipped(f"law '{law.name}'", str(error)))
    if not fitted:
        return (), tuple(skipped)
    weights = cluster_weights(runs, max(len(law.unknowns) for law, *_ in fitted), resamples, seed)
    members = []
    for law, fit, theta, problem in fitted:
        draws = refit(problem, theta, weights)
        members.append(Member(law, with_intervals(fit, law, problem, draws), problem, theta, draws))
    return tuple(members), tuple(skipped)


def forecast(
    members: tuple[Member, ...], weights: Mapping[str, float], params: np.ndarray, tokens: np.ndarray
) -> Forecast:
    """The weighted mean of the members' log losses at N, D [point], with what it may be off by.

    `weights` holds those of the members that predict, summing to 1; `by_law` tells what all say.
    """
    said = {member.law.name: member.log_loss(params, tokens) for member in members}
    members = tuple(member for member in members if member.law.name in weights)
    share = np.array([weights[member.law.name] for member in members])
    centres, draws = zip(*(said[member.law.name] for member in members), strict=True)
    mean = sum(w * centre for w, centre in zip(share, centres, strict=True))
    spread = sum(w * (draw - centre) for w, draw, centre in zip(share, draws, centres, strict=True))
    between = sum(w * (centre - mean) ** 2 for w, centre in zip(share, centres, strict=True))
    residual = sum(w * member.fit.log_residuals for w, member in zip(share, members, strict=True))
    freedom = len(residual) - sum(w * len(m.law.unknowns) for w, m in zip(share, members, strict=True))
    return Forecast(
        log_loss=mean,
        by_law={name: centre for name, (centre, _) in said.items()},
        parameters=np.mean(spread**2, axis=0),
        laws=between,
        noise=float(residual @ residual / max(freedom, 1.0)),
    )
