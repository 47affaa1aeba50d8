"""What no configuration may be: every value that can't be, or can't be beside another, by its key."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from models.config import PARAMETRISATIONS

SweepConfig = OptimConfig = Any
"""Those of schema.py, which imports this module; here their keys are looked up by name."""


class ConfigError(ValueError):
    """What the user asked for cannot be; the message says where, what was wanted and what to do."""


TOKENIZERS = {
    "bytes": {"kind"},
    "bpe": {"kind", "vocab_size"},
    "file": {"kind", "path", "end_of_document"},
}
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
CHOICES = {
    "model.activation": ("swiglu", "geglu", "relu2", "gelu"),
    "param": PARAMETRISATIONS,
    "optim.kind": ("adamw", "muon"),
    "optim.rule": ("power", "constant", "sqrt", "olmo", "porian", "steplaw"),
    "optim.follows": ("run", "size"),
    "tokenizer.kind": tuple(TOKENIZERS),
    "schedule.kind": ("wsd", "cosine"),
    "optim.precision": ("fp32", "bf16"),
    "executor.compile_mode": COMPILE_MODES,
    "logger.kind": ("auto", "wandb", "none"),
    "on_change": ("refuse", "accept"),
}
POSITIVE = (
    "max_hours model.width_step model.ff_ratio model.seq_len data.eval_tokens data.max_epochs data.vocab_size "
    "tokenizer.vocab_size optim.lr optim.embedding_rate optim.base_width optim.base_depth optim.tokens_per_param optim.lr_at_tokens "
    "optim.batch_tokens optim.batch_at_tokens optim.least_batch_tokens optim.micro_batch_tokens optim.eps optim.weight_decay_timescale "
    "optim.clip schedule.warmup_tokens grid.budgets grid.sizes grid.arm_budgets grid.max_flops "
    "grid.sizes_per_budget grid.size_ratio grid.optimum_params grid.optimum_at_flops grid.seeds grid.tokens "
    "grid.widths grid.octaves grid.params grid.flops grid.target.flops grid.target.params "
    "executor.slots executor.per_device executor.checkpoint_seconds executor.log_every executor.hang_minutes "
    "executor.memory_gb executor.time executor.checkpoint_minutes executor.poll_seconds"
).split()
NOT_NEGATIVE = "seed order_seed optim.weight_decay optim.embedding_mean grid.extensions executor.retries executor.evaluations executor.noise_scales executor.gpus_per_run".split()
FRACTIONS = (
    "data.heldout_fraction schedule.warmup_fraction schedule.decay_fraction schedule.final optim.beta1 optim.beta2 "
    "optim.momentum"
).split()


def check(config: SweepConfig) -> None:
    """Raise ConfigError listing every value that can't be, by key."""
    wrong = []
    for key, choices in CHOICES.items():
        if lookup(config, key) not in choices:
            wrong.append(f"{key}: {lookup(config, key)!r} is none of {', '.join(choices)}")
    for keys, holds, wanted in (
        (POSITIVE, lambda x: 0 < x < float("inf"), "a positive number"),
        (NOT_NEGATIVE, lambda x: x >= 0, "0 or more"),
        (FRACTIONS, lambda x: 0 <= x < 1, "at least 0 and below 1"),
    ):
        for key in keys:
            value = lookup(config, key)
            for number in value if isinstance(value, list) else [value]:
                if number is not None and not holds(number):
                    wrong.append(f"{key}: {number} is not {wanted}")
    wrong += _inconsistent(config)
    if wrong:
        raise ConfigError("\n".join(wrong))


def _inconsistent(config: SweepConfig) -> list[str]:
    wrong = []
    for key, value in dataclasses.asdict(config.tokenizer).items():
        if value is not None and key not in TOKENIZERS.get(config.tokenizer.kind, {key}):
            wrong.append(f"tokenizer.{key}: means nothing to tokenizer={config.tokenizer.kind}")
    if config.data.kind == "synthetic" and config.tokenizer.kind != "bytes":
        wrong.append("tokenizer: data=synthetic makes tokens, not text; leave tokenizer=bytes, which is not applied")
    wrong += _inconsistent_optim(config.optim, config.param)
    schedule = config.schedule
    if (schedule.warmup_fraction is None) == (schedule.warmup_tokens is None):
        wrong.append(
            f"schedule: warmup_fraction={schedule.warmup_fraction} and warmup_tokens={schedule.warmup_tokens}; give one of "
            "them, and null for the other"
        )
    wsd_only = (schedule.decay_fraction, schedule.decay)
    if schedule.kind == "wsd":
        if None in wsd_only or schedule.decay not in ("linear", "sqrt"):
            wrong.append("schedule: kind wsd wants decay_fraction and decay (linear or sqrt)")
        elif (schedule.warmup_fraction or 0.0) + schedule.decay_fraction > 1:
            wrong.append("schedule: warmup_fraction and decay_fraction exceed the run")
    elif wsd_only != (None, None):
        wrong.append("schedule: decay_fraction and decay mean nothing to kind cosine")
    if schedule.trunk and schedule.kind != "wsd":
        wrong.append(f"schedule.trunk: kind {schedule.kind} decays from the start, so that runs have no trunk to share")
    if schedule.trunk and config.optim.follows != "size":
        wrong.append(
            "schedule.trunk: runs of one trunk share rate and batch, so optim.follows must be size; "
            "or choose schedule=independent"
        )
    if config.executor.compile_mode != "default" and not config.executor.compile:
        wrong.append("executor.compile_mode: means nothing without executor.compile=true")
    sequences, rest = divmod(config.data.eval_tokens, max(1, config.model.seq_len))
    if rest or sequences < 2:  # one sequence alone has no standard error
        whole = max(2, sequences) * config.model.seq_len
        wrong.append(
            f"data.eval_tokens: {config.data.eval_tokens} is not two or more whole sequences of model.seq_len="
            f"{config.model.seq_len}; use {whole}, say"
        )
    wrong += _impossible_jobs(config)
    if config.name is not None and (config.name in (".", "..") or re.search(r"[/\\\0]|^$", config.name)):
        wrong.append(f"name: {config.name!r} is no folder's name; say where the sweep shall lie with out=")
    for key in ("grid.budgets", "grid.sizes", "grid.widths", "grid.param"):
        if lookup(config, key) == []:
            wrong.append(f"{key}: an empty list; give one value or more")
    if beyond := set(lookup(config, "grid.arm_budgets") or ()) - set(lookup(config, "grid.budgets") or ()):
        wrong.append(f"grid.arm_budgets: {sorted(beyond)} are none of grid.budgets, so there is nothing to compare with")
    if config.grid.kind == "isoflop" and not config.grid.size_ratio > 1:
        wrong.append(f"grid.size_ratio: {config.grid.size_ratio} is not above 1")
    if config.grid.kind == "lr":
        if config.optim.follows == "size":
            wrong.append(
                "optim.follows: size gives each width its own batch and rate, and grid=lr holds them; say "
                "schedule=independent optim.follows=run"
            )
        for key, values in (("grid.widths", config.grid.widths), ("grid.param", config.grid.param)):
            if len(set(values)) < len(values):
                wrong.append(f"{key}: {values} has one twice")
        for param in set(config.grid.param) - set(PARAMETRISATIONS):
            wrong.append(f"grid.param: {param!r} is none of {', '.join(PARAMETRISATIONS)}")
        if config.grid.rates < 3:
            wrong.append(f"grid.rates: {config.grid.rates} cannot bracket an optimum; give 3 or more")
    if config.grid.kind == "ladder" and config.grid.target.flops and not config.grid.target.params:
        wrong.append("grid.target.params: a ladder has one token count, so it cannot choose the target's size; give it")
    return wrong


def _impossible_jobs(config: SweepConfig) -> list[str]:
    executor, wrong = config.executor, []
    gpus, local = executor.gpus_per_run, executor.kind == "local"
    if gpus == 0 and local:
        wrong.append("executor.gpus_per_run: 0; give null, or 1 and more")
    if gpus == 0 and config.device == "cuda":
        wrong.append("executor.gpus_per_run: 0, and device=cuda; give 1, or say device=cpu")
    if config.device == "cpu" and gpus:
        wrong.append(f"executor.gpus_per_run: {gpus:g}, and device=cpu uses none; give {'null' if local else '0'}")
    if executor.ranks < (gpus or 0):
        wrong.append(f"executor.gpus_per_run: {gpus:g}; a run trains on a part of a GPU, or on one or several whole ones")
    if executor.ranks > 1 and lookup(executor, "per_device") not in (None, 1):
        wrong.append("executor.per_device: runs on several GPUs each have them to themselves; give 1")
    if executor.shard is not None and executor.ranks == 1:
        wrong.append("executor.shard: means nothing without executor.gpus_per_run of 2 or more")
    if executor.noise_scales and executor.ranks > 1 and executor.shard is not False:
        wrong.append(
            "executor.noise_scales: are measured with all weights on each GPU; say executor.shard=false, or leave 0"
        )
    if executor.shard and config.optim.kind == "muon":
        wrong.append("executor.shard: optim=muon wants whole matrices on each GPU; leave null, or say optim=adamw")
    if executor.kind == "slurm" and executor.time <= executor.checkpoint_minutes:
        wrong.append(
            f"executor.time: {executor.time} minutes, and runs are told to stop {executor.checkpoint_minutes} before "
            "that (executor.checkpoint_minutes); give more time"
        )
    return wrong


def _inconsistent_optim(optim: OptimConfig, param: str) -> list[str]:
    wrong = []
    if (optim.momentum is None) == (optim.kind == "muon"):
        wrong.append("optim.momentum: wanted by optim=muon, and by it alone")
    if optim.batch_follows not in (None, "run", "seen"):
        wrong.append(f"optim.batch_follows: {optim.batch_follows!r} is none of run, seen and null")
    if None not in (optim.weight_decay, optim.weight_decay_timescale):
        wrong.append("optim.weight_decay: give this or optim.weight_decay_timescale, not both; one of them null")
    if optim.rule in ("olmo", "porian", "steplaw") and param != "sp":
        wrong.append(
            f"optim.rule: {optim.rule} states the rate at each run's own size, and param={param} would scale it with "
            "the size once more; say param=sp with it"
        )
    return wrong


def lookup(config: Any, key: str) -> Any:
    """The value at a dotted key; None where this variant of a group has no such key."""
    for part in key.split("."):
        config = getattr(config, part, None)
    return config
