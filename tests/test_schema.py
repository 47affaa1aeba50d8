from __future__ import annotations

import dataclasses

import pytest

from sweep.plan.schema import ConfigError, IsoflopGrid, LadderGrid, ProductGrid, SyntheticData, with_values

CPU = ("scale=cpu", "+grid=isoflop")


@pytest.mark.parametrize("scale, name", [("cpu", "cpu"), ("gpu", "gpu")])
@pytest.mark.parametrize(
    "grid, kind", [("isoflop", IsoflopGrid), ("ladder", LadderGrid), ("product", ProductGrid)]
)
def test_every_preset_composes_to_frozen_dataclasses(compose, scale, name, grid, kind):
    config = compose(f"scale={scale}", f"+grid={grid}")
    assert config.scale.name == name and type(config.grid) is kind
    for part in (config, config.model, config.optim, config.grid, config.grid.target):
        name = dataclasses.fields(part)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, getattr(part, name))


def test_groups_follow_the_scale_and_each_key_can_be_set(compose):
    assert compose(*CPU).optim.lr == compose(*CPU).scale.trunk_lr
    assert compose(*CPU, "schedule=independent").optim.lr == compose(*CPU).scale.lr
    config = compose(*CPU, "optim.lr=3e-3", "model.n_layer=4", "data=synthetic", "schedule=cosine")
    assert (config.optim.lr, config.model.n_layer) == (3e-3, 4)
    assert type(config.data) is SyntheticData
    assert (config.schedule.kind, config.schedule.decay_fraction) == ("cosine", None)
    assert compose(*CPU, "grid.budgets=[1e11,3e11]").grid.target.flops == pytest.approx(
        3e12
    )  # 10 x the largest


@pytest.mark.parametrize(
    "overrides, path",
    [
        # unknown keys
        (["+model.depth=3"], "model.depth"),
        (["+grid.optimum=3"], "grid.optimum"),
        (["+data.path=x"], "data.path"),  # a key of another variant
        (["+colour=red"], "colour"),
        # wrong types
        (["optim.lr=fast"], "optim.lr"),
        (["model.n_layer=2.5"], "model.n_layer"),
        (["grid.budgets=1e11", "grid.target.flops=null"], "grid.budgets"),
        (["grid.budgets=[1e11,many]", "grid.target.flops=null"], "grid.budgets"),
        (["model.qk_norm=perhaps"], "model.qk_norm"),
        (["seed=null"], "seed"),
        # none of the choices
        (["model.activation=relu"], "model.activation"),
        (["param=ntk"], "param"),
        (["optim.precision=fp8"], "optim.precision"),
        (["schedule.kind=linear"], "schedule.kind"),
        (["grid.kind=cube"], "grid.kind"),
        (["data.kind=csv"], "data.kind"),
        (["executor.kind=pigeon"], "executor.kind"),
        (["logger.kind=paper"], "logger.kind"),
        (["tokenizer.kind=words"], "tokenizer.kind"),
        # out of range
        (["optim.lr=-1"], "optim.lr"),
        (["optim.clip=0"], "optim.clip"),
        (["model.seq_len=0"], "model.seq_len"),
        (["max_hours=0"], "max_hours"),
        (["grid.budgets=[1e11,-1e11]"], "grid.budgets"),
        (["optim.lr=.inf"], "optim.lr"),
        (["optim.lr=.nan"], "optim.lr"),
        (["seed=-1"], "seed"),
        (["executor.retries=-1"], "executor.retries"),
        (["schedule.final=1.0"], "schedule.final"),
        (["data.heldout_fraction=1.5"], "data.heldout_fraction"),
        (["grid.size_ratio=1.0"], "grid.size_ratio"),
        (["grid.sizes=[]"], "grid.sizes"),
        # inconsistent
        (["model.seq_len=100"], "data.eval_tokens"),  # no whole number of sequences
        (["data.eval_tokens=128", "model.seq_len=128"], "data.eval_tokens"),  # one has no standard error
        (["schedule.warmup_fraction=0.9", "schedule.warmup_tokens=null"], "schedule: warmup_fraction and decay_fraction exceed"),
        (["schedule.warmup_fraction=0.1"], "schedule: warmup_fraction=0.1 and"),
        (["schedule.warmup_tokens=null"], "schedule: warmup_fraction=None and"),
        (["schedule.decay=null"], "schedule"),
        (["schedule=cosine", "+schedule.decay=sqrt"], "schedule"),
        (["+tokenizer.vocab_size=512"], "tokenizer.vocab_size"),
        (["data=synthetic", "tokenizer=bpe"], "tokenizer"),
        (["data=text"], "data.path"),  # a value that must be given
    ],
)
def test_a_bad_value_is_named_by_its_path(compose, overrides, path):
    with pytest.raises(ConfigError, match=rf"(^|\n){path}\b"):
        compose(*CPU, *overrides)


def test_all_that_is_wrong_is_said_at_once(compose):
    with pytest.raises(ConfigError) as caught:
        compose(*CPU, "optim.lr=-1", "param=ntk", "seed=-1")
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["param", "optim.lr", "seed"]


def test_without_a_grid_the_grids_are_listed(compose):
    with pytest.raises(ConfigError, match=r"grid: nothing chosen; say \+grid=isoflop\|ladder\|product"):
        compose("scale=cpu")


def test_a_ladder_wants_its_target_s_size(compose):
    with pytest.raises(ConfigError, match="grid.target.params: a ladder has one token count"):
        compose("scale=cpu", "+grid=ladder", "grid.target.params=null")
    assert compose("scale=cpu", "+grid=ladder", "grid.target.params=null", "grid.target.flops=null")


def test_values_are_replaced_with_the_field_s_type(compose):
    config = compose(*CPU)
    varied = with_values(config, {"optim.lr": 1, "model.n_layer": "3", "seed": 7, "param": "sp"})
    assert (varied.optim.lr, varied.model.n_layer, varied.seed, varied.param) == (1.0, 3, 7, "sp")
    assert type(varied.optim.lr) is float and type(varied.model.n_layer) is int
    assert config.seed == 0 != varied.seed
    assert with_values(config, {"model.head_size": 8, "model.n_head": None}).model.head_size == 8  # was null


@pytest.mark.parametrize(
    "values, message",
    [
        ({"data.eval_tokens": 1024}, r"'data.eval_tokens' is no key that runs can differ in"),
        ({"executor.slots": 1}, "is no key that runs can differ in"),
        ({"grid.seeds": 2}, "is no key that runs can differ in"),
        ({"max_hours": 2}, "is no key that runs can differ in"),
        ({"optim.speed": 2}, "'optim.speed' is no key"),
        ({"optim.lr": "fast"}, "lr: .*fast"),
        ({"optim.lr": -1.0}, "optim.lr: -1.0 is not a positive number"),
        ({"param": "ntk"}, "param: 'ntk' is none of mup, completep, sp"),
    ],
)
def test_values_that_runs_of_one_sweep_cannot_take_are_refused(compose, values, message):
    with pytest.raises(ConfigError, match=message):
        with_values(compose(*CPU), values)


@pytest.mark.parametrize(
    "override",
    [
        "optim.lr=0.02",
        "model.n_layer=3",
        "seed=1",
        "param=sp",
        "data.eval_tokens=131072",
        "schedule=cosine",
        "schedule.decay_fraction=0.3",
        "tokenizer=bpe",
        "optim.precision=bf16",
        "data=synthetic",
    ],
)
def test_the_default_name_changes_with_the_recipe(compose, override):
    assert compose(*CPU).sweep_name != compose(*CPU, override).sweep_name


@pytest.mark.parametrize(
    "override",
    [
        "grid.budgets=[1e11,2e11]",
        "grid.sizes=[1e4,2e4]",
        "grid.seeds=2",
        "max_hours=1",
        "executor.slots=1",
        "data.max_epochs=4",
        "data.cache=/tmp/elsewhere",
        "optim.micro_batch_tokens=1024",
        "device=cpu",
        "logger=none",
    ],
)
def test_the_default_name_does_not_change_with_the_grid_s_reach_or_how_it_is_run(compose, override):
    assert compose(*CPU).sweep_name == compose(*CPU, override).sweep_name


def test_a_name_or_a_folder_that_is_given_is_taken(compose):
    assert compose(*CPU).folder == f"outputs/{compose(*CPU).sweep_name}"
    assert compose(*CPU, "name=mine").folder == "outputs/mine"
    assert compose(*CPU, "name=mine", "out=/elsewhere").folder == "/elsewhere"
