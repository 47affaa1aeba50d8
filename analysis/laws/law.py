"""What a law is, and what all of them are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

EXPONENT_RANGE = (0.01, 3.0)
"""Where effective exponents are sought; assumption: published ones lie between 0.05 (Kaplan et al.
2020, arXiv 2001.08361) and 0.6, so an optimum on either bound is no scaling law."""

SMALLEST_TERM = 1e-6
"""Least share of the loss a reducible term has at the centre; assumption: far below any noise."""

Bounds = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Prior:
    """Independent normals over the solver's parameters, each [unknown]; an infinite `sd` says nothing.
    A law's own is in units of the lowest loss where it speaks of E."""

    mean: tuple[float, ...]
    sd: tuple[float, ...]


@dataclass(frozen=True)
class Law:
    """name, equation, source: for the reader. variables: the columns it is a function of.

    unknowns: names of the natural parameters, in the order in which `bounds` and `theta` hold
        their solver's counterparts (E; logarithms of A and B at the centre; effective exponents;
        log k).
    evaluate(theta [batch, unknown], X [run, variable]) -> (log L [batch, run],
        d log L / d theta [batch, run, unknown]).
    start(X, loss [run], weights [run]) -> theta [start, unknown], best first.
    natural(theta [batch, unknown], centre [variable]) -> [batch, unknown].
    bounds(loss [run]) -> (lower, upper), each [unknown].
    loss(values, *variables) -> L from natural parameters by name and variables of any one shape.
    prior: what is believed of the solver's parameters before any run, or None.
    centred_on: where not each variable's own mean centres it, the index of the one whose mean does, so
        that a law that compares two variables (D with U) finds them in one unit; None for no centring.
    """

    name: str
    equation: str
    source: str
    variables: tuple[str, ...]
    unknowns: tuple[str, ...]
    evaluate: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    start: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    natural: Callable[[np.ndarray, np.ndarray], np.ndarray]
    bounds: Callable[[np.ndarray], Bounds]
    loss: Callable[..., np.ndarray]
    prior: Prior | None = None
    centred_on: tuple[int | None, ...] = ()

    def prior_for(self, loss: np.ndarray) -> Prior | None:
        """The prior in the units of these losses [run]."""
        if self.prior is None:
            return None
        unit = [float(loss.min()) if name == "E" else 1.0 for name in self.unknowns]
        mean, sd = (
            tuple(u * number for u, number in zip(unit, numbers, strict=True))
            for numbers in (self.prior.mean, self.prior.sd)
        )
        return Prior(mean, sd)

    def centre(self, log_variables: np.ndarray) -> np.ndarray:
        """What is taken off log_variables [run, variable]: [variable], the means."""
        means = log_variables.mean(axis=0)
        others = self.centred_on or range(len(means))
        return np.array([0.0 if other is None else means[other] for other in others])

    def loss_at(self, values: Mapping[str, float], **variables: np.ndarray) -> np.ndarray:
        """L in nats a token from natural parameters; variables by name (params=, tokens= or flops=)."""
        return self.loss(values, *(np.asarray(variables[name], dtype=np.float64) for name in self.variables))


def as_slope(*columns: np.ndarray) -> np.ndarray:
    """One [batch, run] for each unknown -> [batch, run, unknown]. In memory it is [unknown, batch,
    run], the order in which both the laws and the solver are fast."""
    return np.stack(columns).transpose(1, 2, 0)


def nonnegative_least_squares(
    powers: np.ndarray, loss: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Least squares on relative residuals with coefficients >= 0, exactly, for a batch of designs.

    The linear half of variable projection (Golub & Pereyra 1973; for scaling laws Czech et al.
    2026, arXiv 2603.22339). With two or three unknowns every subset of them can be tried.

    Args:
        powers: float64[batch, run, unknown]; loss: float64[run]; weights: float64[run].
    Returns:
        coefficients float64[batch, unknown] and the sum of squared relative residuals [batch].
    """
    batch, _, unknowns = powers.shape
    design = powers / loss[:, None] * np.sqrt(weights)[:, None]
    wanted = np.sqrt(weights)
    gram = design.transpose(0, 2, 1) @ design
    moment = wanted @ design
    best, error = np.zeros((batch, unknowns)), np.full(batch, wanted @ wanted)
    for subset in range(1, 2**unknowns):
        chosen = [i for i in range(unknowns) if subset >> i & 1]
        scale = np.sqrt(gram[:, chosen, chosen])
        scaled = gram[:, chosen][:, :, chosen] / (scale[:, :, None] * scale[:, None, :])
        # A ridge of 1e-12 keeps nearly equal columns solvable; starts need no more digits than that.
        scaled = scaled + 1e-12 * np.eye(len(chosen))
        solution = np.linalg.solve(scaled, (moment[:, chosen] / scale)[..., None])[..., 0] / scale
        reached = wanted @ wanted - np.einsum("bi,bi->b", solution, moment[:, chosen])
        better = (solution >= 0).all(axis=1) & (reached < error)
        error = np.where(better, reached, error)
        full = np.zeros((batch, unknowns))
        full[:, chosen] = solution
        best = np.where(better[:, None], full, best)
    return best, error


def separate(order: np.ndarray, place: np.ndarray, count: int, apart: float = 0.3) -> np.ndarray:
    """The first `count` of `order` whose `place` [candidate, coordinate] is not near an earlier one's."""
    kept: list[int] = []
    for candidate in order:
        if all(np.abs(place[candidate] - place[other]).max() >= apart for other in kept):
            kept.append(int(candidate))
        if len(kept) == count:
            break
    return np.array(kept)


def as_bounds(*ranges: tuple[float, float]) -> Bounds:
    lower, upper = zip(*ranges, strict=True)
    return np.array(lower, dtype=np.float64), np.array(upper, dtype=np.float64)
