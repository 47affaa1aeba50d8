"""Three approaches and what moves their exponent, on surfaces whose optimum is known by brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis.laws import SEPARABLE
from analysis.studies import Course, Evidence, chinchilla, load
from analysis.table import read_table
from analysis.values import Allocation, Estimate
from analysis_helpers import write_table
from models.count import count_parameters
from sweep.plan.grids import cells
from sweep.plan.plan import Corpus, plan
from sweep.plan.schema import ConfigError
from sweep.plan.trunks import own_flops, share

TRUTH = {"E": 0.9, "A": 60.0, "B": 250.0, "alpha": 0.4, "beta": 0.4}
UNTUNED = {**TRUTH, "A": 60.0 * 3e4**-0.1, "alpha": 0.3}
"""As good at N = 3e4, and worse the larger the model: alpha sets a = beta/(alpha + beta)."""
BUDGETS = tuple(np.geomspace(1e11, 1e13, 5))
TRUNK = 0.8
"""Share of a run that its trunk makes."""


def loss(truth, params, tokens):
    return SEPARABLE.loss_at(truth, params=params, tokens=tokens)


def optimum(truth, flops: float) -> float:
    sizes = np.geomspace(1e2, 1e9, 100_001)
    return float(sizes[np.argmin(loss(truth, sizes, flops / 6 / sizes))])


def embedding(params):
    return 25 * np.asarray(params) ** 0.5


def row(run_id, role, group, params, tokens, value, **more) -> dict:
    return {
        "run_id": run_id, "role": role, "group": group, "status": "finished",
        "flops": repr(float(6 * params * tokens)),
        "params_non_embedding": repr(float(params)), "params_total": repr(float(params + embedding(params))),
        "tokens": repr(float(tokens)), "loss": "" if value is None else repr(float(value)), **more,
    }  # fmt: skip


def isoflops(truth, around=TRUTH, role="fit", arm="", noise=5e-4, seed=0) -> list[dict]:
    """Five sizes at each budget about the optimum of `around`, made as `truth` says."""
    generator, rows = np.random.default_rng(seed), []
    for budget in BUDGETS:
        for params in optimum(around, budget) * np.geomspace(1 / 3, 3, 7):
            tokens = budget / 6 / params
            value = loss(truth, params, tokens) * np.exp(noise * generator.standard_normal())
            rows.append(row(f"{arm}{len(rows):03d}", role, f"{arm}C={budget:.4g}", params, tokens, value))
    return rows


def evidence(tmp_path, rows, courses=None) -> Evidence:
    write_table(tmp_path / "runs.csv", rows)
    return Evidence(read_table(tmp_path / "runs.csv"), courses or {})


def numbers(finding) -> dict:
    return {number.what: number for number in finding.numbers}


def with_trunks(rows, raised) -> tuple[list[dict], dict]:
    """The rows with their trunks' segments, and the courses of both: a trunk ends at TRUNK of its run's
    tokens, where its loss lies above the final one by the factor raised(params)."""
    trunks, courses = [], {}
    for told in rows:
        params, tokens = float(told["params_non_embedding"]), float(told["tokens"])
        spec = {"shape": {"d_model": params}, "steps": 1000 * tokens, "seed": 0}
        schedule = {"warmup_steps": 10, "decay_steps": (1 - TRUNK) * 1000 * tokens}
        name, above = f"t{told['run_id']}", float(told["loss"]) * raised(params)
        trunks.append(row(name, "trunk", "trunk", params, TRUNK * tokens, None))
        end = {**spec, "steps": spec["steps"] - schedule["decay_steps"], "schedule": {"warmup_steps": 10}}
        courses[name] = course(TRUNK * tokens, params, above, end)
        courses[told["run_id"]] = course(tokens, params, float(told["loss"]), {**spec, "schedule": schedule})
    return trunks, courses


def course(tokens, params, value, spec) -> Course:
    """Evaluated half-way too, and with a last line that holds no loss."""
    seen, none = np.array([0.5, 1.0, 1.0]), np.full(3, np.nan)
    losses = np.array([2 * value, value, np.nan])
    return Course(
        spec["steps"] * seen, tokens * seen, 6 * params * tokens * seen, none, losses, none, none, {"spec": spec}
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Runs to fit, an arm whose alpha is lower, and trunks whose losses stand above by one factor for all
    sizes."""
    fitted = isoflops(TRUTH)
    trunks, courses = with_trunks(fitted, lambda params: 1.05)
    arm = isoflops(UNTUNED, role="arm", arm="tuning: ", seed=1)
    return load("chinchilla")(evidence(tmp_path_factory.mktemp("c"), [*fitted, *trunks, *arm], courses))


def test_three_approaches_find_the_exponents(found):
    said = numbers(found)
    for approach, within in (("1: envelope", 0.08), ("2: isoFLOP", 0.03), ("3: parametric", 0.03)):
        for name in ("a", "b"):
            number = said[f"{name}, approach {approach}"]
            assert number.estimate.value == pytest.approx(0.5, abs=within)
            assert (
                "Hoffmann et al. 2022, table 2" in number.published
                and "Kaplan et al. 2020" in number.published
            )
    assert (
        said["a, approach 2: isoFLOP"].published
        == "0.49, Hoffmann et al. 2022, table 2; 0.73, Kaplan et al. 2020, table 6"
    )
    assert "0.73 lies outside all of them" in found.found and "inside 3 of the 3 intervals" in found.found
    assert "Ten times the compute" in found.means and "5.4 times the parameters" in found.means
    assert "No interval here" not in found.means


def test_intervals_that_hold_both_papers_exponents_are_called_that():
    def by(a, lo, hi):
        estimate = Estimate(a, lo, hi, 0.1)
        return Allocation(2, estimate, estimate, 1.0, 1.0, 7, "")

    assert "No interval here tells the two apart" in chinchilla._means([by(0.53, -2.6, 4.1), by(0.5, 0.25, 0.86)])
    assert "No interval here" not in chinchilla._means([by(0.53, -2.6, 4.1), by(0.5, 0.45, 0.6)])


def test_an_arm_moves_the_exponent_by_what_its_surface_says(found):
    number = numbers(found)["change of a: one batch and rate for all sizes"]
    expected = 0.4 / 0.7 - 0.5
    assert number.estimate.lo < expected < number.estimate.hi
    assert number.estimate.value == pytest.approx(expected, abs=0.03)
    assert number.estimate.lo > 0
    assert "approach 2 at 35 cells" in number.note
    assert any("tuning undone moves the exponent the most" in note for note in found.notes)
    assert any("take other shares of N and C" in note for note in found.notes)  # why the scales don't compare


def test_losses_before_the_decay_are_read_off_the_trunks_at_their_own_cost(found):
    number = numbers(found)["change of a: losses before the rate comes down"]
    assert number.estimate.value == pytest.approx(0, abs=0.01)  # one factor for all sizes moves no minimum
    assert "approach 2 at 35 cells" in number.note and "not essential" in number.published


def test_losses_before_the_decay_move_the_exponent_where_the_decay_favours_large_models(tmp_path):
    fitted = isoflops(TRUTH, noise=0)
    trunks, courses = with_trunks(fitted, lambda params: (params / 1e4) ** 0.02)
    said = numbers(load("chinchilla")(evidence(tmp_path, [*fitted, *trunks], courses)))
    sizes = np.geomspace(1e2, 1e9, 100_001)
    best = [
        sizes[np.argmin(loss(TRUTH, sizes, C / 6 / sizes) * sizes**0.02)] for C in (BUDGETS[0], BUDGETS[-1])
    ]
    expected = np.log(best[1] / best[0]) / np.log(BUDGETS[-1] / BUDGETS[0]) - 0.5
    assert (
        expected < -0.01
    )  # curves flatten with C, so that their minima move the further, the larger the budget
    assert said["change of a: losses before the rate comes down"].estimate.value == pytest.approx(
        expected, abs=5e-3
    )


def test_an_arm_whose_budgets_have_no_minimum_is_read_by_one_shape(tmp_path):
    rows = isoflops(TRUTH, noise=0) + isoflops(TRUTH, role="arm", arm="warmup: ", noise=0)
    for told in rows:
        if told["role"] == "arm":  # the optimum of each budget moves beyond its largest size
            told["loss"] = repr(float(told["loss"]) * float(told["params_non_embedding"]) ** -0.12)
    number = numbers(load("chinchilla")(evidence(tmp_path, rows)))["change of a: one long warmup for all runs"]
    assert "one shape for all budgets" in number.note
    sizes = np.geomspace(1e2, 1e12, 200_001)
    best = [sizes[np.argmin(loss(TRUTH, sizes, C / 6 / sizes) * sizes**-0.12)] for C in (BUDGETS[0], BUDGETS[-1])]
    expected = np.log(best[1] / best[0]) / np.log(BUDGETS[-1] / BUDGETS[0]) - 0.5
    assert number.estimate.value == pytest.approx(expected, abs=0.05)


def test_leaving_the_head_out_raises_the_exponent_as_brute_force_says(found):
    number = numbers(found)["change of a: no head in N and C, C = 6·N·D"]
    params = np.geomspace(1e3, 1e7, 200_001)
    without = params - embedding(params)
    sizes = np.array([float(r) for r in (5e10, 1e13)])
    best = [without[np.argmin(loss(TRUTH, params, C / 6 / without))] for C in sizes]
    expected = np.log(best[1] / best[0]) / np.log(sizes[1] / sizes[0]) - 0.5
    assert expected > 0.03
    assert number.estimate.value == pytest.approx(expected, abs=0.03)


def test_an_arm_that_is_absent_says_so(found):
    number = numbers(found)["change of a: one long warmup for all runs"]
    assert number.estimate is None
    assert "no run was made so" in number.note and "Porian et al. 2024" in number.published


def test_arms_and_trunks_are_in_no_fit(tmp_path):
    fitted = isoflops(TRUTH)
    alone = evidence(tmp_path, fitted).table
    both = evidence(tmp_path, [*fitted, *isoflops(UNTUNED, role="arm", arm="tuning: ")]).table
    assert both.runs.run_id == alone.runs.run_id and both.digest == alone.digest
    assert len(both.rows) == 2 * len(alone.rows) and not both.exclusions


def test_a_table_without_the_second_count_or_courses_says_what_cannot_be_told(tmp_path):
    rows = [replace_total(r) for r in isoflops(TRUTH)]
    said = numbers(load("chinchilla")(evidence(tmp_path, rows)))
    assert "does not count N both" in said["change of a: no head in N and C, C = 6·N·D"].note
    assert (
        "no trunk of these runs was evaluated" in said["change of a: losses before the rate comes down"].note
    )


def replace_total(told: dict) -> dict:
    return {**told, "params_total": ""}


def test_curves_without_a_minimum_refuse_approach_2_with_the_reason(tmp_path):
    """Sizes all larger than the best: approaches 1 and 2 would read the grid; 3 needs no minimum among the
    runs."""
    rows = isoflops(TRUTH, around={**TRUTH, "A": 60 * 4**0.8})
    said = numbers(load("chinchilla")(evidence(tmp_path, rows)))
    for approach, reason in (
        ("1: envelope", "follows the sizes that were run"),
        ("2: isoFLOP", "0 of 5 are"),
    ):
        number = said[f"a, approach {approach}"]
        assert number.estimate is None and reason in number.note
    assert said["a, approach 3: parametric"].estimate.value == pytest.approx(0.5, abs=0.05)


def test_where_no_approach_can_be_had_each_reason_is_given(tmp_path):
    """Larger is always worse: nothing has an optimum."""
    rows = isoflops({**TRUTH, "A": 1e-9}, around=TRUTH, noise=0)
    with pytest.raises(
        ValueError, match="approach 1: .*follows the sizes.*approach 2: .*approach 3: .*at bound"
    ):
        load("chinchilla")(evidence(tmp_path, rows))


# --- the grid -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale, vocab_size, most", [("cpu", 257, 2e13), ("gpu", 32_768, 4e19)])
def test_each_arm_has_the_budgets_own_cells_made_its_way(compose, scale, vocab_size, most):
    config = compose(f"scale={scale}", "+grid=chinchilla")
    planned = cells(config, vocab_size)
    runs = plan(planned, Corpus("f00d", vocab_size, 10**12))
    base = {
        (cell.group, cell.shape): run for cell, run in zip(planned, runs, strict=True) if cell.role == "fit"
    }
    assert len(config.grid.arm_budgets) >= 3
    for arm in ("warmup", "tuning"):
        made = {
            (cell.group.removeprefix(f"{arm}: "), cell.shape): run
            for cell, run in zip(planned, runs, strict=True)
            if cell.role == "arm" and cell.group.startswith(arm)
        }
        assert made.keys() == {key for key in base if float(key[0][2:]) in config.grid.arm_budgets}
        for key, run in made.items():
            other = base[key].spec
            if arm == "warmup":
                tokens = run.spec.tokens_after(run.spec.schedule.warmup_steps)
                assert tokens == pytest.approx(
                    config.grid.arms["warmup"]["schedule"]["warmup_tokens"], rel=0.01
                )
                warm = replace(run.spec.schedule, warmup_steps=other.schedule.warmup_steps)
                assert replace(run.spec, schedule=warm) == other
            else:
                assert run.spec.optim.param == "sp" and run.spec.shape == other.shape
        if arm == "tuning":
            assert len({(run.spec.optim.lr, run.spec.batch_tokens) for run in made.values()}) == 1
    shared = share(runs)
    parents = {run.parent for run in shared.runs}
    assert None not in parents and config.executor.evaluations  # every run has a loss before its decay
    assert own_flops([*shared.trunks, *shared.runs]) < most
    assert {count_parameters(cell.shape).non_embedding for cell in planned if cell.role == "arm"}


def test_the_runs_to_fit_are_those_of_the_isoflop_grid(compose):
    mine, theirs = (cells(compose("scale=cpu", f"+grid={grid}"), 257) for grid in ("chinchilla", "isoflop"))
    corpus = Corpus("f00d", 257, 10**12)
    fitted = plan([cell for cell in mine if cell.role == "fit"], corpus)
    assert [run.run_id for run in fitted] == [run.run_id for run in plan(theirs, corpus)]


def test_a_warmup_that_is_longer_than_a_run_is_refused_by_its_key(compose):
    config = compose("scale=cpu", "+grid=chinchilla", "grid.arms.warmup.schedule.warmup_tokens=1e6")
    with pytest.raises(ConfigError, match="warmup of .*follows schedule.warmup_tokens"):
        plan(cells(config, 257), Corpus("f00d", 257, 10**12))


def test_an_arm_at_a_budget_that_is_not_there_is_refused(compose):
    with pytest.raises(ConfigError, match="grid.arm_budgets: .*none of grid.budgets"):
        compose("scale=cpu", "+grid=chinchilla", "grid.arm_budgets=[3e11]")
