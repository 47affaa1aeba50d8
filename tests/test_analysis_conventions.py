"""Counts of N and C: exponents that must differ do, predictions that must not don't, targets are mapped."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from analysis_helpers import (
    TRUTH,
    holdout_row,
    optimal_params,
    rows_of,
    sweep,
    target,
    true_loss,
    write_table,
)

from analysis.conventions import fit_conventions, map_params
from analysis.ensemble import fit_members
from analysis.offers import decayed
from analysis.table import as_runs, read_table
from analysis.values import Runs


def with_columns(runs: Runs, **columns) -> Runs:
    from dataclasses import replace

    return replace(runs, params_columns={"params": runs.params, **columns})


def member_of(runs: Runs):
    members, _ = fit_members(runs, resamples=20)
    return next(member for member in members if member.law.name == "coupled")


def test_a_table_with_one_count_has_nothing_to_compare():
    runs = sweep()
    assert fit_conventions(runs, member_of(runs)).at(target()) is None
    twice = with_columns(runs, n_params=runs.params * (1 + 1e-6))
    assert len(fit_conventions(twice, member_of(twice)).fits) == 1


def test_another_unit_of_n_changes_neither_loss_nor_exponent():
    runs = with_columns(sweep(), millions=sweep().params / 1e6)
    found = fit_conventions(runs, member_of(runs)).at(target())
    assert [c.used for c in found.conventions][:1] == [True] and len(found.conventions) >= 2
    assert found.loss_spread < 1e-4
    own, other = found.conventions[0], next(c for c in found.conventions if c.params == "millions")
    assert other.target_params == pytest.approx(own.target_params / 1e6)
    # 6·N·D with N in millions is a millionth of C at the same runs: the exponent stays.
    assert other.a == pytest.approx(own.a, abs=1e-3)
    assert found.a_range == (min(c.a for c in found.conventions), max(c.a for c in found.conventions))


def test_leaving_embeddings_out_raises_the_exponent_as_derived():
    """N_total = N + w·N^(1/3) (Pearce & Song 2024, arXiv 2406.12907, equation 9). Where the loss is a law of
    N_total with C = 6·N_total·D, N_opt goes with C^(a·d log N/d log N_total), and d log N_total/d log N < 1."""
    total = sweep(sizes=8)
    # The non-embedding count of each size, by the inverse of N + 300·N^(1/3).
    grid = np.geomspace(1e2, 1e7, 100_001)
    own = np.interp(total.params, grid + 300 * np.cbrt(grid), grid)
    runs = with_columns(total, without=own)
    found = fit_conventions(runs, member_of(runs)).at(target())
    by = {(c.params, c.flops): c.a for c in found.conventions}
    assert by["params", "6·N·D"] == pytest.approx(TRUTH["b"] / (TRUTH["a"] + TRUTH["b"]), abs=2e-3)
    middle = np.exp(np.mean(np.log([optimal_params(C) for C in (1e11, 1e12)])))
    at = np.interp(middle, grid + 300 * np.cbrt(grid), grid)
    elasticity = (at + 100 * np.cbrt(at)) / (at + 300 * np.cbrt(at))
    given_c = next(a for (params, flops), a in by.items() if params == "without" and flops != "6·N·D")
    assert given_c == pytest.approx(by["params", "6·N·D"] / elasticity, rel=0.1)


def test_targets_are_interpolated_between_sizes_and_carried_on_beyond_them():
    own = np.geomspace(1e6, 1e9, 10)
    other = own + 3e4 * np.cbrt(own)
    for at, how in ((3.3e7, "interpolated"), (2e10, "extrapolated"), (3e5, "extrapolated")):
        params, mapping = map_params(own, other, at)
        assert params == pytest.approx(at + 3e4 * np.cbrt(at), rel=2e-2), at
        assert mapping.startswith(how)
    back, _ = map_params(other, own, 2e10)
    assert back == pytest.approx(2e10 - 3e4 * np.cbrt(2e10), rel=1e-3)
    same, _ = map_params(own, own, 5e10)
    assert same == pytest.approx(5e10)


def test_columns_of_a_sweeps_table_are_found_and_follow_the_runs(tmp_path):
    runs = sweep(0.004)
    rows = rows_of(runs)
    rows[3]["status"] = "failed"
    write_table(tmp_path / "runs.csv", [*rows, holdout_row(target(), None)])
    table = read_table(tmp_path / "runs.csv", {"params": "params_non_embedding"})
    assert set(table.runs.params_columns) == {"params_non_embedding", "params_total"}
    np.testing.assert_array_equal(table.runs.params_columns["params_non_embedding"], table.runs.params)
    np.testing.assert_allclose(table.runs.params_columns["params_total"], 1.2 * table.runs.params)
    half = table.runs.take(np.arange(5))
    np.testing.assert_array_equal(half.params_columns["params_total"], 1.2 * half.params)
    assert len(half.decayed) == 5
    found = fit_conventions(table.runs, member_of(table.runs)).at(target())
    assert {c.params for c in found.conventions} == {"params_non_embedding", "params_total"}
    assert found.loss_spread < 1e-3


def test_a_count_that_some_runs_lack_is_skipped_with_its_reason():
    column = 1.1 * sweep().params
    column[2] = np.nan
    runs = with_columns(sweep(), partial=column)
    (item,) = fit_conventions(runs, member_of(runs)).skipped
    assert item.what == "N counted by partial" and "1 of 30 runs have none (row 3 first)" in item.reason


def test_exact_flops_beside_6nd_are_two_conventions_of_c():
    plain = sweep(sizes=8)
    exact = plain.tokens * (6 * plain.params + 9000 * plain.params**0.5)
    runs = as_runs(plain.params, plain.tokens, true_loss(plain.params, plain.tokens), flops=exact)
    found = fit_conventions(runs, member_of(runs)).at(target())
    assert [c.flops for c in found.conventions] == ["flops", "6·N·D"]
    assert found.loss_spread == 0
    assert found.conventions[0].a > found.conventions[1].a  # attention's share falls with N


@pytest.mark.parametrize(
    "row, said",
    [
        ({"decayed": "true"}, 1.0),
        ({"decayed": "0", "step": "10", "total_steps": "10"}, 0.0),
        ({"step": "10", "total_steps": "10"}, 1.0),
        ({"step": "9", "max_steps": "10"}, 0.0),
        ({"schedule": "constant"}, 0.0),
        ({"schedule": "cosine"}, np.nan),
        ({"step": "9"}, np.nan),
        ({"decayed": "perhaps"}, np.nan),
    ],
)
def test_whether_a_rate_had_decayed(row, said):
    np.testing.assert_array_equal(decayed([row]), [said])


def test_whether_rates_had_decayed_is_read_from_a_table(tmp_path):
    path = tmp_path / "runs.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["params", "tokens", "loss", "step", "total_steps"])
        writer.writerows([["1e6", "1e7", "4.0", "100", "200"], ["1e6", "2e7", "3.8", "200", "200"]])
    np.testing.assert_array_equal(read_table(path).runs.decayed, [0, 1])
