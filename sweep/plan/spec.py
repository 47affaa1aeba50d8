"""RunSpec: all that determines a run's result, and the digest of exactly that."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from models.config import DecoderShape
from models.count import training_flops_per_token
from sweep.plan.batch import BatchSpec

RECIPE_VERSION = 2
"""Raised whenever the training code changes what a given spec results in, so that no old result
is taken for a new one."""


@dataclass(frozen=True)
class DataSpec:
    """Which tokens. `fingerprint` digests the shards, their split and the tokenizer;
    `eval_tokens` of the held-out split are what every loss is measured on."""

    fingerprint: str
    eval_tokens: int


@dataclass(frozen=True)
class OptimSpec:
    """`lr` is the peak rate at `base_width`; `param` ("mup", "completep" or "sp") says how it and the
    initialisation transfer to this run's shape (models/transfer.py). `kind` is "adamw", or "muon" for
    the matrices in the layers with AdamW for the rest. `base_depth` is completep's alone, in layers,
    and `momentum` muon's; else None. `embedding_rate` is a factor on the rate of an untied input embedding,
    `embedding_mean` the mean that its entries start with, in units of their standard deviation."""

    param: str
    lr: float
    base_width: int
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip: float
    kind: str = "adamw"
    base_depth: int | None = None
    momentum: float | None = None
    embedding_rate: float = 1.0
    embedding_mean: float = 0.0


@dataclass(frozen=True)
class ScheduleSpec:
    """`kind` is "wsd" (warm up, stay, decay over the last `decay_steps`), "cosine", or "constant" (warm
    up, stay: a trunk); `decay` is the shape of the first one's decay, "linear" or "sqrt"; the rate ends
    at `final` of its peak."""

    kind: str
    warmup_steps: int
    decay_steps: int
    decay: str
    final: float


@dataclass(frozen=True)
class RunSpec:
    """Everything that determines a run's result. Where and how fast it runs is not in here. `batch_sequences`
    and `batch_doubles_at` are `batch`'s; `order_seed` is of the order of the data, where that is not `seed`'s."""

    shape: DecoderShape
    data: DataSpec
    optim: OptimSpec
    schedule: ScheduleSpec
    batch_sequences: int
    steps: int
    seed: int
    precision: str
    recipe_version: int = RECIPE_VERSION
    order_seed: int | None = None
    batch_doubles_at: int | None = None

    @cached_property
    def run_id(self) -> str:
        """12 hexadecimal digits of the SHA-256 of the canonical JSON of every field."""
        return digest(self.to_json())[:12]

    @cached_property
    def batch(self) -> BatchSpec:
        """Raises ValueError where there is no such batch."""
        return BatchSpec(self.batch_sequences, self.batch_doubles_at)

    @property
    def batch_tokens(self) -> float:
        """Tokens in an update, the mean over all."""
        return self.tokens / self.steps

    @property
    def most_sequences(self) -> int:
        """Sequences in the largest update, the last one."""
        return self.batch.at(self.steps - 1)

    @cached_property
    def tokens(self) -> int:
        """D: training tokens seen, repeats included."""
        return self.tokens_after(self.steps)

    def tokens_after(self, step: int) -> int:
        """Training tokens that the first `step` updates see."""
        return self.batch.seen(step) * self.shape.seq_len

    @cached_property
    def flops(self) -> float:
        """C: exact training FLOPs (models/count.py)."""
        return float(self.tokens) * training_flops_per_token(self.shape)

    @property
    def is_trunk(self) -> bool:
        """Whether it is trained for what goes on from it: its rate never comes down, so its loss is none to fit."""
        return self.schedule.kind == "constant"

    @property
    def decay_start(self) -> int:
        """Updates before the rate comes down: as many as a trunk can make for this run."""
        return self.steps - self.schedule.decay_steps

    def to_json(self) -> dict[str, Any]:
        """`dataclasses.asdict`, which takes ten times as long; the parts hold numbers and strings."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: dict(vars(value)) if dataclasses.is_dataclass(value) else value for name, value in values.items()}

    @staticmethod
    def from_json(fields: dict[str, Any]) -> RunSpec:
        """Inverse of `to_json`. Raises TypeError on a missing or unknown field."""
        parts = {"shape": DecoderShape, "data": DataSpec, "optim": OptimSpec, "schedule": ScheduleSpec}
        nested = {name: part(**fields.get(name, {})) for name, part in parts.items()}
        spec = RunSpec(**{**fields, **nested})
        if spec.to_json() != fields:  # a field was left to a default that the run may not have had
            raise TypeError(f"a field is missing from {fields}")
        return spec


@dataclass(frozen=True)
class PlannedRun:
    """A run and its place in this sweep. `group` names the set it is compared within (its budget,
    say); `role` is "fit", "holdout" or "trunk". `parent` is the trunk whose last checkpoint it goes on
    from: the same updates as its own up to there, so that, bit for bit, nothing of the result depends on
    it. None of the three changes the run, so none is in its id."""

    spec: RunSpec
    group: str
    role: str = "fit"
    parent: RunSpec | None = None

    @cached_property
    def run_id(self) -> str:
        return self.spec.run_id

    @property
    def from_step(self) -> int:
        """Updates that its trunk has made for it."""
        return self.parent.steps if self.parent else 0

    @property
    def own_share(self) -> float:
        """The share of the run's tokens that it is trained on itself, above 0 and at most 1."""
        return 1.0 - self.spec.tokens_after(self.from_step) / self.spec.tokens


def digest(value: Any) -> str:
    """SHA-256 (hexadecimal) of `value` as canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
