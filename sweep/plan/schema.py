"""The configuration as frozen dataclasses: every key, its type and its meaning; checks.py says what can't be.

The only file of the sweep that knows OmegaConf. `to_config` turns what Hydra composed into a
SweepConfig; an unknown key, a value of the wrong type or an impossible one is refused with its path.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Optional, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.plan.checks import ConfigError, check, lookup
from sweep.plan.spec import digest


@dataclass(frozen=True)
class ScaleConfig:
    """Values that follow the machine; the other groups refer to them, nothing else reads them."""

    asked: str  # "auto", "cpu" or "gpu"
    name: str  # "cpu" or "gpu": what `auto` came to
    seq_len: int
    n_layer: Optional[int]
    aspect_ratio: Optional[float]
    n_head: Optional[int]
    head_size: Optional[int]
    width_step: int
    base_width: int
    base_depth: int
    lr: float
    trunk_lr: float
    embedding_rate: float
    embedding_mean: float
    lr_at_tokens: float
    lr_exponent: float
    beta2: float
    warmup_tokens: Optional[float]
    warmup_fraction: Optional[float]
    batch_tokens: int
    batch_at_tokens: float
    batch_exponent: float
    least_batch_tokens: int
    micro_batch_tokens: int
    tokens_per_param: float
    weight_decay_timescale: Optional[float]
    eval_tokens: int
    precision: str
    budgets: list[float]
    size_ratio: float
    optimum_params: float
    optimum_at_flops: float
    ladder_sizes: list[float]
    ladder_tokens: float
    ladder_target_flops: float
    ladder_target_params: float
    lr_widths: list[int]
    lr_tokens: float
    max_hours: float


@dataclass(frozen=True)
class ModelConfig:
    """The family of decoders (models/sizes.py): give n_layer or aspect_ratio, n_head or head_size."""

    n_layer: Optional[int]
    aspect_ratio: Optional[float]
    n_head: Optional[int]
    head_size: Optional[int]
    width_step: int
    ff_ratio: float
    activation: str  # swiglu | geglu | relu2 | gelu
    qk_norm: bool
    tied: bool
    seq_len: int


@dataclass(frozen=True)
class StdlibData:
    kind: str
    heldout_fraction: float  # of the documents, by hash
    eval_tokens: int  # held-out tokens that every loss is measured on
    max_epochs: float  # a run may see each training token this often
    cache: Optional[str]  # where prepared corpora are kept; null: the user's cache folder


@dataclass(frozen=True)
class TextData(StdlibData):
    path: Any  # one path or glob, or a list of them
    field: str  # which field of .jsonl and .parquet rows is the text


@dataclass(frozen=True)
class HfData(StdlibData):
    path: str  # the data set's name on the hub
    config: Optional[str]
    split: str
    field: str
    revision: Optional[str]


@dataclass(frozen=True)
class SyntheticData(StdlibData):
    vocab_size: int
    source_seed: int


@dataclass(frozen=True)
class TokenizerConfig:
    kind: str  # bytes | bpe | file
    vocab_size: Optional[int] = None  # bpe
    path: Optional[str] = None  # file
    end_of_document: Optional[str] = None  # file


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, and the rule by which rate and batch follow a run's N and D (sweep/plan/rules.py):
    with `power`, batch = batch_tokens · (D / batch_at_tokens)^batch_exponent in whole sequences, and
    peak rate = lr · (D / lr_at_tokens)^lr_exponent at width base_width. With batch_follows=seen the batch is that
    of the tokens seen so far (sweep/plan/batch.py)."""

    kind: str  # adamw | muon: Muon for the matrices in the layers, AdamW for the rest
    rule: str  # power | constant | sqrt | olmo | porian | steplaw
    follows: str  # run: the rule sees the run's own D | size: tokens_per_param · N, alike for all budgets
    batch_follows: Optional[str]  # run | seen; null: seen where follows=size and the rule's batch goes with sqrt(D)
    tokens_per_param: float  # D/N, N non-embedding; what follows=size puts in the place of a run's own D
    lr: float
    base_width: int  # where the rate is what it says; param=mup and completep
    base_depth: int  # likewise, in layers; param=completep
    embedding_rate: float  # factor on the rate of an untied input embedding
    embedding_mean: float  # their mean at the start, in standard deviations
    lr_at_tokens: float
    lr_exponent: float
    batch_tokens: int
    batch_at_tokens: float
    batch_exponent: float
    least_batch_tokens: int  # no batch is smaller, and one that grows starts from here
    micro_batch_tokens: int  # at most this many tokens go through the model at once
    beta1: float
    beta2: float
    eps: float
    weight_decay_timescale: Optional[float]  # in runs: weights are forgotten over this share of one; null: none
    weight_decay: Optional[float]  # in its place, the same decay for every run
    clip: float  # largest norm of the gradient
    precision: str  # fp32 | bf16
    momentum: Optional[float] = None  # muon's, Nesterov


@dataclass(frozen=True)
class ScheduleConfig:
    kind: str  # wsd | cosine
    trunk: bool  # runs of one size branch off one trunk (sweep/plan/trunks.py); wsd
    warmup_fraction: Optional[float]  # of the tokens; of those that optim.follows names
    warmup_tokens: Optional[float]  # in its place, one warmup for all runs
    final: float  # of the peak rate, at the end
    decay_fraction: Optional[float] = None  # of the steps; wsd
    decay: Optional[str] = None  # linear | sqrt; wsd


@dataclass(frozen=True)
class TargetConfig:
    """The run to predict, then train. flops null: none. params null: the fitted optimum."""

    flops: Optional[float]
    params: Optional[float]
    shape: Optional[list[int]] = None  # n_layer, d_model, n_head, d_ff, in place of the family's at `params`


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What every grid may say of itself."""

    name: Optional[str] = None  # in the sweep's own name, and what keeps two grids' sweeps apart; null: kind
    studies: list[str] = field(default_factory=list)  # of analysis/studies, or package.module of one's own


@dataclass(frozen=True)
class IsoflopGrid(Grid):
    kind: str
    budgets: list[float]  # FLOPs, exact
    sizes: Optional[list[float]]  # non-embedding parameters, for every budget; null: around the optimum
    sizes_per_budget: int
    size_ratio: float  # between neighbouring sizes
    optimum_params: float  # expected optimum: optimum_params · (C / optimum_at_flops)^optimum_exponent
    optimum_at_flops: float
    optimum_exponent: float
    extensions: int  # how many more sizes a budget may get to bracket its optimum
    seeds: int  # runs of every cell
    target: TargetConfig
    arms: dict[str, Any] = field(default_factory=dict)  # name: keys that its runs differ in; they are in no fit
    arm_budgets: Optional[list[float]] = None  # of grid.budgets, those at which the arms' cells are; null: all


@dataclass(frozen=True)
class LadderGrid(Grid):
    kind: str
    sizes: Optional[list[float]]  # non-embedding parameters
    tokens: float
    seeds: int
    target: TargetConfig
    shapes: Optional[list[Any]] = None  # in place of sizes: lists of n_layer, d_model, n_head, d_ff


@dataclass(frozen=True)
class ProductGrid(Grid):
    kind: str
    params: Optional[float] = None
    tokens: Optional[float] = None
    flops: Optional[float] = None
    over: dict[str, Any] = field(default_factory=dict)  # every combination of the lists under it
    each: dict[str, Any] = field(default_factory=dict)  # beside each of those, each value of these lists alone
    max_flops: Optional[float] = None  # dearer cells are left out
    target: TargetConfig = field(default_factory=lambda: TargetConfig(None, None))


@dataclass(frozen=True)
class LrGrid(Grid):
    """Rate x width at one token count; see sweep/plan/lr_grid.py."""

    kind: str
    widths: list[int]  # d_model
    param: list[str]  # the parametrisations to compare
    rates: int  # of each width, around the recipe's own
    octaves: float  # between neighbouring rates
    tokens: float
    extensions: int  # how many more rates a width may get to bracket its best
    seeds: int  # runs of every cell

    @property
    def target(self) -> TargetConfig:
        """It has none."""
        return TargetConfig(flops=None, params=None)


@dataclass(frozen=True)
class ExecutorConfig:
    """What every place that runs workers has in common; which one, `kind` says."""

    kind: str  # local | slurm | ray
    retries: int  # of a run whose worker died
    hang_minutes: Optional[float]  # without a sign of life, after which a worker is killed; null: never
    checkpoint_seconds: float
    log_every: int  # steps
    evaluations: int  # of the held-out loss before the end of a run
    noise_scales: int  # measurements of the gradient noise scale before the end of a run; 0: none
    compile: bool
    compile_mode: str  # torch.compile's; reduce-overhead replays CUDA graphs, for models of many small operations
    shard: Optional[bool]  # weights and moments over the GPUs of a run; null: where one would be too full of them

    @property
    def ranks(self) -> int:
        """Processes of a run, which share each of its batches: one on each of its GPUs."""
        return max(1, int(self.gpus_per_run or 1))


@dataclass(frozen=True)
class LocalExecutorConfig(ExecutorConfig):
    slots: Optional[int]  # workers at a time; null: one a core, or per_device a GPU (of gpus_per_run one)
    per_device: int
    gpus_per_run: Optional[int]  # null: one, if any


@dataclass(frozen=True)
class SlurmExecutorConfig(ExecutorConfig):
    slots: int  # jobs to hold in the queue at one time
    gpus_per_run: int  # of one node
    partition: Optional[str]  # null: the cluster's default
    account: Optional[str]
    memory_gb: Optional[float]  # of the host, of each run; null: the cluster's default
    time: int  # minutes that a job may take; a longer run goes on in another job
    checkpoint_minutes: int  # how long before the limit the worker saves its state and stops
    poll_seconds: float  # between two looks at the queue
    extra: dict[str, Any]  # further options of sbatch, by name


@dataclass(frozen=True)
class RayExecutorConfig(ExecutorConfig):
    address: Optional[str]  # of a cluster, or "auto"; null: one on this machine
    slots: Optional[int]  # tasks at a time; null: as many as the cluster has room for
    gpus_per_run: float  # of one node; a fraction packs several runs on a GPU


@dataclass(frozen=True)
class LoggerConfig:
    kind: str  # auto | wandb | none
    project: str = "scaling-sweep"


EXECUTORS = {"local": LocalExecutorConfig, "slurm": SlurmExecutorConfig, "ray": RayExecutorConfig}
GRIDS = {"isoflop": IsoflopGrid, "ladder": LadderGrid, "product": ProductGrid, "lr": LrGrid}
DATA = {"stdlib": StdlibData, "text": TextData, "hf": HfData, "synthetic": SyntheticData}


@dataclass(frozen=True)
class SweepConfig:
    """Everything a user chooses, checked. `data`, `grid` and `executor` are one of the dataclasses above."""

    scale: ScaleConfig
    model: ModelConfig
    data: Any
    tokenizer: TokenizerConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    grid: Any
    executor: Any
    logger: LoggerConfig
    name: Optional[str]  # null: grid, scale and a digest of the recipe
    out: Optional[str]  # null: outputs/<name>
    seed: int  # of initialisation and, where order_seed is null, of the order of the data
    order_seed: Optional[int]
    param: str  # mup | completep | sp
    device: str  # auto | cpu | cuda
    on_change: str  # refuse | accept: to train on where the training code or torch has changed since the folder's first run
    plan_only: bool
    reuse: bool  # runs that a sweep beside this one has finished, in place of training them
    max_hours: float

    @property
    def recipe(self) -> dict[str, Any]:
        """What every run of a sweep shares, so that their losses can be compared. A grid's budgets
        and sizes may grow within one sweep; these may not change."""
        data = {key: value for key, value in dataclasses.asdict(self.data).items() if key not in RUN_ONLY}
        optim = {key: value for key, value in dataclasses.asdict(self.optim).items() if key not in RUN_ONLY}
        return {
            "grid": {"kind": self.grid.kind, **({"name": self.grid.name} if self.grid.name else {})},
            "model": dataclasses.asdict(self.model),
            "data": data,
            "tokenizer": dataclasses.asdict(self.tokenizer),
            "optim": optim,
            "schedule": dataclasses.asdict(self.schedule),
            "seed": self.seed,
            **({} if self.order_seed is None else {"order_seed": self.order_seed}),
            "param": self.param,
        }

    @property
    def sweep_name(self) -> str:
        return self.name or f"{self.grid.name or self.grid.kind}-{self.scale.name}-{digest(self.recipe)[:6]}"

    @property
    def folder(self) -> str:
        return self.out or f"outputs/{self.sweep_name}"


RUN_ONLY = {"cache", "max_epochs", "micro_batch_tokens"}
"""Keys of `data` and `optim` that say how a sweep is run, not what its runs are."""


def to_config(composed: DictConfig) -> SweepConfig:
    """What Hydra composed, as a checked SweepConfig.

    Raises ConfigError naming the key's path, what was found and what is wanted.
    """
    try:
        OmegaConf.resolve(composed)
        schema = _writable(SweepConfig)
        schema.data = _writable(_variant(composed, "data", DATA))
        schema.grid = _writable(_variant(composed, "grid", GRIDS))
        schema.executor = _writable(_variant(composed, "executor", EXECUTORS))
        merged = OmegaConf.merge(schema, composed)
        missing = OmegaConf.missing_keys(merged)
        if missing:
            raise ConfigError(f"{', '.join(sorted(missing))}: a value is wanted, none was given")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = error.full_key or "configuration"
        raise ConfigError(f"{key}: {str(error.msg or error).splitlines()[0]}") from error
    check(config)
    return config


def _writable(kind: type) -> DictConfig:
    """The dataclass as an OmegaConf schema; its being frozen must not stop the merge into it."""
    schema = OmegaConf.structured(kind)
    for node in [schema, *(schema._get_node(key) for key in schema)]:
        if isinstance(node, DictConfig):
            OmegaConf.set_readonly(node, False)
    return schema


def _variant(composed: DictConfig, group: str, variants: dict[str, type]) -> type:
    kind = (composed.get(group) or {}).get("kind")
    if kind is None:
        raise ConfigError(f"{group}: nothing chosen; say +{group}={'|'.join(variants)} on the command line")
    if kind not in variants:
        raise ConfigError(f"{group}.kind: {kind!r} is none of {', '.join(variants)}")
    return variants[kind]


SWEEPABLE = ("model", "optim", "schedule", "seed", "order_seed", "param")


def with_values(config: SweepConfig, values: dict[str, Any]) -> SweepConfig:
    """`config` with the dotted keys of `values` replaced, checked again.

    Raises ConfigError for a key that is unknown or that runs of one sweep cannot differ in.
    """
    for key, value in values.items():
        if key == "schedule.trunk":
            raise ConfigError("grid.over: schedule.trunk is one for all runs of a sweep; say schedule=trunk")
        group, _, name = key.partition(".")
        if group not in SWEEPABLE or lookup(config, key) is None and not _has(config, key):
            raise ConfigError(f"grid.over: {key!r} is no key that runs can differ in ({', '.join(SWEEPABLE)})")
        if not name:
            config = dataclasses.replace(config, **{group: _typed(type(config), group, value)})
        else:
            part = getattr(config, group)
            config = dataclasses.replace(
                config, **{group: dataclasses.replace(part, **{name: _typed(type(part), name, value)})}
            )
    check(config)
    return config


def _has(config: SweepConfig, key: str) -> bool:
    group, _, name = key.partition(".")
    return hasattr(getattr(config, group, None), name) if name else hasattr(config, group)


def _typed(owner: type, name: str, value: Any) -> Any:
    """`value` converted as Hydra would convert it for this field."""
    holder = dataclasses.make_dataclass("Holder", [(name, get_type_hints(owner)[name])])
    try:
        return getattr(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(holder), {name: value})), name)
    except OmegaConfBaseException as error:
        raise ConfigError(f"grid.over: {name}: {str(error.msg).splitlines()[0]}") from error
