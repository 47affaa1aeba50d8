"""The functions on arrays say what the modules below them say, and refuse what makes no sense."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from analysis_helpers import TRUTH, optimal_params, sweep, target, true_loss

from analysis import backtest, fit, predict

RUNS = sweep(0.004)
COLUMNS = {"params": RUNS.params, "tokens": RUNS.tokens, "loss": RUNS.loss}


def test_fit_recovers_a_law_and_gives_intervals():
    exact = {**COLUMNS, "loss": true_loss(RUNS.params, RUNS.tokens)}
    found = fit(**exact, law="coupled", resamples=20)
    assert found.values["E"] == pytest.approx(TRUTH["E"], rel=1e-3)
    assert all(parameter.interval for parameter in found.parameters)


def test_penalties_are_options_and_differ():
    fits = [fit(**COLUMNS, penalty=name, resamples=0) for name in ("huber", "least_squares", "asymmetric")]
    assert len({round(one.values["E"], 9) for one in fits}) == 3
    assert np.sum(fits[1].log_residuals ** 2) == min(np.sum(one.log_residuals**2) for one in fits)


def test_flops_stand_in_for_tokens():
    by_tokens = fit(**COLUMNS, resamples=0)
    by_flops = fit(params=RUNS.params, flops=RUNS.flops, loss=RUNS.loss, resamples=0)
    assert by_flops.values["E"] == pytest.approx(by_tokens.values["E"], rel=1e-6)
    with pytest.raises(ValueError, match="give tokens or flops"):
        fit(params=RUNS.params, loss=RUNS.loss)


def test_predictions_are_those_of_the_model_and_laws_are_weighed():
    spot = target()
    (one,) = predict(**COLUMNS, targets=[(spot.params, spot.tokens)])
    assert one.lo90 < float(true_loss(spot.params, spot.tokens)) < one.hi90
    assert one.target.flops == pytest.approx(6 * spot.params * spot.tokens, rel=1e-6)
    (several,) = predict(**COLUMNS, targets=[(spot.params, spot.tokens)], law=["shrunk", "separable"])
    assert set(several.weights) == {"shrunk", "separable"} and sum(several.weights.values()) == pytest.approx(1)


@pytest.mark.parametrize("law", ["kaplan", "compute"])
def test_laws_without_a_closed_optimum_or_of_compute_alone_predict_too(law):
    spot = optimal_params(3e12)
    (one,) = predict(**COLUMNS, targets=[(spot, 3e12 / 6 / spot)], law=law)
    assert one.loss == pytest.approx(float(true_loss(spot, 3e12 / 6 / spot)), rel=0.06)


def test_where_data_repeat_the_law_that_knows_of_it_joins():
    unique = np.minimum(RUNS.tokens, np.median(RUNS.tokens))
    (one,) = predict(**COLUMNS, unique_tokens=unique, targets=[(1e5, 1e8)])
    assert set(one.weights) == {"shrunk", "repeated"}
    (other,) = predict(**COLUMNS, unique_tokens=RUNS.tokens, targets=[(1e5, 1e8)])
    assert set(other.weights) == {"shrunk"}


def test_backtests_predict_dearer_runs_only():
    rows = backtest(**COLUMNS)
    assert rows and all(row.flops > row.cut_flops for row in rows)
    assert {"combined", "shrunk"} <= {row.law for row in rows}


@pytest.mark.parametrize("law, said", [("nosuch", "no law 'nosuch'"), ([], "wanted 'auto'"), (["shrunk"] * 2, "different")])
def test_laws_that_are_none_are_refused(law, said):
    with pytest.raises(ValueError, match=said):
        predict(**COLUMNS, targets=[(1e5, 1e8)], law=law)


def test_functions_stay_functions_whatever_was_imported_before():
    code = "import analysis.prediction, analysis.fitting; from analysis import fit, predict; print(callable(fit), callable(predict))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True True\n"
