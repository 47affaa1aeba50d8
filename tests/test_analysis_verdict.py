"""Each check of the verdict: silent on a sound sweep, heard where its trouble was planted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from analysis_helpers import BUDGETS, optimal_params, sweep, target, true_loss

from analysis.allocate import cost_rule, isoflops
from analysis.fitting import fit_law
from analysis.laws import SEPARABLE, SHRUNK, Law
from analysis.patterns import trend
from analysis.prediction import model, predict
from analysis.rollout import in_budgets
from analysis.table import as_runs
from analysis.values import ByConvention, Convention, Runs, Status, Target, Verdict
from analysis.verdict import CHECKS, Evidence, judge
from analysis.windows import planned_budgets

NOISE = 0.004


def evidence(runs: Runs, law: Law = SHRUNK, half_width: float = 0.01, **changes) -> Evidence:
    fit, theta, problem = fit_law(law, runs)
    spot = target()
    usual = {
        "runs": runs,
        "fits": {law.name: fit},
        "weights": {law.name: 1.0},
        "by_law": {law.name: 1.3},
        "loss": 1.3,
        "half_width": half_width,
        "scale": 1.0,
        "backtests": (),
        "isoflops": (),
        "target": spot,
        "slopes": {law.name: law.evaluate(theta[None], problem.X)[1][0]},
    }
    return Evidence(**{**usual, **changes})


def found(e: Evidence, check: str) -> list[tuple[Verdict, str]]:
    return list(next(c for c in CHECKS if c.__name__ == check)(e))


def reasons(e: Evidence) -> str:
    return "; ".join(judge(e)[1])


# --- residuals with structure -------------------------------------------------------------------------


def test_residuals_of_the_right_law_have_no_pattern():
    """At a chance of 1% each, two tests over 20 sweeps find 0.4 patterns on average, 3 or more in 0.8%."""
    many = [evidence(sweep(NOISE, seed), half_width=0.0) for seed in range(20)]
    assert sum(len(found(e, "_patterns")) for e in many) <= 2
    assert sum(len(found(e, "_dear_end")) for e in many) <= 2


def test_a_law_of_the_wrong_form_leaves_a_pattern_which_a_wide_interval_holds():
    runs = sweep(sizes=8)
    loss = 0.9 + (60 / runs.params**0.9 * 30 + 9000 / runs.tokens**0.8) ** 0.35
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(len(runs)))
    strongly_coupled = as_runs(runs.params, runs.tokens, loss * noise)
    narrow = found(evidence(strongly_coupled, SEPARABLE, half_width=0.005), "_patterns")
    assert {verdict for verdict, _ in narrow} == {Verdict.WEAK}
    assert any("tokens a parameter" in reason for _, reason in narrow)
    assert not found(evidence(strongly_coupled, SEPARABLE, half_width=0.05), "_patterns")
    assert not found(evidence(strongly_coupled, SHRUNK, half_width=0.005), "_patterns")


def test_one_wild_run_is_notrend():
    runs = sweep(NOISE, sizes=8)
    wild = runs.loss.copy()
    wild[-1] *= 3
    assert not found(evidence(replace(runs, loss=wild), half_width=0.0), "_patterns")


def test_the_trend_test_sees_a_trend_and_not_the_luck_of_a_few_clusters():
    generator = np.random.default_rng(3)
    x = np.linspace(-1, 1, 200)
    base, columns = np.ones((200, 1)), np.column_stack([x, x * x])
    own = tuple(f"run {i}" for i in range(200))
    noise = 0.01 * generator.standard_normal(200)
    chance, size = trend(noise + 0.01 * x, base, columns, own)
    assert chance == pytest.approx(1 / 1000) and size == pytest.approx(0.01 / np.sqrt(3), rel=0.2)
    # What each of 5 clusters shares looks like a trend to 200 rows, and is one of 32 patterns of signs.
    fifths = np.repeat(np.arange(5), 40)
    shared = 0.01 * generator.standard_normal(5)[fifths] + 0.001 * generator.standard_normal(200)
    few = tuple(f"cluster {i}" for i in fifths)
    assert trend(shared, base, columns, own)[0] < 0.01 < 1 / 32 < trend(shared, base, columns, few)[0]


def test_what_the_law_itself_can_take_up_is_no_trend():
    x = np.linspace(-1, 1, 30)
    columns = np.column_stack([x, x * x])
    base = np.column_stack([np.ones(30), 1e6 * x, 1e-6 * x * x])
    residuals = np.random.default_rng(0).standard_normal(30)
    assert trend(residuals, base, columns, tuple(map(str, range(30)))) == (1.0, 0.0)


def test_chances_are_uniform_under_the_null():
    generator = np.random.default_rng(0)
    x = np.linspace(-1, 1, 40)
    base, columns = np.ones((40, 1)), np.column_stack([x, x * x])
    own = tuple(map(str, range(40)))
    chances = [trend(generator.standard_normal(40), base, columns, own)[0] for _ in range(200)]
    for level in (0.1, 0.5):
        assert np.mean(np.array(chances) <= level) == pytest.approx(
            level, abs=3 * np.sqrt(level * (1 - level) / 200)
        )


def test_a_dear_end_beside_the_law_is_told_with_its_side():
    runs = sweep(0.001, sizes=8)
    e = evidence(runs)
    fit = e.fits["shrunk"]
    dear = runs.flops > BUDGETS[-1] * 0.99
    for sign, side in ((1, "above"), (-1, "below")):
        moved = replace(fit, log_residuals=fit.log_residuals + sign * 0.006 * dear)
        (told,) = found(replace(e, fits={"shrunk": moved}), "_dear_end")
        assert told[0] == Verdict.WEAK and "the dearest 8 runs lie 0." in told[1]
        assert f"{side} the shrunk law" in told[1]
        assert not found(replace(e, fits={"shrunk": moved}, half_width=0.05), "_dear_end")


# --- levels and ratios --------------------------------------------------------------------------------


def test_a_dense_cloud_counts_for_the_range_it_covers():
    generator = np.random.default_rng(0)
    params, tokens = np.exp(generator.uniform(10, 14, 300)), np.exp(generator.uniform(15, 19, 300))
    cloud = evidence(as_runs(params, tokens, true_loss(params, tokens)))
    assert not found(cloud, "_levels") and not found(cloud, "_collinear")


@pytest.mark.parametrize("levels, verdict", [(2, Verdict.NOT_SUPPORTED), (3, Verdict.WEAK), (4, None)])
def test_few_cost_levels(levels, verdict):
    runs = sweep(NOISE)
    told = found(evidence(runs.take(runs.flops < BUDGETS[levels - 1] * 1.05)), "_levels")
    assert [found for found, _ in told] == ([verdict] if verdict else [])


@pytest.mark.parametrize("ratios, count", [((20,), 1), ((10, 40), 1), ((10, 20, 40), 0)])
def test_few_levels_of_tokens_a_parameter(ratios, count):
    sizes = np.geomspace(1e4, 1e6, 12)
    params = np.concatenate([sizes for _ in ratios])
    tokens = np.concatenate([ratio * sizes for ratio in ratios])
    assert len(found(evidence(as_runs(params, tokens, true_loss(params, tokens))), "_collinear")) == count


# --- brackets -------------------------------------------------------------------------------------------


def test_curves_of_planned_budgets_are_judged_and_chance_meetings_are_not():
    runs = sweep(NOISE, sizes=8)
    rule = cost_rule(runs)
    small = runs.params < np.array([optimal_params(C) for C in BUDGETS])[np.repeat(np.arange(5), 8)] * 1.01
    one_sided = runs.take(small)
    e = evidence(one_sided, isoflops=isoflops(one_sided, rule)[0])
    assert "not bracketed in" in found(e, "_brackets")[0][1]
    plain = replace(one_sided, group=("",) * len(one_sided))  # budgets still stand in tight groups
    assert found(replace(e, runs=plain), "_brackets")
    cloud = replace(plain, flops=plain.flops * np.exp(np.linspace(0, 2, len(plain))))
    assert not found(replace(e, runs=cloud), "_brackets")


def test_sizes_crossed_with_token_counts_are_no_budgets_even_where_costs_meet():
    params, tokens = (a.ravel() for a in np.meshgrid(1e4 * 2.0 ** np.arange(7), 1e7 * 2.0 ** np.arange(6)))
    crossed = as_runs(params, tokens, true_loss(params, tokens))
    assert in_budgets(crossed) and not planned_budgets(crossed)
    curves = isoflops(crossed, cost_rule(crossed))[0]
    assert not all(curve.bracketed for curve in curves)
    assert not found(evidence(crossed, isoflops=curves), "_brackets")
    # Budgets on the same lattice of sizes and token counts are.
    sizes, budgets = (a.ravel() for a in np.meshgrid(1e5 * 2.0 ** np.arange(7), 1e13 * 4.0 ** np.arange(6)))
    assert planned_budgets(as_runs(sizes, budgets / sizes, true_loss(sizes, budgets / sizes)))


def test_a_budget_whose_noise_hides_its_minimum_is_bracketed_where_the_law_says_so():
    runs = sweep(NOISE, sizes=8)
    rule = cost_rule(runs)
    noisy = runs.loss.copy()
    noisy[:8] *= np.exp(-0.04 * np.arange(8))  # the cheapest budget alone falls to its largest size
    curves = isoflops(replace(runs, loss=noisy), rule)[0]
    assert [curve.bracketed for curve in curves] == [False, True, True, True, True]
    e = evidence(replace(runs, loss=noisy), isoflops=curves)
    assert "in 1 of 5 budgets" in found(e, "_brackets")[0][1]
    assert not found(replace(e, optima=[optimal_params(C) for C in BUDGETS]), "_brackets")
    assert found(replace(e, optima=[2 * curve.params[-1] for curve in curves]), "_brackets")


def test_an_optimum_on_one_side_of_all_runs_near_the_dear_end_is_told():
    generator = np.random.default_rng(0)
    params, tokens = np.exp(generator.uniform(10, 14, 60)), np.exp(generator.uniform(15, 19, 60))
    cloud = evidence(as_runs(params, tokens, true_loss(params, tokens)))
    ratios = (tokens / params)[cloud.runs.flops > cloud.runs.flops.max() / 10]
    assert ratios.max() < (tokens / params).max()
    assert not found(replace(cloud, optimal_ratio=float(np.median(ratios))), "_brackets")
    ((verdict, reason),) = found(replace(cloud, optimal_ratio=1.01 * ratios.max()), "_brackets")
    assert verdict == Verdict.WEAK and "tokens a parameter; those run within a factor of 10" in reason


def test_trunks_around_the_optimal_ratio_are_sound_and_those_above_it_are_not():
    """The dearest run of such a design is its largest size trained longest: the optimal size at its cost was
    not run, and the optimal ratio was."""
    sizes = np.array([optimal_params(C) for C in np.geomspace(1e11, 1e13, 8)])
    data = np.geomspace(1e11, 1e13, 8) / 6 / sizes
    for factors, sound in ((np.geomspace(0.25, 4, 6), True), (np.geomspace(3, 30, 6), False)):
        params, tokens = np.repeat(sizes, 6), np.outer(data, factors).ravel()
        loss = true_loss(params, tokens) * np.exp(NOISE * np.random.default_rng(0).standard_normal(48))
        flops = 10 * float(6 * np.max(params * tokens))
        best = optimal_params(flops)
        spot = Target(best, flops / 6 / best, flops)
        said = predict(model(as_runs(params, tokens, loss), resamples=50), spot, "")
        assert any("compute-optimal run at" in reason for reason in said.reasons) != sound
        assert (said.verdict is Verdict.SUPPORTED) == sound


# --- disagreement, conventions, decays ------------------------------------------------------------------


def test_only_laws_that_fit_as_well_are_heard_against_the_prediction():
    e = evidence(sweep(NOISE))
    fit = e.fits["shrunk"]
    for fits, heard in (
        ({"other": replace(fit, law="other")}, True),
        ({"other": replace(fit, law="other", log_residuals=3 * fit.log_residuals)}, False),
        ({"other": replace(fit, law="other", status=Status.NOT_CONVERGED)}, False),
        ({"other": replace(fit, law="other", status=Status.AT_BOUND)}, False),
    ):
        against = replace(e, fits={**e.fits, **fits}, by_law={"shrunk": 1.3, "other": 1.5})
        assert bool(found(against, "_agreement")) == heard


def test_a_convention_that_moves_the_prediction_out_of_its_interval_is_told():
    own, other = (
        Convention("n_params", "6·N·D", True, 1e6, "as given", 1.30, 0.5),
        Convention("n_params_no_embed", "6·N·D", False, 8e5, "interpolated over the runs", 1.34, 0.6),
    )
    said = ByConvention("shrunk", target(), (own, other), ())
    assert said.a_range == (0.5, 0.6)
    ((verdict, reason),) = found(evidence(sweep(), half_width=0.02, conventions=said), "_conventions")
    assert verdict == Verdict.WEAK and "1.3400 by n_params_no_embed" in reason
    assert not found(evidence(sweep(), half_width=0.04, conventions=said), "_conventions")


def test_losses_read_before_the_end_of_a_schedule_are_told():
    runs = sweep(NOISE)
    decayed = np.ones(len(runs))
    assert not found(evidence(replace(runs, decayed=decayed)), "_decays")
    decayed[:7] = 0.0
    decayed[7] = np.nan
    ((verdict, reason),) = found(evidence(replace(runs, decayed=decayed)), "_decays")
    assert verdict == Verdict.WEAK and f"7 of {len(runs)} losses" in reason


def test_what_looks_like_checkpoints_is_a_note_unless_the_table_says_better():
    sizes = np.geomspace(1e4, 1e6, 6)
    params, tokens = np.repeat(sizes, 10), np.tile(np.arange(1, 11) * 1e7, 6)
    runs = as_runs(params, tokens, true_loss(params, tokens))
    assert "60 of 60 rows look like checkpoints" in reasons(evidence(runs))
    assert "checkpoints" not in reasons(evidence(replace(runs, decayed=np.ones(60))))
    assert "checkpoints" not in reasons(evidence(sweep(NOISE)))
    spread = as_runs(params, np.tile(np.geomspace(1e7, 1e8, 10), 6), runs.loss)
    assert "checkpoints" not in reasons(evidence(spread))


# --- the whole -----------------------------------------------------------------------------------------


def test_the_worst_finding_decides_and_comes_first_and_what_speaks_for_it_last():
    e = evidence(sweep(NOISE), half_width=0.3, scale=9.0)
    verdict, said = judge(e)
    assert verdict == Verdict.NOT_SUPPORTED and "nothing to bet on" in said[0]
    e = evidence(sweep(NOISE), half_width=0.001, by_law={"shrunk": 1.3})
    weak = {reason for _, reason in found(e, "_rollouts")}
    assert judge(e) == (Verdict.WEAK, tuple(weak))


def test_a_wide_interval_comes_with_the_runs_that_would_narrow_it():
    e = evidence(sweep(NOISE), half_width=0.06)
    assert "runs that would help most: " in reasons(e)
    assert "runs that would help most" not in reasons(replace(e, half_width=0.01))


def test_too_few_runs_are_refused_with_those_that_would_help_most():
    with pytest.raises(ValueError, match=r"needs at least 7 runs.*The runs that would help most: N=.*FLOPs"):
        model(sweep().take(np.arange(4)))


def test_findings_of_a_whole_model_use_its_conventions():
    runs = sweep(NOISE)
    absurd = runs.params * np.exp(np.random.default_rng(1).uniform(-1.5, 1.5, len(runs)))
    told = replace(runs, params_columns={"N": runs.params, "shuffled": absurd})
    known = model(told, resamples=50)
    assert [fit.params for fit in known.conventions.fits] == ["N", "shuffled"]
    prediction = predict(known, target(), "")
    assert prediction.verdict != Verdict.SUPPORTED
    assert any("what N counts" in reason for reason in prediction.reasons)
    assert predict(model(runs, resamples=50), target(), "").verdict == Verdict.SUPPORTED


def test_a_target_off_the_line_of_a_collinear_sweep_gets_runs_off_the_line():
    params = np.geomspace(1e4, 1e6, 12)
    e = evidence(as_runs(params, 20 * params, true_loss(params, 20 * params)))
    off = replace(e, target=Target(1e6, 3e8, 1.8e15))
    assert judge(off)[0] == Verdict.NOT_SUPPORTED
    assert "runs that would help most" in reasons(off)
