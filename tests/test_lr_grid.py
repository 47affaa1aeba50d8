"""The lr grid: rate x width and nothing else, and the rates that bracket a width's best."""

from __future__ import annotations

import math

import pytest

from sweep.plan.grids import cells, extensions, target_cell
from sweep.plan.plan import Corpus, plan
from sweep.plan.schema import ConfigError

VOCAB = 257
LR = ("scale=cpu", "+grid=lr", "grid.widths=[16,32,128]", "grid.rates=3", "grid.octaves=0.5")
CORPUS = Corpus("f00d", VOCAB, 30_000_000)


def with_losses(config, planned, best: float):
    """A parabola in log2 of the rate with its minimum `best` octaves above the recipe's rate."""
    return [(cell, 2.0 + (math.log2(cell.config.optim.lr / config.optim.lr) - best) ** 2) for cell in planned]


def test_runs_differ_in_width_rate_and_parametrisation_alone(compose):
    config = compose(*LR, "grid.param=[mup,sp]")
    runs = plan(cells(config, VOCAB), CORPUS)
    assert len({run.run_id for run in runs}) == len(runs) == 2 * 3 * 3
    specs = [run.spec for run in runs]
    assert {spec.shape.d_model for spec in specs} == {16, 32, 128}
    assert {spec.optim.param for spec in specs} == {"mup", "sp"}
    own = config.optim.lr * (config.grid.tokens / config.optim.lr_at_tokens) ** config.optim.lr_exponent
    octaves = sorted({round(math.log2(spec.optim.lr / own), 9) for spec in specs})
    assert octaves == [-0.5, 0.0, 0.5]
    for shared in ("steps", "batch_sequences", "seed", "schedule", "data", "precision"):
        assert len({getattr(spec, shared) for spec in specs}) == 1, shared
    assert len({spec.shape.n_layer for spec in specs}) == 1
    # the decay's timescale too: rate times decay is one number
    assert {round(spec.optim.lr * spec.optim.weight_decay, 12) for spec in specs} == {
        round(specs[0].optim.lr * specs[0].optim.weight_decay, 12)
    }


def test_the_sweeps_own_parametrisation_is_the_default_and_there_is_no_target(compose):
    assert compose(*LR).grid.param == ["mup"]
    assert compose(*LR, "param=sp").grid.param == ["sp"]
    assert target_cell(compose(*LR), VOCAB) is None


def test_the_default_grids_span_8x_of_width_at_either_scale(compose):
    for scale, vocab in (("cpu", VOCAB), ("gpu", 32768)):
        config = compose(f"scale={scale}", "+grid=lr")
        planned = cells(config, vocab)
        widths = {cell.shape.d_model for cell in planned}
        assert max(widths) >= 8 * min(widths)
        assert len(planned) == len(widths) * config.grid.rates


def test_an_even_number_of_rates_keeps_the_recipes_own(compose):
    config = compose(*LR, "grid.rates=4")
    rates = sorted({cell.config.optim.lr / config.optim.lr for cell in cells(config, VOCAB)})
    assert [math.log2(rate) for rate in rates] == pytest.approx([-0.5, 0.0, 0.5, 1.0])


def test_a_width_whose_best_rate_is_at_the_edge_gets_one_more(compose):
    config = compose(*LR, "grid.seeds=2", "grid.extensions=2")
    planned = cells(config, VOCAB)
    narrow = [cell for cell in planned if cell.shape.d_model == 16]
    wide = [cell for cell in planned if cell.shape.d_model == 128]
    settled = with_losses(config, narrow, 0.1) + with_losses(config, wide, 1.6)
    for octaves in (1.0, 1.5):
        (further,) = extensions(config, VOCAB, settled)
        assert (
            "width 128: its best rate" in further.message
            and "is the highest tried; adding" in further.message
        )
        assert [cell.seed for cell in further.cells] == [cell.seed for cell in wide[:2]]
        assert {cell.group for cell in further.cells} == {wide[0].group}
        assert math.log2(further.cells[0].config.optim.lr / config.optim.lr) == pytest.approx(octaves)
        settled += with_losses(config, further.cells, 1.6)
    (exhausted,) = extensions(config, VOCAB, settled)
    assert exhausted.cells == () and "2 rates were added already" in exhausted.message
    (downwards,) = extensions(config, VOCAB, with_losses(config, narrow, -3.0))
    assert downwards.cells[0].config.optim.lr == pytest.approx(config.optim.lr / 2)


def test_a_rate_that_diverged_brackets_and_all_diverged_extend_nothing(compose):
    config = compose(*LR)
    wide = [cell for cell in cells(config, VOCAB) if cell.shape.d_model == 128]
    settled = with_losses(config, wide, 0.5)
    (further,) = extensions(config, VOCAB, settled)
    assert extensions(config, VOCAB, [*settled, *((cell, None) for cell in further.cells)]) == []
    assert extensions(config, VOCAB, [(cell, None) for cell in wide]) == []


@pytest.mark.parametrize(
    "change, message",
    [
        ("grid.widths=[16,18]", "grid.widths: 18 gives no whole number of layers and heads"),
        ("grid.param=[mup,ntk]", "grid.param: 'ntk' is none of mup, completep, sp"),
        ("grid.param=[mup,mup]", "grid.param: .* has one twice"),
        ("grid.widths=[]", "grid.widths: an empty list"),
        ("grid.rates=2", "grid.rates: 2 cannot bracket an optimum"),
        ("grid.octaves=0", "grid.octaves: 0.* is not a positive number"),
        ("optim.follows=size", "optim.follows: size gives each width its own batch"),
        ("schedule=trunk", "optim.follows: size gives each width its own batch"),
    ],
)
def test_what_cannot_be_is_refused(compose, change, message):
    with pytest.raises(ConfigError, match=message):
        cells(compose(*LR, change), VOCAB)
