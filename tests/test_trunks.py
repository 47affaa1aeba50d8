from __future__ import annotations

from dataclasses import replace

import pytest

from models.count import training_flops_per_token
from sweep.plan.grids import cells, target_cell
from sweep.plan.plan import Corpus, plan
from sweep.plan.schema import ConfigError
from sweep.plan.trunks import TRUNK, own_flops, share, trunk_of, whole_flops
from sweep.train.schedule import rate_factor
from tests.execution_helpers import planned_run

VOCAB = 257
PLENTY = Corpus("f00d", VOCAB, 10**12)


def test_a_trunk_is_what_its_run_does_until_the_rate_comes_down(tiny_spec):
    spec = tiny_spec(steps=40, schedule={"warmup_steps": 5, "decay_steps": 12})
    trunk = trunk_of(spec)
    assert trunk.steps == 28 and trunk.is_trunk and not spec.is_trunk
    for step in range(trunk.steps):
        assert rate_factor(trunk.schedule, step, trunk.steps) == rate_factor(spec.schedule, step, spec.steps)
    assert rate_factor(spec.schedule, trunk.steps + 1, spec.steps) < 1
    same = ("shape", "data", "optim", "batch_sequences", "seed", "precision", "recipe_version")
    assert all(getattr(trunk, name) == getattr(spec, name) for name in same)


@pytest.mark.parametrize(
    "schedule", [{"kind": "cosine", "decay_steps": 0}, {"warmup_steps": 30, "decay_steps": 12}, {"decay_steps": 40, "warmup_steps": 0}]
)  # fmt: skip
def test_what_decays_from_the_start_or_within_its_warmup_has_no_trunk(tiny_spec, schedule):
    assert trunk_of(tiny_spec(steps=40, schedule=schedule)) is None


def test_runs_of_one_size_go_on_from_segments_of_one_trunk():
    runs = [planned_run(seed, steps=steps) for steps in (100, 20, 50) for seed in (0, 1)]
    shared = share(runs)
    assert [run.spec for run in shared.runs] == [run.spec for run in runs]  # no run is changed by it
    for seed in (0, 1):
        chain = [segment for segment in shared.trunks if segment.spec.seed == seed]
        assert [segment.spec.steps for segment in chain] == [16, 46, 96]  # 4 updates of each run are its decay
        assert [segment.parent for segment in chain] == [None, *(segment.spec for segment in chain[:-1])]
        assert {(segment.role, segment.group) for segment in chain} == {(TRUNK, TRUNK)}
    for run in shared.runs:
        assert run.parent == trunk_of(run.spec)
    assert own_flops([*shared.trunks, *shared.runs]) == pytest.approx(
        sum(2 * (96 + 3 * 4) * run.spec.flops / run.spec.steps for run in runs[:1])
    )
    assert whole_flops([*shared.trunks, *shared.runs]) == pytest.approx(sum(run.spec.flops for run in runs))


def test_a_longer_run_that_comes_later_adds_one_segment_and_changes_no_other():
    runs = [planned_run(steps=steps) for steps in (20, 50)]
    before = share(runs)
    after = share([*runs, planned_run(steps=100)])
    assert after.trunks[:2] == before.trunks and after.runs[:2] == before.runs
    assert after.trunks[2].parent == before.trunks[-1].spec and after.trunks[2].from_step == 46


def test_a_holdout_makes_no_trunk_but_goes_on_from_the_longest_there_is():
    runs = [planned_run(steps=steps) for steps in (20, 50)]
    target, other = planned_run(steps=300, role="holdout"), planned_run(7, steps=300, role="holdout")
    shared = share([*runs, target, other])
    assert len(shared.trunks) == 2
    assert shared.runs[2].parent.steps == 46 and shared.runs[3].parent is None


def test_a_budget_that_is_added_does_not_change_the_runs_that_are_there(compose):
    few = compose("scale=cpu", "+grid=isoflop", "grid.budgets=[1e11,2e11]")
    more = compose("scale=cpu", "+grid=isoflop", "grid.budgets=[1e11,2e11,8e11]")
    before = {run.run_id for run in share(plan(cells(few, VOCAB), PLENTY)).runs}
    after = share(plan(cells(more, VOCAB), PLENTY))
    assert before < {run.run_id for run in after.runs}
    assert few.recipe == more.recipe
    target = plan([target_cell(more, VOCAB, 2e5)], PLENTY)[0].spec
    assert target.optim.lr < after.runs[0].spec.optim.lr  # rate and batch follow the size


@pytest.mark.parametrize(("ratio", "most"), [(2**0.5, 0.5), (2.0, 0.65), (10**0.5, 0.78)])
def test_what_trunks_save_follows_from_the_ratio_of_the_budgets(compose, ratio, most):
    """The shares that cooldowns of a fifth leave in the limit of many budgets: 0.8·(1 - 1/r) + 0.2."""
    budgets = [1e12 * ratio**-i for i in range(12)]
    config = compose("scale=cpu", "+grid=isoflop", f"grid.budgets={budgets}", "grid.sizes=[3e4]", "schedule.warmup_tokens=1")
    shared = share([replace(run, role="fit") for run in plan(cells(config, VOCAB)[:8], PLENTY)])
    share_left = own_flops([*shared.trunks, *shared.runs]) / whole_flops(shared.runs)
    assert share_left <= most
    assert share_left == pytest.approx(0.8 * (1 - 1 / ratio) / (1 - ratio**-8) + 0.2, abs=0.02)


def test_budgets_share_their_sizes(compose):
    config = compose("scale=cpu", "+grid=isoflop")
    planned = cells(config, VOCAB)
    sizes = {cell.params for cell in planned}
    assert len(sizes) < len(planned) / 1.5
    for cell in planned:
        budget = cell.tokens * training_flops_per_token(cell.shape)
        assert min(abs(budget / b - 1) for b in config.grid.budgets) < 1e-9


def test_trunks_refuse_what_would_give_each_budget_its_own_rate(compose):
    with pytest.raises(ConfigError, match="optim.follows must be size"):
        compose("scale=cpu", "+grid=isoflop", "optim.follows=run")
    with pytest.raises(ConfigError, match="no trunk to share"):
        compose("scale=cpu", "+grid=isoflop", "schedule=cosine", "schedule.trunk=true")
