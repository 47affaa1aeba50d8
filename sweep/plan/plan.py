"""Cells to runs: batch, rate, schedule and steps of each, and the checks that need no compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sweep.plan import rules
from sweep.plan.batch import BatchSpec, growing
from sweep.plan.grids import Cell
from sweep.plan.rules import Recipe
from sweep.plan.schema import ConfigError, OptimConfig, SweepConfig
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
    recipe = rules.recipe(config.optim, cell.params, cell.tokens)
    followed = rules.followed_tokens(config.optim, cell.params, cell.tokens)
    batch = batch_spec(config.optim, recipe, followed, cell.shape.seq_len)
    if batch.sequences < config.executor.ranks:
        raise ConfigError(
            f"{where}: a batch of {batch.sequences} x {cell.shape.seq_len} tokens does not go round "
            f"{config.executor.ranks} GPUs. Lower executor.gpus_per_run or raise optim.batch_tokens and "
            "optim.least_batch_tokens. Nothing was launched."
        )
    steps = batch.steps(cell.tokens / cell.shape.seq_len)
    if steps < 1:
        raise ConfigError(
            f"{where}: {cell.tokens:.3g} tokens are less than one step of {batch.sequences} x {cell.shape.seq_len} "
            "tokens. Raise the budget or the tokens, or lower optim.batch_tokens, optim.least_batch_tokens or "
            "model.seq_len. Nothing was launched."
        )
    followed_steps = max(1, batch.steps(followed / cell.shape.seq_len))
    schedule = _schedule_spec(config, recipe, batch, cell.tokens, followed)
    if schedule.warmup_steps + schedule.decay_steps > steps:
        follows, lower = "the size", "schedule.warmup_fraction or optim.tokens_per_param"
        if config.schedule.warmup_tokens is not None:
            follows, lower = "schedule.warmup_tokens", "schedule.warmup_tokens"
        if recipe.warmup_tokens is not None:
            follows, lower = f"optim.rule={config.optim.rule}", "the sizes"
        raise ConfigError(
            f"{where}: {steps} steps are less than the warmup of {schedule.warmup_steps}, which follows {follows}, and "
            f"the decay of {schedule.decay_steps}. Raise the budget or the tokens, or lower {lower}. "
            "Nothing was launched."
        )
    spec = RunSpec(
        shape=cell.shape,
        data=DataSpec(corpus.fingerprint, config.data.eval_tokens),
        optim=_optim_spec(config, recipe, followed_steps),
        schedule=schedule,
        batch_sequences=batch.sequences,
        batch_doubles_at=batch.doubles_at,
        steps=steps,
        seed=cell.seed,
        precision=config.optim.precision,
        order_seed=None if config.order_seed == cell.seed else config.order_seed,
    )
    epochs = spec.tokens / corpus.train_tokens
    if epochs > config.data.max_epochs:
        raise ConfigError(
            f"{where}: needs {spec.tokens:.3g} tokens; the training split has {corpus.train_tokens:.3g} "
            f"({epochs:.2f} epochs; data.max_epochs={config.data.max_epochs:g}). Lower the budgets, raise "
            "data.max_epochs, or add data (data=text data.path=...). Nothing was launched."
        )
    return PlannedRun(spec, cell.group, cell.role)


def notes(cells: Sequence[Cell]) -> list[str]:
    """What the user should know of the rule that gives these cells their batch and rate: which keys it
    does not use, and how far the first cell outside of its range lies from it."""
    by_rule: dict[str, list[Cell]] = {}
    for cell in cells:
        by_rule.setdefault(cell.config.optim.rule, []).append(cell)
    said = []
    for rule, theirs in by_rule.items():
        if rules.UNUSED[rule]:
            said.append(f"optim.rule={rule} does not use {', '.join(sorted(rules.UNUSED[rule]))}")
        if theirs[0].config.model.tied:
            said.append(
                "model.tied=true: the embedding is the head too, and optim.embedding_rate and optim.embedding_mean are not used"
            )
        seen = [(cell.params, rules.followed_tokens(cell.config.optim, cell.params, cell.tokens)) for cell in theirs]
        beyond = [why for params, tokens in seen if (why := rules.outside(rule, params, tokens))]
        if beyond:
            said.append(f"{beyond[0]}; so for {len(beyond)} of {len(theirs)} runs")
    return said


def batch_spec(optim: OptimConfig, recipe: Recipe, followed: float, seq_len: int) -> BatchSpec:
    """The recipe's batch in whole sequences, never below optim.least_batch_tokens. Where it grows, the rule holds of
    the tokens seen so far, whatever D will be."""
    least, wanted = max(1, round(optim.least_batch_tokens / seq_len)), recipe.batch_tokens / seq_len
    if rules.grows(optim):
        return growing(wanted, followed / seq_len, least)
    return BatchSpec(max(least, round(wanted)))


def _optim_spec(config: SweepConfig, recipe: Recipe, steps: int) -> OptimSpec:
    """Decoupled decay as a timescale: rate · decay · steps = 1 / timescale (Wang & Aitchison 2024,
    arXiv 2405.13698, section 3), unless the recipe has a decay of its own."""
    optim, decay = config.optim, recipe.weight_decay
    if decay is None:
        timescale = optim.weight_decay_timescale
        decay = 0.0 if timescale is None else 1.0 / (recipe.lr * steps * timescale)
    return OptimSpec(
        param=config.param,
        lr=recipe.lr,
        base_width=optim.base_width,
        beta1=recipe.beta1,
        beta2=recipe.beta2,
        eps=optim.eps,
        weight_decay=decay,
        clip=optim.clip,
        kind=optim.kind,
        base_depth=optim.base_depth if config.param == "completep" else None,
        momentum=optim.momentum,
        embedding_rate=1.0 if config.model.tied else optim.embedding_rate,
        embedding_mean=0.0 if config.model.tied else optim.embedding_mean,
    )


def _schedule_spec(
    config: SweepConfig, recipe: Recipe, batch: BatchSpec, tokens: float, followed: float
) -> ScheduleSpec:
    schedule, sequences = config.schedule, tokens / config.model.seq_len
    warmup = schedule.warmup_tokens if recipe.warmup_tokens is None else recipe.warmup_tokens
    if warmup is None:
        warmup = schedule.warmup_fraction * followed
    constant = 1.0 - (schedule.decay_fraction or 0.0)
    return ScheduleSpec(
        kind=schedule.kind,
        warmup_steps=batch.steps(warmup / config.model.seq_len),
        decay_steps=batch.steps(sequences) - batch.steps(constant * sequences),
        decay=schedule.decay or "",
        final=schedule.final,
    )


def micro_batch_sequences(config: SweepConfig, batch: int) -> int:
    """Sequences at once, on each GPU: equal parts of its share of the batch of at most optim.micro_batch_tokens."""
    most = max(1, config.optim.micro_batch_tokens // config.model.seq_len)
    share = -(-batch // config.executor.ranks)
    parts = -(-share // most)
    return -(-share // parts)
