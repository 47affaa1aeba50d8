"""Seconds and bytes of a plan on this hardware, from a short measurement of shapes at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.count import count_parameters, training_flops_per_token
from sweep.plan.spec import PlannedRun, RunSpec

BYTES_PER_PARAMETER = 16
"""fp32 weights, gradients and AdamW's two moments: 4 x 4 bytes (Rajbhandari et al. 2020, arXiv
1910.02054, section 3.1, without its half-precision copies). What no run can do without."""


@dataclass(frozen=True)
class Timing:
    """One measured shape: seconds and peak bytes of an update on a batch of this many tokens.
    is_bound: nothing was run, or not all of it, and these are the least that it can take."""

    flops_per_token: float
    batch_tokens: int
    seconds_per_step: float
    evaluation_seconds_per_token: float
    peak_bytes: int
    is_bound: bool = False


@dataclass(frozen=True)
class Measurement:
    """What the measuring process found. startup_seconds: until a forked worker can make its first update."""

    startup_seconds: float
    device: str
    timings: tuple[Timing, ...]


@dataclass(frozen=True)
class Cost:
    """One run: wall seconds in its slot, peak bytes. is_bound: at least so much."""

    seconds: float
    peak_bytes: float
    is_bound: bool


def shapes_to_measure(runs: Sequence[PlannedRun], most: int = 5) -> list[RunSpec]:
    """At most `most` runs' specs that span the plan by FLOPs a step, smallest first."""
    by_work = {largest_update(run.spec): run.spec for run in runs}
    ordered = [by_work[work] for work in sorted(by_work)]
    if len(ordered) <= most:
        return ordered
    return [ordered[round(i)] for i in np.linspace(0, len(ordered) - 1, most)]


def largest_update(spec: RunSpec) -> float:
    """FLOPs of the run's last update. Where batches grow, most tokens go through such ones or some of half their
    size."""
    return training_flops_per_token(spec.shape) * spec.most_sequences * spec.shape.seq_len


def least_bytes(spec: RunSpec) -> float:
    """Bytes below which this run cannot fit: its weights, gradients and moments (Muon keeps one for
    the matrices in the layers, not two)."""
    parameters = count_parameters(spec.shape)
    matrices = parameters.attention + parameters.feed_forward if spec.optim.kind == "muon" else 0
    return float(BYTES_PER_PARAMETER * parameters.total - 4 * matrices)


REPLICATED_MOST = 0.5  # assumption: the activations of a micro-batch want the other half of a GPU's memory


def shards(spec: RunSpec, ranks: int, shard: bool | None, memory: float) -> int:
    """Over how many of a run's `ranks` processes weights, gradients and moments are spread: 1 (each has all of them)
    or all. As `shard` says, or, with None, where they take more than half of `memory`, the bytes of each process.

    Never with Muon, whose update wants whole matrices.
    """
    wanted = least_bytes(spec) > REPLICATED_MOST * memory if shard is None else shard
    return ranks if wanted and spec.optim.kind != "muon" else 1


def run_cost(planned: PlannedRun, measured: Measurement, evaluations: int, shards: int = 1) -> Cost:
    """Seconds and bytes (of each process) of one run, without what its trunk does for it: log-log interpolation between the
    measured shapes.

    Throughput (FLOP/s) is interpolated in FLOPs a step, and beyond the measured range taken as the
    nearest measured one's; peak bytes are interpolated likewise but never below the share of `least_bytes`.
    """
    spec, timings = planned.spec, measured.timings
    work = np.log([t.flops_per_token * t.batch_tokens for t in timings])
    here = np.log(largest_update(spec))
    speed = [t.flops_per_token * t.batch_tokens / t.seconds_per_step for t in timings]
    rate = np.exp(np.interp(here, work, np.log(speed)))
    per_token = training_flops_per_token(spec.shape)
    evaluating = np.exp(
        np.interp(
            np.log(per_token),
            np.log([t.flops_per_token for t in timings]),
            np.log([t.evaluation_seconds_per_token for t in timings]),
        )
    )
    last = not spec.is_trunk or evaluations > 0
    evaluated = (evaluations * planned.own_share + last) * spec.data.eval_tokens
    seconds = measured.startup_seconds + planned.own_share * spec.flops / rate + evaluated * evaluating
    peak = np.exp(np.interp(here, work, np.log([t.peak_bytes for t in timings])))
    is_bound = any(t.is_bound for t in timings)
    return Cost(float(seconds), max(float(peak), least_bytes(spec) / shards), is_bound)
