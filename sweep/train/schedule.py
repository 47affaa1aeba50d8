"""The learning rate's course: pure functions of the step."""

from __future__ import annotations

import math

from sweep.plan.spec import ScheduleSpec


def rate_factor(schedule: ScheduleSpec, step: int, steps: int) -> float:
    """The factor on the peak rate at update `step` of `steps`, counted from 0.

    Warmup is linear and reaches 1 at step `warmup_steps - 1`. "wsd" then stays at 1 and comes down
    over the last `decay_steps` updates, linearly or as 1 - sqrt(progress) (Hägele et al. 2024,
    arXiv 2405.18392, section 3); "cosine" comes down over everything after the warmup (Loshchilov
    & Hutter 2017, 1608.03983); "constant" stays. Progress counts the updates already made in the decay, so the last
    one still moves the weights when `final` is 0.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    decay_steps = steps - schedule.warmup_steps if schedule.kind == "cosine" else schedule.decay_steps
    decayed = step - (steps - decay_steps)
    if schedule.kind == "constant" or decayed <= 0:
        return 1.0
    progress = decayed / decay_steps
    if schedule.kind == "cosine":
        remaining = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif schedule.decay == "sqrt":
        remaining = 1.0 - math.sqrt(progress)
    else:
        remaining = 1.0 - progress
    return schedule.final + (1.0 - schedule.final) * remaining
