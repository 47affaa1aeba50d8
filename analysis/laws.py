"""Scaling laws: each a value that says its equation, its limits, its gradient and where to begin.

A law is a function of log-variables X, float64[run, variable], centred on the runs they were fitted
to (`centre`, the mean logarithms), which keeps the solver's parameters nearly independent. The
solver's parameters `theta` are float64[batch, unknown], so that one call serves a thousand
resamples; the natural parameters (A, alpha, ...) are what a reader sees. To add a law, write its
`evaluate`, `start` and `natural`, and list it in LAWS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

EXPONENT_RANGE = (0.01, 3.0)
"""Where effective exponents are sought; assumption: published ones lie between 0.05 (Kaplan et al.
2020, arXiv 2001.08361) and 0.6, so an optimum on either bound is no scaling law."""

COUPLING_RANGE = (0.2, 5.0)
"""Where the coupling k is sought; assumption: 1 is the separable law, and at both ends the law no
longer changes with k within the noise of a loss."""

SMALLEST_TERM = 1e-6
"""Least share of the loss a reducible term has at the centre; assumption: far below any noise."""

Bounds = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Prior:
    """Independent normals over the solver's parameters, each [unknown]; an infinite `sd` says nothing."""

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
    centred_on: the variable whose mean centres each variable, where not its own; so that a law that
        compares two variables (D with U) finds them in one unit.
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
    centred_on: tuple[int, ...] = ()

    def centre(self, log_variables: np.ndarray) -> np.ndarray:
        """What is taken off log_variables [run, variable]: [variable], the means."""
        means = log_variables.mean(axis=0)
        return means[list(self.centred_on)] if self.centred_on else means

    def loss_at(self, values: Mapping[str, float], **variables: np.ndarray) -> np.ndarray:
        """L in nats a token from natural parameters; variables by name (params=, tokens= or flops=)."""
        return self.loss(values, *(np.asarray(variables[name], dtype=np.float64) for name in self.variables))


def as_slope(*columns: np.ndarray) -> np.ndarray:
    """One [batch, run] for each unknown -> [batch, run, unknown]. In memory it is [unknown, batch,
    run], the order in which both the laws and the solver are fast."""
    return np.stack(columns).transpose(1, 2, 0)


# --- E + A/N^alpha + B/D^beta, theta = (E, a, b, alpha, beta) -------------------------------------


def _evaluate_separable(theta: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    slope = np.empty((5, len(theta), len(X)))
    by_E, by_a, by_b, by_alpha, by_beta = slope
    x, y = X[:, 0], X[:, 1]
    np.matmul(theta[:, [1, 3]], np.stack([np.ones(len(X)), -x]), out=by_a)  # a - alpha·x
    np.matmul(theta[:, [2, 4]], np.stack([np.ones(len(X)), -y]), out=by_b)
    np.exp(slope[1:3], out=slope[1:3])
    loss = by_a + by_b
    loss += theta[:, :1]
    np.divide(1.0, loss, out=by_E)
    slope[1:3] *= by_E
    np.multiply(by_a, -x, out=by_alpha)
    np.multiply(by_b, -y, out=by_beta)
    return np.log(loss, out=loss), slope.transpose(1, 2, 0)


def _start_separable(X: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> np.ndarray:
    grid = np.geomspace(0.03, 2.0, 28)
    alpha, beta = (side.ravel() for side in np.meshgrid(grid, grid, indexing="ij"))
    powers = np.stack(
        [
            np.ones((len(alpha), len(loss))),
            np.exp(-alpha[:, None] * X[:, 0]),
            np.exp(-beta[:, None] * X[:, 1]),
        ],
        axis=-1,
    )
    linear, error = nonnegative_least_squares(powers, loss, weights)
    best = _separate(np.argsort(error, kind="stable"), np.log(np.stack([alpha, beta], axis=1)), count=12)
    log_terms = np.log(np.maximum(linear[best, 1:], SMALLEST_TERM * np.median(loss)))
    return np.column_stack([linear[best, 0], log_terms, alpha[best], beta[best]])


def _natural_separable(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    E, a, b, alpha, beta = theta.T
    return np.stack([E, np.exp(a + alpha * centre[0]), np.exp(b + beta * centre[1]), alpha, beta], axis=-1)


def _bounds_separable(loss: np.ndarray) -> Bounds:
    term = np.log(SMALLEST_TERM * np.median(loss)), np.log(10 * loss.max())
    return _as_bounds((0.0, loss.min()), term, term, EXPONENT_RANGE, EXPONENT_RANGE)


SEPARABLE = Law(
    name="separable",
    equation="L(N, D) = E + A/N^alpha + B/D^beta",
    source="Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3, approach 3",
    variables=("params", "tokens"),
    unknowns=("E", "A", "B", "alpha", "beta"),
    evaluate=_evaluate_separable,
    start=_start_separable,
    natural=_natural_separable,
    bounds=_bounds_separable,
    loss=lambda v, N, D: v["E"] + v["A"] * N ** -v["alpha"] + v["B"] * D ** -v["beta"],
)


# --- E + (A/N^a + B/D^b)^k, theta = (E, k·log A, k·log B, k·a, k·b, log k) -------------------------
# In these coordinates k = 1 is the separable law with the very same theta, and the exponents are
# those of the limits D -> infinity and N -> infinity, whatever k is.


def _evaluate_coupled(theta: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    E, a, b, alpha, beta, log_k = (column[:, None] for column in theta.T)
    k = np.exp(log_k)
    x, y = X[:, 0], X[:, 1]
    size, data = (a - alpha * x) / k, (b - beta * y) / k
    both = np.logaddexp(size, data)
    of_size, of_data = np.exp(size - both), np.exp(data - both)
    entropy = both - of_size * size - of_data * data
    reducible = np.exp(k * both)
    loss = E + reducible
    share = reducible / loss
    of_size, of_data = share * of_size, share * of_data
    gradient = as_slope(1 / loss, of_size, of_data, -x * of_size, -y * of_data, share * k * entropy)
    return np.log(loss), gradient


def _start_coupled(X: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> np.ndarray:
    separable = _start_separable(X, loss, weights)[:4]
    log_k = np.log([1.0, 0.25, 0.5, 2.0, 4.0])
    starts = np.column_stack([np.tile(separable, (len(log_k), 1)), np.repeat(log_k, len(separable))])
    # At the centre the two terms sum to 2^k instead of 2 times one of them: keep that sum.
    starts[:, 1:3] -= ((np.exp(starts[:, 5]) - 1) * np.log(2.0))[:, None]
    return starts


def _natural_coupled(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    E, a, b, alpha, beta, log_k = theta.T
    k = np.exp(log_k)
    A, B = np.exp((a + alpha * centre[0]) / k), np.exp((b + beta * centre[1]) / k)
    return np.stack([E, A, B, alpha / k, beta / k, k], axis=-1)


def _bounds_coupled(loss: np.ndarray) -> Bounds:
    lower, upper = _bounds_separable(loss)
    return np.append(lower, np.log(COUPLING_RANGE[0])), np.append(upper, np.log(COUPLING_RANGE[1]))


def _loss_coupled(v: Mapping[str, float], N: np.ndarray, D: np.ndarray) -> np.ndarray:
    size, data = np.log(v["A"]) - v["a"] * np.log(N), np.log(v["B"]) - v["b"] * np.log(D)
    return v["E"] + np.exp(v["k"] * np.logaddexp(size, data))


COUPLED = Law(
    name="coupled",
    equation="L(N, D) = E + (A/N^a + B/D^b)^k",
    source="Kaplan et al. 2020 (arXiv 2001.08361), equation 1.5, with free exponents and an irreducible E",
    variables=("params", "tokens"),
    unknowns=("E", "A", "B", "a", "b", "k"),
    evaluate=_evaluate_coupled,
    start=_start_coupled,
    natural=_natural_coupled,
    bounds=_bounds_coupled,
    loss=_loss_coupled,
)


_SILENT = float("inf")
_COUPLED_PRIOR = Prior(
    mean=(0.0, 0.0, 0.0, 0.35, 0.35, float(np.log(0.75))), sd=(_SILENT, _SILENT, _SILENT, 0.2, 0.2, 0.4)
)

SHRUNK = replace(
    COUPLED,
    name="shrunk",
    equation="L(N, D) = E + (A/N^a + B/D^b)^k, with priors on k·a, k·b and k",
    source=(
        "as 'coupled'; priors k·a, k·b ~ Normal(0.35, 0.2), log k ~ Normal(log 0.75, 0.4): assumption, wide "
        "enough for Kaplan et al. 2020 (0.08), Hoffmann et al. 2022 (0.34, 0.28), Muennighoff et al. 2023 "
        "(2305.16264: 0.35) and k = 1"
    ),
    prior=_COUPLED_PRIOR,
)
"""A small sweep hardly tells E from k and the exponents, and its free fit runs off to E = 0 or a steep
wall. What published sweeps have in common steadies it, and fades as runs are added."""


# --- E + a·C^b, theta = (E, log a at the centre, -b) ----------------------------------------------


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
    best = _separate(np.argsort(error, kind="stable"), np.log(gamma)[:, None], count=8)
    return np.column_stack(
        [linear[best, 0], np.log(np.maximum(linear[best, 1], SMALLEST_TERM * np.median(loss))), gamma[best]]
    )


def _natural_compute(theta: np.ndarray, centre: np.ndarray) -> np.ndarray:
    E, a, gamma = theta.T
    return np.stack([E, np.exp(a + gamma * centre[0]), -gamma], axis=-1)


def _bounds_compute(loss: np.ndarray) -> Bounds:
    term = np.log(SMALLEST_TERM * np.median(loss)), np.log(10 * loss.max())
    return _as_bounds((0.0, loss.min()), term, EXPONENT_RANGE)


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

LAWS = {law.name: law for law in (SEPARABLE, COUPLED, SHRUNK, COMPUTE)}


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


def _separate(order: np.ndarray, place: np.ndarray, count: int, apart: float = 0.3) -> np.ndarray:
    """The first `count` of `order` whose `place` [candidate, coordinate] is not near an earlier one's."""
    kept: list[int] = []
    for candidate in order:
        if all(np.abs(place[candidate] - place[other]).max() >= apart for other in kept):
            kept.append(int(candidate))
        if len(kept) == count:
            break
    return np.array(kept)


def _as_bounds(*ranges: tuple[float, float]) -> Bounds:
    lower, upper = zip(*ranges, strict=True)
    return np.array(lower, dtype=np.float64), np.array(upper, dtype=np.float64)
