"""L(C) = E + a·C^b through given runs, and what it says of a dearer one.

Henighan et al. 2020 (arXiv 2010.14701), equation 1.1; used so by Baichuan 2 (arXiv 2309.10305, section 2.7) and
by the GPT-4 report (arXiv 2303.08774, section 3.1), which writes c for E.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fitting import Problem, fit_law
from analysis.laws import COMPUTE
from analysis.resample import SEED, cluster_weights, estimate, refit, with_intervals
from analysis.values import Estimate, LawFit, Runs, Status


@dataclass(frozen=True, eq=False)
class ComputeLaw:
    """The fit with its bootstrap draws [resample, unknown], and the scatter of one run's log loss about it."""

    fit: LawFit
    draws: np.ndarray
    problem: Problem
    scatter: float
    freedom: int

    def loss(self, flops: np.ndarray) -> np.ndarray:
        """Nats a token; same shape as `flops`."""
        return COMPUTE.loss_at(self.fit.values, flops=np.asarray(flops, dtype=np.float64))

    def losses_drawn(self, flops: float) -> np.ndarray:
        """The law's loss in each resample, nats a token; float64[resample]."""
        X = np.log([[flops]]) - self.problem.centre
        return np.exp(COMPUTE.evaluate(self.draws, X)[0][:, 0])

    def interval(self, flops: float) -> Estimate:
        """Of one new run's loss: parameters by the bootstrap over clusters, and its own scatter, whose size is
        known from `freedom` residuals only (Student's t)."""
        log_loss = np.log(self.losses_drawn(flops))
        generator = np.random.default_rng([SEED, 2])
        wide = np.sqrt(self.freedom / generator.chisquare(self.freedom, len(log_loss)))
        drawn = log_loss + self.scatter * wide * generator.standard_normal(len(log_loss))
        return estimate(float(self.loss(flops)), np.exp(drawn))

    def parameter(self, name: str) -> Estimate:
        return next(p.interval for p in self.fit.parameters if p.name == name)

    def reducible(self, flops: float) -> Estimate:
        """a·C^b, nats a token."""
        drawn = self.losses_drawn(flops) - COMPUTE.natural(self.draws, self.problem.centre)[:, 0]
        return estimate(float(self.loss(flops)) - self.fit.values["E"], drawn)


def half_width(said: Estimate) -> float:
    """Half of a loss's interval, in log loss: what TOO_WIDE and WIDE of analysis/verdict.py are held against."""
    return float(np.log(said.hi / said.lo)) / 2


def fit_compute(runs: Runs) -> ComputeLaw:
    """Raises ValueError: fewer than four distinct costs, a fit that has not converged, or a loss that does not
    fall with compute, so that there is no such law."""
    fit, theta, problem = fit_law(COMPUTE, runs, loss="least_squares")
    if fit.status is Status.NOT_CONVERGED:
        raise ValueError(f"L(C) = E + a·C^b did not converge: {fit.reason}")
    if "b" in fit.at_bound:
        raise ValueError(
            f"L(C) = E + a·C^b does not describe these {len(runs)} runs: its exponent ran to the end of what is "
            f"looked at ({fit.values['b']:.2g})"
        )
    draws = refit(problem, theta, cluster_weights(runs, len(COMPUTE.unknowns)))
    fit = with_intervals(fit, COMPUTE, problem, draws)
    residual = np.log(COMPUTE.loss_at(fit.values, flops=runs.flops) / runs.loss)
    freedom = len(runs) - len(COMPUTE.unknowns)
    return ComputeLaw(fit, draws, problem, float(np.sqrt(residual @ residual / freedom)), freedom)
