"""The steps inside a sweep: predicted before measured, never rewritten, holdouts unread until then."""

from __future__ import annotations

import json

import numpy as np
import pytest
from analysis_helpers import holdout_row, optimal_params, rows_of, sweep, target, true_loss, write_table

import analysis.sweep as steps
from analysis.prediction import model
from analysis.table import TableError
from analysis.values import Status, Target

SPOT = target()
MEASURED = float(true_loss(SPOT.params, SPOT.tokens)) * 1.004


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """The steps' logic is tested here, not the bootstrap's digits."""
    monkeypatch.setitem(model.__kwdefaults__, "resamples", 60)


@pytest.fixture
def folder(tmp_path):
    write_table(tmp_path / "runs.csv", [*rows_of(sweep(0.003)), holdout_row(SPOT, None)])
    return tmp_path


def finish(folder, loss=MEASURED, seeds=1):
    rows = [holdout_row(SPOT, loss * (1 + 0.002 * i), f"target{i}") for i in range(seeds)]
    write_table(folder / "runs.csv", [*rows_of(sweep(0.003)), *rows])


def test_a_sweep_that_repeats_its_data_is_predicted_by_the_law_that_knows_of_it(folder):
    rows = rows_of(sweep(0.003))
    unique = np.median([float(row["tokens"]) for row in rows])
    write_table(
        folder / "runs.csv",
        [{**row, "unique_tokens": repr(min(float(row["tokens"]), float(unique)))} for row in rows],
    )
    assert set(steps.write_prediction(folder, SPOT).weights) == {"shrunk", "repeated"}


def test_the_whole_sequence(folder):
    choice = steps.choose_target(folder, SPOT.flops)
    assert choice.status == "ok"
    assert choice.lo <= choice.params <= choice.hi
    assert choice.params == pytest.approx(optimal_params(SPOT.flops), rel=0.5)
    assert choice.tokens == pytest.approx(SPOT.flops / 6 / choice.params, rel=1e-6)

    prediction = steps.write_prediction(folder, SPOT)
    path = folder / "report" / "predictions.json"
    (entry,) = json.loads(path.read_text())
    assert entry["target"] == {"params": SPOT.params, "tokens": SPOT.tokens, "flops": SPOT.flops}
    assert entry["measured"] is None
    assert (entry["loss"], entry["lo90"], entry["hi90"]) == (
        prediction.loss,
        prediction.lo90,
        prediction.hi90,
    )

    assert steps.score(folder) == (prediction,)  # not trained yet
    finish(folder)
    (scored,) = steps.score(folder)
    assert scored.measured.loss == MEASURED
    assert scored.measured.error_pct == pytest.approx(100 * (prediction.loss / MEASURED - 1))
    assert scored.measured.inside == (prediction.lo90 <= MEASURED <= prediction.hi90)
    (after,) = json.loads(path.read_text())
    assert {**after, "measured": None} == entry

    (folder / "plan.json").write_text(
        json.dumps({"command": "sweep", "corpus": {"entropy_rate": 0.9}, "runs": []})
    )
    analysis = steps.analyse(folder)
    assert analysis.predictions == (scored,)
    assert [row.loss for row in analysis.rows if row.role == "holdout"] == [MEASURED]
    assert analysis.entropy.entropy_rate == 0.9
    assert analysis.metadata == {"command": "sweep", "corpus": '{"entropy_rate": 0.9}'}
    assert all(fit.status in Status for fit in analysis.fits)
    fits = json.loads((folder / "report" / "fits.json").read_text())
    assert [fit["law"] for fit in fits["fits"]] == [fit.law for fit in analysis.fits]


def test_the_same_target_is_predicted_once(folder):
    first = steps.write_prediction(folder, SPOT)
    path = folder / "report" / "predictions.json"
    before = path.read_text()
    assert steps.write_prediction(folder, SPOT) == first
    assert path.read_text() == before


def test_a_changed_ledger_adds_a_prediction_and_keeps_the_old(folder):
    first = steps.write_prediction(folder, SPOT)
    write_table(folder / "runs.csv", rows_of(sweep(0.003).take(np.arange(29))))
    second = steps.write_prediction(folder, SPOT)
    assert second.ledger_digest != first.ledger_digest
    assert len(json.loads((folder / "report" / "predictions.json").read_text())) == 2
    finish(folder)
    assert [p.measured.loss for p in steps.score(folder)] == [MEASURED, MEASURED]


def test_what_is_measured_already_is_not_predicted(folder):
    finish(folder)
    with pytest.raises(ValueError, match="already measured.*Nothing was written"):
        steps.write_prediction(folder, SPOT)
    assert not (folder / "report").exists()


def test_what_was_predicted_before_it_was_measured_is_returned_as_it_was(folder):
    first = steps.write_prediction(folder, SPOT)
    rows = rows_of(sweep(0.003, seed=5))  # even where the fitted rows are others now
    write_table(folder / "runs.csv", [*rows, holdout_row(SPOT, MEASURED)])
    assert steps.write_prediction(folder, SPOT) == first


def test_a_holdouts_loss_moves_no_prediction(folder, tmp_path):
    first = steps.write_prediction(folder, SPOT)
    other = Target(SPOT.params * 2, SPOT.tokens / 2, SPOT.flops)
    elsewhere = tmp_path / "elsewhere"
    rows = [*rows_of(sweep(0.003)), {**holdout_row(other, 99.0), "loss": "unreadable"}]
    write_table(elsewhere / "runs.csv", rows)
    second = steps.write_prediction(elsewhere, SPOT)
    assert (second.loss, second.lo90, second.ledger_digest) == (first.loss, first.lo90, first.ledger_digest)
    assert steps.analyse(elsewhere).predictions == (second,)  # nobody predicted the other: it stays unread


def test_several_seeds_of_the_target_are_averaged(folder):
    steps.write_prediction(folder, SPOT)
    finish(folder, seeds=3)
    measured = steps.score(folder)[0].measured
    losses = MEASURED * (1 + 0.002 * np.arange(3))
    assert measured.loss == pytest.approx(losses.mean())
    assert measured.loss_se == pytest.approx(losses.std(ddof=1) / np.sqrt(3))
    assert measured.run_ids == ("target0", "target1", "target2")


def test_a_failed_target_is_told_and_not_scored(folder):
    steps.write_prediction(folder, SPOT)
    write_table(
        folder / "runs.csv", [*rows_of(sweep(0.003)), {**holdout_row(SPOT, None), "status": "failed"}]
    )
    analysis = steps.analyse(folder)
    assert analysis.predictions[0].measured is None
    assert any("Holdout target failed" in problem for problem in analysis.problems)


def test_too_few_runs_choose_no_target_and_analyse_nothing(folder):
    write_table(folder / "runs.csv", rows_of(sweep(0.003).take(np.arange(4))))
    choice = steps.choose_target(folder, SPOT.flops)
    assert choice.status == "refused" and choice.params is None
    assert "needs at least 7 runs" in choice.reason
    for step in (steps.analyse, lambda f: steps.write_prediction(f, SPOT)):
        with pytest.raises(ValueError, match="needs at least 7 runs"):
            step(folder)


def test_a_damaged_predictions_file_is_left_alone(folder):
    path = folder / "report" / "predictions.json"
    path.parent.mkdir()
    path.write_text('[{"target": ')
    with pytest.raises(ValueError, match="predictions.json is not a list of predictions.*left as it is"):
        steps.write_prediction(folder, SPOT)
    assert path.read_text() == '[{"target": '


def test_no_runs_csv_is_said(tmp_path):
    with pytest.raises(TableError, match="no table at"):
        steps.choose_target(tmp_path, 1e13)


def test_a_true_entropy_rate_outside_the_fit_is_a_problem(folder):
    (folder / "plan.json").write_text(json.dumps({"corpus": {"entropy_rate": 0.01}}))
    assert any("entropy rate 0.0100 lies outside" in problem for problem in steps.analyse(folder).problems)
