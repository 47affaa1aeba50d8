"""Bootstrap, ensemble, rollouts, verdict: coverage and limits on sweeps whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from analysis_helpers import BUDGETS, optimal_params, sweep, target, true_loss

from analysis.ensemble import fit_members, forecast
from analysis.fitting import as_problem, fit_law
from analysis.laws import COUPLED, SEPARABLE
from analysis.prediction import frontier, model, optimal_range, predict, spots
from analysis.resample import cluster_weights, estimate, refit
from analysis.rollout import TYPICAL_SCALE, budgets, calibrate, cuts, roll, weigh
from analysis.table import as_runs
from analysis.values import Target, Verdict

NOISE = 0.004


@pytest.fixture(scope="module")
def known():
    return model(sweep(NOISE), resamples=200)


# --- resampling -----------------------------------------------------------------------------------


def test_clusters_are_drawn_whole():
    runs = sweep()
    clustered = replace(runs, cluster=tuple(f"size {i % 10}" for i in range(len(runs))))
    weights = cluster_weights(clustered, 6, resamples=50, seed=1)
    for cluster in range(10):
        assert (np.ptp(weights[:, cluster::10], axis=1) == 0).all()
    assert (weights.sum(axis=1) == len(runs)).all()


def test_every_resample_can_carry_the_fit_also_where_clusters_are_few():
    runs = sweep(sizes=4).take(np.arange(8))
    three = replace(runs, cluster=("a", "b", "c", "a", "b", "c", "a", "b"))
    weights = cluster_weights(three, 6, resamples=200, seed=1)
    assert ((weights > 0).sum(axis=1) >= 6).all()
    with pytest.raises(ValueError, match="9 distinct runs; there are 8"):
        cluster_weights(three, 9, resamples=1, seed=1)


def test_the_same_seed_draws_the_same_and_another_does_not():
    runs = sweep()
    first, again, other = (cluster_weights(runs, 6, 20, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_refit_is_the_fit_of_its_resample():
    runs = sweep(NOISE)
    problem, theta = as_problem(SEPARABLE, runs), fit_law(SEPARABLE, runs)[1]
    weights = cluster_weights(runs, 6, 3, seed=4)
    drawn = refit(problem, theta, weights)
    np.testing.assert_allclose(refit(problem, theta, np.ones((1, len(runs))))[0], theta, rtol=1e-6)
    for weight, resampled in zip(weights, drawn, strict=True):
        fit, *_ = fit_law(SEPARABLE, runs.take(np.repeat(np.arange(len(runs)), weight.astype(int))))
        natural = SEPARABLE.natural(resampled[None], problem.centre)[0]
        assert natural[[0, 3, 4]] == pytest.approx([fit.values[n] for n in ("E", "alpha", "beta")], rel=1e-3)


def test_estimates_survive_factors_whose_square_overflows():
    found = estimate(1e200, 1e200 * np.array([0.5, 1.0, 1.5]))
    assert found.se == pytest.approx(5e199)


# --- rollouts and the ensemble ------------------------------------------------------------------------


def test_cuts_lie_between_budgets_and_leave_two_to_begin_with():
    runs = sweep()
    assert len(budgets(runs.flops)) == len(BUDGETS)
    assert cuts(runs) == pytest.approx(BUDGETS[1:-1])


def test_cuts_of_a_cloud_of_runs_are_quantiles():
    generator = np.random.default_rng(0)
    params, tokens = np.exp(generator.uniform(10, 14, 60)), np.exp(generator.uniform(15, 19, 60))
    runs = as_runs(params, tokens, true_loss(params, tokens))
    found = cuts(runs)
    assert 3 <= len(found) <= 5
    shares = [np.mean(runs.flops <= cut) for cut in found]
    assert 0.3 <= min(shares) and max(shares) < 1


def test_a_rollout_never_sees_what_it_predicts():
    runs = sweep(NOISE)
    wild = runs.loss.copy()
    dearest = runs.flops > BUDGETS[-2] * 1.05
    wild[dearest] *= 3
    for before, after in zip(roll(runs), roll(replace(runs, loss=wild)), strict=True):
        assert before.n_fit == np.sum(runs.flops <= before.cut_flops * (1 + 1e-12))
        np.testing.assert_array_equal(before.members[0].theta, after.members[0].theta)
        assert before.dearer.flops.min() > before.cut_flops


def test_the_law_that_extrapolates_better_gets_the_weight():
    # A strongly coupled truth, which the separable law cannot follow.
    params, tokens = sweep(sizes=8).params, sweep(sizes=8).tokens
    loss = 0.9 + (60 / params**0.9 * 30 + 9000 / tokens**0.8) ** 0.35
    weights = weigh(roll(as_runs(params, tokens, loss), (SEPARABLE, COUPLED)), ("separable", "coupled"))
    assert weights["coupled"] > 0.8
    assert sum(weights.values()) == pytest.approx(1)
    assert weigh((), ("separable", "coupled")) == {"separable": 0.5, "coupled": 0.5}


def test_without_rollouts_the_scale_is_what_is_typical():
    calibration, rows = calibrate(())
    assert (calibration.scale, calibration.cuts, rows) == (TYPICAL_SCALE, 0, ())


def test_misses_inside_the_sweep_widen_the_interval():
    runs = sweep(NOISE)
    bent = replace(runs, loss=runs.loss * np.where(runs.flops > BUDGETS[2] * 1.05, 1.05, 1.0))
    calm, missed = calibrate(roll(runs))[0], calibrate(roll(bent))[0]
    assert missed.scale > 3 * calm.scale


def test_a_forecast_of_one_member_is_that_member_and_two_that_differ_widen_it():
    members, _ = fit_members(sweep(NOISE), (SEPARABLE, COUPLED), resamples=0)
    spot = spots([target()])
    alone, both = (forecast(members, w, spot) for w in ({"separable": 1.0}, {"separable": 0.5, "coupled": 0.5}))
    assert alone.log_loss == pytest.approx(alone.by_law["separable"])
    assert alone.laws == pytest.approx(0)
    assert set(alone.by_law) == {"separable", "coupled", "shrunk"}
    assert both.laws == pytest.approx((both.by_law["separable"] - both.by_law["coupled"]) ** 2 / 4)


def test_farther_targets_have_wider_intervals(known):
    widths = [predict(known, target(C), "").half_width_pct for C in (1e12, 1e13, 1e14)]
    assert widths[0] < widths[1] < widths[2]


# --- the prediction -----------------------------------------------------------------------------------


def test_without_noise_the_target_is_predicted_exactly():
    spot = target()
    prediction = predict(model(sweep(), resamples=50), spot, "")
    assert prediction.by_law["coupled"] == pytest.approx(float(true_loss(spot.params, spot.tokens)), rel=1e-4)
    assert prediction.loss == pytest.approx(prediction.by_law["coupled"], rel=1e-3)


def outcomes(seeds: range) -> tuple[list[bool], list[float], list[float]]:
    """Over noisy sweeps: whether a new run at the target fell inside, its error, and the width."""
    spot = target()
    inside, errors, widths = [], [], []
    for seed in seeds:
        prediction = predict(model(sweep(NOISE, seed), resamples=100), spot, "")
        noise = NOISE * np.random.default_rng(1000 + seed).standard_normal()
        new = float(true_loss(spot.params, spot.tokens)) * np.exp(noise)
        inside.append(prediction.lo90 <= new <= prediction.hi90)
        errors.append(abs(prediction.loss / new - 1))
        widths.append(prediction.hi90 / prediction.lo90 - 1)
    return inside, errors, widths


def test_three_noisy_sweeps_each_predict_their_target():
    inside, errors, widths = outcomes(range(3))
    assert all(inside)
    assert max(errors) < 0.04
    assert max(widths) < 0.20


@pytest.mark.slow
def test_intervals_hold_as_often_as_they_say():
    inside, errors, widths = outcomes(range(40))
    assert sum(inside) >= 32  # at a true 90%, fewer has a probability of 4%
    assert np.median(errors) < 0.02
    assert np.median(widths) < 0.10


def test_prediction_is_the_same_each_time(known):
    assert predict(known, target(), "", created="t") == predict(known, target(), "", created="t")
    again = model(sweep(NOISE), resamples=200)
    assert predict(again, target(), "", created="t") == predict(known, target(), "", created="t")


def test_weights_and_spread_are_told(known):
    prediction = predict(known, target(), "")
    assert sum(prediction.weights.values()) == pytest.approx(1)
    assert prediction.lo90 < prediction.loss < prediction.hi90
    assert prediction.spread["noise"] == pytest.approx(NOISE, rel=0.5)
    assert set(prediction.spread) == {"parameters", "discrepancy", "laws", "noise", "rollouts"}
    assert set(prediction.by_law) >= {"separable", "coupled"}


def test_optimal_range_holds_the_true_optimum_without_noise():
    params, lo, hi = optimal_range(model(sweep(), resamples=50), 1e13)
    assert params == pytest.approx(optimal_params(1e13), rel=0.1)
    assert lo <= params <= hi


def test_frontier_runs_along_the_optimum(known):
    found = frontier(known, 1e13)
    assert found.flops[0] == pytest.approx(BUDGETS[0]) and found.flops[-1] == pytest.approx(1e13)
    np.testing.assert_allclose(6 * found.params * found.tokens, found.flops, rtol=1e-6)
    assert (np.diff(found.loss) < 0).all()
    assert ((found.lo90 < found.loss) & (found.loss < found.hi90)).all()


# --- the verdict --------------------------------------------------------------------------------------


def test_a_clean_sweep_and_a_tenfold_target_are_supported(known):
    prediction = predict(known, target(1e13), "")
    assert prediction.verdict == Verdict.SUPPORTED, prediction.reasons
    assert "backtests" in prediction.reasons[-1]


@pytest.mark.parametrize("flops, verdict", [(5e13, Verdict.WEAK), (1e15, Verdict.NOT_SUPPORTED)])
def test_distance_weakens_and_then_forbids(known, flops, verdict):
    prediction = predict(known, target(flops), "")
    assert prediction.verdict == verdict
    assert any("the dearest run fitted" in reason for reason in prediction.reasons)


def test_sizes_and_tokens_that_never_vary_apart_are_told():
    params = np.geomspace(1e4, 1e6, 12)
    tokens = 20 * params
    known = model(as_runs(params, tokens, true_loss(params, tokens)), resamples=30)
    on_line = predict(known, Target(3e6, 6e7, 6 * 3e6 * 6e7), "")
    off_line = predict(known, Target(1e6, 3e8, 6 * 1e6 * 3e8), "")
    assert on_line.verdict != Verdict.SUPPORTED and any("on that line" in r for r in on_line.reasons)
    assert off_line.verdict == Verdict.NOT_SUPPORTED and any("off that line" in r for r in off_line.reasons)


def test_two_budgets_support_nothing():
    runs = sweep(NOISE)
    two = runs.take(runs.flops < BUDGETS[1] * 1.05)
    prediction = predict(model(two, resamples=30), target(2e12), "")
    assert prediction.verdict == Verdict.NOT_SUPPORTED
    assert any("2 cost levels" in reason for reason in prediction.reasons)
    assert any("untested" in reason for reason in prediction.reasons)


def test_optima_that_no_size_brackets_are_told():
    runs = sweep(NOISE, sizes=12)
    mean = {C: optimal_params(C) for C in BUDGETS}
    small = np.array(
        [
            n < 0.9 * min(mean.items(), key=lambda m: abs(np.log(m[0] / c)))[1]
            for n, c in zip(runs.params, runs.flops, strict=True)
        ]
    )
    prediction = predict(model(runs.take(small), resamples=30), target(), "")
    assert prediction.verdict != Verdict.SUPPORTED
    assert any("not bracketed" in reason for reason in prediction.reasons)


def test_far_from_the_tokens_a_parameter_that_were_run(known):
    spot = Target(2e3, 1e13 / 6 / 2e3, 1e13)
    assert any("tokens a parameter" in reason for reason in predict(known, spot, "").reasons)


def test_no_runs_and_too_few_runs_are_refused_in_words():
    with pytest.raises(ValueError, match="every row was excluded"):
        model(sweep().take(np.array([], dtype=int)))
    with pytest.raises(ValueError, match="needs at least 7 runs"):
        model(sweep().take(np.arange(4)))


def test_laws_that_do_not_predict_change_no_prediction_where_they_are_not_rolled_out():
    runs = sweep(NOISE)
    every, alone = model(runs, resamples=20), model(runs, rolled=(), resamples=20)
    assert {row.law for row in alone.backtests} == {"shrunk", "combined"} < {row.law for row in every.backtests}
    one, other = (predict(known, target(), "", created="") for known in (every, alone))
    assert (one.loss, one.lo90, one.verdict) == (other.loss, other.lo90, other.verdict)
