"""Cells to runs: batch, rate, schedule and steps of each, and the checks that need no compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sweep.plan.grids import Cell
from sweep.plan.schema import ConfigError, SweepConfig
from sweep.plan.spec import DataSpec, OptimSpec, PlannedRun, RunSpec, ScheduleSpec


@dataclass(frozen=True)
class Corpus:
    """What a plan needs to know of the prepared corpus. train_tokens: distinct ones."""

    fingerprint: str
    vocab_size: int
    train_tokens: int


def plan(cells: Sequence[Cell], corpus: Corpus) -> list[PlannedRun]:
    """The cells' runs, in order.

    Raises ConfigError for a run of less than one step, or one that sees the corpus more often than
    data.max_epochs allows; the message names the cell, what it needs and what there is.
    """
    return [_planned_run(cell, corpus, f"run {i} of {len(cells)} ({cell.label})") for i, cell in enumerate(cells, 1)]


def _planned_run(cell: Cell, corpus: Corpus, where: str) -> PlannedRun:
    config = cell.config
    followed = followed_tokens(cell)
    batch = batch_sequences(config, followed)
    steps = round(cell.tokens / (batch * cell.shape.seq_len))
    if steps < 1:
        raise ConfigError(
            f"{where}: {cell.tokens:.3g} tokens are less than one step of {batch} x {cell.shape.seq_len} tokens. "
            "Raise the budget or the tokens, or lower optim.batch_tokens or model.seq_len. Nothing was launched."
        )
    peak = config.optim.lr * (followed / config.optim.lr_at_tokens) ** config.optim.lr_exponent
    followed_steps = max(1, round(followed / (batch * cell.shape.seq_len)))
    schedule = _schedule_spec(config, steps, followed_steps)
    if schedule.warmup_steps + schedule.decay_steps > steps:
        raise ConfigError(
            f"{where}: {steps} steps are less than the warmup of {schedule.warmup_steps}, which follows the size, and "
            f"the decay of {schedule.decay_steps}. Raise the budget or the tokens, or lower "
            "schedule.warmup_fraction or optim.tokens_per_param. Nothing was launched."
        )
    spec = RunSpec(
        shape=cell.shape,
        data=DataSpec(corpus.fingerprint, config.data.eval_tokens),
        optim=_optim_spec(config, peak, followed_steps),
        schedule=schedule,
        batch_sequences=batch,
        steps=steps,
        seed=cell.seed,
        precision=config.optim.precision,
    )
    epochs = spec.tokens / corpus.train_tokens
    if epochs > config.data.max_epochs:
        raise ConfigError(
            f"{where}: needs {spec.tokens:.3g} tokens; the training split has {corpus.train_tokens:.3g} "
            f"({epochs:.2f} epochs; data.max_epochs={config.data.max_epochs:g}). Lower the budgets, raise "
            "data.max_epochs, or add data (data=text data.path=...). Nothing was launched."
        )
    return PlannedRun(spec, cell.group, cell.role)


def followed_tokens(cell: Cell) -> float:
    """The D that batch, rate, warmup and decay follow. What shares a trunk must share these, and a budget
    that is added later must not change them: there it is optim.tokens_per_param · N, whatever the run's
    own D; elsewhere the run's own."""
    optim = cell.config.optim
    return cell.tokens if optim.follows == "run" else optim.tokens_per_param * cell.params


def batch_sequences(config: SweepConfig, tokens: float) -> int:
    """Batch in sequences: batch_tokens · (D / batch_at_tokens)^batch_exponent, at least one."""
    optim = config.optim
    wanted = optim.batch_tokens * (tokens / optim.batch_at_tokens) ** optim.batch_exponent
    return max(1, round(wanted / config.model.seq_len))


def _optim_spec(config: SweepConfig, peak: float, steps: int) -> OptimSpec:
    """Decoupled decay as a timescale: rate · decay · steps = 1 / timescale (Wang & Aitchison 2024,
    arXiv 2405.13698, section 3)."""
    optim, timescale = config.optim, config.optim.weight_decay_timescale
    return OptimSpec(
        param=config.param,
        lr=peak,
        base_width=optim.base_width,
        beta1=optim.beta1,
        beta2=optim.beta2,
        eps=optim.eps,
        weight_decay=0.0 if timescale is None else 1.0 / (peak * steps * timescale),
        clip=optim.clip,
    )


def _schedule_spec(config: SweepConfig, steps: int, followed_steps: int) -> ScheduleSpec:
    schedule = config.schedule
    return ScheduleSpec(
        kind=schedule.kind,
        warmup_steps=round(schedule.warmup_fraction * followed_steps),
        decay_steps=round((schedule.decay_fraction or 0.0) * steps),
        decay=schedule.decay or "",
        final=schedule.final,
    )


def micro_batch_sequences(config: SweepConfig, batch: int) -> int:
    """Sequences at once: equal parts of the batch of at most optim.micro_batch_tokens."""
    most = max(1, config.optim.micro_batch_tokens // config.model.seq_len)
    parts = -(-batch // most)
    return -(-batch // parts)
