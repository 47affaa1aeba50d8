"""Which runs would help: they break what a design lacks, and do what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from analysis_helpers import BUDGETS, sweep, target, true_loss

from analysis.design import HOFFMANN, NOISE, _gradient, advice, helpful_runs, in_words
from analysis.laws import SEPARABLE
from analysis.table import as_runs
from analysis.values import HelpfulRun, LawFit, Parameter, Status, Target

VALUES = {"E": 0.9, "A": 38.0, "B": 95.0, "alpha": 0.36, "beta": 0.38}


def fitted(noise: float = 0.002, values: dict[str, float] = VALUES, status=Status.CONVERGED) -> LawFit:
    """A fit with exactly these values, whose residuals have that standard deviation."""
    return LawFit(
        law="separable",
        equation=SEPARABLE.equation,
        source=SEPARABLE.source,
        variables=SEPARABLE.variables,
        parameters=tuple(Parameter(name, values[name], None, False) for name in SEPARABLE.unknowns),
        status=status,
        reason="",
        objective=0.0,
        delta=1e-3,
        n=20,
        starts=1,
        starts_at_optimum=1,
        log_residuals=noise * np.sqrt(15 / 20) * np.ones(20),
        run_ids=("",) * 20,
    )


def separable(params: np.ndarray, tokens: np.ndarray):
    return as_runs(params, tokens, SEPARABLE.loss_at(VALUES, params=params, tokens=tokens))


def collinear():
    params = np.geomspace(1e4, 1e6, 12)
    return separable(params, 20 * params)


def test_advice_on_a_collinear_design_breaks_the_line():
    runs = collinear()
    found = helpful_runs(runs, Target(1e6, 3e8, 1.8e15), fitted())
    params = np.append(runs.params, [run.params for run in found])
    tokens = np.append(runs.tokens, [run.tokens for run in found])
    assert max(abs(np.log(run.tokens / run.params / 20)) for run in found) > np.log(5)
    line = np.polyfit(np.log(params), np.log(tokens), 1)
    assert np.std(np.log(tokens) - np.polyval(line, np.log(params))) > 0.3


def test_advice_on_a_design_without_dear_budgets_asks_for_a_dear_one():
    runs = sweep().take(sweep().flops < BUDGETS[1] * 1.05)
    found = helpful_runs(runs, target(), fitted(), dearest=20 * runs.flops.max())
    assert found[0].flops > 10 * runs.flops.max()
    assert found[0].error_left < 0.6
    within = helpful_runs(runs, target(), fitted())
    assert max(run.flops for run in within) == pytest.approx(runs.flops.max())
    assert found[0].error_left < within[0].error_left


def test_cells_stay_within_what_may_be_run():
    runs = sweep()
    for run in helpful_runs(runs, target(), best=8):
        assert runs.flops.min() * 0.999 <= run.flops <= runs.flops.max() * 1.001
        assert 1 <= run.tokens / run.params <= 1000
        assert run.flops == pytest.approx(6 * run.params * run.tokens, rel=1e-6)


def test_the_error_that_is_promised_to_be_left_is_what_is_left():
    """Against the least-squares spread over many draws of the noise, at the same cells: the prior, being
    wide, hardly matters beside 40 runs."""
    generator = np.random.default_rng(5)
    params, tokens = (np.exp(generator.uniform(*ends, 40)) for ends in ((9, 13), (14, 18)))
    runs, spot, noise = separable(params, tokens), Target(4e6, 4e8, 9.6e15), 0.002
    found = helpful_runs(runs, spot, fitted(noise))
    more = [np.append(params, [r.params for r in found]), np.append(tokens, [r.tokens for r in found])]

    def spread(n: np.ndarray, d: np.ndarray) -> float:
        centre = np.zeros(2)
        rows = _gradient(VALUES, centre, n, d)
        slope = _gradient(VALUES, centre, np.array([spot.params]), np.array([spot.tokens]))[0]
        draws = noise * np.random.default_rng(0).standard_normal((4000, len(n)))
        return float(np.std(np.linalg.lstsq(rows, draws.T, rcond=None)[0].T @ slope))

    assert found[-1].error_left == pytest.approx(spread(*more) / spread(params, tokens), rel=0.06)
    assert [run.error_left for run in found] == sorted((run.error_left for run in found), reverse=True)


def test_the_first_choice_is_the_best_of_random_cells():
    runs, spot = collinear(), Target(1e6, 3e8, 1.8e15)
    (best,) = helpful_runs(runs, spot, fitted(), best=1)
    generator = np.random.default_rng(0)

    def left(params: float, tokens: float) -> float:
        """Variance at the target with that run, without any prior."""
        centre = np.log([1e5, 2e6])
        rows = _gradient(VALUES, centre, np.append(runs.params, params), np.append(runs.tokens, tokens))
        slope = _gradient(VALUES, centre, np.array([spot.params]), np.array([spot.tokens]))[0]
        return float(slope @ np.linalg.solve(rows.T @ rows + 1e-6 * np.eye(5), slope))

    found = left(best.params, best.tokens)
    for _ in range(200):
        params = np.exp(generator.uniform(np.log(2e3), np.log(8e6)))
        tokens = params * np.exp(generator.uniform(0, np.log(1000)))
        if runs.flops.min() <= 6 * params * tokens <= runs.flops.max():
            assert left(params, tokens) > 0.9 * found


def test_gradient_is_that_of_the_law():
    spot, h = (np.array([3e5]), np.array([7e6])), 1e-6
    slope = _gradient(VALUES, np.zeros(2), *spot)[0]
    for i, name in enumerate(SEPARABLE.unknowns):
        factor = np.exp(h) if name in "AB" else 1.0
        up = {**VALUES, name: VALUES[name] * factor if name in "AB" else VALUES[name] + h}
        down = {**VALUES, name: VALUES[name] / factor if name in "AB" else VALUES[name] - h}
        change = [
            np.log(SEPARABLE.loss_at(values, params=spot[0], tokens=spot[1]))[0] for values in (up, down)
        ]
        assert slope[i] == pytest.approx((change[0] - change[1]) / (2 * h), rel=1e-5)


def test_without_a_fit_the_published_law_answers_and_no_run_is_an_error():
    three = sweep().take(np.arange(3))
    published = helpful_runs(three, target(), fitted(NOISE, HOFFMANN))
    assert helpful_runs(three, target()) == published
    assert helpful_runs(three, target(), fitted(status=Status.NOT_CONVERGED)) == published
    assert advice(three).startswith("The runs that would help most: N=") and advice(three).endswith(".")
    nothing = sweep().take(np.array([], dtype=int))
    assert advice(nothing) == ""
    with pytest.raises(ValueError, match="plan a first grid"):
        helpful_runs(nothing, target())


def test_words_name_cells_and_what_they_leave():
    found = helpful_runs(collinear(), Target(1e6, 3e8, 1.8e15), fitted())
    said = in_words(found)
    assert (
        said.count("N=") == len(set((run.params, run.tokens) for run in found))
        and f"{100 * found[-1].error_left:.0f}%" in said
    )
    again = in_words((HelpfulRun(2e6, 4e7, 4.8e14, 0.8), HelpfulRun(2e6, 4e7, 4.8e14, 0.7)))
    assert again.startswith("2 seeds of N=2M, D=40M (4.8e14 FLOPs): together they would leave 70%")


def test_the_advised_runs_narrow_what_a_refit_says():
    """With them the separable fit of noisy runs errs less at the target, in the mean over 20 draws."""
    from analysis.fitting import fit_law

    params = np.tile(np.geomspace(1e4, 2e5, 8), 1)
    runs, spot = separable(params, 20 * params), Target(1e5, 4e7, 2.4e13)
    found = helpful_runs(runs, spot, fitted(0.005))
    added = [np.append(params, [r.params for r in found]), np.append(20 * params, [r.tokens for r in found])]
    true = np.log(SEPARABLE.loss_at(VALUES, params=spot.params, tokens=spot.tokens))
    errors = {"before": [], "after": []}
    for seed in range(20):
        for name, (n, d) in (("before", (params, 20 * params)), ("after", added)):
            noise = np.exp(0.005 * np.random.default_rng(seed).standard_normal(len(n)))
            noisy = as_runs(n, d, SEPARABLE.loss_at(VALUES, params=n, tokens=d) * noise)
            values = fit_law(SEPARABLE, noisy)[0].values
            said = np.log(SEPARABLE.loss_at(values, params=spot.params, tokens=spot.tokens))
            errors[name].append(abs(float(said - true)))
    assert np.mean(errors["after"]) < 0.5 * np.mean(errors["before"])


def test_true_losses_of_small_decoders_can_be_advised_on():
    params = np.geomspace(1e4, 1e6, 12)
    runs = as_runs(params, 20 * params, true_loss(params, 20 * params))
    found = helpful_runs(runs, Target(1e6, 3e8, 1.8e15))
    assert found[-1].error_left < 0.5
