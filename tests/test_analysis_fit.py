"""Penalties, weights, basins and resamples; and what has been published of public tables."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from analysis.fitting import DELTA, as_problem, fit_law, noise_weights, solve
from analysis.laws import COUPLED, KAPLAN_PARAMS, LAWS, REPEATED, SEPARABLE, SHRUNK
from analysis.optimum import condition, polish
from analysis.penalty import huber, penalty
from analysis.resample import cluster_weights, refit
from analysis.store import as_json
from analysis.table import as_runs, read_table
from analysis.values import Status

DATA = Path(os.environ.get("SCALING_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
TRUTH = {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.31}


def sweep(noise: float = 0.01, seed: int = 0, heavy: bool = False):
    """Seven sizes by six token counts; `heavy` noise is Student t with 2 degrees of freedom."""
    params, tokens = (g.ravel() for g in np.meshgrid(np.geomspace(1e6, 1e9, 7), np.geomspace(1e8, 1e11, 6)))
    generator = np.random.default_rng(seed)
    wobble = generator.standard_t(2, len(params)) if heavy else generator.standard_normal(len(params))
    return as_runs(
        params, tokens, SEPARABLE.loss_at(TRUTH, params=params, tokens=tokens) * np.exp(noise * wobble)
    )


def predict(law, fit):
    return float(law.loss_at(fit.values, params=1e11, tokens=1e12))


# --- penalties ------------------------------------------------------------------------------------


def test_least_squares_is_the_limit_of_a_soft_knee():
    runs = sweep()
    square, soft = fit_law(SEPARABLE, runs, loss="least_squares")[0], fit_law(SEPARABLE, runs, delta=1e6)[0]
    assert square.objective == pytest.approx(float(np.sum(square.log_residuals**2) / 2), rel=1e-12)
    assert predict(SEPARABLE, square) == pytest.approx(predict(SEPARABLE, soft), rel=1e-9)
    assert square.delta == np.inf


def test_an_even_tau_is_hubers_penalty():
    runs = sweep(heavy=True)
    even, plain = fit_law(SEPARABLE, runs, loss="asymmetric", tau=0.5)[0], fit_law(SEPARABLE, runs)[0]
    assert even.objective == pytest.approx(plain.objective, rel=1e-12)


@pytest.mark.parametrize("tau", [0.1, 0.25, 0.75])
def test_a_fit_with_a_hard_knee_leaves_about_tau_of_the_runs_below_it(tau):
    runs = sweep(noise=0.05)
    fit, *_ = fit_law(SEPARABLE, runs, loss="asymmetric", tau=tau)
    assert np.mean(fit.log_residuals < 0) == pytest.approx(tau, abs=0.1)
    assert fit.status != Status.NOT_CONVERGED


def test_a_soft_asymmetric_fit_balances_both_sides_as_expectiles_do():
    """At the tau-expectile, tau times the misses above equals (1 - tau) times those below."""
    runs = as_runs(np.geomspace(1e6, 1e9, 9), np.full(9, 1e9), 3 + np.random.default_rng(1).uniform(0, 1, 9))
    fit, *_ = fit_law(KAPLAN_PARAMS, runs, loss="asymmetric", delta=1e3, tau=0.2)
    above, below = np.maximum(fit.log_residuals, 0), np.maximum(-fit.log_residuals, 0)
    assert 0.2 * above.sum() == pytest.approx(0.8 * below.sum(), rel=1e-6)


def test_the_penalty_and_its_derivative_agree():
    residual = np.linspace(-0.003, 0.003, 61) + 1e-5
    for tau in (0.5, 0.2):
        slope = (penalty(residual + 1e-9, DELTA, tau) - penalty(residual - 1e-9, DELTA, tau)) / 2e-9
        side = np.where(residual < 0, 2 * tau, 2 * (1 - tau))
        np.testing.assert_allclose(slope, side * huber(residual, DELTA)[1], atol=2e-9)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"loss": "absolute"}, "no penalty 'absolute'; wanted one of huber, least_squares, asymmetric"),
        ({"loss": "least_squares", "delta": 0.1}, "has no knee, but delta=0.1"),
        ({"tau": 0.3}, "'huber' has no tau, but tau=0.3"),
        ({"loss": "asymmetric", "tau": 1.0}, "wanted tau between 0 and 1"),
        ({"delta": 0.0}, "delta above 0"),
        ({"weights": np.ones(3)}, "wanted 42 finite weights"),
        ({"weights": np.full(42, -1.0)}, "weights of 0 or more"),
        ({"weights": np.eye(42)[0]}, "at least 6 runs.*there are 1"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        fit_law(SEPARABLE, sweep(), **options)


# --- weights and standard errors --------------------------------------------------------------------


@pytest.mark.parametrize("law", [SEPARABLE, COUPLED])
def test_a_weight_is_a_number_of_runs(law):
    runs, count = sweep(), np.arange(42) % 3
    repeated = runs.take(np.repeat(np.arange(42), count))
    weighted, twice = fit_law(law, runs, weights=count)[0], fit_law(law, repeated)[0]
    assert weighted.objective == pytest.approx(twice.objective, rel=1e-9)
    assert predict(law, weighted) == pytest.approx(predict(law, twice), rel=1e-7)


def test_equal_standard_errors_change_nothing():
    runs = sweep()
    known = replace(runs, loss_se=0.002 * runs.loss)
    np.testing.assert_allclose(fit_law(SEPARABLE, known)[0].weights, 1.0)
    assert predict(SEPARABLE, fit_law(SEPARABLE, known)[0]) == pytest.approx(
        predict(SEPARABLE, fit_law(SEPARABLE, runs)[0]), rel=1e-9
    )


def test_known_standard_errors_make_the_fit_better():
    """Half the runs ten times noisier, and known to be: the error of the prediction falls by a third."""
    errors = []
    for seed in range(12):
        clean, generator = sweep(noise=0.0), np.random.default_rng(seed)
        sd = np.where(generator.permutation(42) < 21, 0.002, 0.02)
        noisy = replace(clean, loss=clean.loss * np.exp(sd * generator.standard_normal(42)))
        known = replace(noisy, loss_se=sd * noisy.loss)
        truth = float(SEPARABLE.loss_at(TRUTH, params=1e11, tokens=1e12))
        errors.append(
            [
                predict(SEPARABLE, fit_law(SEPARABLE, runs, loss="least_squares")[0]) - truth
                for runs in (noisy, known)
            ]
        )
    plain, told = np.sqrt(np.mean(np.square(errors), axis=0))
    assert told < plain * 2 / 3


def test_a_standard_error_that_is_not_known_is_taken_as_typical():
    runs = replace(sweep(), loss_se=np.full(42, np.nan))
    assert noise_weights(runs, np.zeros(42)) is None
    runs.loss_se[:20] = 0.01 * runs.loss[:20]
    runs.loss_se[0] *= 2
    weights = noise_weights(runs, np.full(42, 1e-9))
    np.testing.assert_allclose(weights[1:] / weights[1], 1.0)
    assert weights[0] / weights[1] == pytest.approx(1 / 4)


# --- what a fit says of itself ----------------------------------------------------------------------


def test_an_easy_problem_has_one_basin_and_a_modest_condition():
    fit, theta, problem = fit_law(SEPARABLE, sweep())
    (basin,) = fit.basins
    assert basin.values == pytest.approx(fit.values, rel=1e-4)
    assert basin.starts == fit.starts_at_optimum == fit.starts
    assert fit.share_at_optimum == 1.0
    assert 1 < fit.condition < 1e5
    assert condition(problem, theta) == fit.condition


def test_a_fit_without_a_knee_can_be_written_as_json():
    fit, *_ = fit_law(SEPARABLE, sweep(), loss="least_squares")
    written = json.loads(json.dumps(as_json(fit), allow_nan=False))
    assert written["delta"] is None
    assert written["basins"][0]["values"]["E"] == pytest.approx(fit.values["E"])


def test_two_basins_are_both_told():
    """One wave fitted to the sum of two: either will do, and the slower one does a little better."""

    def evaluate(theta, X):
        a, c = theta[:, :1], theta[:, 1:]
        value = a + 0.05 * np.sin(c * X[:, 0])
        return value, np.stack([np.ones_like(value), 0.05 * X[:, 0] * np.cos(c * X[:, 0])], axis=-1)

    wave = replace(
        KAPLAN_PARAMS,
        name="wave",
        unknowns=("a", "c"),
        evaluate=evaluate,
        start=lambda X, loss, weights: np.array([[0.0, 1.95], [0.0, 5.02], [0.0, 2.03]]),
        natural=lambda theta, centre: theta,
        bounds=lambda loss: (np.array([-9.0, 0.0]), np.array([9.0, 9.0])),
    )
    x = np.linspace(-4, 4, 200)
    loss = np.exp(0.05 * (np.sin(2 * x) + np.sin(5 * x)))
    fit, *_ = fit_law(wave, as_runs(np.exp(x), np.exp(x), loss), delta=1.0)
    assert [round(basin.values["c"]) for basin in fit.basins] == [2, 5]
    assert [basin.starts for basin in fit.basins] == [2, 1]
    assert fit.basins[0].objective == pytest.approx(fit.objective)
    assert 1 < fit.basins[1].objective / fit.basins[0].objective < 1.01


def test_parameters_that_the_runs_do_not_tell_apart_show_in_the_condition():
    """Without a repetition, the worth of one cannot be known."""
    runs = sweep()
    once = replace(runs, unique_tokens=runs.tokens)
    assert fit_law(REPEATED, once)[0].condition > 1e12
    assert fit_law(SEPARABLE, runs)[0].condition < 1e5


def test_the_polished_optimum_is_one_to_rounding():
    runs = sweep(heavy=True)
    fit, theta, problem = fit_law(COUPLED, runs)
    end = polish(problem, theta + 1e-5)
    assert end.gradient[0] < 1e-10
    assert end.objective[0] == pytest.approx(fit.objective, rel=1e-13)
    np.testing.assert_allclose(end.theta[0], theta, atol=1e-9)


@pytest.mark.parametrize("name", ["separable", "coupled", "kaplan", "rosenfeld"])
def test_no_other_solver_finds_a_better_optimum(name):
    """scipy's L-BFGS-B, begun at the optimum and near it, gains nothing."""
    fit, theta, problem = fit_law(LAWS[name], sweep(heavy=True, seed=4))

    def objective(point):
        value, slope = problem.law.evaluate(point[None], problem.X)
        cost, psi = huber(value[0] - problem.log_loss, problem.delta)
        return 1e3 * cost.sum(), 1e3 * (psi @ slope[0])

    for nudge in (0.0, 0.01, -0.03):
        bounds = list(zip(problem.lower, problem.upper, strict=True))
        end = minimize(objective, theta + nudge, jac=True, method="L-BFGS-B", bounds=bounds)
        assert end.fun / 1e3 >= fit.objective * (1 - 1e-9)


# --- resamples ------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [SEPARABLE, COUPLED, SHRUNK], ids=lambda law: law.name)
def test_a_resample_is_solved_as_by_a_fit_of_its_own(law):
    """From one warm start, no worse than from all the law's starts but for one in twenty."""
    runs = sweep(heavy=True)
    _, theta, problem = fit_law(law, runs)
    weights = cluster_weights(replace(runs, cluster=runs.run_id), 7, 40)
    bare = replace(problem, precision=np.zeros(len(theta)))
    draws = refit(bare, theta, weights)
    value, _ = law.evaluate(draws, problem.X)
    reached = (weights * huber(value - problem.log_loss, problem.delta)[0]).sum(axis=1)
    starts = law.start(problem.X, runs.loss, np.ones(len(runs)))
    cold = np.array([solve(bare, starts, one).objective.min() for one in weights])
    assert np.mean(reached > cold * (1 + 1e-6)) <= 0.05


def test_a_resample_of_everything_once_is_the_fit():
    _, theta, problem = fit_law(SEPARABLE, sweep(heavy=True))
    np.testing.assert_allclose(refit(problem, theta, np.ones((3, 42))), np.tile(theta, (3, 1)), atol=1e-9)


# --- published fits ----------------------------------------------------------------------------------


def read(path, **wanted):
    table = DATA / path
    if not table.is_file():
        pytest.skip(f"no public tables in {DATA}")
    with open(table, newline="") as file:
        rows = [row for row in csv.DictReader(file) if all(row[k] == v for k, v in wanted.items())]
    return as_runs(*([float(row[name]) for row in rows] for name in ("n_params", "tokens", "loss")))


@pytest.fixture(scope="module")
def chinchilla():
    """240 points read off Hoffmann et al. 2022, figure 4, by Besiroglu et al. 2024 (arXiv 2404.10102)."""
    runs = read("chinchilla/runs.csv", outlier_epoch="0")
    return (runs, *fit_law(SEPARABLE, runs))


def test_the_true_optimum_of_the_published_objective(chinchilla):
    runs, fit, _, _ = chinchilla
    assert len(runs) == 240
    assert fit.objective == pytest.approx(1.018274018e-3, rel=1e-9)
    optimum = {"A": 477.83, "B": 2143.42, "E": 1.81722, "alpha": 0.347311, "beta": 0.367172}
    for name, value in optimum.items():
        assert fit.values[name] == pytest.approx(value, rel=1e-5), name
    assert fit.status == Status.CONVERGED
    assert fit.share_at_optimum == 1.0


def test_the_published_standard_errors(chinchilla):
    """Besiroglu et al. 2024, table 1: standard deviations over 4,000 bootstrap refits, runs drawn one by
    one from NumPy's legacy generator at seed 42, as their notebook draws them."""
    _, _, theta, problem = chinchilla
    legacy = np.random.RandomState(42)
    draws = [np.bincount(legacy.choice(240, size=240), minlength=240) for _ in range(4000)]
    natural = SEPARABLE.natural(refit(problem, theta, np.array(draws, dtype=np.float64)), problem.centre)
    errors = dict(zip(SEPARABLE.unknowns, natural.std(axis=0, ddof=1), strict=True))
    published = {"A": 124.52, "B": 1293.28, "E": 0.0257, "alpha": 0.0154, "beta": 0.0206}
    for name, value in published.items():
        assert errors[name] == pytest.approx(value, rel=0.05), name


def test_the_published_objective_of_gemstone():
    """McLeish et al. 2025 (mcleish7/gemstone-scaling-laws), `hot` rows, knee 1e-3, sum over rows."""
    fit, *_ = fit_law(SEPARABLE, read("gemstone/runs.csv", split="hot"))
    assert fit.objective == pytest.approx(6.592534e-3, abs=0.5e-9)
    assert fit.values["E"] == pytest.approx(1.9507, abs=1e-3)


def test_as_problem_takes_what_fit_law_takes():
    problem = as_problem(SEPARABLE, sweep(), 0.01, tau=0.3, weights=np.full(42, 2.0))
    assert (problem.delta, problem.tau, problem.weights.sum()) == (0.01, 0.3, 84.0)
    X = problem.at(params=np.array([1e6, 1e9]), tokens=np.array([1e8, 1e11]))
    np.testing.assert_allclose(X + problem.centre, np.log([[1e6, 1e8], [1e9, 1e11]]))


# --- tables ------------------------------------------------------------------------------------------


def test_unique_tokens_and_standard_errors_are_read_from_a_table(tmp_path):
    (tmp_path / "runs.csv").write_text(
        "params,tokens,loss,loss_se,unique_tokens\n1e6,1e8,3.0,0.01,5e7\n1e7,1e9,2.5,,\n"
    )
    runs = read_table(tmp_path / "runs.csv").runs
    np.testing.assert_array_equal(runs.unique_tokens, [5e7, np.nan])
    np.testing.assert_array_equal(runs.loss_se, [0.01, np.nan])
    np.testing.assert_array_equal(runs.take(np.array([1, 0])).unique_tokens, [np.nan, 5e7])
    assert np.isnan(replace(runs, unique_tokens=None).unique_tokens).all()
