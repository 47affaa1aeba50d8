"""The plan with its cost, as measured on this hardware, and the refusal of what costs too much."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from models.count import count_parameters
from sweep.execute.estimate import MeasurementFailed, measure
from sweep.execute.ledger import Ledger
from sweep.hardware import Hardware
from sweep.places import is_remote, lone_gain, shared_by
from sweep.plan.cost import Cost, least_bytes, run_cost, shapes_to_measure
from sweep.plan.order import makespan
from sweep.plan.plan import micro_batch_sequences
from sweep.plan.spec import PlannedRun
from sweep.plan.trunks import own_flops, whole_flops
from sweep.refusals import Refused
from sweep.state import Sweep
from sweep.tables import plan_table
from sweep.units import duration, memory

UNMEASURED = (
    "seconds and memory are not known, since the runs go to machines that were not measured: "
    "max_hours and the memory of a run are not checked"
)
KEPT_OF_A_TRUNK = 3 / 4  # of BYTES_PER_PARAMETER: gradients are not kept


def show_cost(sweep: Sweep, target: Sequence[PlannedRun], out) -> None:
    """Measure, and print the plan with its seconds, bytes and FLOPs. `target`: what will be predicted, not in the sweep yet.

    Raises Refused for what takes longer than max_hours, does not fit in memory or cannot be run here.
    """
    elsewhere = sweep.reusable(sweep.runs)
    done = frozenset(Ledger(sweep.folder, sweep.runs).settled()).union(elsewhere)
    left = [planned for planned in (*sweep.runs, *target) if planned.run_id not in done]
    costs = _costs(sweep, left, target, out)
    out.print(plan_table([*sweep.runs, *target], costs, done))
    each = {run_id: cost.seconds for run_id, cost in costs.items()}
    seconds = makespan(sweep.runs, each, sweep.hardware.slots) + makespan(target, each, 1)
    bound = "at least" if any(cost.is_bound for cost in costs.values()) else "about"
    said = f"{bound} {duration(seconds)} from here" if costs or not left else UNMEASURED
    trunks = f" on {len(sweep.planned.trunks)} trunk segments" if sweep.planned.trunks else ""
    out.print(
        f"{len(sweep.planned.runs)} runs to fit{trunks} ({len(done)} done), {len(target)} to predict and check; "
        f"{own_flops([*sweep.runs, *target]):.2e} FLOPs; {said}"
    )
    if elsewhere:
        out.print(f"{len(elsewhere)} of those done are taken over from sweeps beside this one (reuse=false trains them)")
    if trunks:
        own, whole = own_flops(sweep.runs), whole_flops(sweep.runs)
        kept = sum(least_bytes(run.spec) * KEPT_OF_A_TRUNK for run in sweep.planned.trunks)
        out.print(
            f"branching off trunks: {own:.2e} FLOPs instead of {whole:.2e} for independent runs ({own / whole:.0%}); "
            f"the trunks' checkpoints take {memory(kept)} of disk"
        )
    if target and sweep.config.grid.target.params is None:
        out.print("the target's size is provisional: the fit will choose it")
    if seconds > sweep.config.max_hours * 3600:
        raise Refused(
            f"max_hours={sweep.config.max_hours:g}: the sweep would take {bound} {duration(seconds)} on this hardware. Lower "
            "the budgets or sizes, set grid.target.flops=null, use more hardware, or raise max_hours. Nothing was launched."
        )
    _check_peaks([*sweep.runs, *target], costs, sweep.hardware)


def _costs(sweep: Sweep, left: Sequence[PlannedRun], target: Sequence[PlannedRun], out) -> dict[str, Cost]:
    """Seconds and memory of the runs that are left, measured now; none where they run on other machines."""
    if not left or is_remote(sweep.config):
        return {}
    config, hardware = sweep.config, sweep.hardware
    shapes = shapes_to_measure(left)
    out.print(f"measuring {len(shapes)} of the plan's shapes on this hardware")
    largest = max(left, key=lambda planned: micro_batch_sequences(config, planned.spec.most_sequences))
    try:
        measured = measure(shapes, sweep.execution(largest))
    except MeasurementFailed as error:
        raise Refused(f"{error}\nNothing was launched.") from error
    executor = config.executor
    costs = {run.run_id: run_cost(run, measured, executor.evaluations, shared_by(run, hardware, executor)) for run in left}
    if len(target) == 1 and (cost := costs.get(target[0].run_id)):
        gain = lone_gain(config, hardware, target[0].spec)
        costs[target[0].run_id] = dataclasses.replace(cost, seconds=cost.seconds / gain)
    return costs


def _check_peaks(runs: Sequence[PlannedRun], costs: Mapping[str, Cost], hardware: Hardware) -> None:
    """Raise Refused for a run whose measured peak does not fit."""
    for planned in runs:
        cost = costs.get(planned.run_id)
        if cost and cost.peak_bytes > hardware.memory_per_run:
            raise Refused(
                f"{planned.group}, N={count_parameters(planned.spec.shape).non_embedding:,}: needs about "
                f"{memory(cost.peak_bytes)}; a run has {memory(hardware.memory_per_run)} here. Lower "
                "optim.micro_batch_tokens, executor.slots or executor.per_device. Nothing was launched."
            )
