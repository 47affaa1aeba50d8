"""How fast and how large these shapes are here: `python -m sweep.train.measure` < request > measurement.

The request on stdin is {"specs": [RunSpec...], "execution": Execution}; the answer, the last line of
stdout, is {"startup_seconds", "device", "timings": [...]}, the fields of plan/cost.py's Measurement.
A process of its own, so that it has the workers' thread count and leaves no memory behind.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict

STARTED = time.time()

import torch  # noqa: E402  (its import is part of what is measured)

from models.count import training_flops_per_token  # noqa: E402
from sweep.plan.cost import Timing  # noqa: E402
from sweep.plan.spec import RunSpec  # noqa: E402
from sweep.train.train import Execution, build_learner, device_name, peak_bytes  # noqa: E402
from sweep.train.evaluate import evaluate  # noqa: E402

WARMUP_STEPS = 2  # assumption: allocations and lazy initialisation are over after two updates
ENOUGH_SECONDS = 0.5  # assumption: averages over scheduling noise, and five shapes take seconds
ENOUGH_STEPS = 50


def main() -> None:
    request = json.load(sys.stdin)
    execution = Execution(**request["execution"])
    torch.set_num_threads(execution.threads)
    specs = [RunSpec.from_json(spec) for spec in request["specs"]]
    startup = None
    timings = []
    for spec in specs:
        timings.append(asdict(measure(spec, execution)))
        startup = startup or time.time() - STARTED - ENOUGH_SECONDS
    answer = {"startup_seconds": startup, "device": device_name(execution.device), "timings": timings}
    print(json.dumps(answer))


def measure(spec: RunSpec, execution: Execution) -> Timing:
    """Seconds and peak bytes of an update of this run, on random tokens."""
    learner = build_learner(spec, execution)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(
        spec.shape.vocab_size, (spec.batch_sequences, spec.shape.seq_len + 1), generator=generator
    )
    on_device = tokens.to(learner.device)
    for _ in range(WARMUP_STEPS):
        learner.update(0, on_device)
    _wait(learner.device)
    started, steps = time.perf_counter(), 0
    while steps < ENOUGH_STEPS and time.perf_counter() - started < ENOUGH_SECONDS:
        learner.update(0, on_device)
        _wait(learner.device)
        steps += 1
    elapsed = time.perf_counter() - started
    blocks = tokens.numpy()
    started = time.perf_counter()
    evaluate(learner.forward, blocks, blocks[:, 1:].sum(axis=1) + 1, execution.micro_batch_sequences, learner.autocast)
    evaluation = time.perf_counter() - started
    return Timing(
        flops_per_token=training_flops_per_token(spec.shape),
        batch_tokens=spec.batch_tokens,
        seconds_per_step=elapsed / steps,
        evaluation_seconds_per_token=evaluation / spec.batch_tokens,
        peak_bytes=peak_bytes(execution.device),
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
