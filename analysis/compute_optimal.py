"""Where a budget is spent best, as frozen values: isoFLOP curves, allocations, their bias, the frontier;
units as in analysis.values."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from analysis.estimate import Estimate


@dataclass(frozen=True, eq=False)
class Isoflop:
    """Approach 2 in one budget: log L = c0 + c1·x + c2·x², x = log(N / centre).

    Hoffmann et al. 2022 (arXiv 2203.15556), section 3.2. `params` and `loss` are the points [run],
    sorted by N. `bracketed`: sizes on both sides of the minimum were run, and the parabola opens
    upwards. Where it does not, `params_opt`, `tokens_opt` and `loss_min` are None and `reason` says why.
    """

    group: str
    flops: float
    run_ids: tuple[str, ...]
    params: np.ndarray
    loss: np.ndarray
    centre: float
    coefficients: tuple[float, float, float]
    bracketed: bool
    params_opt: Estimate | None
    tokens_opt: float | None
    loss_min: float | None
    reason: str

    def loss_at(self, params: np.ndarray) -> np.ndarray:
        """The parabola at N, nats a token; same shape as `params`."""
        x = np.log(np.asarray(params, dtype=np.float64) / self.centre)
        c0, c1, c2 = self.coefficients
        return np.exp(c0 + c1 * x + c2 * x * x)


@dataclass(frozen=True, eq=False)
class Envelope:
    """Approach 1: the runs that no run of the same or lower cost beats, by increasing C. Arrays: [point]."""

    run_ids: tuple[str, ...]
    flops: np.ndarray
    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True, eq=False)
class Band:
    """90% interval of an allocation's N_opt and D_opt along C, over resamples. Arrays are [point]."""

    flops: np.ndarray
    params_lo: np.ndarray
    params_hi: np.ndarray
    tokens_lo: np.ndarray
    tokens_hi: np.ndarray


@dataclass(frozen=True)
class Allocation:
    """N_opt = params_factor · C^a and D_opt = tokens_factor · C^b, by approach 1, 2 or 3.

    a and b hold their 90% intervals. `points` is what was regressed: envelope points, bracketed
    budgets, or for approach 3 the runs behind the fit. `reason` names any weakness ("" for none).
    `method`: how approach 2 read the minima ("parabola", "cubic" or "joint"), "" for the others.
    """

    approach: int
    a: Estimate
    b: Estimate
    params_factor: float
    tokens_factor: float
    points: int
    reason: str
    method: str = ""
    band: Band | None = field(default=None, kw_only=True, compare=False, repr=False)

    def params_at(self, flops: np.ndarray) -> np.ndarray:
        return self.params_factor * np.asarray(flops, dtype=np.float64) ** self.a.value

    def tokens_at(self, flops: np.ndarray) -> np.ndarray:
        return self.tokens_factor * np.asarray(flops, dtype=np.float64) ** self.b.value


@dataclass(frozen=True)
class ReadingBias:
    """What a reading of isoFLOP curves got wrong on noiseless losses of a known surface.

    method: "parabola", "cubic" or "joint". grid: what it was read on (see `IsoflopBias`).
    a, b: read less true exponent. log_params: log(N_opt read / true), extrapolated to
    `IsoflopBias.flops`; minima: the same at each budget. None where there was no minimum to read,
    or for a budget whose runs do not bracket theirs.
    """

    method: str
    grid: str
    a: float | None
    b: float | None
    log_params: float | None
    minima: tuple[float | None, ...]

    @property
    def params_pct(self) -> float | None:
        """Error of N_opt at the target, % of the true one."""
        return None if self.log_params is None else 100 * float(np.expm1(self.log_params))


@dataclass(frozen=True)
class IsoflopBias:
    """Approach 2's bias on the grid at hand, with the fitted `law` as the truth.

    flops: the target; params: the true N_opt there; a, b: the true exponents; groups: the budgets.
    methods: each reading on the grid "as run".
    grids: the parabola where one cause after another is removed: every run of a budget at "equal
        cost"; windows also "centred" on the optimum; windows also "narrow"; and, with equal cost
        alone, the surface made "symmetric" about its optimum.
    """

    law: str
    flops: float
    params: float
    a: float
    b: float
    groups: tuple[str, ...]
    methods: tuple[ReadingBias, ...]
    grids: tuple[ReadingBias, ...]

    def on(self, grid: str) -> ReadingBias:
        """The parabola's bias on one of the grids, or "as run"."""
        return next(bias for bias in (*self.methods, *self.grids) if bias.grid == grid)

    @property
    def least(self) -> ReadingBias:
        """The reading whose N_opt at the target is least off."""
        seen = [bias for bias in self.methods if bias.log_params is not None]
        return min(seen, key=lambda bias: abs(bias.log_params))

    @property
    def causes(self) -> dict[str, float]:
        """What each cause adds to the parabola's log(N_opt read / true) at the target; they sum to it.
        A wide window only shifts the vertex of an asymmetric curve, so "width" is what width and
        asymmetry do together; "rest" is what narrow windows leave: a hundredth of that, and what a line
        through true optima misses where they follow no exact power law. Empty where a parabola on one
        of the grids has no minimum."""
        chain = [self.on(grid).log_params for grid in ("as run", "equal cost", "centred", "narrow")]
        if None in chain:
            return {}
        steps = [before - after for before, after in zip(chain[:-1], chain[1:], strict=True)]
        return dict(zip(("unequal cost", "off centre", "width", "rest"), [*steps, chain[-1]], strict=True))


@dataclass(frozen=True)
class PublishedAllocation:
    """Exponents that a paper reports, beside which ours are shown."""

    who: str
    approach: str
    a: float
    b: float
    source: str


@dataclass(frozen=True, eq=False)
class Frontier:
    """The loss expected at the compute-optimal N and D, along C. Arrays are [point]; lo and hi are
    the 90% interval of a new run, as for a `Prediction`."""

    flops: np.ndarray
    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    lo90: np.ndarray
    hi90: np.ndarray


@dataclass(frozen=True, eq=False)
class Surface:
    """The predicted loss over a grid: params [column], tokens [row], loss [row, column]."""

    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
