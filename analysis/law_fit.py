"""A fitted law as frozen values; units as in analysis.values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np

from analysis.estimate import Estimate


class Status(str, Enum):
    """How a fit ended; only the first is an optimum in the interior."""

    CONVERGED = "converged"
    AT_BOUND = "at bound"
    NOT_CONVERGED = "not converged"


@dataclass(frozen=True)
class Parameter:
    """A natural parameter of a law. Its interval is None where no resampling was possible."""

    name: str
    value: float
    interval: Estimate | None
    at_bound: bool


@dataclass(frozen=True)
class Basin:
    """One optimum of a fit: its objective, its natural parameters by name, and how many starts ended
    there."""

    objective: float
    values: Mapping[str, float]
    starts: int


@dataclass(frozen=True, eq=False)
class LawFit:
    """One law fitted to one set of runs.

    equation: the law in plain text; source: where it is from.
    variables: what it is a function of, ("params", "tokens") or ("flops",).
    reason: why `status` is not CONVERGED ("" where it is).
    objective: weighted sum of the penalty of log L_fit - log L over the n runs; `loss` names the
        penalty ("huber", "least_squares", "asymmetric"), `delta` is its knee (inf: none) and `tau`
        the share that runs above the fit carry.
    starts, starts_at_optimum: refinements begun, and those that ended within 1e-6 of the best
        objective, relatively.
    basins: every distinct optimum within 1% of the best objective, best first.
    condition: condition number of the curvature at the optimum, scaled to a unit diagonal, over the
        parameters on no bound; above 1e8 or so, they are not told apart.
    weights: what each run's penalty was multiplied by, float64[run].
    log_residuals: log L - log L_fit, float64[run], in the order of `run_ids`.
    """

    law: str
    equation: str
    source: str
    variables: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    status: Status
    reason: str
    objective: float
    delta: float
    n: int
    starts: int
    starts_at_optimum: int
    log_residuals: np.ndarray
    run_ids: tuple[str, ...]
    loss: str = "huber"
    tau: float = 0.5
    condition: float | None = None
    basins: tuple[Basin, ...] = ()
    weights: np.ndarray | None = None

    @property
    def share_at_optimum(self) -> float:
        return self.starts_at_optimum / self.starts

    @property
    def values(self) -> dict[str, float]:
        return {parameter.name: parameter.value for parameter in self.parameters}

    @property
    def at_bound(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.parameters if parameter.at_bound)

    @property
    def rms_pct(self) -> float:
        """Root mean square residual, % of the loss."""
        return 100 * float(np.sqrt(np.mean(self.log_residuals**2)))
