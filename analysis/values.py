"""What the analysis knows, as frozen values: computed by the other modules, only rendered by the report.

Units everywhere: N (`params`) and D (`tokens`) are counts, C (`flops`) is FLOPs, a loss is nats a token.
Arrays are float64. An interval is a 90% one. Residuals and errors named `log_...` are natural
logarithms of a ratio of losses; those named `..._pct` are per cent of the measured loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

LEVEL = 0.90
"""Probability that every interval here is meant to hold; assumption: the customary choice."""


class Status(str, Enum):
    """How a fit ended; only the first is an optimum in the interior."""

    CONVERGED = "converged"
    AT_BOUND = "at bound"
    NOT_CONVERGED = "not converged"


class Verdict(str, Enum):
    """Do the data carry the extrapolation? The reasons stand beside it, in words."""

    SUPPORTED = "supported"
    WEAK = "weak"
    NOT_SUPPORTED = "not supported"


@dataclass(frozen=True)
class Estimate:
    """A value and its 90% interval; `se` is its standard error (over bootstrap refits)."""

    value: float
    lo: float
    hi: float
    se: float


@dataclass(frozen=True, eq=False)
class Runs:
    """The rows that may be fitted: finished, `role` fit, nothing excluded. Arrays are [run].

    group: the set a run is compared within (its budget), "" where the table names none.
    cluster: rows that share a cluster are not independent (one size, or one trunk).
    loss_se: standard error of the loss over the held-out tokens, NaN where unknown.
    unique_tokens: how many of `tokens` were distinct, NaN where unknown (everywhere, by default).
    params_columns, flops_columns: every count of N and of C that the table offers, those in `params` and
        `flops` among them, by column; NaN where a row has none.
    decayed: 1 where the loss was read after the schedule's end, 0 where before, NaN where nothing says;
        None for runs that are from no table.
    """

    run_id: tuple[str, ...]
    group: tuple[str, ...]
    cluster: tuple[str, ...]
    params: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    loss_se: np.ndarray
    unique_tokens: np.ndarray | None = None
    params_columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    flops_columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    decayed: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.unique_tokens is None:
            object.__setattr__(self, "unique_tokens", np.full(len(self.params), np.nan))

    def __len__(self) -> int:
        return len(self.run_id)

    def take(self, index: np.ndarray) -> Runs:
        """The runs at `index` (int64[k], or a boolean mask [run]), in that order."""
        index = np.arange(len(self))[index]
        labels = {
            name: tuple(getattr(self, name)[i] for i in index) for name in ("run_id", "group", "cluster")
        }
        names = ("params", "tokens", "flops", "loss", "loss_se", "unique_tokens")
        arrays = {name: getattr(self, name)[index] for name in names}
        offered = {
            name: {column: values[index] for column, values in getattr(self, name).items()}
            for name in ("params_columns", "flops_columns")
        }
        decayed = None if self.decayed is None else self.decayed[index]
        return Runs(**labels, **arrays, **offered, decayed=decayed)


@dataclass(frozen=True)
class RunRow:
    """One row of the table as it stands, used or not, for the report's list of all runs.

    `loss` of a holdout is None until its prediction has been written. None elsewhere: not given.
    lr: the peak rate. param: the parametrisation under which widths share a rate, "" where not given.
    """

    run_id: str
    group: str
    role: str
    status: str
    params: float | None
    tokens: float | None
    flops: float | None
    loss: float | None
    loss_se: float | None
    lr: float | None
    wall_seconds: float | None
    reason: str = ""
    batch_tokens: float | None = None
    n_layer: float | None = None
    d_model: float | None = None
    param: str = ""
    bits_per_byte: float | None = None


@dataclass(frozen=True)
class Exclusion:
    """A row that no fit used, and why, in words."""

    run_id: str
    reason: str


@dataclass(frozen=True)
class Skipped:
    """A statistic that could not be computed from these data, and why, in words."""

    what: str
    reason: str


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


@dataclass(frozen=True)
class BacktestRow:
    """One run predicted from cheaper runs alone.

    cut_flops: the dearest run that was fitted; distance: ln(flops / cut_flops).
    law: a law's name, or "combined" for what a Prediction would have said; only the latter has an
    interval (`lo90`, `hi90`, `inside`; None for the others).
    log_error: log(predicted / measured).
    """

    run_id: str
    law: str
    cut_flops: float
    n_fit: int
    flops: float
    distance: float
    predicted: float
    measured: float
    lo90: float | None
    hi90: float | None
    inside: bool | None

    @property
    def log_error(self) -> float:
        return float(np.log(self.predicted / self.measured))


@dataclass(frozen=True)
class TrackRecord:
    """How a law did over `n` backtest rows at `nearest` to `farthest` times the cut's FLOPs.

    error_pct: mean of |predicted - measured|, bias_pct: mean of (predicted - measured), % of measured.
    inside: how many measured losses lay in their 90% interval; None for a law that has none.
    """

    law: str
    nearest: float
    farthest: float
    n: int
    error_pct: float
    bias_pct: float
    inside: int | None


@dataclass(frozen=True, eq=False)
class RateCurve:
    """Loss against peak rate of one shape on one token count: log L = c0 + c1·x + c2·x², with
    x = log2(rate / `centre`), through the rates around the best.

    param: the parametrisation; width: d_model; either "" or None where the table has none.
    rates, loss, seeds: the rates that finished, by increasing rate, the geometric mean of their losses
        and how many runs it is of; arrays [rate]. failed: rates at which no run finished.
    bracketed: rates on both sides of the best and of the parabola's minimum finished. Where they did
        not, `optimum` (log2 of the best rate) and `penalty_pct` (of the loss, for a rate that is an octave
        off, by the parabola) are None, and `reason` says why.
    optimum.se, lo and hi are NaN where nothing tells how far chance moves a loss.
    """

    param: str
    width: float | None
    params: float
    tokens: float
    layers: float | None
    run_ids: tuple[str, ...]
    rates: np.ndarray
    loss: np.ndarray
    seeds: np.ndarray
    failed: tuple[float, ...]
    centre: float
    coefficients: tuple[float, float, float]
    bracketed: bool
    optimum: Estimate | None
    penalty_pct: float | None
    reason: str

    @property
    def best(self) -> float:
        """The rate of the lowest measured loss."""
        return float(self.rates[np.argmin(self.loss)])

    def loss_at(self, rates: np.ndarray) -> np.ndarray:
        """The parabola, nats a token; same shape as `rates`."""
        x = np.log2(np.asarray(rates, dtype=np.float64) / self.centre)
        c0, c1, c2 = self.coefficients
        return np.exp(c0 + c1 * x + c2 * x * x)


@dataclass(frozen=True)
class RateDrift:
    """How the optimal rate moves with the width under one parametrisation, by a line through the optima.

    widths: the narrowest and the widest with a bracketed optimum; curves: how many there are.
    per_octave: octaves of rate for each doubling of the width; over_range: from the narrowest to the
        widest; over_8x: three times the former, what the verdict is about. Their ends are NaN where no
        noise is known.
    cost_pct: what the widest loses, % of its loss, at the narrowest's optimal rate, by its parabola.
    transfers: True or False where the interval of `over_8x` lies within or beyond `allowed` octaves, None
        where the runs cannot tell. `says` is the verdict in words, with its reason.
    """

    param: str
    tokens: float
    widths: tuple[float, float]
    curves: int
    per_octave: Estimate
    over_range: Estimate
    over_8x: Estimate
    cost_pct: float
    allowed: float
    transfers: bool | None
    says: str


@dataclass(frozen=True)
class RateStudy:
    """Every rate grid in a table. noise_pct: what chance alone moves one run's loss by, % (one standard
    deviation), None where nothing tells; `noise_from` says what it was read from."""

    curves: tuple[RateCurve, ...]
    drifts: tuple[RateDrift, ...]
    noise_pct: float | None
    noise_from: str


@dataclass(frozen=True)
class HealthFinding:
    """Something that makes a finished run's loss worse than its size and data would give.

    kind: one of `analysis.health.KINDS`; says: what was found, in words; value against threshold, in the
    units that `says` names; source: where the threshold is from. excluded: the run is in no fit for it.
    """

    run_id: str
    kind: str
    says: str
    value: float
    threshold: float
    source: str
    excluded: bool


@dataclass(frozen=True)
class Target:
    """The run to predict; `params` counts what the table's `params` counts."""

    params: float
    tokens: float
    flops: float


@dataclass(frozen=True)
class TargetChoice:
    """The compute-optimal N at a budget, with its 90% range. `status` is "ok" or "refused", and
    `reason` says what to mind, or why none can be named (params, tokens, lo, hi are then None)."""

    flops: float
    params: float | None
    tokens: float | None
    lo: float | None
    hi: float | None
    status: str
    reason: str


@dataclass(frozen=True)
class Measured:
    """What the target run came to. error_pct = 100·(predicted - measured)/measured."""

    loss: float
    loss_se: float | None
    error_pct: float
    inside: bool
    run_ids: tuple[str, ...]


@dataclass(frozen=True)
class Prediction:
    """The loss expected of one new run, written before it is trained.

    law: how it was made: the laws and their weights, in words.
    by_law: what each law alone says, nats a token. weights: each law's share, summing to 1.
    spread: standard deviations in log loss that make up the interval, by origin
        ("parameters", "discrepancy", "laws", "noise", "rollouts").
    extrapolation: the target's FLOPs over the dearest fitted run's; None where it was not recorded.
    created: UTC, ISO 8601. ledger_digest: SHA-256 of the rows the fit rests on.
    """

    target: Target
    law: str
    loss: float
    lo90: float
    hi90: float
    by_law: Mapping[str, float]
    weights: Mapping[str, float]
    spread: Mapping[str, float]
    ledger_digest: str
    created: str
    verdict: Verdict
    reasons: tuple[str, ...]
    measured: Measured | None = None
    extrapolation: float | None = None

    @property
    def half_width_pct(self) -> float:
        """Half the interval, % of the predicted loss."""
        return 50 * (self.hi90 - self.lo90) / self.loss


def latest(predictions: Sequence[Prediction]) -> tuple[Prediction, ...]:
    """The last one made for each target, cheapest target first; a report is about the last of them."""
    by_target = {p.target: p for p in sorted(predictions, key=lambda p: p.created)}
    return tuple(sorted(by_target.values(), key=lambda p: p.target.flops))


@dataclass(frozen=True)
class Convention:
    """What is predicted where N and C are counted in one of the ways that the table offers.

    params, flops: the columns counted by ("6·N·D" for the product). used: the analysis' own way.
    target_params: the target's N counted so, and `mapping` how it was found.
    loss: predicted, nats a token; a: N_opt ∝ C^a over the runs' budgets.
    """

    params: str
    flops: str
    used: bool
    target_params: float
    mapping: str
    loss: float
    a: float


@dataclass(frozen=True)
class ByConvention:
    """One law fitted under each convention. `skipped`: those that could not be fitted, and why."""

    law: str
    target: Target
    conventions: tuple[Convention, ...]
    skipped: tuple[Skipped, ...]

    @property
    def loss_spread(self) -> float:
        """Farthest |log(loss / loss under the convention used)|."""
        own = next(convention.loss for convention in self.conventions if convention.used)
        return max(abs(float(np.log(convention.loss / own))) for convention in self.conventions)

    @property
    def a_range(self) -> tuple[float, float]:
        exponents = [convention.a for convention in self.conventions]
        return min(exponents), max(exponents)


@dataclass(frozen=True)
class HelpfulRun:
    """A run to add. `error_left`: what it and those named before it would leave of the standard error
    that the law's parameters give the prediction of the target, as a share of today's."""

    params: float
    tokens: float
    flops: float
    error_left: float


@dataclass(frozen=True)
class EntropyCheck:
    """The corpus' true entropy rate (nats a token) beside the fitted irreducible loss E."""

    entropy_rate: float
    irreducible: Parameter
    law: str


@dataclass(frozen=True, eq=False)
class Analysis:
    """All that the report shows.

    title: the sweep's or table's name. params_kind: what N counts ("non-embedding", "total", or
    the user's own words). flops_kind: "exact" or "6·N·D".
    runs: what was fitted; rows: every row of the table; exclusions: those that were not fitted.
    problems: what a reader must know first, one sentence each, worst first.
    remedies: approach 2 by its less biased readings; isoflop_bias: the bias of each, by law.
    conventions: the judged target under each way of counting N and C, None where there is one alone.
    advice: runs that would help most, where the verdict is not "supported".
    surface: what is predicted over N and D, as far as the runs and targets reach.
    rates: the rate grids in the table, None where it has none. health: what is wrong with finished runs.
    records: each law's backtests, by law; records_by_distance: the same, by law and distance.
    metadata: how to do it again (command, versions, corpus fingerprint, config, ...), in order.
    """

    title: str
    params_kind: str
    flops_kind: str
    runs: Runs
    rows: tuple[RunRow, ...]
    exclusions: tuple[Exclusion, ...]
    fits: tuple[LawFit, ...]
    isoflops: tuple[Isoflop, ...]
    envelope: Envelope
    allocations: tuple[Allocation, ...]
    published: tuple[PublishedAllocation, ...]
    frontier: Frontier | None
    backtests: tuple[BacktestRow, ...]
    predictions: tuple[Prediction, ...]
    verdict: Verdict
    reasons: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()
    problems: tuple[str, ...] = ()
    entropy: EntropyCheck | None = None
    remedies: tuple[Allocation, ...] = ()
    isoflop_bias: tuple[IsoflopBias, ...] = ()
    conventions: ByConvention | None = None
    advice: tuple[HelpfulRun, ...] = ()
    surface: Surface | None = None
    records: tuple[TrackRecord, ...] = ()
    records_by_distance: tuple[TrackRecord, ...] = ()
    rates: RateStudy | None = None
    health: tuple[HealthFinding, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
