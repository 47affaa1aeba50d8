"""Where a sweep's workers run: the executor that the configuration names, and the hardware it stands for."""

from __future__ import annotations

import math

from sweep.execute.executor import Executor
from sweep.files import SweepFolder
from sweep.hardware import Hardware, find_hardware
from sweep.plan.cost import shards
from sweep.plan.schema import ExecutorConfig, SweepConfig
from sweep.plan.spec import PlannedRun, RunSpec

THREADS = 1
"""Of each worker, everywhere: the order of a sum depends on it, and so the loss in its last digits."""


LEAST_SHARE = 2
"""Sequences of a run's largest batch for each of several cores. Assumption: with fewer, their meetings cost what
they save."""
SHARED_GAIN = 0.45
"""What each core but the first adds to a run's speed, over what it does alone: between the 0.32 and 0.64 that two
machines of two cores came to (benchmarks/ranks_cpu.txt), and an assumption for more."""


def ranks_of(config: SweepConfig, hardware: Hardware, spec: RunSpec, alone: bool) -> int:
    """Processes that share the batches of a run: one on each of its GPUs; on this machine's CPU one, and several
    for a target that no run runs beside (`alone`), since the cores would have nothing to do."""
    if not alone or hardware.device != "cpu" or is_remote(config) or config.executor.compile:
        return config.executor.ranks
    return max(1, min(hardware.slots, spec.most_sequences // LEAST_SHARE))


def lone_gain(config: SweepConfig, hardware: Hardware, spec: RunSpec) -> float:
    """How many times as fast a lone target is as a run beside others."""
    if hardware.device != "cpu":
        return 1.0
    return 1 + SHARED_GAIN * (ranks_of(config, hardware, spec, alone=True) - 1)


def shared_by(planned: PlannedRun, hardware: Hardware, executor: ExecutorConfig) -> int:
    """Over how many GPUs weights, gradients and moments of the run are spread."""
    return shards(planned.spec, executor.ranks, executor.shard, hardware.memory_per_run)


def cores_per_run(gpus: float) -> int:
    """What a run keeps busy: one core trains, and on a GPU one more makes batches ahead (sweep/train/stream.py)."""
    return 2 * math.ceil(gpus) or 1


def is_remote(config: SweepConfig) -> bool:
    """Whether workers run on other machines, of which nothing can be measured from here."""
    return config.executor.kind != "local"


def hardware_for(config: SweepConfig) -> Hardware:
    """What the runs get. Of other machines that is what is asked for, their memory being unknown (infinite), and
    for a plan alone Ray's room too (0 slots): nothing is connected to or started.

    Raises ValueError where this machine lacks what is asked of it, or the packages that reach the others.
    """
    executor = config.executor
    if not is_remote(config):
        return find_hardware(config.device, executor.slots, executor.per_device, executor.gpus_per_run)
    device = "cuda" if executor.gpus_per_run else "cpu"
    if executor.kind == "slurm":
        from sweep.execute.slurm import require_slurm

        require_slurm()
        slots, place = executor.slots, f"SLURM partition {executor.partition or 'by default'}"
    else:
        place = f"Ray at {executor.address}" if executor.address else "Ray on this machine"
        slots = _ray_room(config)
    asked = f"{executor.gpus_per_run:g} GPU and {cores_per_run(executor.gpus_per_run)} CPU a run"
    return Hardware(device, slots, math.inf, f"{place}, {asked}")


def executor_for(config: SweepConfig, hardware: Hardware, folder: SweepFolder) -> Executor:
    """The place that `executor=` names. Raises ValueError where it can't be reached or can't be as asked."""
    executor = config.executor
    if executor.kind == "ray":
        return _ray(config)
    if executor.kind == "slurm":
        return _slurm(config, hardware, folder)
    from sweep.execute.local import LocalExecutor

    return LocalExecutor(hardware.device, hardware.slots, executor.per_device, THREADS, gpus_per_run=executor.ranks)


def _slurm(config: SweepConfig, hardware: Hardware, folder: SweepFolder) -> Executor:
    from sweep.execute.slurm import SlurmExecutor, SlurmOptions

    executor = config.executor
    options = SlurmOptions(
        gpus=executor.gpus_per_run,
        cpus=cores_per_run(executor.gpus_per_run),
        minutes=executor.time,
        checkpoint_minutes=executor.checkpoint_minutes,
        partition=executor.partition,
        account=executor.account,
        memory_gb=executor.memory_gb,
        extra=executor.extra,
    )
    return SlurmExecutor(
        folder,
        options,
        slots=executor.slots,
        device=hardware.device,
        threads=THREADS,
        poll_seconds=executor.poll_seconds,
    )


def _ray_room(config: SweepConfig) -> int:
    from sweep.execute.ray import require_ray

    if not config.plan_only:
        return _ray(config).capacity
    require_ray()
    return config.executor.slots or 0


def _ray(config: SweepConfig) -> Executor:
    from sweep.execute.ray import RayExecutor

    executor = config.executor
    return RayExecutor(
        executor.address,
        gpus=executor.gpus_per_run,
        cpus=cores_per_run(executor.gpus_per_run),
        slots=executor.slots,
        device="cuda" if executor.gpus_per_run else "cpu",
        threads=THREADS,
    )
