from __future__ import annotations

import dataclasses
import math

import pytest

from models.count import count_parameters, training_flops_per_token
from sweep.plan.grids import Cell, cells, family
from sweep.plan.plan import Corpus, batch_spec, micro_batch_sequences, plan
from sweep.plan.rules import recipe
from sweep.plan.schema import ConfigError

VOCAB = 257
PLENTY = Corpus("f00d", VOCAB, 10**12)
ISOFLOP = (
    "scale=cpu", "+grid=isoflop", "grid.budgets=[1e11,1e12]", "schedule.warmup_tokens=null", "schedule.warmup_fraction=0.05",
)  # fmt: skip


def cell(config, tokens: float, width: int = 48, seed: int = 0) -> Cell:
    return Cell(config, family(config, VOCAB).shape(width), tokens, seed, "here")


@pytest.mark.parametrize("scale, vocab_size", [("cpu", 257), ("gpu", 32_768)])
def test_isoflop_runs_cost_their_budget_but_for_half_a_step(compose, scale, vocab_size):
    config = compose(f"scale={scale}", "+grid=isoflop")
    planned = cells(config, vocab_size)
    runs = plan(planned, Corpus("f00d", vocab_size, 10**12))
    assert len(runs) == len(planned) >= 12
    for asked, run in zip(planned, runs):
        budget = asked.tokens * training_flops_per_token(asked.shape)
        assert run.group == f"C={budget:.4g}"
        assert abs(run.spec.flops / budget - 1) <= 0.5 * run.spec.most_sequences / run.spec.batch.seen(run.spec.steps) + 1e-9
        assert abs(run.spec.flops / budget - 1) < 0.02  # and a step is a small part of every planned run
    assert len({run.run_id for run in runs}) == len(runs)


def test_a_run_is_its_cell_under_the_configuration_s_rules(compose):
    config = compose(*ISOFLOP, "param=sp", "optim.clip=0.5", "optim.beta2=0.99", "optim.precision=bf16")
    (run,) = plan([dataclasses.replace(cell(config, 2e6, seed=7), role="holdout")], PLENTY)
    spec = run.spec
    assert (run.group, run.role, spec.seed, spec.precision) == ("here", "holdout", 7, "bf16")
    assert (spec.data.fingerprint, spec.data.eval_tokens) == ("f00d", config.data.eval_tokens)
    assert (spec.optim.param, spec.optim.clip, spec.optim.beta2) == ("sp", 0.5, 0.99)
    assert spec.shape.d_model == 48


def test_planning_twice_gives_the_same_runs(compose):
    config = compose(*ISOFLOP)
    assert plan(cells(config, VOCAB), PLENTY) == plan(cells(config, VOCAB), PLENTY)


def test_replicates_are_different_runs(compose):
    runs = plan(cells(compose(*ISOFLOP, "grid.seeds=3"), VOCAB), PLENTY)
    assert len({run.run_id for run in runs}) == len(runs)


def test_the_batch_follows_the_tokens(compose):
    rule = ("optim.batch_tokens=8192", "optim.batch_at_tokens=1e6", "optim.batch_exponent=0.5")
    config = compose(*ISOFLOP, "schedule=independent", *rule)

    def batch(config, tokens: float) -> int:
        return batch_spec(config.optim, recipe(config.optim, 1e4, tokens), tokens, config.model.seq_len).sequences

    assert batch(config, 1e6) == 8192 // config.model.seq_len
    assert batch(config, 4e6) == 2 * 8192 // config.model.seq_len
    assert batch(config, 1.0) == 1  # never none
    assert batch(compose(*ISOFLOP, "schedule=independent", *rule, "optim.least_batch_tokens=512"), 1.0) == 4
    fixed = compose(*ISOFLOP, "schedule=independent", *rule[:2], "optim.batch_exponent=0")
    assert {batch(fixed, tokens) for tokens in (1e5, 1e6, 1e9)} == {8192 // config.model.seq_len}


def test_the_peak_rate_follows_the_tokens(compose):
    config = compose(*ISOFLOP, "schedule=independent", "optim.lr=0.02", "optim.lr_at_tokens=1e6", "optim.lr_exponent=-0.25")
    peaks = [run.spec.optim.lr for run in plan([cell(config, 1e6), cell(config, 16e6)], PLENTY)]
    assert peaks == pytest.approx([0.02, 0.01])
    assert {run.spec.optim.base_width for run in plan([cell(config, 1e6)], PLENTY)} == {
        config.optim.base_width
    }


def test_on_a_trunk_rate_batch_decay_and_warmup_follow_the_size_alone(compose):
    config = compose(*ISOFLOP, "optim.tokens_per_param=25")
    short, long, wide = (
        plan([cell(config, tokens, width)], PLENTY)[0].spec for tokens, width in ((1e6, 48), (4e6, 48), (4e6, 96))
    )
    assert (short.optim, short.batch) == (long.optim, long.batch)
    assert short.schedule.warmup_steps == long.schedule.warmup_steps
    followed = 25 * count_parameters(wide.shape).non_embedding
    own = compose(*ISOFLOP, "schedule=independent", f"optim.lr={config.optim.lr}")
    alone = plan([cell(own, followed, 96)], PLENTY)[0].spec  # as an independent run of so many tokens
    assert wide.optim.lr == pytest.approx(alone.optim.lr)
    warmup = wide.tokens_after(wide.schedule.warmup_steps)
    assert warmup == pytest.approx(alone.tokens_after(alone.schedule.warmup_steps), rel=0.05)
    steps = wide.batch.steps(followed / config.model.seq_len)
    forgotten = steps * config.optim.weight_decay_timescale
    assert wide.optim.lr * wide.optim.weight_decay == pytest.approx(1 / forgotten)


def test_on_a_trunk_the_batch_is_that_of_the_tokens_seen_so_far(compose):
    config = compose(*ISOFLOP)
    optim, seq_len = config.optim, config.model.seq_len
    for width in (48, 96):
        run = plan([cell(config, 2e7, width)], PLENTY)[0].spec
        for step in range(0, run.steps, 50):
            law = optim.batch_tokens * (run.tokens_after(step) / optim.batch_at_tokens) ** 0.5 / seq_len
            assert run.batch.at(step) == 1 if law < 1 else 0.69 < run.batch.at(step) / law < 1.45
        assert run.tokens == pytest.approx(2e7, rel=0.01)
        constant = 1 - config.schedule.decay_fraction
        assert run.tokens_after(run.decay_start) == pytest.approx(constant * run.tokens, rel=0.01)
    fixed = compose(*ISOFLOP, "optim.batch_exponent=0")
    assert plan([cell(fixed, 2e7)], PLENTY)[0].spec.batch.doubles_at is None


def test_weights_are_forgotten_over_the_same_share_of_every_run(compose):
    config = compose(
        *ISOFLOP, "schedule=independent", "optim.weight_decay_timescale=0.5", "optim.lr_exponent=-0.3"
    )
    for run in plan([cell(config, tokens) for tokens in (5e5, 2e6, 3e7)], PLENTY):
        timescale_steps = 1 / (run.spec.optim.lr * run.spec.optim.weight_decay)
        assert timescale_steps / run.spec.steps == pytest.approx(0.5)
    none = compose(*ISOFLOP, "optim.weight_decay_timescale=null")
    assert plan([cell(none, 1e6)], PLENTY)[0].spec.optim.weight_decay == 0.0


@pytest.mark.parametrize(("schedule", "kind"), [("independent", "wsd"), ("cosine", "cosine")])
def test_the_schedule_is_a_share_of_each_run_s_own_steps(compose, schedule, kind):
    config = compose(*ISOFLOP, f"schedule={schedule}")
    for run in plan([cell(config, 1e6), cell(config, 4e7)], PLENTY):
        planned, steps = run.spec.schedule, run.spec.steps
        assert planned.kind == kind and planned.final == config.schedule.final
        assert abs(planned.warmup_steps - config.schedule.warmup_fraction * steps) <= 0.5
        assert abs(planned.decay_steps - (config.schedule.decay_fraction or 0.0) * steps) <= 0.5


def test_too_small_a_budget_is_refused_naming_the_run(compose):
    config = compose(*ISOFLOP, "grid.budgets=[1e12,1e6]", "grid.sizes=[5e4]", "optim.batch_exponent=0")
    with pytest.raises(
        ConfigError,
        match=r"run 2 of 2 \(grid isoflop, C=1e\+06, n_layer=2 d_model=\d+\): .* less than one step",
    ):
        plan(cells(config, VOCAB), PLENTY)


def test_too_few_tokens_are_refused_naming_the_run_the_need_and_what_there_is(compose):
    config = compose(*ISOFLOP)
    planned = [cell(config, 1e6), cell(config, 3e6)]
    longest = plan(planned, PLENTY)[1].spec.tokens
    assert plan(planned, Corpus("f00d", VOCAB, longest))  # exactly one epoch
    with pytest.raises(ConfigError) as caught:
        plan(planned, Corpus("f00d", VOCAB, longest // 2))
    for said in (
        "run 2 of 2 (grid isoflop, here,",
        "needs 3e+06",
        "2.00 epochs; data.max_epochs=1",
        "Nothing was launched",
    ):
        assert said in str(caught.value)
    repeated = compose(*ISOFLOP, "data.max_epochs=2.1")
    assert plan([cell(repeated, 3e6)], Corpus("f00d", VOCAB, longest // 2))


def test_micro_batches_are_equal_parts_of_the_batch_within_the_limit(compose):
    config = compose(*ISOFLOP, "optim.micro_batch_tokens=1280")
    most = 1280 // config.model.seq_len
    assert most == 10
    for batch in range(1, 64):
        part = micro_batch_sequences(config, batch)
        parts = math.ceil(batch / part)
        assert 1 <= part <= most
        assert parts == math.ceil(batch / most)  # no more parts than it takes
        assert part - batch // parts <= 1
    assert micro_batch_sequences(compose(*ISOFLOP, "optim.micro_batch_tokens=1"), 5) == 1


def test_on_several_gpus_a_run_is_the_same_and_its_micro_batches_are_parts_of_each_one_s_share(compose):
    constant = (*ISOFLOP, "optim.rule=constant", "optim.batch_tokens=1024")
    config = compose(*constant, "executor.gpus_per_run=4", "optim.micro_batch_tokens=1280")
    assert plan([cell(config, 2e6)], PLENTY) == plan([cell(compose(*constant), 2e6)], PLENTY)
    assert [micro_batch_sequences(config, batch) for batch in (4, 40, 41, 64)] == [1, 10, 6, 8]


def test_a_batch_that_does_not_go_round_the_gpus_is_refused(compose):
    small = (*ISOFLOP, "optim.rule=constant", "optim.batch_tokens=384")
    with pytest.raises(ConfigError, match="a batch of 3 x 128 tokens does not go round 4 GPUs"):
        plan([cell(compose(*small, "executor.gpus_per_run=4"), 2e6)], PLENTY)
    assert plan([cell(compose(*small, "executor.gpus_per_run=3"), 2e6)], PLENTY)
