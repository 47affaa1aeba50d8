from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from analysis_helpers import write_table

from analysis.annealing import (
    AREA,
    POWER,
    CourseError,
    annealing_area,
    course_run,
    fit_shared,
    power_drop,
    predict_final,
)
from analysis.studies import Course, Evidence
from analysis.studies.curve import SHARES, backtest, stopped, study
from analysis.table import read_table

ALPHA, LAMBDA, GAIN = 0.4, 0.98, 0.004
STEPS, EVERY, BATCH = 1200, 20, 512
SIZES = (1e4, 2e4, 4e4, 8e4)
STREAM = np.random.default_rng(5).standard_normal(STEPS // EVERY)


def rates(steps: int, decay: float = 0.3) -> np.ndarray:
    """Warm up over 2%, stay, come down to 0 over the last `decay` of the steps; float64[step]."""
    progress = np.arange(1, steps + 1) / steps
    fall = (1 - progress) / decay + 1 / steps if decay else np.ones(steps)
    return 0.01 * np.minimum(1, progress / 0.02) * np.minimum(1, fall)


def true_course(params: float, rate: np.ndarray, gain: float, worse: float) -> np.ndarray:
    """float64[step], by the definition: two sums, no recursion but the momentum's own."""
    eta = rate / rate.max()
    momentum = area = 0.0
    warm, areas = int(np.argmax(eta)), []
    for k in range(len(eta)):
        momentum = LAMBDA * momentum + (eta[k - 1] - eta[k] if k > warm else 0.0)
        area += momentum
        areas.append(area)
    return 1.2 + 8 * params**-0.2 + worse + 2.0 * (np.cumsum(eta) / 1000) ** -ALPHA - gain * np.array(areas)


def sweep(
    tmp_path, *, noise=0.0, luck=0.0, gain=GAIN, decay=0.3, worse=(0.0, 0.2, 0.4), parent=False
) -> Evidence:
    """`SIZES` at three rates each, of which the second and third end `worse`, as runs.csv and courses."""
    generator, rows, courses = np.random.default_rng(1), [], {}
    for params in SIZES:
        for i, off in enumerate(worse):
            run_id, rate = f"n{params:.0f}r{i}", rates(STEPS, decay)
            loss = true_course(params, rate, gain, off).reshape(-1, EVERY).mean(axis=1)
            final = true_course(params, rate, gain, off)[-1]
            loss *= np.exp(luck * STREAM + noise * generator.standard_normal(len(loss)))
            step = np.arange(EVERY, STEPS + 1, EVERY, dtype=np.float64)
            nan, spec = np.full(len(step), np.nan), {"spec": {"seed": 0}}
            whole = Course(step, step * BATCH, nan, loss, nan, rate[EVERY - 1 :: EVERY], nan, spec)
            courses[run_id] = whole
            if parent:
                cut = {
                    name: getattr(whole, name)[:36]
                    for name in ("step", "tokens", "flops", "loss", "eval_loss", "lr", "noise_scale")
                }
                rest = {name: getattr(whole, name)[36:] for name in cut}
                courses[f"{run_id}-trunk"] = Course(**cut, spec=spec)
                courses[run_id] = Course(**rest, spec=spec | {"execution": {"parent": f"{run_id}-trunk"}})
            rows.append(
                {
                    "run_id": run_id,
                    "role": "fit",
                    "status": "finished",
                    "params_non_embedding": params,
                    "loss": final,
                    "tokens": STEPS * BATCH,
                    "flops": 6 * params * STEPS * BATCH,
                    "lr": 0.01 * 2**i,
                    "batch_tokens": BATCH,
                }
            )
    write_table(tmp_path / "runs.csv", rows)
    return Evidence(read_table(tmp_path / "runs.csv"), courses)


def runs_of(evidence: Evidence):
    return [course_run(row, evidence.courses) for row in evidence.finished()]


def test_the_law_is_recovered_from_noiseless_courses(tmp_path):
    law = fit_shared(runs_of(sweep(tmp_path)))
    assert law.alpha == pytest.approx(ALPHA, rel=0.03)
    assert 1 - law.constant == pytest.approx(LAMBDA, abs=0.002)
    assert law.gain == pytest.approx(GAIN, rel=0.05)
    assert law.at_bound == (False, False)


def test_the_annealing_area_is_the_double_sum_of_the_paper(tmp_path):
    run = runs_of(sweep(tmp_path))[0]
    eta, warm = run.rate, int(np.argmax(run.rate >= 0.999))
    drop = np.where(np.arange(STEPS) > warm, -np.diff(eta, prepend=eta[0]), 0.0)
    s = STEPS - 1
    direct = sum(drop[k] * sum(LAMBDA ** (i - k) for i in range(k, s + 1)) for k in range(s + 1))
    assert annealing_area(run, 1 - LAMBDA)[-1] == pytest.approx(direct, rel=1e-6)


def test_the_multi_power_drop_is_the_papers_sum_and_nothing_without_a_fall(tmp_path):
    run = runs_of(sweep(tmp_path))[0]
    area, eta = np.cumsum(run.rate), run.rate
    drop = np.where(np.arange(STEPS) > np.argmax(eta >= 0.999), -np.diff(eta, prepend=eta[0]), 0.0)
    x = (area[-1] - area + eta) * np.maximum(eta, 1e-3) ** -0.64
    direct = float(drop @ (1 - (0.1 * x + 1) ** -0.59))
    assert power_drop(run, 0.1)[-1] == pytest.approx(direct, rel=0.01)  # falls are grouped
    assert power_drop(replace(run, rate=np.ones(STEPS)), 0.1) == pytest.approx(np.zeros(len(run.places)))


@pytest.mark.parametrize("annealing", [AREA, POWER])
def test_a_run_is_predicted_from_its_beginning_and_cheaper_runs(tmp_path, annealing):
    runs = runs_of(sweep(tmp_path))
    law = fit_shared([run for run in runs if run.params < 8e4], annealing)
    for run in (run for run in runs if run.params == 8e4):
        for share in SHARES[1:]:  # the first holds two lines past the warmup
            assert predict_final(law, run, share) == pytest.approx(run.final, rel=0.02)


def test_nothing_after_the_share_is_looked_at(tmp_path):
    runs = runs_of(sweep(tmp_path, noise=0.01))
    law, run = fit_shared(runs[:9]), runs[-1]
    changed = replace(run, loss=np.where(run.step > 0.3 * STEPS, 99.0, run.loss), final=77.0)
    assert predict_final(law, changed, 0.3) == predict_final(law, run, 0.3)
    assert predict_final(law, changed, 0.5) != predict_final(law, run, 0.5)


def test_luck_that_runs_of_one_stream_share_is_taken_out(tmp_path):
    shared = fit_shared(runs_of(sweep(tmp_path, noise=0.002, luck=0.03)))
    assert shared.noise < 0.006
    other = [replace(run, seed=i) for i, run in enumerate(runs_of(sweep(tmp_path, noise=0.002, luck=0.03)))]
    assert fit_shared(other).noise > 0.02


def test_a_branch_is_read_with_its_trunk(tmp_path):
    whole, branched = runs_of(sweep(tmp_path)), runs_of(sweep(tmp_path, parent=True))
    assert all((a.loss == b.loss).all() and (a.rate == b.rate).all() for a, b in zip(whole, branched))
    evidence = sweep(tmp_path, parent=True)
    row = evidence.finished()[0]
    without = {name: course for name, course in evidence.courses.items() if name == row.run_id}
    with pytest.raises(CourseError, match="trunk"):
        course_run(row, without)


def test_what_loses_is_stopped_and_the_best_is_not(tmp_path):
    tests = backtest(runs_of(sweep(tmp_path, noise=0.004)), AREA)
    assert {run.params for run in tests.runs} == {8e4}  # three sizes are wanted before a fourth is predicted
    tests = replace(tests, errors=np.random.default_rng(0).normal(0, 0.004, (3, len(SHARES))))
    tests = replace(tests, runs=tests.runs * 2, errors=np.vstack([tests.errors, -tests.errors]))
    stops = stopped(tests)
    assert {stop.run.run_id for stop in stops} == {"n80000r1", "n80000r2"}
    assert all(stop.right for stop in stops)


def test_the_section_says_what_was_found(tmp_path):
    finding = study(sweep(tmp_path, noise=0.005, worse=(0.0, 0.05, 0.1, 0.2)))
    numbers = {number.what: number for number in finding.numbers}
    assert numbers["exponent α of the area under the rate"].estimate.lo < ALPHA + 0.02
    errors = [numbers[f"… first {share:.0%} seen"].estimate for share in SHARES[1:]]
    assert errors[-1].value < 2 < 100 and errors[-1].lo < errors[-1].value < errors[-1].hi
    assert len(finding.chart.panels) == 3 and finding.found.count(".") >= 1 and finding.means


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"decay": 0.0}, "came down"),
        ({"gain": -GAIN, "noise": 0.001}, "does not lower the loss"),
        ({"noise": 0.3}, "describe no course"),
        ({"worse": (0.0,)}, "are wanted"),
    ],
)
def test_where_the_law_cannot_be_had_the_section_says_why(tmp_path, broken, reason):
    broken = {"worse": (0.0, 0.05, 0.1, 0.2), **broken}
    with pytest.raises(ValueError, match=reason):
        study(sweep(tmp_path, **broken))


def test_a_table_alone_is_refused(tmp_path):
    with pytest.raises(ValueError, match="folder of a sweep"):
        study(Evidence(sweep(tmp_path).table))
    assert math.isfinite(sweep(tmp_path).finished()[0].loss)
