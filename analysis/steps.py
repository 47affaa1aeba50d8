"""The (N, S_min) of a law of steps: how few would have done at a batch far above the critical one.

S_min = S/(1 + B_crit(L)/B): Kaplan et al. 2020 (arXiv 2001.08361), equation 5.4, after McCandlish et al. 2018
(1812.06162).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from analysis.health import critical_tokens
from analysis.studies import Course, Evidence
from analysis.table import as_runs
from analysis.values import RunRow, Runs

FEWEST_LENGTHS = 3
"""Token counts of a size, in the median, for the ends of runs alone to tell how the loss falls with steps.
Assumption."""

AVERAGED = 3
"""Measurements of the noise scale that one B_crit is of: chance moves each by much, and B_crit grows as the
loss falls. Assumption."""


@dataclass(frozen=True)
class Point:
    """A run at its end or on its way: N (params), tokens and loss by then."""

    row: RunRow
    course: Course | None
    params: float
    tokens: float
    loss: float

    def critical(self) -> float | None:
        """B_crit in tokens: the median of the last noise scales measured by then; None for none."""
        if self.course is None:
            return None
        scale = self.course.noise_scale[self.course.tokens <= self.tokens]
        scale = scale[np.isfinite(scale)]
        return float(np.median(scale[-AVERAGED:])) if len(scale) else None

    def published_critical(self) -> float:
        """The paper's B_crit at this loss, in the run's own tokens."""
        bits = self.row.bits_per_byte
        bits = bits and bits * self.loss / self.row.loss
        return critical_tokens(replace(self.row, loss=self.loss, bits_per_byte=bits))


def least_steps(evidence: Evidence, runs: Runs) -> tuple[Runs, str]:
    """Runs whose `tokens` hold S_min, and in words what they are: the ends of `runs`, or where those have
    too few lengths at most sizes, their evaluations under way at the constant rate.

    Raises ValueError: neither is there, or a batch is not known.
    """
    rows = {row.run_id: row for row in evidence.table.rows}
    lengths = [len(np.unique(runs.tokens[runs.params == size])) for size in np.unique(runs.params)]
    points, what = [], "ends of runs"
    for i, run_id in enumerate(runs.run_id):
        end = Point(rows[run_id], evidence.courses.get(run_id), runs.params[i], runs.tokens[i], runs.loss[i])
        points += [end] if np.median(lengths) >= FEWEST_LENGTHS else _under_way(end)
    if np.median(lengths) < FEWEST_LENGTHS:
        what = "evaluations at the constant rate"
    if not points:
        raise ValueError("few sizes were trained for three lengths, and no run was evaluated on its way")
    if any(point.row.batch_tokens is None for point in points):
        raise ValueError("the table does not say the batch of each run, and with it the steps")
    measured = [point.critical() for point in points]
    if None in measured:
        what += "; B_crit: the paper's own (figure 10), by bytes; +grid=batch measures it"
        measured = [point.published_critical() for point in points]
    else:
        what += "; B_crit: the noise scale measured in these runs"
    batch, tokens = (np.array(values) for values in zip(*((p.row.batch_tokens, p.tokens) for p in points)))
    steps = tokens / (batch + np.array(measured))  # S/(1 + B_crit/B) with S = tokens/B
    return as_runs([p.params for p in points], steps, [p.loss for p in points]), what


def _under_way(end: Point) -> list[Point]:
    course = end.course
    if course is None:
        return []
    schedule, steps = course.made.get("schedule", {}), course.made.get("steps", course.step[-1])
    there = np.isfinite(course.eval_loss) & (course.step > schedule.get("warmup_steps", 0))
    there &= course.step <= steps - schedule.get("decay_steps", 0)
    return [replace(end, tokens=course.tokens[i], loss=course.eval_loss[i]) for i in np.flatnonzero(there)]
