from __future__ import annotations

import csv
import json
import logging

import pytest
from execution_helpers import planned_run, put, result_of

from models.count import count_flops, count_parameters
from sweep.execute.ledger import COLUMNS, InvalidResult, Ledger, failure, load_result, read_result, row
from sweep.files import SweepFolder


@pytest.fixture
def folder(tmp_path):
    return SweepFolder(tmp_path)


def table(folder):
    with open(folder.runs_csv, newline="") as file:
        return list(csv.DictReader(file))


def test_every_run_has_one_row_in_plan_order_and_a_float_survives_the_file(folder):
    runs = [planned_run(seed, role="holdout" if seed == 2 else "fit") for seed in (3, 1, 2)]
    put(folder, runs[1], result_of(runs[1]))
    Ledger(folder, runs).write()
    rows = table(folder)
    assert tuple(rows[0]) == COLUMNS
    assert [r["run_id"] for r in rows] == [p.run_id for p in runs]
    assert [r["status"] for r in rows] == ["planned", "finished", "planned"]
    assert [r["role"] for r in rows] == ["fit", "fit", "holdout"]
    assert float(rows[1]["loss"]) == 0.1 + 0.2 and float(rows[1]["loss_se"]) == 1e-17
    assert rows[1]["device"] == "cpu, one thread"


def test_a_planned_row_says_what_follows_from_the_spec_and_no_outcome():
    planned = planned_run()
    values, counts = row(planned, None), count_parameters(planned.spec.shape)
    assert values["params_total"] == counts.total
    assert values["params_non_embedding"] == counts.total - counts.embedding
    assert values["flops"] == planned.spec.tokens * count_flops(planned.spec.shape).exact
    assert values["flops_6nd"] == 6 * values["params_non_embedding"] * values["tokens"]
    outcome = "loss loss_se bits_per_byte unique_tokens epochs wall_seconds tokens_per_second device parent"
    assert [values[name] for name in outcome.split()] == [None] * 9


def test_a_run_that_stopped_early_reports_what_it_saw_not_what_was_planned(folder):
    planned = planned_run()
    reached = {"tokens": 64, "flops": 1e6, "flops_6nd": 9e5}
    values = row(planned, result_of(planned, status="diverged", loss=None, **reached))
    assert {name: values[name] for name in reached} == reached
    assert values["status"] == "diverged" and values["loss"] is None


def test_a_run_named_in_two_groups_has_two_rows_and_one_result(folder):
    runs = [planned_run(0, group="a"), planned_run(1), planned_run(0, group="b")]
    put(folder, runs[0], result_of(runs[0]))
    Ledger(folder, runs).write()
    assert [(r["group"], r["status"]) for r in table(folder)] == [
        ("a", "finished"), ("g", "planned"), ("b", "finished"),
    ]  # fmt: skip


@pytest.mark.parametrize("kept", [0, 1, 40, -2])
def test_a_result_that_is_cut_off_is_no_result(folder, caplog, kept):
    planned = planned_run()
    run = put(folder, planned, result_of(planned))
    run.result.write_text(run.result.read_text()[:kept])
    with pytest.raises(InvalidResult, match="not JSON.*unfinished"):
        load_result(run)
    with caplog.at_level(logging.WARNING):
        assert read_result(run) is None
    assert str(run.result) in caplog.text


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"run_id": "0123456789ab"}, "is the result of run '0123456789ab'"),
        ({"status": "done"}, "status 'done'"),
        ({"loss": None}, "finished with loss None"),
        ({"tokens": 64}, "finished after 64 of 1280 tokens"),
    ],
)
def test_a_result_that_does_not_answer_the_spec_is_no_result(folder, change, fault):
    planned = planned_run()
    run = put(folder, planned, result_of(planned, **change))
    with pytest.raises(InvalidResult, match=fault):
        load_result(run)
    assert read_result(run) is None


def test_a_result_beside_another_runs_spec_is_no_result(folder):
    planned, other = planned_run(0), planned_run(1)
    run = put(folder, planned, result_of(planned))
    asked = json.loads(run.spec.read_text())
    run.spec.write_text(json.dumps({**asked, "spec": other.spec.to_json()}))
    with pytest.raises(InvalidResult, match=f"of run '{other.run_id}'"):
        load_result(run)
    run.spec.unlink()
    with pytest.raises(InvalidResult, match="beside no spec.json"):
        load_result(run)


def test_refresh_sees_what_came_since(folder):
    planned = planned_run()
    ledger = Ledger(folder, [planned])
    assert ledger.result(planned.run_id) is None
    put(folder, planned, result_of(planned))
    assert ledger.result(planned.run_id) is None
    assert ledger.refresh(planned.run_id)["loss"] == 0.1 + 0.2
    ledger.write()
    assert table(folder)[0]["status"] == "finished"


def test_a_table_that_cannot_be_written_leaves_the_old_one(folder, monkeypatch):
    runs = [planned_run()]
    Ledger(folder, runs).write()
    before = folder.runs_csv.read_bytes()
    put(folder, runs[0], result_of(runs[0]))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sweep.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Ledger(folder, runs).write()
    assert folder.runs_csv.read_bytes() == before
    assert [path.name for path in folder.path.iterdir() if path.is_file()] == ["runs.csv"]


def test_the_failure_a_coordinator_records_is_a_valid_result(folder):
    planned = planned_run()
    run = put(folder, planned, failure(planned, "killed by SIGKILL", step=10, resumes=2))
    result = load_result(run)
    assert result["status"] == "failed" and result["tokens"] == planned.spec.tokens // 2
    assert result["flops"] == planned.spec.flops / 2
    assert row(planned, result)["loss"] is None
