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

from analysis.compute_optimal import (  # noqa: F401, also imported from here
    Allocation,
    Band,
    Envelope,
    Frontier,
    Isoflop,
    IsoflopBias,
    PublishedAllocation,
    ReadingBias,
    Surface,
)
from analysis.estimate import LEVEL, Estimate  # noqa: F401
from analysis.finding import Finding
from analysis.law_fit import Basin, LawFit, Parameter, Status  # noqa: F401


class Verdict(str, Enum):
    """Do the data carry the extrapolation? The reasons stand beside it, in words."""

    SUPPORTED = "supported"
    WEAK = "weak"
    NOT_SUPPORTED = "not supported"


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
    seed, order_seed: labels of the initialisation's and of the data order's, "" where not given (the order
    then follows the seed).
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
    seed: str = ""
    order_seed: str = ""
    n_head: float | None = None
    d_ff: float | None = None
    params_total: float | None = None


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
    """Loss against peak rate of one shape on one token count and batch: log L = c0 + c1·x + c2·x², with
    x = log2(rate / `centre`), through the rates around the best.

    param: the parametrisation; width: d_model; batch_tokens: of one step; "" or None where there is none.
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
    batch_tokens: float | None
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
    def alike(self) -> tuple[str, float | None, str]:
        """Parametrisation, batch and tokens, to six digits: curves of one are compared, no others."""
        return self.param, self.batch_tokens, f"{self.tokens:.6g}"

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

    widths: the narrowest and the widest with a bracketed optimum; curves: how many there are. asked: the
        widths that were run span what the verdict is about; where they do not, nobody asked it.
    per_octave: octaves of rate for each doubling of the width; over_range: from the narrowest to the
        widest; over_8x: three times the former, what the verdict is about. Their ends are NaN where no
        noise is known.
    cost_pct: what the widest loses, % of its loss, at the narrowest's optimal rate, by its parabola.
    transfers: True or False where the interval of `over_8x` lies within or beyond `allowed` octaves, None
        where the runs cannot tell. `says` is the verdict in words, with its reason.
    """

    param: str
    tokens: float
    batch_tokens: float | None
    widths: tuple[float, float]
    curves: int
    asked: bool
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
    findings: what the studies that were asked for found, in their order.
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
    findings: tuple[Finding, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
