"""Kaplan's laws on runs of known truth: exponents are found, and a law whose assumption fails gives its
reason instead."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.health import critical_batch
from analysis.laws import KAPLAN, KAPLAN_STEPS
from analysis.studies import Course, Evidence, load
from analysis.table import read_table
from analysis_helpers import true_loss, write_table
from models.count import training_flops_per_token
from sweep.plan.grids import cells
from sweep.plan.plan import Corpus, plan
from sweep.plan.trunks import own_flops, share

TRUTH = {"N_c": 3e6, "D_c": 4e8, "alpha_N": 0.12, "alpha_D": 0.15}
SIZES, TOKENS = np.geomspace(4e3, 4e6, 10), np.geomspace(2e5, 2e8, 10)


def rectangle(sizes=SIZES, tokens=TOKENS):
    params, data = (side.ravel() for side in np.meshgrid(sizes, tokens, indexing="ij"))
    return params, data


def evidence(tmp_path, params, tokens, loss, courses=None, **columns) -> Evidence:
    """A sweep's table of these runs; further columns are arrays or one value for all."""
    given = {name: np.broadcast_to(column, len(params)) for name, column in columns.items()}
    rows = [
        {
            "run_id": f"r{i:03d}",
            "status": "finished",
            "role": "fit",
            "params_non_embedding": repr(float(params[i])),
            "tokens": repr(float(tokens[i])),
            "flops": repr(float(6 * params[i] * tokens[i])),
            "loss": repr(float(loss[i])),
            **{name: repr(float(column[i])) for name, column in given.items()},
        }
        for i in range(len(params))
    ]
    write_table(tmp_path / "runs.csv", rows)
    return Evidence(read_table(tmp_path / "runs.csv"), courses or {})


def numbers(finding) -> dict:
    return {number.what: number for number in finding.numbers}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A surface that is Kaplan's, with noise of 0.1%; N is counted with embeddings too."""
    params, tokens = rectangle()
    loss = KAPLAN.loss_at(TRUTH, params=params, tokens=tokens)
    loss *= np.exp(1e-3 * np.random.default_rng(1).standard_normal(len(loss)))
    total = params + 300 * params**0.5
    return load("kaplan")(evidence(tmp_path_factory.mktemp("k"), params, tokens, loss, params_total=total))


def test_joint_exponents_are_found_under_the_count_that_is_true(found):
    said = numbers(found)
    for name in ("alpha_N", "alpha_D"):
        value = said[f"{name} of L(N, D), N non-embedding"].estimate
        assert value.lo <= value.value <= value.hi
        assert value.value == pytest.approx(TRUTH[name], abs=0.004)
    assert said["alpha_N of L(N, D), N total"].estimate.value > TRUTH["alpha_N"] + 0.01


def test_laws_of_one_variable_near_the_joint_law_s_limits(found):
    said = numbers(found)
    of_params = said["alpha_N of L(N) at ample data, N non-embedding"]
    assert of_params.estimate.value == pytest.approx(TRUTH["alpha_N"], abs=0.02)
    assert "twice the tokens would still lower" in of_params.note
    assert said["alpha_D of L(D) at ample size"].estimate.value == pytest.approx(TRUTH["alpha_D"], abs=0.03)
    # Along a budget of 6·N·D, minimising equation 1.5 makes both terms the same power of C.
    best = 1 / (1 / TRUTH["alpha_N"] + 1 / TRUTH["alpha_D"])
    assert said["alpha_C of L(C) on the envelope"].estimate.value == pytest.approx(best, abs=0.006)
    assert "0.076, equation 1.1" in of_params.published


def test_every_part_has_a_sentence_a_number_or_a_reason_and_a_panel(found):
    assert found.found.startswith("L(N) ∝ N^-0.1") and "twice the parameters" in found.means
    assert all(number.estimate or number.note for number in found.numbers)
    assert [panel.title for panel in found.chart.panels] == [
        "L(N), data ample", "L(D), size ample", "L(C), envelope", "L(N, D), equation 1.5",
    ]  # fmt: skip


def test_data_seen_once_has_no_law_of_overfitting(found):
    number = numbers(found)["x of D ∝ N^x against overfitting"]
    assert number.estimate is None and "no run is known to repeat its tokens" in number.note
    assert "0.74" in number.published


def test_a_floor_is_refused_where_the_law_has_none(tmp_path):
    params, tokens = rectangle()
    said = numbers(load("kaplan")(evidence(tmp_path, params, tokens, true_loss(params, tokens))))
    joint = said["alpha_N of L(N, D), N non-embedding"]
    assert joint.estimate is None and "no irreducible loss" in joint.note
    assert f"(E = {0.9:.3g} nats)" in joint.note
    envelope = said["alpha_C of L(C) on the envelope"]
    assert envelope.estimate is None and "no power law" in envelope.note


def test_sizes_whose_longest_run_still_wants_data_are_no_law_of_size(tmp_path):
    params, tokens = rectangle(np.geomspace(1e5, 4e6, 6), np.geomspace(2e5, 2e6, 6))
    said = numbers(load("kaplan")(evidence(tmp_path, params, tokens, true_loss(params, tokens))))
    number = said["alpha_N of L(N) at ample data, N non-embedding"]
    assert number.estimate is None and "data are ample at" in number.note
    assert said["alpha_D of L(D) at ample size"].estimate is not None


def test_repeated_data_sets_give_the_rule_against_overfitting(tmp_path):
    sizes, sets, epochs = np.geomspace(1e4, 1e6, 5), np.geomspace(1e5, 1e7, 5), np.array([1, 2, 4, 8])
    params, unique, epoch = (side.ravel() for side in np.meshgrid(sizes, sets, epochs, indexing="ij"))
    best = KAPLAN.loss_at(TRUTH, params=params, tokens=unique)
    loss = best * (1 + 0.03 * np.log2(epoch / 4) ** 2)  # falls until the fourth epoch, then rises
    told = evidence(tmp_path, params, epoch * unique, loss, unique_tokens=unique)
    number = numbers(load("kaplan")(told))["x of D ∝ N^x against overfitting"]
    assert number.estimate.value == pytest.approx(TRUTH["alpha_N"] / TRUTH["alpha_D"], abs=0.01)


STEPS = {"N_c": 3e6, "S_c": 900.0, "alpha_N": 0.12, "alpha_S": 0.7}


def steps_at(batch, critical):
    """Sizes x S_min on equation 1.6, with the tokens that a batch above no and below some critical one
    takes."""
    params, least = rectangle(SIZES[:6], np.geomspace(1e3, 1e5, 6))
    loss = KAPLAN_STEPS.loss_at(STEPS, params=params, tokens=least)
    return params, least * (1 + critical(loss) / batch) * batch, loss


def test_steps_follow_the_paper_s_critical_batch_where_none_is_measured(tmp_path):
    batch = 2048.0
    params, tokens, loss = steps_at(batch, critical_batch)
    said = numbers(load("kaplan")(evidence(tmp_path, params, tokens, loss, batch_tokens=batch)))
    for name in ("alpha_N", "alpha_S"):
        value = said[f"{name} of L(N, S_min), N non-embedding"].estimate.value
        assert value == pytest.approx(STEPS[name], abs=1e-3)
    assert "the paper's own" in said["alpha_N of L(N, S_min), N non-embedding"].note


def test_steps_of_evaluations_under_way_follow_the_measured_noise_scale(tmp_path):
    """Each size has one run; its evaluations at the constant rate are the points, those in its warmup and
    decay not."""
    batch, measured = 2048.0, 30_000.0
    params, tokens, loss = steps_at(batch, lambda loss: measured)
    courses, ends = {}, []
    for i, size in enumerate(np.unique(params)):
        there = np.flatnonzero(params == size)
        seen = np.concatenate([[tokens[there[0]] / 2], tokens[there], [1.2 * tokens[there[-1]]]])
        evaluated = np.concatenate([[9.0], loss[there], [0.9 * loss[there[-1]]]])
        step = seen / batch
        schedule = {"warmup_steps": step[0], "decay_steps": step[-1] - step[-2]}
        none = np.full(len(step), np.nan)
        courses[f"r{i:03d}"] = Course(
            step, seen, 6 * size * seen, none, evaluated, none, np.full(len(step), measured),
            {"spec": {"schedule": schedule, "steps": step[-1]}},
        )  # fmt: skip
        ends.append((size, seen[-1], evaluated[-1]))
    size, seen, last = map(np.array, zip(*ends, strict=True))
    extra = np.array(
        [[3e3, 3e6, 3.0], [5e6, 1e8, 2.0]]
    )  # the surface that tells what is ample takes more sizes
    given = evidence(
        tmp_path,
        *(np.append(a, b) for a, b in zip((size, seen, last), extra.T, strict=True)),
        courses,
        batch_tokens=batch,
    )
    said = numbers(load("kaplan")(given))
    number = said["alpha_S of L(N, S_min), N non-embedding"]
    assert number.estimate.value == pytest.approx(STEPS["alpha_S"], abs=1e-3)
    assert "measured in these runs" in said["alpha_N of L(N, S_min), N non-embedding"].note


def test_too_few_runs_for_a_surface_are_refused(tmp_path):
    with pytest.raises(ValueError, match="needs at least 7 runs"):
        load("kaplan")(evidence(tmp_path, *rectangle(SIZES[:2], TOKENS[:2]), np.full(4, 2.0)))


@pytest.mark.parametrize("scale, vocab_size, most", [("cpu", 257, 2e13), ("gpu", 32_768, 3e19)])
def test_the_grid_has_ample_data_and_ample_size_and_no_dear_corner(compose, scale, vocab_size, most):
    config = compose(f"scale={scale}", "+grid=kaplan")
    planned = cells(config, vocab_size)
    assert config.grid.studies == ["kaplan"] and config.schedule.trunk and config.executor.evaluations
    assert all(
        cell.tokens * training_flops_per_token(cell.shape) <= config.grid.max_flops for cell in planned
    )
    ratios = [cell.tokens / cell.params for cell in planned]
    assert min(ratios) < 5 and max(ratios) > 500
    runs = plan(planned, Corpus("f00d", vocab_size, 10**12))
    assert (
        len({(run.spec.batch_tokens, run.spec.optim.lr, run.spec.schedule.warmup_steps) for run in runs}) == 1
    )
    shared = share(runs)
    assert len(shared.trunks) == len(runs)
    assert own_flops([*shared.trunks, *shared.runs]) < most
