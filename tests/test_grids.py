from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest

from models.count import training_flops_per_token
from sweep.plan.grids import (
    budget_group,
    cells,
    expected_optimum,
    extensions,
    family,
    provisional_target_params,
    target_cell,
    tokens_needed,
)
from sweep.plan.schema import ConfigError

VOCAB = 257
ISOFLOP = ("scale=cpu", "+grid=isoflop", "grid.budgets=[1e11,1e12]")


def by_group(planned):
    return {
        group: [cell for cell in planned if cell.group == group]
        for group in dict.fromkeys(c.group for c in planned)
    }


def test_a_cell_spends_exactly_its_budget(compose):
    planned = cells(compose(*ISOFLOP), VOCAB)
    for budget in (1e11, 1e12):
        group = [cell for cell in planned if cell.group == budget_group(budget)]
        assert len(group) >= 4
        for cell in group:
            assert cell.tokens * training_flops_per_token(cell.shape) == pytest.approx(budget, rel=1e-12)


def test_sizes_are_evenly_spaced_in_log_n_around_the_expected_optimum(compose):
    config = compose(
        *ISOFLOP, "grid.optimum_params=1e6", "grid.optimum_exponent=0.4", "grid.sizes_per_budget=6"
    )
    for budget in (1e11, 1e12):
        optimum = 1e6 * (budget / config.grid.optimum_at_flops) ** 0.4
        assert expected_optimum(config.grid, budget) == pytest.approx(optimum)
        sizes = np.log([cell.params for cell in cells(config, VOCAB) if cell.group == budget_group(budget)])
        assert len(sizes) == 6
        # widths come in steps, so sizes are as asked but for the rounding to the nearest member
        rounding = 2 * config.model.width_step / 100
        ratio = math.log(config.grid.size_ratio)
        assert np.diff(sizes) == pytest.approx(ratio, abs=rounding)
        assert abs(sizes.mean() - math.log(optimum)) <= ratio / 2 + rounding
        assert (sizes - math.log(1e6)) / ratio == pytest.approx(np.round((sizes - math.log(1e6)) / ratio), abs=0.15)


def test_sizes_that_are_given_are_taken_for_every_budget(compose):
    config = compose(*ISOFLOP, "grid.sizes=[2e4,1e5]")
    groups = by_group(cells(config, VOCAB))
    shapes = [[cell.shape for cell in group] for group in groups.values()]
    assert len(shapes) == 2 and shapes[0] == shapes[1]
    assert [cell.params for cell in cells(config, VOCAB)][:2] == pytest.approx([2e4, 1e5], rel=0.15)


def test_sizes_that_round_to_one_shape_are_trained_once(compose):
    config = compose(*ISOFLOP, "grid.sizes=[100000,100001]")
    assert len(cells(config, VOCAB)) == 2  # one for each budget


@pytest.mark.parametrize("grid", [ISOFLOP, ("scale=cpu", "+grid=ladder")])
def test_replicates_differ_in_their_seed_only(compose, grid):
    once, thrice = (
        cells(compose(*grid, "seed=5"), VOCAB),
        cells(compose(*grid, "seed=5", "grid.seeds=3"), VOCAB),
    )
    assert {cell.seed for cell in once} == {5}
    assert Counter((cell.group, cell.shape) for cell in thrice) == {
        (cell.group, cell.shape): 3 for cell in once
    }
    seeds = {cell.seed for cell in thrice}
    assert len(seeds) == 3 and 5 in seeds
    assert not seeds & {cell.seed for cell in cells(compose(*grid, "seed=6", "grid.seeds=3"), VOCAB)}


def test_a_ladder_has_one_token_count_and_a_dearer_target(compose):
    config = compose("scale=cpu", "+grid=ladder", "grid.sizes=[2e4,4e4,8e4]", "grid.tokens=3e6")
    planned = cells(config, VOCAB)
    assert [cell.params for cell in planned] == pytest.approx([2e4, 4e4, 8e4], rel=0.15)
    assert {(cell.tokens, cell.group, cell.role) for cell in planned} == {(3e6, "ladder", "fit")}
    target = target_cell(config, VOCAB)
    assert target.role == "holdout" and target.group == "target"
    assert target.params == pytest.approx(config.grid.target.params, rel=0.1)
    assert target.tokens * training_flops_per_token(target.shape) == pytest.approx(config.grid.target.flops)


def test_a_product_is_every_combination_with_the_type_of_its_key(compose):
    config = compose(
        "scale=cpu", "+grid=product", "grid.tokens=1e6",
        "+grid.over.optim.lr=[1,2e-2]", "+grid.over.params=[2e4,8e4]", "+grid.over.seed=[0,1,2]",
        "+grid.over.model.n_layer=[2,3]",
    )  # fmt: skip
    planned = cells(config, VOCAB)
    points = [
        (c.config.optim.lr, c.shape.n_layer, c.seed, round(math.log2(c.params / 2e4) / 2)) for c in planned
    ]
    assert len(points) == 2 * 2 * 3 * 2
    assert set(points) == {
        (lr, n, s, p) for lr in (1.0, 0.02) for n in (2, 3) for s in (0, 1, 2) for p in (0, 1)
    }
    assert {type(cell.config.optim.lr) for cell in planned} == {float}
    assert all(cell.config.model.n_layer == cell.shape.n_layer for cell in planned)
    assert len({cell.group for cell in planned}) == 2 * 3 * 2  # a group compares sizes within one setting


def test_a_product_may_vary_the_budget_and_its_shape_is_that_of_its_own_values(compose):
    config = compose(
        "scale=cpu", "+grid=product", "grid.params=5e4", "+grid.over.flops=[1e11,1e12]",
        "+grid.over.model.activation=[swiglu,relu2]",
    )  # fmt: skip
    planned = cells(config, VOCAB)
    assert [cell.shape.activation for cell in planned] == ["swiglu", "relu2"] * 2
    flops = [cell.tokens * training_flops_per_token(cell.shape) for cell in planned]
    assert flops == pytest.approx([1e11, 1e11, 1e12, 1e12])


def test_each_varies_one_key_at_a_time_beside_every_combination(compose):
    planned = cells(
        compose("scale=cpu", "+grid=product", "grid.params=5e4", "+grid.over.tokens=[2e5,4e5]",
                "+grid.each.model.n_layer=[1,2,4]", "+grid.each.params=[1e5]", "+grid.each.order_seed=[1,2]"),
        VOCAB,
    )  # fmt: skip
    seen = [(cell.tokens, cell.config.model.n_layer, round(cell.params / 5e4), cell.config.order_seed) for cell in planned]
    for tokens in (2e5, 4e5):  # two layers are the base's own, and are not run twice
        own = [point[1:] for point in seen if point[0] == tokens]
        assert own == [(2, 1, None), (1, 1, None), (4, 1, None), (2, 2, None), (2, 1, 1), (2, 1, 2)]
    assert {cell.group for cell in planned} == {
        "product", "model.n_layer=1", "model.n_layer=4", "order_seed=1", "order_seed=2"
    }  # fmt: skip


def test_a_file_may_write_the_keys_of_a_product_with_dots(compose):
    product = ("scale=cpu", "+grid=product", "grid.params=5e4", "grid.tokens=1e6")
    dotted = cells(compose(*product, "+grid.over={optim.lr:[1e-3,1e-2],seed:[1,2]}"), VOCAB)
    nested = cells(compose(*product, "+grid.over.optim.lr=[1e-3,1e-2]", "+grid.over.seed=[1,2]"), VOCAB)
    key = [(cell.config.optim.lr, cell.seed, cell.group) for cell in dotted]
    assert key == [(cell.config.optim.lr, cell.seed, cell.group) for cell in nested] and len(set(key)) == 4


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["grid.params=1e4"], "grid: give tokens or flops"),
        (["grid.params=1e4", "grid.tokens=1e6", "grid.flops=1e11"], "grid: give tokens or flops .* not both"),
        (["grid.tokens=1e6"], "grid.params: give a size"),
        (
            ["grid.params=1e4", "grid.tokens=1e6", "+grid.over.seed=3"],
            "grid.over: seed: a list with a value or more",
        ),
        (
            ["grid.params=1e4", "grid.tokens=1e6", "+grid.over.seed=[]"],
            "grid.over: seed: a list with a value or more",
        ),
        (["grid.params=1e4", "grid.tokens=1e6", "+grid.each.seed=3"], "grid.each: seed: a list with a value or more"),
        (["grid.params=1e4", "grid.tokens=1e6", "+grid.over.data.kind=[text]"], "'data.kind' is no key"),
        (["+grid.over.params=[-5]", "grid.tokens=1e6"], "grid.over: params: -5 is not a positive number"),
        (
            ["grid.params=1e4", "+grid.over.tokens=[many]"],
            "grid.over: tokens: 'many' is not a positive number",
        ),
        (["grid.params=1", "grid.tokens=1e6"], "grid.params: no shape near 1 "),
        (["grid.params=1e4", "grid.tokens=1e6", "model.n_layer=null"], "model: give n_layer or aspect_ratio"),
    ],
)
def test_a_product_that_is_none_is_refused(compose, overrides, message):
    with pytest.raises(ConfigError, match=message):
        cells(compose("scale=cpu", "+grid=product", *overrides), VOCAB)


def test_a_size_beyond_the_family_names_the_key_it_came_from(compose):
    with pytest.raises(ConfigError, match="grid.sizes: no shape near 3 parameters"):
        cells(compose(*ISOFLOP, "grid.sizes=[3]"), VOCAB)
    with pytest.raises(ConfigError, match="grid.target.params: no shape near 3 parameters"):
        target_cell(compose(*ISOFLOP, "grid.target.params=3"), VOCAB)


def test_the_target_is_ten_times_dearer_and_of_the_size_that_is_chosen(compose):
    config = compose(*ISOFLOP)
    chosen = target_cell(config, VOCAB, 2e5)
    assert chosen.params == pytest.approx(2e5, rel=0.1)
    assert chosen.tokens * training_flops_per_token(chosen.shape) == pytest.approx(1e13)
    assert provisional_target_params(config) == pytest.approx(expected_optimum(config.grid, 1e13))
    given = compose(*ISOFLOP, "grid.target.params=9e4")
    assert provisional_target_params(given) == 9e4
    assert target_cell(given, VOCAB, 2e5).params == pytest.approx(9e4, rel=0.1)
    assert target_cell(compose(*ISOFLOP, "grid.target.flops=null"), VOCAB, 2e5) is None
    with pytest.raises(ConfigError, match="grid.target.params: this grid cannot choose"):
        target_cell(config, VOCAB)


def test_the_corpus_must_hold_the_longest_run(compose):
    planned = cells(compose(*ISOFLOP), VOCAB)
    assert tokens_needed(planned) == max(cell.tokens for cell in planned)
    assert tokens_needed([]) == 0.0


def with_losses(planned, best_log_params: float):
    """Each cell with a loss that is lowest at exp(best_log_params)."""
    return [(cell, (math.log(cell.params) - best_log_params) ** 2 + 2.0) for cell in planned]


def test_a_budget_is_extended_on_the_side_of_its_edge(compose):
    config = compose(*ISOFLOP)
    small, large = by_group(cells(config, VOCAB)).values()
    settled = with_losses(small, -math.inf) + with_losses(large, math.log(large[2].params))
    settled = [(cell, cell.params if cell in small else loss) for cell, loss in settled]
    (downwards,) = extensions(config, VOCAB, settled)  # the other budget is bracketed
    assert downwards.message.startswith("budget 1e+11") and "smallest tried; adding" in downwards.message
    edge = min(cell.params for cell in small)
    (added,) = downwards.cells
    assert edge / config.grid.size_ratio**2 < added.params < edge
    assert added.group == small[0].group and added.role == "fit"
    assert added.tokens * training_flops_per_token(added.shape) == pytest.approx(1e11)

    (upwards,) = extensions(config, VOCAB, [(cell, -cell.params) for cell in large])
    edge = max(cell.params for cell in large)
    assert upwards.message.startswith("budget 1e+12") and "largest tried; adding" in upwards.message
    assert edge < upwards.cells[0].params < edge * config.grid.size_ratio**2


def test_a_bracketed_budget_is_left_alone(compose):
    config = compose(*ISOFLOP)
    planned = cells(config, VOCAB)
    settled = [
        pair for group in by_group(planned).values() for pair in with_losses(group, math.log(group[1].params))
    ]
    assert extensions(config, VOCAB, settled) == []
    assert extensions(config, VOCAB, [(cell, None) for cell in planned]) == []  # no losses, no edge
    assert extensions(compose("scale=cpu", "+grid=ladder"), VOCAB, []) == []


def test_extension_goes_on_until_bracketed_or_exhausted(compose):
    config = compose(*ISOFLOP, "grid.extensions=2", "grid.budgets=[1e12]")
    settled = [(cell, -cell.params) for cell in cells(config, VOCAB)]
    for _ in range(2):
        (further,) = extensions(config, VOCAB, settled)
        assert len(further.cells) == 1
        settled += [(cell, -cell.params) for cell in further.cells]
    (exhausted,) = extensions(config, VOCAB, settled)
    assert exhausted.cells == () and "2 sizes were added already, so it stays" in exhausted.message

    best_inside = [
        (cell, -cell.params if i < len(settled) - 1 else 0.0) for i, (cell, _) in enumerate(settled)
    ]
    assert extensions(config, VOCAB, best_inside) == []


def test_extension_stops_where_the_family_ends(compose):
    config = compose(*ISOFLOP, "grid.budgets=[1e10]", "grid.sizes=[8000]")
    cell = cells(config, VOCAB)[0]
    rule = family(config, VOCAB)
    widths = range(config.model.width_step, cell.shape.d_model, config.model.width_step)
    narrowest = next(shape for width in widths if (shape := rule.shape(width)))
    (end,) = extensions(config, VOCAB, [(dataclasses.replace(cell, shape=narrowest), 1.0), (cell, 2.0)])
    assert end.cells == () and "the family has none beyond it" in end.message


def test_extension_goes_by_the_mean_over_seeds_and_adds_every_seed(compose):
    config = compose(*ISOFLOP, "grid.budgets=[1e12]", "grid.seeds=2")
    planned = cells(config, VOCAB)
    middle = sorted({cell.params for cell in planned})[2]
    largest = max(cell.params for cell in planned)
    losses = []
    for cell in planned:
        first = cell.seed == config.seed
        if cell.params == largest:
            losses.append(1.0 if first else 3.0)  # the best single run, but not the best mean
        else:
            losses.append(1.5 if cell.params == middle else 2.5)
    assert extensions(config, VOCAB, list(zip(planned, losses))) == []
    (further,) = extensions(config, VOCAB, [(cell, -cell.params) for cell in planned])
    assert len(further.cells) == 2 and len({cell.seed for cell in further.cells}) == 2
