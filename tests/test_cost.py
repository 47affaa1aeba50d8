from __future__ import annotations

from dataclasses import replace

import pytest

from models.config import DecoderShape
from models.count import count_parameters, training_flops_per_token
from sweep.plan.cost import Measurement, Timing, least_bytes, run_cost, shapes_to_measure, shards
from sweep.plan.spec import PlannedRun
from sweep.plan.trunks import TRUNK, trunk_of

SPEED = 5e9  # FLOP/s of an imagined machine
EVALUATION_SPEED = 2e10


def runs(tiny_spec, widths):
    for i, width in enumerate(widths):
        shape = DecoderShape(2, width, 2, 2 * width, 32, 16)
        yield PlannedRun(tiny_spec(shape=shape, steps=100 + i), "here")


def timing(spec, seconds_per_step=None, peak_bytes=10**9) -> Timing:
    per_token = training_flops_per_token(spec.shape)
    return Timing(
        flops_per_token=per_token,
        batch_tokens=spec.batch_tokens,
        seconds_per_step=seconds_per_step or per_token * spec.batch_tokens / SPEED,
        evaluation_seconds_per_token=per_token / EVALUATION_SPEED,
        peak_bytes=peak_bytes,
    )


def measurement(specs, startup=3.0, **options) -> Measurement:
    return Measurement(startup, "cpu", tuple(timing(spec, **options) for spec in specs))


def test_the_shapes_to_measure_span_the_plan(tiny_spec):
    planned = list(runs(tiny_spec, range(8, 88, 4)))
    chosen = shapes_to_measure(planned[::-1], most=4)
    work = [spec.flops / spec.steps for spec in chosen]
    assert len(chosen) == 4 and work == sorted(work)
    assert chosen[0] == planned[0].spec and chosen[-1] == planned[-1].spec
    assert [spec.shape for spec in shapes_to_measure(planned[:3] * 2)] == [
        run.spec.shape for run in planned[:3]
    ]


def test_at_constant_throughput_a_run_takes_its_flops_over_it(tiny_spec):
    planned = list(runs(tiny_spec, range(8, 88, 8)))
    measured = measurement([planned[0].spec, planned[4].spec, planned[-1].spec])
    for run in planned:
        spec = run.spec
        per_token = training_flops_per_token(spec.shape)
        for evaluations in (0, 3):
            evaluating = (evaluations + 1) * spec.data.eval_tokens * per_token / EVALUATION_SPEED
            cost = run_cost(run, measured, evaluations)
            assert cost.seconds == pytest.approx(3.0 + spec.flops / SPEED + evaluating, rel=1e-3)


def test_between_measured_shapes_throughput_lies_between_theirs_and_beyond_them_stays(tiny_spec):
    small, middle, large, larger = (run.spec for run in runs(tiny_spec, (16, 32, 64, 128)))
    slow, fast = timing(small, seconds_per_step=1.0), timing(large, seconds_per_step=1.0)
    measured = Measurement(0.0, "cpu", (slow, fast))
    spent = {spec: run_cost(PlannedRun(spec, ""), measured, 0).seconds for spec in (small, middle, large, larger)}
    assert spent[small] == pytest.approx(small.steps, rel=0.1)
    assert (
        1 <= spent[middle] / middle.steps < 1.5
    )  # a step of any size between takes the second that both ends take
    rate = large.flops / large.steps
    assert spent[larger] > 0.95 * larger.flops / rate


def test_a_run_never_needs_less_than_its_weights_gradients_and_moments(tiny_spec):
    (spec,) = (run.spec for run in runs(tiny_spec, (64,)))
    assert least_bytes(spec) == 16 * count_parameters(spec.shape).total
    assert run_cost(PlannedRun(spec, ""), measurement([spec], peak_bytes=10), 0).peak_bytes == least_bytes(spec)
    assert run_cost(PlannedRun(spec, ""), measurement([spec], peak_bytes=10**9), 0).peak_bytes == pytest.approx(1e9)


def test_weights_and_moments_are_spread_where_a_gpu_would_be_half_full_of_them_or_on_request(tiny_spec):
    (run,) = runs(tiny_spec, (64,))
    need = least_bytes(run.spec)
    assert shards(run.spec, 4, None, 2.01 * need) == 1 and shards(run.spec, 4, None, 1.99 * need) == 4
    assert shards(run.spec, 4, True, float("inf")) == 4 and shards(run.spec, 4, False, 1.0) == 1
    assert shards(run.spec, 1, None, 1.0) == 1
    assert shards(tiny_spec(optim={"kind": "muon", "momentum": 0.95}), 4, None, 1.0) == 1
    assert run_cost(run, measurement([run.spec], peak_bytes=10), 0, shards=4).peak_bytes == need / 4


def test_an_estimate_from_a_bound_says_so(tiny_spec):
    specs = [run.spec for run in runs(tiny_spec, (16, 32))]
    measured = measurement(specs)
    assert not run_cost(PlannedRun(specs[0], ""), measured, 0).is_bound
    bound = replace(measured, timings=(measured.timings[0], replace(measured.timings[1], is_bound=True)))
    assert run_cost(PlannedRun(specs[1], ""), bound, 0).is_bound


def test_a_branch_costs_what_its_trunk_leaves_and_a_trunk_no_evaluation(tiny_spec):
    (whole,) = runs(tiny_spec, (32,))
    trunk = trunk_of(whole.spec)
    measured = measurement([whole.spec], startup=0.0)
    evaluation = whole.spec.data.eval_tokens * training_flops_per_token(whole.spec.shape) / EVALUATION_SPEED
    alone, before, after = (
        run_cost(run, measured, 0).seconds
        for run in (whole, PlannedRun(trunk, TRUNK, TRUNK), replace(whole, parent=trunk))
    )
    assert before == pytest.approx(trunk.flops / SPEED)
    assert after == pytest.approx((whole.spec.flops - trunk.flops) / SPEED + evaluation)
    assert before + after == pytest.approx(alone)
