"""Laws and the solver: gradients, recovery without noise, invariances, honest statuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis.fitting import DELTA, as_problem, fit_law, huber, solve, with_prior
from analysis.laws import COMPUTE, COUPLED, LAWS, SEPARABLE, SHRUNK, Prior, nonnegative_least_squares
from analysis.table import as_runs
from analysis.values import Status

TRUTH = {
    "separable": {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.31},
    "coupled": {"E": 1.6, "A": 900.0, "B": 2500.0, "a": 0.4, "b": 0.38, "k": 0.8},
    "shrunk": {"E": 1.6, "A": 900.0, "B": 2500.0, "a": 0.4, "b": 0.38, "k": 0.8},
    "compute": {"E": 1.5, "a": 60.0, "b": -0.12},
}


def grid(seed: int = 0, noise: float = 0.0, law=SEPARABLE):
    """Seven sizes by six token counts, with losses of the law's TRUTH."""
    params, tokens = (g.ravel() for g in np.meshgrid(np.geomspace(1e6, 1e9, 7), np.geomspace(1e8, 1e11, 6)))
    flops = 6 * params * tokens
    loss = law.loss_at(TRUTH[law.name], params=params, tokens=tokens, flops=flops)
    return as_runs(
        params, tokens, loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(loss)))
    )


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
def test_gradient_is_that_of_the_value(law):
    problem = as_problem(law, grid(law=law))
    theta = law.start(problem.X, np.exp(problem.log_loss), np.ones(len(problem.log_loss)))
    _, gradient = law.evaluate(theta, problem.X)
    for i in range(theta.shape[1]):
        step = np.zeros(theta.shape[1])
        step[i] = 1e-6
        difference = (
            law.evaluate(theta + step, problem.X)[0] - law.evaluate(theta - step, problem.X)[0]
        ) / 2e-6
        np.testing.assert_allclose(gradient[..., i], difference, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
def test_solver_and_natural_coordinates_say_the_same_loss(law):
    runs = grid(law=law)
    problem = as_problem(law, runs)
    theta = law.start(problem.X, runs.loss, np.ones(len(runs)))[:1]
    natural = dict(zip(law.unknowns, law.natural(theta, problem.centre)[0], strict=True))
    said = law.loss_at(natural, params=runs.params, tokens=runs.tokens, flops=runs.flops)
    np.testing.assert_allclose(said, np.exp(law.evaluate(theta, problem.X)[0][0]), rtol=1e-10)


FREE = [law for law in LAWS.values() if not law.prior]


@pytest.mark.parametrize("law", FREE, ids=lambda law: law.name)
def test_a_law_without_noise_is_recovered(law):
    fit, *_ = fit_law(law, grid(law=law))
    for name, value in TRUTH[law.name].items():
        assert fit.values[name] == pytest.approx(value, rel=1e-3), name
    assert fit.status == Status.CONVERGED
    assert np.abs(fit.log_residuals).max() < 1e-6


def test_the_separable_law_is_the_coupled_one_at_k_1():
    runs = grid(noise=0.01)
    problem, theta = as_problem(COUPLED, runs), fit_law(SEPARABLE, runs)[1]
    coupled, _ = COUPLED.evaluate(np.append(theta, 0.0)[None], problem.X)
    np.testing.assert_allclose(coupled, SEPARABLE.evaluate(theta[None], problem.X)[0], rtol=1e-13)
    assert fit_law(COUPLED, runs)[0].objective <= fit_law(SEPARABLE, runs)[0].objective


def test_a_prior_fades_with_the_noise_and_rules_where_noise_does():
    """Without noise the shrunk law is the free one; the noisier, the nearer k comes to its prior."""
    runs, truth = grid(), {"E": 1.6, "A": 10.0, "B": 20.0, "a": 0.16, "b": 0.15, "k": 2.5}
    steep = COUPLED.loss_at(truth, params=runs.params, tokens=runs.tokens)

    def k_of(noise):
        wobble = np.exp(noise * np.random.default_rng(3).standard_normal(len(steep)))
        return fit_law(SHRUNK, as_runs(runs.params, runs.tokens, steep * wobble))[0].values["k"]

    assert k_of(0.0) == pytest.approx(2.5, rel=1e-3)
    assert abs(np.log(k_of(0.5) / 0.75)) < 0.5 * abs(np.log(2.5 / 0.75))


def test_a_prior_that_says_nothing_changes_nothing():
    silent = replace(SHRUNK, prior=Prior(SHRUNK.prior.mean, (np.inf,) * 6))
    free, silenced = (fit_law(law, grid(noise=0.01))[0] for law in (COUPLED, silent))
    assert silenced.objective == pytest.approx(free.objective, rel=1e-9)


def test_scaling_every_prior_weight_is_what_the_temperature_does():
    """At a soft knee the temperature is the residual variance, as in ridge regression."""
    runs = grid(noise=0.01)
    problem, theta = as_problem(SHRUNK, runs, delta=1e3), fit_law(COUPLED, runs, delta=1e3)[1]
    value, _ = SHRUNK.evaluate(theta[None], problem.X)
    variance = float(np.sum((value[0] - problem.log_loss) ** 2) / (len(runs) - 6))
    np.testing.assert_allclose(
        with_prior(problem, theta).precision[3:], variance / np.array([0.2, 0.2, 0.4]) ** 2
    )


def test_units_of_params_change_A_alone():
    runs = grid(noise=0.01)
    millions = as_runs(runs.params / 1e6, runs.tokens, runs.loss)
    ones, scaled = fit_law(SEPARABLE, runs)[0], fit_law(SEPARABLE, millions)[0]
    assert scaled.values["A"] == pytest.approx(ones.values["A"] / 1e6 ** ones.values["alpha"], rel=1e-6)
    for name in ("E", "B", "alpha", "beta"):
        assert scaled.values[name] == pytest.approx(ones.values[name], rel=1e-6)
    np.testing.assert_allclose(scaled.log_residuals, ones.log_residuals, atol=1e-9)


def test_order_of_the_runs_changes_nothing():
    runs = grid(noise=0.01)
    order = np.random.default_rng(1).permutation(len(runs))
    there, shuffled = fit_law(COUPLED, runs)[0], fit_law(COUPLED, runs.take(order))[0]
    assert shuffled.objective == pytest.approx(there.objective, rel=1e-9)
    assert shuffled.values["E"] == pytest.approx(there.values["E"], rel=1e-5)


def test_a_weight_of_two_is_a_run_twice():
    runs = grid(noise=0.01)
    problem = as_problem(SEPARABLE, runs)
    start = fit_law(SEPARABLE, runs)[1][None]
    weights = np.ones(len(runs))
    weights[::3] = 2.0
    weighted = solve(problem, start, weights)
    doubled = as_problem(SEPARABLE, runs.take(np.repeat(np.arange(len(runs)), weights.astype(int))))
    shift = doubled.centre - problem.centre  # theta is relative to the centre of its own runs
    moved = start.copy()
    moved[:, 1:3] -= start[:, 3:5] * shift
    twice = solve(doubled, moved, np.ones(int(weights.sum())))
    assert twice.objective[0] == pytest.approx(weighted.objective[0], rel=1e-9)
    np.testing.assert_allclose(twice.theta[0, 3:], weighted.theta[0, 3:], rtol=1e-6)


def test_one_wild_run_barely_moves_a_robust_fit():
    runs = grid(noise=0.001)
    wild = runs.loss.copy()
    wild[20] *= 1.5
    there, moved = (fit_law(SEPARABLE, r)[0] for r in (runs, as_runs(runs.params, runs.tokens, wild)))
    assert moved.values["E"] == pytest.approx(there.values["E"], rel=2e-3)
    assert np.argmax(np.abs(moved.log_residuals)) == 20


def test_huber_is_square_inside_and_linear_outside():
    residual = np.array([0.0, 0.5, -1.0, 3.0])
    cost, slope = huber(residual, 1.0)
    np.testing.assert_allclose(cost, [0, 0.125, 0.5, 2.5])
    np.testing.assert_allclose(slope, [0, 0.5, -1, 1])


def test_every_start_ends_in_the_one_optimum_of_an_easy_problem():
    fit, *_ = fit_law(SEPARABLE, grid(noise=0.003))
    assert fit.starts > 5
    assert fit.starts_at_optimum == fit.starts


def test_no_irreducible_loss_is_said_to_lie_on_its_bound():
    truth = {"E": 0.0, "A": 30.0, "B": 60.0, "alpha": 0.1, "beta": 0.1}
    runs = grid()
    loss = SEPARABLE.loss_at(truth, params=runs.params, tokens=runs.tokens)
    bent = loss * np.exp(
        -0.002 * (np.log(runs.params) - 17) ** 2
    )  # falls faster than any power law with E >= 0
    fit, *_ = fit_law(SEPARABLE, as_runs(runs.params, runs.tokens, bent))
    assert fit.status == Status.AT_BOUND
    assert "E" in fit.at_bound
    assert "E = 0" in fit.reason


def test_too_few_distinct_runs_are_refused_with_the_number_needed():
    runs = grid()
    five = runs.take(np.array([0, 8, 16, 24, 32]))
    repeated = runs.take(np.array([0, 8, 16, 24, 32, 0, 8]))
    for few in (five, repeated):
        with pytest.raises(ValueError, match="at least 6 runs.*there are 5"):
            fit_law(SEPARABLE, few)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_a_loss_that_is_none_is_refused_by_name(bad):
    runs = grid()
    loss = runs.loss.copy()
    loss[3] = bad
    with pytest.raises(ValueError, match="loss of run row 4"):
        fit_law(SEPARABLE, as_runs(runs.params, runs.tokens, loss))


def test_nonnegative_least_squares_agrees_with_scipy():
    from scipy.optimize import nnls

    generator = np.random.default_rng(5)
    powers = generator.uniform(0.1, 1, (40, 12, 3))
    loss, weights = generator.uniform(0.5, 2, 12), generator.uniform(0.5, 2, 12)
    coefficients, error = nonnegative_least_squares(powers, loss, weights)
    hit_bound = 0
    for i in range(len(powers)):
        scaled = powers[i] / loss[:, None] * np.sqrt(weights)[:, None]
        wanted, norm = nnls(scaled, np.sqrt(weights))
        np.testing.assert_allclose(coefficients[i], wanted, atol=1e-6)
        assert error[i] == pytest.approx(norm**2, rel=1e-6)
        hit_bound += (wanted == 0).any()
    assert hit_bound  # or the bounds were never tried


def test_status_not_converged_is_told_where_the_solver_is_cut_short(monkeypatch):
    monkeypatch.setattr("analysis.solver.ITERATIONS", 1)
    monkeypatch.setattr("analysis.solver.KNEES", (1.0,))
    fit, *_ = fit_law(COUPLED, grid(noise=0.02))
    assert fit.status == Status.NOT_CONVERGED
    assert "slopes" in fit.reason


def test_compute_law_needs_flops_alone():
    runs = grid(law=COMPUTE)
    fit, *_ = fit_law(COMPUTE, as_runs(np.ones(42), np.ones(42), runs.loss, flops=runs.flops))
    assert fit.values["b"] == pytest.approx(-0.12, rel=1e-3)


def test_knee_is_the_one_that_was_asked_for():
    assert fit_law(SEPARABLE, grid(noise=0.01))[0].delta == DELTA
    soft, *_ = fit_law(SEPARABLE, grid(noise=0.01), delta=1e3)
    assert soft.objective == pytest.approx(float(np.sum(soft.log_residuals**2) / 2), rel=1e-9)
