"""Reading tables: formats, derived columns, exclusions, errors that name row and column."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from analysis.table import SWEEP_RULES, Rules, TableError, as_runs, read_holdout_losses, read_table
from analysis_helpers import holdout_row, rows_of, sweep, target, write_table

ROWS = [
    {"run_id": "a", "params": "1e6", "tokens": "2e7", "flops": "1.3e14", "loss": "3.5"},
    {"run_id": "b", "params": "2e6", "tokens": "2e7", "flops": "2.6e14", "loss": "3.25"},
]


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_formats_read_alike(tmp_path):
    import pyarrow
    import pyarrow.parquet

    numbers = [
        {key: value if key == "run_id" else float(value) for key, value in row.items()} for row in ROWS
    ]
    paths = [write_csv(tmp_path / "runs.csv", ROWS), tmp_path / "runs.jsonl", tmp_path / "runs.parquet"]
    paths[1].write_text("".join(json.dumps(row) + "\n" for row in numbers))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(numbers), paths[2])
    for path in paths:
        runs = read_table(path).runs
        assert runs.run_id == ("a", "b")
        for name, wanted in (("params", [1e6, 2e6]), ("flops", [1.3e14, 2.6e14]), ("loss", [3.5, 3.25])):
            np.testing.assert_array_equal(getattr(runs, name), wanted)
            assert getattr(runs, name).dtype == np.float64


def test_missing_flops_are_6nd_and_missing_tokens_their_inverse_and_both_are_said(tmp_path):
    without = {
        name: [{k: v for k, v in row.items() if k != name} for row in ROWS] for name in ("flops", "tokens")
    }
    no_flops = read_table(write_csv(tmp_path / "f.csv", without["flops"]))
    np.testing.assert_allclose(no_flops.runs.flops, [1.2e14, 2.4e14])
    assert no_flops.flops_kind == "6·N·D" and "6·N·D" in no_flops.notes[0]
    no_tokens = read_table(write_csv(tmp_path / "t.csv", without["tokens"]))
    np.testing.assert_allclose(no_tokens.runs.tokens, [1.3e14 / 6e6, 2.6e14 / 12e6])
    assert "C/(6·N)" in no_tokens.notes[0]


def test_columns_by_other_names(tmp_path):
    path = write_csv(tmp_path / "runs.csv", [{"size": "1e6", "D": "2e7", "final": "3.5"}])
    runs = read_table(path, {"params": "size", "loss": "final"}).runs
    assert (runs.params[0], runs.tokens[0], runs.loss[0]) == (1e6, 2e7, 3.5)
    assert runs.run_id == ("row 1",)


def test_a_column_that_is_not_there_names_those_that_are(tmp_path):
    path = write_csv(tmp_path / "runs.csv", ROWS)
    with pytest.raises(
        TableError, match=r"no column 'size' \(columns.params\); it has: run_id, params, tokens"
    ):
        read_table(path, {"params": "size"})
    with pytest.raises(TableError, match="found no column for loss.*columns.loss=NAME"):
        read_table(write_csv(tmp_path / "bare.csv", [{"params": "1", "tokens": "1"}]))


@pytest.mark.parametrize(
    "column, bad",
    [("params", "0"), ("params", ""), ("tokens", "-5"), ("flops", "inf"), ("loss", "-3"), ("loss", "low")],
)
def test_a_bad_number_names_row_and_column(tmp_path, column, bad):
    path = write_csv(tmp_path / "runs.csv", [ROWS[0], {**ROWS[1], column: bad}])
    with pytest.raises(TableError, match=rf"row 2 of 2 \(b\), column '{column}'.*found '{bad}'"):
        read_table(path)


@pytest.mark.parametrize("name, content", [("runs.txt", "x"), ("runs.jsonl", "{"), ("runs.csv", "")])
def test_what_is_no_table_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(TableError, match=name):
        read_table(path)
    with pytest.raises(TableError, match="no table at"):
        read_table(tmp_path / "absent.csv")


def test_every_exclusion_has_its_reason_and_the_rest_is_fitted(tmp_path):
    rows = rows_of(sweep())
    rows[0]["status"] = "failed"
    rows[0]["loss"] = ""
    rows[1]["status"] = "diverged"
    rows[2]["loss"] = "nan"
    rows[3]["tokens"] = rows[3]["params_non_embedding"] = "1e4"
    rows[3]["tokens"] = "9e3"
    rows[4]["batch_tokens"] = float(rows[4]["tokens"]) / 50
    rows.append({**rows[5], "run_id": "copy"})
    write_table(tmp_path / "runs.csv", rows)
    table = read_table(tmp_path / "runs.csv", {"params": "params_non_embedding"}, SWEEP_RULES)
    assert [(e.run_id, e.reason) for e in table.exclusions] == [
        ("r000", "status is failed"),
        ("r001", "status is diverged"),
        ("r002", "loss is not finite (nan)"),
        ("r003", "0.9 tokens a parameter, under 1"),
        ("r004", "50 steps, under 100"),
        ("copy", "an exact copy of r005"),
    ]
    assert len(table.runs) + len(table.exclusions) == len(table.rows) == len(rows)
    assert (
        len(read_table(tmp_path / "runs.csv", {"params": "params_non_embedding"}, Rules()).runs)
        == len(rows) - 4
    )
    assert table.params_kind == "non-embedding"


def test_a_run_entered_twice_is_a_copy_whatever_else_the_rows_say(tmp_path):
    rows = [
        {"id": "a", "params": "1e8", "tokens": "2e9", "loss": "3.141592", "seconds": "5"},
        {"id": "b", "params": "1e8", "tokens": "2e9", "loss": "3.141592", "seconds": "6"},
        {"id": "c", "params": "1e8", "tokens": "2e9", "loss": "3.14", "seconds": "5"},
        {"id": "d", "params": "1e8", "tokens": "2e9", "loss": "3.14", "seconds": "6"},
    ]
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = read_table(path)
    assert [(e.run_id, e.reason) for e in table.exclusions] == [("b", "an exact copy of a")]
    assert table.runs.run_id == ("a", "c", "d")


def test_another_seed_with_the_same_loss_is_no_copy(tmp_path):
    rows = [{**ROWS[0], "seed": "1"}, {**ROWS[0], "run_id": "z", "seed": "2"}]
    assert len(read_table(write_csv(tmp_path / "runs.csv", rows)).runs) == 2


def test_ids_that_several_rows_share_stay_apart(tmp_path):
    rows = [{**row, "run_id": "llama"} for row in ROWS]
    assert read_table(write_csv(tmp_path / "runs.csv", rows)).runs.run_id == (
        "llama (row 1)",
        "llama (row 2)",
    )


def test_a_holdouts_loss_is_neither_fitted_nor_parsed_before_it_is_asked_for(tmp_path):
    rows = [*rows_of(sweep()), {**holdout_row(target(), 1.3), "loss": "not to be read"}]
    write_table(tmp_path / "runs.csv", rows)
    table = read_table(tmp_path / "runs.csv", {"params": "params_non_embedding"})
    assert "target" not in table.runs.run_id
    assert [row.loss for row in table.rows if row.role == "holdout"] == [None]
    with pytest.raises(TableError, match="column 'loss'"):
        read_holdout_losses(table, {"target"})
    assert read_holdout_losses(table, set()) == {}


def test_a_role_that_means_nothing_is_refused(tmp_path):
    path = write_csv(tmp_path / "runs.csv", [{**ROWS[0], "role": "tset"}, {**ROWS[1], "role": "1"}])
    with pytest.raises(TableError, match="'fit', 'holdout', 'trunk' or 'arm'"):
        read_table(path)


def test_the_digest_is_of_the_fitted_rows_results_whatever_their_order(tmp_path):
    rows = rows_of(sweep())

    def digest(some):
        write_table(tmp_path / "runs.csv", some)
        return read_table(tmp_path / "runs.csv", {"params": "params_non_embedding"}).digest

    plain = digest(rows)
    assert digest(rows[::-1]) == plain
    assert digest([*rows, holdout_row(target(), 1.3)]) == plain
    assert digest([{**row, "wall_seconds": 99} for row in rows]) == plain
    assert digest([{**rows[0], "loss": "2.5"}, *rows[1:]]) != plain
    assert digest([{**rows[0], "status": "failed"}, *rows[1:]]) != plain


def test_arrays_of_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="unequal"):
        as_runs([1.0, 2.0], [1.0, 2.0], [3.0])
