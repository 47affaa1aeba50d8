"""Laws with a discrepancy, and runs that contradict the rest: limits, invariances, planted faults."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from analysis_helpers import sweep, target, true_loss

from analysis.discrepancy import MOST_RUNS, OUTLIER, krige, log_variables
from analysis.ensemble import forecast
from analysis.fitting import fit_law
from analysis.laws import SEPARABLE, SHRUNK
from analysis.outliers import screen
from analysis.prediction import model, predict, spots
from analysis.table import as_runs, read_holdout_losses, read_table
from analysis.values import Runs, Target

DATA = Path(os.environ.get("SCALING_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SPLITS = DATA / "splits"

NOISE = 0.004


def kriged(runs: Runs, law=SHRUNK):
    _, theta, problem = fit_law(law, runs)
    return krige(problem, theta, runs.cluster)


def at(found, params, tokens, cluster=""):
    runs = spots([Target(params, tokens, 6 * params * tokens)], [cluster])
    return found.forecast(log_variables(found.law, runs), runs.cluster)


def test_a_true_law_needs_no_discrepancy():
    runs, spot = sweep(), target()
    said = at(kriged(runs), spot.params, spot.tokens)
    assert np.exp(said.log_loss[0]) == pytest.approx(float(true_loss(spot.params, spot.tokens)), rel=2e-3)
    assert said.variance[0] < 0.005**2


def test_between_runs_it_follows_what_the_law_cannot():
    """A bump over one region: the law alone misses it, the discrepancy fills it in, and far off it fades."""
    params, tokens = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e4, 1e6, 9), np.geomspace(1e7, 1e9, 9)))
    bump = 0.03 * np.exp(-(np.log(params / 1e5) ** 2) - np.log(tokens / 1e8) ** 2)
    runs = as_runs(params, tokens, true_loss(params, tokens) * np.exp(bump))
    found = kriged(runs)
    inside = at(found, 1.3e5, 1.3e8)
    truth = np.log(true_loss(1.3e5, 1.3e8)) + 0.03 * np.exp(-2 * np.log(1.3) ** 2)
    law_alone = fit_law(SHRUNK, runs)
    missed = law_alone[2].law.evaluate(
        law_alone[1][None], np.log([[1.3e5, 1.3e8]]) - law_alone[2].centre
    )[0][0, 0]
    assert abs(inside.log_loss[0] - truth) < 0.2 * abs(missed - truth)
    assert at(found, 1e9, 1e12).discrepancy[0] > 5 * inside.discrepancy[0]


def test_a_size_that_lies_high_is_expected_to_lie_high_again():
    runs = sweep(NOISE / 4, sizes=7)
    high = np.array([i % 7 == 3 for i in range(len(runs))])
    runs = replace(
        runs,
        cluster=tuple(f"trunk {i % 7}" for i in range(len(runs))),
        loss=runs.loss * np.where(high, 1.03, 1.0),
    )
    spot, found = target(2e12), kriged(runs)
    known, new = (at(found, spot.params, spot.tokens, name) for name in ("trunk 3", "another trunk"))
    assert 0.02 < known.log_loss[0] - new.log_loss[0] < 0.035
    assert known.variance[0] < new.variance[0]


@pytest.mark.parametrize("law", [SEPARABLE, SHRUNK], ids=lambda law: law.name)
def test_units_of_size_data_and_loss_change_nothing(law):
    runs, spot = sweep(NOISE), target()
    said = at(kriged(runs, law), spot.params, spot.tokens)
    scaled = replace(
        runs,
        params=runs.params / 1e6,
        tokens=runs.tokens / 1e9,
        flops=runs.flops / 1e15,
        loss=runs.loss / np.log(2),
        cluster=tuple(f"{label}M" for label in runs.cluster),
    )
    again = at(kriged(scaled, law), spot.params / 1e6, spot.tokens / 1e9)
    assert again.log_loss[0] + np.log(np.log(2)) == pytest.approx(said.log_loss[0], abs=1e-6)
    assert again.variance[0] == pytest.approx(said.variance[0], rel=1e-4)


def test_many_runs_are_stood_for_by_some():
    generator = np.random.default_rng(3)
    params, tokens = np.exp(generator.uniform(10, 14, 1200)), np.exp(generator.uniform(15, 19, 1200))
    runs = as_runs(params, tokens, true_loss(params, tokens) * np.exp(NOISE * generator.standard_normal(1200)))
    found = kriged(runs)
    assert found.used.sum() == MOST_RUNS and np.isnan(found.surprise).sum() == 1200 - MOST_RUNS
    assert found.used[np.argmax(runs.flops)]
    spot = target()
    assert np.exp(at(found, spot.params, spot.tokens).log_loss[0]) == pytest.approx(
        float(true_loss(spot.params, spot.tokens)), rel=5e-3
    )


# --- outliers -------------------------------------------------------------------------------------


def append(runs: Runs, params: float, tokens: float, loss: float, name: str) -> Runs:
    extra = as_runs(np.array([params]), np.array([tokens]), np.array([loss]), group=["planted"])
    arrays = {
        field: np.append(getattr(runs, field), getattr(extra, field))
        for field in ("params", "tokens", "flops", "loss", "loss_se", "unique_tokens")
    }
    return replace(
        runs,
        run_id=(*runs.run_id, name),
        group=(*runs.group, runs.group[0]),
        cluster=(*runs.cluster, extra.cluster[0]),
        **arrays,
    )


def test_a_clean_sweep_loses_no_run():
    for seed in range(5):
        assert screen(sweep(NOISE, seed), (SHRUNK,))[1] == ()


@pytest.mark.parametrize("factor", [5.0, 1.08, 0.92], ids=["failed", "harder data", "easier data"])
@pytest.mark.parametrize("place", [0, 14, 29], ids=["cheap", "middle", "dear"])
def test_a_planted_run_is_named_and_moves_the_prediction_by_less_than_it_may(factor, place):
    runs, spot = sweep(NOISE, seed=7), target()
    loss = float(true_loss(runs.params[place], runs.tokens[place])) * factor
    planted = append(runs, 1.05 * runs.params[place], runs.tokens[place], loss, "planted")
    clean, found = (model(table, resamples=20) for table in (runs, planted))
    assert [outlier.run_id for outlier in found.outliers] == ["planted"]
    assert "standard errors " + ("above" if factor > 1 else "below") in found.outliers[0].reason
    moved = predict(found, spot, "").loss / predict(clean, spot, "").loss - 1
    assert abs(moved) < 0.003  # the issue's own limit


def test_several_failed_runs_do_not_hide_each_other():
    runs = sweep(NOISE, seed=2)
    loss = runs.loss.copy()
    loss[[3, 11, 19]] = 10.0
    _, exclusions = screen(replace(runs, loss=loss), (SHRUNK,))
    assert {exclusion.run_id for exclusion in exclusions} == {"row 4", "row 12", "row 20"}


def test_a_surprise_is_a_leave_one_out_residual_in_its_own_units():
    """Half the outlier limit is tamed, not excluded."""
    runs = sweep(NOISE, seed=4)
    loss = runs.loss.copy()
    loss[12] *= np.exp(3 * NOISE)
    found = kriged(replace(runs, loss=loss))
    assert np.argmax(np.abs(found.surprise)) == 12
    assert 1.5 < found.surprise[12] < OUTLIER
    assert 1e-6 < found.weights[12] < 0.9


# --- public tables --------------------------------------------------------------------------------


@pytest.mark.skipif(not SPLITS.is_dir(), reason=f"no public tables at {SPLITS}")
@pytest.mark.parametrize("name", ["chinchilla_epoch", "marin_nemotron", "misfitting_bestLR"])
def test_dearer_runs_of_public_tables_fall_where_they_are_said_to(name):
    """The bounds are the project's own aims (1.1%, 85%), not what is measured today."""
    table = read_table(SPLITS / f"{name}.csv", {"params": "n_params", "role": "test"})
    known = model(table.runs, resamples=20)
    found = read_holdout_losses(table, {h.run_id for h in table.holdouts})
    errors, inside = [], []
    for h in table.holdouts:
        said = forecast(
            known.members, known.calibration.weights, spots([Target(h.params, h.tokens, h.flops)], [h.cluster])
        )
        miss = float(said.log_loss[0] - np.log(found[h.run_id][0]))
        errors.append(100 * abs(np.expm1(miss)))
        inside.append(abs(miss) <= known.calibration.half_width(said)[0])
    assert np.mean(errors) < 1.1
    assert np.mean(inside) >= 0.85
