"""Runs that share a trunk: one run at a constant rate for each size, and a cooldown from it for each budget.

Until its rate comes down, a warmup-stable-decay run is the same run whatever its length (Hägele et al.
2024, arXiv 2405.18392, section 4). So the updates that runs have in common are made once, by a trunk,
and each run is the branch from it that makes the rest. A trunk is a chain of segments, one from each
branching point to the next, each a run like any other whose parent is the segment before: a branch
starts as soon as its own segment is done, and a longer run later adds a segment to a finished trunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sweep.plan.spec import PlannedRun, RunSpec, ScheduleSpec

TRUNK = "trunk"
"""Role and group of a trunk's segment."""


@dataclass(frozen=True)
class Shared:
    """`runs` are those that were given, in order, each with its parent; `trunks` the segments that they
    go on from, each after its own parent."""

    trunks: tuple[PlannedRun, ...]
    runs: tuple[PlannedRun, ...]


def trunk_of(spec: RunSpec) -> RunSpec | None:
    """What this run does until its rate comes down, as a run of its own; None where another run can't
    share it: a schedule that decays from the start, or a decay that begins in the warmup."""
    start, warmup = spec.decay_start, spec.schedule.warmup_steps
    if spec.schedule.kind != "wsd" or start < max(1, warmup):
        return None
    return replace(spec, schedule=ScheduleSpec("constant", warmup, 0, "", 1.0), steps=start)


def share(runs: Sequence[PlannedRun]) -> Shared:
    """Branch the runs off trunks. A holdout makes no segment; it goes on from the longest
    that is there for it."""
    chains: dict[RunSpec, set[int]] = {}
    for planned in runs:
        trunk = trunk_of(planned.spec)
        if trunk is not None and planned.role != "holdout":
            chains.setdefault(replace(trunk, steps=0), set()).add(trunk.steps)
    trunks: list[PlannedRun] = []
    for chain, lengths in chains.items():
        parent = None
        for steps in sorted(lengths):
            segment = replace(chain, steps=steps)
            trunks.append(PlannedRun(segment, TRUNK, TRUNK, parent))
            parent = segment
    return Shared(tuple(trunks), tuple(replace(planned, parent=_parent(planned.spec, chains)) for planned in runs))


def _parent(spec: RunSpec, chains: dict[RunSpec, set[int]]) -> RunSpec | None:
    trunk = trunk_of(spec)
    if trunk is None:
        return None
    chain = replace(trunk, steps=0)
    fitting = [steps for steps in chains.get(chain, ()) if steps <= trunk.steps]
    return replace(chain, steps=max(fitting)) if fitting else None


def own_flops(runs: Iterable[PlannedRun]) -> float:
    """FLOPs that the distinct runs make themselves, what they take over from their trunks left out."""
    return sum(run.own_share * run.spec.flops for run in {run.run_id: run for run in runs}.values())


def whole_flops(runs: Iterable[PlannedRun]) -> float:
    """FLOPs of the distinct runs if each were trained from its first update; trunks left out."""
    return sum(run.spec.flops for run in {run.run_id: run for run in runs}.values() if run.role != TRUNK)
