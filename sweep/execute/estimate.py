"""Start the measuring process and read what it found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from sweep.plan.cost import Measurement, Timing
from sweep.plan.spec import RunSpec


class MeasurementFailed(RuntimeError):
    """The shapes could not be run here; the message has the process's last words."""


def measure(specs: Sequence[RunSpec], execution: dict) -> Measurement:
    """Run `sweep.train.measure` on these specs with these execution settings.

    Raises MeasurementFailed when the process fails: out of memory, or no such device.
    """
    request = json.dumps({"specs": [spec.to_json() for spec in specs], "execution": execution})
    command = [sys.executable, "-m", "sweep.train.measure"]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        words = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise MeasurementFailed(f"measuring the plan's shapes ended with {ended}: {words}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    timings = tuple(Timing(**timing) for timing in answer["timings"])
    return Measurement(answer["startup_seconds"], answer["device"], timings)
