from __future__ import annotations

import math

import numpy as np
import pytest

from sweep.plan.spec import ScheduleSpec
from sweep.train.schedule import rate_factor

STEPS = 1000
LINEAR = ScheduleSpec("wsd", warmup_steps=50, decay_steps=300, decay="linear", final=0.0)
SQRT = ScheduleSpec("wsd", warmup_steps=50, decay_steps=300, decay="sqrt", final=0.1)
COSINE = ScheduleSpec("cosine", warmup_steps=50, decay_steps=0, decay="", final=0.1)


def course(schedule: ScheduleSpec, steps: int = STEPS) -> np.ndarray:
    return np.array([rate_factor(schedule, step, steps) for step in range(steps)])


@pytest.mark.parametrize("schedule", [LINEAR, SQRT, COSINE], ids=["linear", "sqrt", "cosine"])
def test_it_rises_to_one_and_comes_down_to_final(schedule):
    factors = course(schedule)
    assert np.allclose(factors[:50], np.arange(1, 51) / 50)
    assert factors.max() == factors[49] == factors[50] == 1.0
    assert np.all(factors > 0) and np.all(np.diff(factors[50:]) <= 0)
    assert rate_factor(schedule, STEPS, STEPS) == pytest.approx(schedule.final)  # where the decay is aimed


def test_wsd_stays_and_then_falls_linearly_or_as_one_minus_sqrt():
    progress = np.arange(300) / 300
    assert np.all(course(LINEAR)[50:700] == 1.0) and np.all(course(SQRT)[50:700] == 1.0)
    assert np.allclose(course(LINEAR)[700:], 1 - progress)
    assert np.allclose(course(SQRT)[700:], 0.1 + 0.9 * (1 - np.sqrt(progress)))
    assert course(LINEAR)[700] == 1.0 > course(LINEAR)[701]


def test_cosine_is_half_way_in_the_middle_and_symmetric():
    factors = course(COSINE)
    assert rate_factor(COSINE, 50 + 950 // 2, STEPS) == pytest.approx((1 + 0.1) / 2)
    assert np.allclose(factors[51:] + factors[:50:-1], 1 + 0.1)  # about the half-way point


@pytest.mark.parametrize(
    "schedule, mean",
    [
        (LINEAR, 0.65 + (0.05 + 0.30) / 2),
        (SQRT, 0.65 + 0.05 / 2 + 0.30 * (0.1 + 0.9 / 3)),  # the mean of 1 - sqrt(x) is 1/3
        (COSINE, 0.05 / 2 + 0.95 * (1 + 0.1) / 2),
    ],
    ids=["linear", "sqrt", "cosine"],
)
def test_the_mean_rate_is_the_area_under_the_course(schedule, mean):
    assert course(schedule).mean() == pytest.approx(mean, abs=0.002)


def test_the_last_update_still_moves_the_weights():
    assert rate_factor(LINEAR, STEPS - 1, STEPS) == pytest.approx(1 / 300)


def test_without_warmup_and_decay_it_is_constant():
    assert np.all(course(ScheduleSpec("wsd", 0, 0, "linear", 0.0)) == 1.0)


def test_a_run_of_one_step_runs_at_the_peak():
    for schedule in (
        ScheduleSpec("wsd", 0, 0, "linear", 0.0),
        ScheduleSpec("wsd", 1, 0, "sqrt", 0.0),
        ScheduleSpec("cosine", 0, 0, "", 0.0),
    ):
        assert rate_factor(schedule, 0, 1) == 1.0


def test_the_trunk_does_not_depend_on_where_it_ends():
    """With one warmup, runs of two lengths share every step before the shorter one's decay."""
    longer = ScheduleSpec("wsd", warmup_steps=50, decay_steps=600, decay="linear", final=0.0)
    assert np.array_equal(course(LINEAR)[:700], course(longer, 2 * STEPS)[:700])
    assert math.isclose(course(longer, 2 * STEPS)[1400 + 300], 0.5)
