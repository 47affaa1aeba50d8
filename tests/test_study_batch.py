from __future__ import annotations

import math

import numpy as np
import pytest
from analysis_helpers import write_table

from analysis.studies import Course, Evidence
from analysis.studies.batch import by_scale, fit_hyperbola, hyperbolas, kaplan, steps_to, study
from analysis.table import read_table

BATCHES = (128.0, 512.0, 2048.0, 8192.0)
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
SIZES = (1e4, 2e4, 4e4)
BEST_LOSS, DECAY = 1.0, 0.3


def critical(loss, params, by_params=0.0):
    """Kaplan's form with another factor, and a power of N where one is wanted."""
    return 6e4 / loss**4.0 * (params / 1e4) ** by_params


def steps_needed(loss, params, batch, by_params=0.0):
    """S_min(L)·(1 + B_crit(L)/B), with S_min from L = 1 + 4·(S/10)^-0.3·(N/1e4)^-0.1."""
    least = 10 * ((loss - BEST_LOSS) / 4 * (params / 1e4) ** 0.1) ** (-1 / DECAY)
    return least * (1 + critical(loss, params, by_params) / batch)


def sweep(
    tmp_path,
    *,
    rates=RATES,
    batches=BATCHES,
    needed=steps_needed,
    annealed=False,
    noise=0.0,
    noise_scale=0.5,
    **truth,
):
    generator, rows, courses = np.random.default_rng(0), [], {}
    grid = np.geomspace(4.0, 1.2, 4000)
    for params in SIZES:
        for batch in batches:
            for lr in rates:
                off = math.log2(lr / (4e-3 * (batch / 1024) ** 0.25))
                steps = needed(grid, params, batch, **truth) * 2 ** (0.1 * off**2)
                step = np.round(np.linspace(0, 8e6 / batch, 41)[1:])
                loss = np.exp(np.interp(np.log(step), np.log(steps), np.log(grid)))
                loss *= np.exp(noise * generator.standard_normal(len(step)))
                rate = lr * (np.linspace(1, 0, 40) if annealed else np.ones(40))
                scale = noise_scale * critical(loss, params)
                run_id = f"n{params:.0f}b{batch:.0f}r{lr:g}"
                courses[run_id] = Course(step, step * batch, step, loss, loss, rate, scale, {})
                rows.append(
                    {
                        "run_id": run_id,
                        "role": "fit",
                        "status": "finished",
                        "params_non_embedding": params,
                        "loss": loss[-1],
                        "tokens": 8e6,
                        "flops": 6 * params * 8e6,
                        "lr": lr,
                        "batch_tokens": batch,
                        "d_model": params**0.5,
                    }
                )
    write_table(tmp_path / "runs.csv", rows)
    return Evidence(read_table(tmp_path / "runs.csv"), courses)


def numbers(finding):
    return {number.what.split(" at loss")[0]: number.estimate for number in finding.numbers}


def test_a_hyperbola_is_recovered_and_is_the_papers():
    batches = np.array([100.0, 1000.0, 10_000.0])
    steps = 50 * (1 + 700 / batches)
    found, least = fit_hyperbola(batches, steps)
    assert (found, least) == (pytest.approx(700, rel=1e-3), pytest.approx(50, rel=1e-3))
    assert (steps / 50 - 1) * (steps * batches / (50 * 700) - 1) == pytest.approx(np.ones(3))
    scaled, _ = fit_hyperbola(batches * 4, steps)  # in quarters of a token
    assert scaled == pytest.approx(4 * found, rel=1e-3)


def test_where_all_batches_lie_on_one_side_no_critical_batch_is_named():
    batches = np.array([100.0, 1000.0, 10_000.0])
    assert fit_hyperbola(batches, 1e6 / batches)[0] == math.inf
    assert fit_hyperbola(batches, np.full(3, 40.0))[0] == -math.inf


def test_steps_are_read_between_evaluations_and_not_beyond_them():
    nan = np.full(4, np.nan)
    course = Course(
        np.array([10.0, 20.0, 40.0, 80.0]), nan, nan, nan, np.array([3.0, np.nan, 2.0, 2.5]), nan, nan
    )
    assert steps_to(course, 2.5) == pytest.approx(20.0)  # halfway in log steps from 10 to 40
    assert math.isnan(steps_to(course, 1.9)) and math.isnan(steps_to(course, 3.1))


def test_the_critical_batch_is_recovered_at_every_size_and_loss(tmp_path):
    evidence, why = sweep(tmp_path), []
    found = hyperbolas(evidence.finished(), evidence.courses, why)
    assert {one.params for one in found} == set(SIZES) and not why
    for one in found:
        assert one.critical == pytest.approx(critical(one.loss, one.params), rel=0.1)
        assert one.noise_scale == pytest.approx(0.5 * one.critical, rel=0.1)


def test_the_powers_of_loss_and_size_are_recovered(tmp_path):
    told = numbers(study(sweep(tmp_path, noise=1e-4)))
    assert told["1/α_B of B_crit ∝ L^(-1/α_B)"].value == pytest.approx(4.0, rel=0.1)
    assert told["noise scale over critical batch"].value == pytest.approx(0.5, rel=0.1)
    critical_batch = told["critical batch"]
    assert critical_batch.lo <= critical_batch.value <= critical_batch.hi


def test_the_power_of_the_size_is_told_at_one_number_of_tokens(tmp_path):
    """With B_crit ∝ L^-4·N^p, S_min(L) of slope -6 or so in log L here and N^-1/3, holding E_min =
    B_crit·S_min leaves N the power p - 4·(p - 1/3)/10."""
    for power in (0.0, 0.5):
        evidence = sweep(tmp_path, by_params=power)
        found = hyperbolas(evidence.finished(), evidence.courses, [])
        assert by_scale(found)[1] == pytest.approx(power - 0.4 * (power - 1 / 3), abs=0.05)


def test_a_rate_at_the_edge_of_those_tried_names_no_critical_batch(tmp_path):
    with pytest.raises(ValueError, match="best rate"):
        study(sweep(tmp_path, rates=(1e-4, 2e-4, 4e-4)))


def test_what_is_no_hyperbola_is_refused(tmp_path):
    def needed(loss, params, batch):  # a middle batch is the worst
        return steps_needed(loss, params, batch) * (6.0 if 256 < batch < 4096 else 1.0)

    with pytest.raises(ValueError, match="hyperbola|critical batch"):
        study(sweep(tmp_path, needed=needed))


def test_runs_that_anneal_or_too_few_batches_are_refused(tmp_path):
    with pytest.raises(ValueError, match="anneal"):
        study(sweep(tmp_path, annealed=True))
    with pytest.raises(ValueError, match="2 batches"):
        study(sweep(tmp_path, batches=BATCHES[:2]))


def test_kaplans_critical_batch_is_equation_1_4():
    assert kaplan(1.0) == 2e8 and kaplan(3.0) == pytest.approx(2e8 / 3 ** (1 / 0.21))
