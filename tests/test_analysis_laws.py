"""Laws and the solver: gradients, recovery without noise, invariances, honest statuses."""

from __future__ import annotations

import textwrap
from dataclasses import replace

import numpy as np
import pytest

from analysis.fitting import DELTA, as_problem, fit_law, huber, solve, with_prior
from analysis.laws import (
    BROKEN,
    COMPUTE,
    COUPLED,
    FARSEER,
    KAPLAN,
    KAPLAN_PARAMS,
    KAPLAN_TOKENS,
    LAWS,
    REPEATED,
    ROSENFELD,
    SEPARABLE,
    SHRUNK,
    Prior,
    check_law,
    load,
    load_law,
    nonnegative_least_squares,
)
from analysis.table import as_runs
from analysis.values import Status

TRUTH = {
    "separable": {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.31},
    "coupled": {"E": 1.6, "A": 900.0, "B": 2500.0, "a": 0.4, "b": 0.38, "k": 0.8},
    "shrunk": {"E": 1.6, "A": 900.0, "B": 2500.0, "a": 0.4, "b": 0.38, "k": 0.8},
    "kaplan": {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
    "kaplan_params": {"N_c": 8.8e13, "alpha_N": 0.076},
    "kaplan_tokens": {"D_c": 5.4e13, "alpha_D": 0.095},
    "rosenfeld": {"c": 1.5, "b": 900.0, "a": 3000.0, "beta": 0.36, "alpha": 0.35, "eps0": 9.0},
    "farseer": {"a3": -0.021, "b3": 0.69, "gamma": 0.169, "a2": 88.0, "b2": -6.29, "beta": -0.1}
    | {"a1": -0.124, "b1": 0.424, "alpha": 0.123},
    "repeated": {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353, "beta": 0.34, "rd": 15.4, "rn": 5.3},
    "power": {"a": 30.0, "b": -0.05},
    "compute": {"E": 1.5, "a": 60.0, "b": -0.12},
    "broken": {"E": 1.2, "b": 200.0, "c0": 0.14, "c1": -0.08, "d": 3e17, "f": 0.6},
}


def grid(seed: int = 0, noise: float = 0.0, law=SEPARABLE):
    """Seven sizes by six token counts, of which 1e8, 1e9 or 4e9 are unique, with losses of the law's
    TRUTH."""
    params, tokens = (g.ravel() for g in np.meshgrid(np.geomspace(1e6, 1e9, 7), np.geomspace(1e8, 1e11, 6)))
    unique = np.minimum(tokens, np.tile([1e8, 1e9, 4e9], 14))
    flops = 6 * params * tokens
    loss = law.loss_at(TRUTH[law.name], params=params, tokens=tokens, flops=flops, unique_tokens=unique)
    wobble = np.exp(noise * np.random.default_rng(seed).standard_normal(len(loss)))
    return as_runs(params, tokens, loss * wobble, unique_tokens=unique)


def columns(runs):
    return {name: getattr(runs, name) for name in ("params", "tokens", "unique_tokens", "flops")}


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
    said = law.loss_at(natural, **columns(runs))
    np.testing.assert_allclose(said, np.exp(law.evaluate(theta, problem.X)[0][0]), rtol=1e-10)


FREE = [law for law in LAWS.values() if not law.prior]


@pytest.mark.parametrize("law", FREE, ids=lambda law: law.name)
def test_a_law_without_noise_is_recovered(law):
    fit, *_ = fit_law(law, grid(law=law))
    for name, value in TRUTH[law.name].items():
        assert fit.values[name] == pytest.approx(value, rel=1e-3), name
    assert fit.status == Status.CONVERGED
    assert np.abs(fit.log_residuals).max() < 1e-6


FAR = {"params": 1e11, "tokens": 3e12, "unique_tokens": 4e11, "flops": 1.8e24}
IN = {"params": 1e-6, "tokens": 1e-9, "unique_tokens": 1e-9, "flops": 1e-18}


def units_of(law):
    """Farseer's is a law of D in tokens alone, as it says."""
    return {**IN, "tokens": 1.0} if law is FARSEER else IN


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
def test_units_change_no_prediction(law):
    """N in millions, D in billions, C in exaFLOPs, loss in bits: the run at FAR is predicted alike."""
    runs, units = grid(noise=0.004, law=law, seed=3), units_of(law)
    scaled = replace(
        runs,
        **{name: column * units[name] for name, column in columns(runs).items()},
        loss=runs.loss / np.log(2),
    )
    ones, others = fit_law(law, runs)[0], fit_law(law, scaled)[0]
    far = law.loss_at(ones.values, **FAR)
    said = law.loss_at(others.values, **{name: FAR[name] * units[name] for name in FAR})
    assert said * np.log(2) == pytest.approx(float(far), rel=1e-9)
    np.testing.assert_allclose(others.log_residuals, ones.log_residuals, atol=1e-9)
    assert others.objective == pytest.approx(ones.objective, rel=1e-9)
    assert others.condition == pytest.approx(ones.condition, rel=1e-3)


SCALES = {  # what the docstrings say of N times 1e-6, D times 1e-3 and L times 3, C times 1e-9
    "separable": {"E": (0, 0, 1), "A": ("alpha", 0, 1), "B": (0, "beta", 1)},
    "kaplan": {"N_c": (1, 0, "1/alpha_N"), "D_c": (0, 1, "1/alpha_D")},
    "rosenfeld": {"c": (0, 0, 1), "b": ("beta", 0, 1), "a": (0, "alpha", 1), "eps0": (0, 0, 1)},
    "repeated": {"E": (0, 0, 1), "A": ("alpha", 0, 1), "B": (0, "beta", 1), "rd": (0, 0, 0), "rn": (0, 0, 0)},
    "farseer": {"a1": ("-alpha", 0, 0), "a2": ("-beta", 0, 0), "a3": ("-gamma", 0, 0)},
}


@pytest.mark.parametrize("name", SCALES)
def test_units_change_the_parameters_as_the_docstring_says(name):
    law, truth = LAWS[name], TRUTH[name]
    runs = grid(law=law)
    by_N, by_D, by_L = 1e-6, 1.0 if law is FARSEER else 1e-3, 3.0
    scaled = replace(
        runs,
        params=runs.params * by_N,
        tokens=runs.tokens * by_D,
        unique_tokens=runs.unique_tokens * by_D,
        loss=runs.loss * by_L,
    )
    fit = fit_law(law, scaled)[0]
    for unknown, powers in SCALES[name].items():
        exponents = [eval(str(power), {}, truth) for power in powers]
        factor = by_N ** exponents[0] * by_D ** exponents[1] * by_L ** exponents[2]
        assert fit.values[unknown] == pytest.approx(truth[unknown] * factor, rel=1e-3), unknown
    if law is FARSEER:
        assert fit.values["b3"] == pytest.approx(truth["b3"] + np.log(by_L), rel=1e-3)
        assert fit.values["b2"] == pytest.approx(truth["b2"] + np.log(by_L), rel=1e-3)


def test_kaplans_law_has_its_limits():
    """N without bound leaves L(D), D without bound L(N) (Kaplan et al. 2020, section 4.1)."""
    values, reach = TRUTH["kaplan"], np.array([1e7, 1e9])
    by_N = KAPLAN.loss_at(values, params=reach, tokens=1e40)
    np.testing.assert_allclose(by_N, KAPLAN_PARAMS.loss_at(values, params=reach), rtol=1e-6)
    by_D = KAPLAN.loss_at(values, params=1e60, tokens=reach)
    np.testing.assert_allclose(by_D, KAPLAN_TOKENS.loss_at(values, tokens=reach), rtol=1e-6)


def test_no_loss_of_rosenfelds_exceeds_its_ceiling_and_far_below_it_is_the_separable_law():
    values = TRUTH["rosenfeld"]
    assert ROSENFELD.loss_at(values, params=1.0, tokens=1.0) == pytest.approx(9.0, rel=1e-4)
    high = {**values, "eps0": 1e6}
    bare = {"E": 1.5, "A": 900.0, "B": 3000.0, "alpha": 0.36, "beta": 0.35}
    np.testing.assert_allclose(
        ROSENFELD.loss_at(high, params=1e8, tokens=1e9), SEPARABLE.loss_at(bare, params=1e8, tokens=1e9)
    )


def test_muennighoffs_law_without_repetition_or_excess_is_the_separable_one():
    values = TRUTH["repeated"]
    once = REPEATED.loss_at(values, params=1e8, tokens=1e10, unique_tokens=1e10)
    assert float(once) == pytest.approx(float(SEPARABLE.loss_at(values, params=1e8, tokens=1e10)), rel=1e-12)
    more = REPEATED.loss_at(values, params=1e8, tokens=4e10, unique_tokens=1e10)
    fresh = REPEATED.loss_at(values, params=1e8, tokens=4e10, unique_tokens=4e10)
    assert fresh < more < once


def test_muennighoffs_own_worked_number():
    """Effective data of 10 epochs over 1e9 tokens at rd = 15.4: 1 + 15.4·(1 - exp(-9/15.4)) times."""
    values = TRUTH["repeated"]
    repeated = float(REPEATED.loss_at(values, params=1e6, tokens=1e10, unique_tokens=1e9))
    worth = 1e9 * (1 + 15.4 * (1 - np.exp(-9 / 15.4)))
    assert repeated == pytest.approx(1.87 + 521.0 * 1e6**-0.353 + 1488.0 * worth**-0.34, rel=1e-9)


def test_a_broken_law_has_two_exponents():
    values, far = TRUTH["broken"], np.array([1e-20, 1e60])
    reducible = [BROKEN.loss_at({**values, "E": 0.0}, flops=3e17 * far * k) for k in (1.0, 10.0)]
    np.testing.assert_allclose(np.log10(reducible[1] / reducible[0]), [-0.14, -0.06], rtol=1e-6)


def test_unique_tokens_that_are_not_known_are_asked_for():
    runs = replace(grid(law=REPEATED), unique_tokens=np.full(42, np.nan))
    with pytest.raises(ValueError, match="law 'repeated': unique_tokens of run row 1 is nan"):
        fit_law(REPEATED, runs)


OWN_LAW = load.__doc__.split("LOG_LAW:\n", 1)[1]


@pytest.fixture
def own_law(tmp_path, monkeypatch):
    """The docstring's example as a module; its text may be changed before it is loaded."""

    def write(old: str = "", new: str = "") -> str:
        name = f"own_law_{abs(hash((old, new)))}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(OWN_LAW).replace(old, new))
        return f"{name}:LOG_LAW"

    monkeypatch.syspath_prepend(str(tmp_path))
    return write


def test_the_documented_law_of_ones_own_is_loaded_and_fitted(own_law):
    law = load_law(own_law())
    flops = np.geomspace(1e15, 1e20, 12)
    runs = as_runs(np.ones(12), np.ones(12), 9.0 - 0.15 * np.log(flops), flops=flops)
    fit = fit_law(law, runs)[0]
    assert fit.values == pytest.approx({"a": 9.0, "b": 0.15}, rel=1e-6)
    assert fit.law == "log"


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("-X[:, 0] / loss)", "X[:, 0] / loss)", "gradient by theta's entry 1 .that of b. is off"),
        ("as_slope(1 / loss, ", "as_slope(", "evaluate's gradient has shape"),
        ('v["a"] - v["b"]', 'v["a"] + v["b"]', "is not what `evaluate` says"),
        ('("flops",)', '("gpus",)', "variables .*gpus.*wanted some of params"),
        ("LOG_LAW = Law(", "LOG_LAW = dict(", "is a dict; wanted an analysis.laws.Law"),
        ("LOG_LAW = Law(", "OTHER = Law(", "has no 'LOG_LAW'; its laws are: OTHER"),
    ],
)
def test_a_wrong_law_of_ones_own_is_refused(own_law, old, new, said):
    with pytest.raises(ValueError, match=said):
        load_law(own_law(old, new))


def test_laws_are_found_by_name_or_listed():
    assert load_law("farseer") is FARSEER
    with pytest.raises(ValueError, match="no law 'chinchila'; wanted one of separable, coupled.*module:ATTR"):
        load_law("chinchila")
    with pytest.raises(ValueError, match="module 'not_there' cannot be imported"):
        load_law("not_there:LAW")


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
def test_the_laws_that_come_along_pass_the_check_for_ones_own(law):
    assert check_law(law) is law


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
        with_prior(problem, theta).precision[3:], variance / np.array(SHRUNK.prior.sd[3:]) ** 2
    )


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
