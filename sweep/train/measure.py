"""How fast and how large these shapes are here: `python -m sweep.train.measure` < request > measurement.

The request on stdin is {"specs": [RunSpec...], "execution": Execution}; the answer, the last line of
stdout, is {"startup_seconds", "device", "timings": [...]}, the fields of plan/cost.py's Measurement.
A process of its own, so that it has the workers' thread count and leaves no memory behind.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict

import numpy as np
import torch

from models.count import training_flops_per_token
from sweep.plan.cost import Timing, largest_update, least_bytes, shards
from sweep.plan.spec import RunSpec
from sweep.train.distributed import device_memory
from sweep.train.evaluate import evaluate
from sweep.train.train import Execution, build_learner, device_name, peak_bytes

WARMUP_STEPS = 2  # assumption: allocations and lazy initialisation are over after two updates
ENOUGH_SECONDS = 0.5  # assumption: averages over scheduling noise, and five shapes take seconds
MOST_STEPS = 50
MOST_STEP_SECONDS = 5.0  # assumption: a plan whose steps take longer is refused on sight, so a bound will do


def main() -> None:
    request = json.load(sys.stdin)
    execution = Execution(**request["execution"])
    started = time.perf_counter()
    torch.set_num_threads(execution.threads)
    peak = matmul_flops_per_second(execution.device)
    # a worker is forked from a process that has torch imported: what is left is to make the device ready
    startup, timings = time.perf_counter() - started, []
    for spec in (RunSpec.from_json(spec) for spec in request["specs"]):
        too_long = largest_update(spec) / peak / execution.ranks > MOST_STEP_SECONDS
        shared_by = shards(spec, execution.ranks, execution.shard, device_memory(execution.device))
        untried = too_long or shared_by > 1
        timings.append(asdict(bound(spec, peak, execution.ranks, shared_by) if untried else measure(spec, execution)))
    answer = {"startup_seconds": startup, "device": device_name(execution.device), "timings": timings}
    print(json.dumps(answer))


def matmul_flops_per_second(device: str, size: int = 1024) -> float:
    """FLOP/s of a float32 square matrix product here: a speed that no run exceeds on a CPU."""
    a = torch.ones(size, size, device=device)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        torch.mm(a, a).sum().item()
        seconds.append(time.perf_counter() - started)
    return 2.0 * size**3 / min(seconds)


def bound(spec: RunSpec, peak: float, ranks: int, shards: int) -> Timing:
    """The least that an update can take at `peak` FLOP/s of each rank, for shapes too slow or too large to try."""
    per_token = training_flops_per_token(spec.shape)
    return Timing(
        flops_per_token=per_token,
        batch_tokens=spec.most_sequences * spec.shape.seq_len,
        seconds_per_step=largest_update(spec) / peak / ranks,
        evaluation_seconds_per_token=per_token / 3 / peak / ranks,
        peak_bytes=int(least_bytes(spec) / shards),
        is_bound=True,
    )


def measure(spec: RunSpec, execution: Execution) -> Timing:
    """Seconds and peak bytes of an update of this run, on random tokens; of several ranks, of one rank's part of it:
    a bound, since what they send each other comes on top."""
    learner = build_learner(spec, execution)
    generator = torch.Generator().manual_seed(0)
    sequences = math.ceil(spec.most_sequences / execution.ranks)
    tokens = torch.randint(spec.shape.vocab_size, (sequences, spec.shape.seq_len + 1), generator=generator)
    on_device = tokens.to(learner.device)
    for _ in range(WARMUP_STEPS):
        learner.update(0, on_device)
    started, steps = time.perf_counter(), 0
    while steps < MOST_STEPS and time.perf_counter() - started < ENOUGH_SECONDS:
        loss, _ = learner.update(0, on_device)
        loss.item()  # waits for the device
        steps += 1
    elapsed = time.perf_counter() - started
    blocks = tokens.repeat(-(-execution.micro_batch_sequences // len(tokens)), 1).numpy()
    started = time.perf_counter()
    evaluate(learner.forward, blocks, np.ones(len(blocks)), learner.micro_batch, learner.autocast)
    evaluation = time.perf_counter() - started
    return Timing(
        flops_per_token=training_flops_per_token(spec.shape),
        batch_tokens=spec.most_sequences * spec.shape.seq_len,
        seconds_per_step=elapsed / steps,
        evaluation_seconds_per_token=evaluation / (len(blocks) * spec.shape.seq_len) / execution.ranks,
        peak_bytes=peak_bytes(execution.device),
        is_bound=execution.ranks > 1,
    )


if __name__ == "__main__":
    main()
