"""Compute-optimal sizes: against brute force, against closed forms, and what is not bracketed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis.allocate import (
    by_envelope,
    by_isoflops,
    by_surface,
    cost_rule,
    envelope,
    isoflops,
    optimal_log_params,
)
from analysis.bands import line_band
from analysis.ensemble import fit_members
from analysis.table import as_runs
from analysis.values import Allocation, Skipped
from analysis_helpers import BUDGETS, TRUTH, optimal_params, sweep, true_loss

EXPONENT = TRUTH["b"] / (TRUTH["a"] + TRUTH["b"])


@pytest.fixture(scope="module")
def noiseless():
    runs = sweep()
    return runs, cost_rule(runs), fit_members(runs, resamples=50)[0]


def test_cost_rule_finds_6n_and_an_attention_term():
    runs = sweep()
    rule = cost_rule(runs)
    np.testing.assert_allclose(
        rule.tokens(1e13, np.array([3e4, 5e6])), 1e13 / 6 / np.array([3e4, 5e6]), rtol=1e-6
    )
    attention = as_runs(
        runs.params, runs.tokens, runs.loss, flops=runs.tokens * (6 * runs.params + 900 * runs.params**0.5)
    )
    rule = cost_rule(attention)
    assert (rule.c1, rule.c2) == (pytest.approx(900, rel=1e-6), pytest.approx(6, rel=1e-6))
    assert rule.worst < 1e-9
    x = np.log(np.array([1e4, 1e6]))
    slope = (rule.log(x + 1e-6)[0] - rule.log(x - 1e-6)[0]) / 2e-6
    np.testing.assert_allclose(rule.log(x)[1], slope, rtol=1e-6)


def test_surface_optimum_is_that_of_brute_force(noiseless):
    runs, rule, members = noiseless
    coupled = next(m for m in members if m.law.name == "coupled")
    for flops in (1e11, 1e13):
        found = np.exp(optimal_log_params(coupled, coupled.theta[None], rule, np.array([flops]))[0, 0])
        assert found == pytest.approx(optimal_params(flops), rel=5e-3)


def test_exponents_are_the_closed_form_and_sum_to_one(noiseless):
    runs, rule, members = noiseless
    coupled = next(m for m in members if m.law.name == "coupled")
    allocation = by_surface(coupled, rule, runs)
    assert allocation.a.value == pytest.approx(EXPONENT, abs=2e-3)
    assert allocation.a.value + allocation.b.value == pytest.approx(1, abs=1e-6)
    assert allocation.params_at(1e13) == pytest.approx(optimal_params(1e13), rel=1e-2)


def test_optimum_minimises_the_law_under_an_inexact_6nd(noiseless):
    runs, _, members = noiseless
    rule = cost_rule(
        as_runs(
            runs.params,
            runs.tokens,
            runs.loss,
            flops=runs.tokens * (6 * runs.params + 900 * runs.params**0.5),
        )
    )
    for member in members:
        best = optimal_log_params(member, member.theta[None], rule, np.array([1e12]))[0, 0]
        sizes = np.exp(best + np.linspace(-1, 1, 2001))
        loss, _ = member.log_loss(as_runs(sizes, rule.tokens(1e12, sizes), np.ones(2001)))
        assert abs(np.log(sizes[np.argmin(loss)]) - best) < 2e-3


def test_a_law_without_a_closed_form_is_searched_and_its_optimum_is_the_same(noiseless):
    _, rule, members = noiseless
    for member in members:
        names = {"A": "size", "B": "data"}
        unknowns = tuple(names.get(name, name) for name in member.law.unknowns)
        renamed = replace(member, law=replace(member.law, unknowns=unknowns))
        flops = np.array([1e11, 1e13])
        thetas = np.vstack([member.theta, member.draws[:5]])
        found = optimal_log_params(renamed, thetas, rule, flops)
        np.testing.assert_allclose(found, optimal_log_params(member, thetas, rule, flops), atol=1e-3)


def test_parabolas_find_optima_and_exponent_of_a_smooth_surface(noiseless):
    runs, rule, _ = noiseless
    curves, draws, skipped = isoflops(runs, rule)
    assert [curve.flops for curve in curves] == pytest.approx(list(BUDGETS))
    assert not skipped
    for curve in curves:
        assert curve.bracketed
        assert curve.params_opt.value == pytest.approx(optimal_params(curve.flops), rel=0.1)
        assert curve.loss_min == pytest.approx(curve.loss.min(), rel=5e-3)
        np.testing.assert_allclose(6 * curve.params_opt.value * curve.tokens_opt, curve.flops, rtol=1e-6)
    allocation = by_isoflops(curves, draws, rule)
    assert allocation.a.value == pytest.approx(EXPONENT, abs=0.02)
    assert allocation.points == len(BUDGETS)


def test_minimum_outside_the_sizes_is_said_with_the_side_to_add_to():
    rule = cost_rule(sweep())
    dense = sweep(sizes=12)
    group = np.array(dense.group) == dense.group[0]
    for side, kept in (("above the largest", slice(0, 5)), ("below the smallest", slice(7, 12))):
        curves, draws, _ = isoflops(dense.take(np.flatnonzero(group)[kept]), rule)
        assert not curves[0].bracketed
        assert curves[0].params_opt is None
        assert side in curves[0].reason
        assert isinstance(by_isoflops(curves, draws, rule), Skipped)


def test_budgets_without_labels_are_found_by_their_flops():
    labelled = sweep()
    plain = as_runs(labelled.params, labelled.tokens, labelled.loss)
    wobble = np.exp(np.random.default_rng(0).uniform(-0.02, 0.02, len(plain)))
    curves, _, _ = isoflops(
        as_runs(plain.params, plain.tokens, plain.loss, flops=plain.flops * wobble), cost_rule(plain)
    )
    assert [len(curve.run_ids) for curve in curves] == [6] * len(BUDGETS)


def test_a_group_that_is_no_budget_is_skipped_with_its_reason():
    runs = sweep()
    ladder = as_runs(runs.params, runs.tokens, runs.loss, group=["ladder"] * len(runs))
    curves, _, skipped = isoflops(ladder, cost_rule(runs))
    assert not curves
    assert "differ by 10x" in skipped[0].reason
    few = sweep(sizes=3)
    assert all("it has 3 sizes" in item.reason for item in isoflops(few, cost_rule(few))[2])


def test_groups_that_were_never_meant_as_budgets_are_no_problem_each():
    params, tokens = (x.ravel() for x in np.meshgrid(np.geomspace(1e4, 1e6, 5), np.geomspace(1e6, 1e8, 4)))
    loss = true_loss(params, tokens)
    for group in (["product"] * 20, [f"size {n:.0f}" for n in params], [f"data {d:.0f}" for d in tokens]):
        runs = as_runs(params, tokens, loss, group=group)
        curves, draws, skipped = isoflops(runs, cost_rule(runs))
        assert not curves and not skipped
        assert "no group of runs is a budget of 4 sizes" in by_isoflops(curves, draws, cost_rule(runs)).reason


def test_envelope_is_what_no_cheaper_run_beats():
    runs = as_runs(
        np.array([1.0, 2.0, 1.0, 3.0, 2.0]),
        np.ones(5),
        np.array([3.0, 2.5, 2.7, 2.6, 2.0]),
        flops=np.array([1.0, 2, 3, 4, 5]),
    )
    assert envelope(runs).run_ids == ("row 1", "row 2", "row 5")
    for i, flops in enumerate(envelope(runs).flops):
        assert envelope(runs).loss[i] == runs.loss[runs.flops <= flops].min()


def test_envelope_exponent_of_a_dense_sweep():
    found = by_envelope(sweep(sizes=40))
    assert isinstance(found, Allocation)
    assert found.a.value == pytest.approx(EXPONENT, abs=0.05)
    one_size = sweep().take(np.arange(3))
    assert isinstance(by_envelope(as_runs(np.ones(3), one_size.tokens, one_size.loss)), Skipped)


def test_envelope_keeps_the_best_run_of_a_budget_whatever_the_rounding_of_its_flops():
    runs = as_runs(
        np.array([1.0, 2.0, 3.0, 1.0, 2.0]),
        np.ones(5),
        np.array([3.0, 2.8, 2.9, 2.7, 2.5]),
        flops=np.array([0.97, 1.0, 1.03, 1.97, 2.03]),
    )
    assert envelope(runs).run_ids == ("row 2", "row 5")


def test_bands_hold_their_line_and_widen_away_from_the_budgets():
    runs = sweep(noise=0.003, sizes=40)
    rule = cost_rule(runs)
    for found in (by_envelope(runs), by_isoflops(*isoflops(runs, rule)[:2], rule)):
        band, middle = found.band, found.params_at(found.band.flops)
        assert (band.params_lo < band.params_hi).all() and (band.tokens_lo < band.tokens_hi).all()
        assert np.mean((band.params_lo <= middle) & (middle <= band.params_hi)) > 0.9
        width = np.log(band.params_hi / band.params_lo)
        assert width[-1] > 2 * width.min()


def test_a_band_without_spread_is_the_line_and_tokens_follow_from_the_draws():
    flops = np.array([1e18, 1e19, 1e20])
    log_n = np.tile(0.5 * np.log(flops) - 1, (7, 1))
    band = line_band(flops, log_n, np.log(flops / 6) - log_n)
    assert band.flops[[0, -1]] == pytest.approx([1e18, 1e22])
    assert band.params_lo == pytest.approx(np.exp(0.5 * np.log(band.flops) - 1), rel=1e-9)
    assert band.params_hi == pytest.approx(band.params_lo, rel=1e-9)
    assert band.tokens_hi * band.params_lo == pytest.approx(band.flops / 6, rel=1e-9)
