from __future__ import annotations

import math

import pytest

from sweep.plan.grids import Cell, cells, family
from sweep.plan.plan import Corpus, notes, plan
from sweep.plan.rules import RANGES, RULES, UNUSED, outside, recipe
from sweep.plan.checks import CHOICES, ConfigError

VOCAB = 257
PLENTY = Corpus("f00d", VOCAB, 10**15)
CPU = (
    "scale=cpu", "+grid=isoflop", "schedule=independent", "schedule.warmup_tokens=null", "schedule.warmup_fraction=0.05",
)  # fmt: skip


def cell(config, tokens: float, width: int = 48) -> Cell:
    return Cell(config, family(config, VOCAB).shape(width), tokens, 0, "here")


def spec(config, tokens: float, width: int = 48):
    return plan([cell(config, tokens, width)], PLENTY)[0].spec


def test_every_rule_can_be_chosen_and_says_what_it_does_not_use():
    assert set(RULES) == set(CHOICES["optim.rule"]) == set(UNUSED)


def test_power_with_follows_run_is_the_formula_of_before(compose):
    """Every number of a run as it was planned before there were rules."""
    config = compose(*CPU)
    optim = config.optim
    for asked, run in zip(cells(config, VOCAB), plan(cells(config, VOCAB), PLENTY), strict=True):
        wanted = optim.batch_tokens * (asked.tokens / optim.batch_at_tokens) ** optim.batch_exponent
        assert run.spec.batch_sequences == max(1, round(wanted / config.model.seq_len))
        peak = optim.lr * (asked.tokens / optim.lr_at_tokens) ** optim.lr_exponent
        found = run.spec.optim
        assert (found.lr, found.beta1, found.beta2) == (peak, optim.beta1, optim.beta2)
        assert found.weight_decay == 1.0 / (peak * run.spec.steps * optim.weight_decay_timescale)
        assert abs(run.spec.schedule.warmup_steps - config.schedule.warmup_fraction * run.spec.steps) <= 0.5
        assert (found.kind, found.base_depth, found.momentum) == ("adamw", None, None)


def test_constant_is_one_rate_and_one_batch(compose):
    config = compose(*CPU, "optim.rule=constant")
    found = {recipe(config.optim, params, tokens) for params in (1e4, 1e6) for tokens in (1e5, 1e8)}
    assert len(found) == 1
    (only,) = found
    assert (only.lr, only.batch_tokens) == (config.optim.lr, config.optim.batch_tokens)


def test_sqrt_doubles_the_batch_and_raises_the_rate_by_its_root_at_four_times_the_tokens(compose):
    optim = compose(*CPU, "optim.rule=sqrt").optim
    at = recipe(optim, 1e4, optim.batch_at_tokens)
    assert (at.lr, at.batch_tokens) == (optim.lr, optim.batch_tokens)
    fourfold = recipe(optim, 1e6, 4 * optim.batch_at_tokens)
    assert fourfold.batch_tokens == pytest.approx(2 * optim.batch_tokens)
    assert fourfold.lr == pytest.approx(math.sqrt(2) * optim.lr)


def test_olmo_s_at_the_size_they_start_from_and_eight_times_it(compose):
    # OLMo-core, model_ladder: round(2048 * 160 * (N / 108e6)**(2/3)); 0.0047 * (N / 108e6)**(-1/3), half of it
    optim = compose(*CPU, "optim.rule=olmo", "param=sp").optim
    at, larger = recipe(optim, 108e6, 1e9), recipe(optim, 8 * 108e6, 1e9)
    assert (at.batch_tokens, at.lr, at.beta2) == pytest.approx((327_680, 0.00235, 0.99))
    assert (larger.batch_tokens, larger.lr, larger.beta2) == pytest.approx((4 * 327_680, 0.00235 / 2, 0.95))
    assert (at.warmup_tokens, at.weight_decay) == (108e6, 0.1)


@pytest.mark.parametrize(
    "params, sequences, lr",  # params_bs_map and params_lr_map in make_paper.ipynb of Porian et al.'s repository
    [(5_173_248, 20, 1.3e-2), (28_672_000, 64, 7.4e-3), (108_462_080, 160, 4.7e-3), (901_726_208, 640, 2.4e-3)],
)
def test_porian_s_are_those_that_they_trained_with(compose, params, sequences, lr):
    found = recipe(compose(*CPU, "optim.rule=porian", "param=sp").optim, params, 1e9)
    assert found.batch_tokens / 2048 == pytest.approx(sequences, rel=0.06)  # theirs are multiples of 4 and more
    assert found.lr == pytest.approx(lr, rel=0.04)  # to two figures
    assert (found.warmup_tokens, found.weight_decay) == (params, None)


def test_the_step_law_s_at_a_billion_parameters_and_a_hundred_billion_tokens(compose):
    # 1.79 · N^-0.713 · D^0.307 and 0.58 · D^0.571 (arXiv 2503.04715), by logarithms
    found = recipe(compose(*CPU, "optim.rule=steplaw", "param=sp").optim, 1e9, 1e11)
    assert math.log10(found.lr) == pytest.approx(math.log10(1.79) - 9 * 0.713 + 11 * 0.307)
    assert math.log10(found.batch_tokens) == pytest.approx(math.log10(0.58) + 11 * 0.571)
    assert 1e-3 < found.lr < 2e-3 and 1e6 < found.batch_tokens < 1.2e6


@pytest.mark.parametrize("rule", ["olmo", "porian", "steplaw"])
def test_a_published_rate_is_not_scaled_with_the_width_once_more(compose, rule):
    for param in ("mup", "completep"):
        with pytest.raises(ConfigError, match=f"optim.rule: {rule} states the rate .* say param=sp"):
            compose(*CPU, f"optim.rule={rule}", f"param={param}")


def test_what_a_rule_says_reaches_the_run(compose):
    config = compose(*CPU, "optim.rule=olmo", "param=sp")
    run = spec(config, 4e6)
    params = cell(config, 4e6).params
    wanted = recipe(config.optim, params, 4e6)
    assert (run.optim.lr, run.optim.beta2, run.optim.weight_decay) == (wanted.lr, 0.99, 0.1)
    assert run.batch_sequences == round(wanted.batch_tokens / 128)
    assert run.schedule.warmup_steps == round(params / run.batch_tokens)


def test_a_warmup_that_a_run_has_no_room_for_is_refused(compose):
    config = compose(*CPU, "optim.rule=porian", "param=sp")
    params = cell(config, 1e6).params
    with pytest.raises(ConfigError, match="which follows optim.rule=porian, and .* Nothing was launched"):
        spec(config, 1.2 * params)
    assert spec(config, 2 * params)


def test_with_follows_size_every_budget_of_a_size_has_one_recipe(compose):
    config = compose(*CPU, "optim.follows=size", "optim.tokens_per_param=30")
    runs = [spec(config, tokens) for tokens in (3e5, 1e6, 2e7)]
    assert len({(run.optim, run.batch) for run in runs}) == 1
    assert len({run.steps for run in runs}) == 3
    other = spec(config, 1e6, width=96)
    assert other.optim.lr != runs[0].optim.lr and other.batch == runs[0].batch
    params = cell(config, 1e6).params
    own = spec(compose(*CPU), 30 * params)  # the run whose own tokens these are
    assert (own.optim.lr, own.optim.beta2) == (runs[0].optim.lr, runs[0].optim.beta2)


def test_a_decay_of_its_own_is_the_same_for_every_run(compose):
    config = compose(*CPU, "optim.weight_decay=0.05", "optim.weight_decay_timescale=null")
    assert {spec(config, tokens).optim.weight_decay for tokens in (1e6, 1e7)} == {0.05}


def test_the_baichuan_way_is_one_set_for_all_sizes(compose):
    config = compose("scale=cpu", "+grid=ladder", "recipe=constant")
    assert (config.param, config.optim.rule) == ("sp", "constant")
    runs = [run.spec for run in plan(cells(config, VOCAB), PLENTY)]
    assert len({run.shape for run in runs}) == 5
    assert len({(run.optim, run.batch_sequences) for run in runs}) == 1
    assert runs[0].optim.weight_decay == 0.1
    assert compose("scale=cpu", "+grid=ladder", "recipe=constant", "optim.lr=0.01").optim.lr == 0.01
    assert compose("scale=gpu", "+grid=ladder", "recipe=constant").optim.lr == 3e-4
    assert compose("scale=cpu", "+grid=ladder", "recipe=transfer") == compose("scale=cpu", "+grid=ladder")


@pytest.mark.parametrize("rule, params, tokens", [("olmo", 1e9, 1e3), ("porian", 2e7, 1e3), ("steplaw", 4e8, 1e10)])
def test_inside_of_its_range_nothing_is_said_and_outside_how_far(rule, params, tokens):
    assert outside(rule, params, tokens) is None
    low, high = RANGES[rule].params
    assert f"N={low / 100:.3g} is 100 times below its range" in outside(rule, low / 100, tokens)
    assert "10 times above its range" in outside(rule, 10 * high, tokens)


def test_rules_that_start_from_the_configuration_have_no_range():
    assert [outside(rule, 1.0, 1e30) for rule in ("power", "constant", "sqrt")] == [None] * 3
    assert "D=1e+06 is 2e+03 times below" in outside("steplaw", 4e8, 1e6)


def test_the_plan_says_what_is_extrapolated_and_what_is_not_used(compose):
    assert notes(cells(compose(*CPU), VOCAB)) == []
    config = compose(*CPU, "optim.rule=steplaw", "param=sp")
    planned = cells(config, VOCAB)
    unused, beyond = notes(planned)
    assert "optim.rule=steplaw does not use " in unused and "optim.lr," in unused
    assert "times below its range" in beyond and f"so for {len(planned)} of {len(planned)} runs" in beyond
    (only,) = notes(cells(compose(*CPU, "optim.rule=constant"), VOCAB))
    assert "optim.lr_exponent" in only and "optim.lr," not in only


def test_a_product_over_a_key_that_the_rule_does_not_use_is_refused(compose):
    product = ("scale=cpu", "+grid=product", "grid.params=2e4", "grid.tokens=1e6", "+grid.over.optim.lr=[1e-3,1e-2]")
    assert len(cells(compose(*product), VOCAB)) == 2
    with pytest.raises(ConfigError, match="optim.lr means nothing to optim.rule=steplaw"):
        cells(compose(*product, "optim.rule=steplaw", "param=sp"), VOCAB)


def test_the_optimizer_s_kind_and_bases_are_in_the_run(compose):
    muon, completep = compose(*CPU, "optim=muon"), compose(*CPU, "param=completep", "optim.base_depth=3")
    assert (spec(muon, 1e6).optim.kind, spec(muon, 1e6).optim.momentum) == ("muon", 0.95)
    assert (spec(completep, 1e6).optim.param, spec(completep, 1e6).optim.base_depth) == ("completep", 3)
    plain = compose(*CPU)
    assert len({spec(config, 1e6).run_id for config in (muon, completep, plain)}) == 3
    assert spec(compose(*CPU, "optim.base_depth=3"), 1e6) == spec(plain, 1e6)  # means nothing to mup


def test_the_batch_can_follow_the_tokens_seen_whatever_the_rate_follows(compose):
    grown, own = compose(*CPU, "optim.batch_follows=seen"), compose(*CPU)
    short, long = spec(grown, 3e5), spec(grown, 2e7)
    assert short.batch == long.batch and short.batch.doubles_at is not None  # one batch for runs of any length
    assert short.optim.lr != long.optim.lr  # and the rate of each run's own D
    assert {spec(config, 2e7).optim.lr for config in (grown, own)} == {long.optim.lr}
    last, wanted = long.batch.at(long.steps - 1), spec(own, 2e7).batch_sequences
    assert wanted / 1.5 <= last <= 1.5 * wanted
    trunk = ["+grid=isoflop", "scale=cpu"]
    assert spec(compose(*trunk), 1e6).batch == spec(compose(*trunk, "optim.batch_follows=seen"), 1e6).batch
    assert spec(compose(*trunk, "optim.batch_follows=run"), 1e6).batch.doubles_at is None


@pytest.mark.parametrize("overrides", [["optim.rule=constant"], ["optim.batch_exponent=0.4"]])
def test_a_batch_of_the_tokens_seen_wants_a_rule_that_goes_with_their_root(compose, overrides):
    with pytest.raises(ConfigError, match="optim.batch_follows: seen wants .* Nothing was launched"):
        spec(compose(*CPU, "optim.batch_follows=seen", *overrides), 1e6)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["optim.rule=linear"], "optim.rule: 'linear' is none of power"),
        (["optim.kind=lion"], "optim.kind: 'lion' is none of adamw, muon"),
        (["optim.follows=budget"], "optim.follows: 'budget' is none of run, size"),
        (["optim.batch_follows=size"], "optim.batch_follows: 'size' is none of run, seen and null"),
        (["optim.tokens_per_param=0"], "optim.tokens_per_param: 0.* is not a positive number"),
        (["optim.base_depth=0"], "optim.base_depth: 0 is not a positive number"),
        (["+optim.momentum=0.9"], "optim.momentum: wanted by optim=muon, and by it alone"),
        (["optim=muon", "optim.momentum=null"], "optim.momentum: wanted by optim=muon"),
        (["optim=muon", "optim.momentum=1.0"], "optim.momentum: 1.0 is not at least 0 and below 1"),
        (["optim.weight_decay=0.1"], "optim.weight_decay: give this or optim.weight_decay_timescale"),
        (["optim.weight_decay=-1", "optim.weight_decay_timescale=null"], "optim.weight_decay: -1.0 is not 0 or more"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(compose, overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose(*CPU, *overrides)
