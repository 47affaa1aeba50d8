"""Plans and executors for the tests of sweep/execute: real processes, no training."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.config import DecoderShape
from sweep.execute.local import LocalExecutor
from sweep.files import RunFolder, SweepFolder, write_json
from sweep.plan.spec import DataSpec, OptimSpec, PlannedRun, RunSpec, ScheduleSpec

FAKE_WORKER = (sys.executable, "-S", str(Path(__file__).with_name("fake_worker.py")))


def planned_run(seed: int = 0, *, steps: int = 20, group: str = "g", role: str = "fit") -> PlannedRun:
    spec = RunSpec(
        shape=DecoderShape(n_layer=2, d_model=16, n_head=2, d_ff=32, vocab_size=64, seq_len=32),
        data=DataSpec(fingerprint="f00d", eval_tokens=1024),
        optim=OptimSpec("mup", 0.01, 16, 0.9, 0.95, 1e-8, 0.0, 1.0),
        schedule=ScheduleSpec("wsd", 2, 4, "linear", 0.0),
        batch_sequences=2,
        steps=steps,
        seed=seed,
        precision="fp32",
    )
    return PlannedRun(spec, group, role)


def result_of(planned: PlannedRun, **changes: Any) -> dict[str, Any]:
    """The result.json of a finished run, with these changes."""
    return {
        "run_id": planned.run_id, "status": "finished", "reason": None, "step": planned.spec.steps,
        "tokens": planned.spec.tokens, "flops": planned.spec.flops, "flops_6nd": 1.5e9, "loss": 0.1 + 0.2,
        "loss_se": 1e-17, "bits_per_byte": 1.1, "unique_tokens": 640, "epochs": 2.0, "wall_seconds": 3.25,
        "tokens_per_second": 393.8, "device": "cpu, one thread", **changes,
    }  # fmt: skip


def put(folder: SweepFolder, planned: PlannedRun, result: dict[str, Any]) -> RunFolder:
    """Lay the request and the result of a run where a worker would have."""
    run = folder.run(planned.run_id)
    write_json(run.spec, {"run_id": planned.run_id, "spec": planned.spec.to_json(), "execution": {}})
    write_json(run.result, result)
    return run


def local(slots: int = 2) -> LocalExecutor:
    return LocalExecutor("cpu", slots=slots, worker_command=FAKE_WORKER)


def acting(*acts: str, seconds: float = 0.0) -> Callable[[PlannedRun], dict[str, Any]]:
    """Execution settings that give the run of seed i the i-th act, and the last one to all further."""
    return lambda planned: {"act": acts[min(planned.spec.seed, len(acts) - 1)], "seconds": seconds}


def starts(folder: RunFolder) -> int:
    """How many workers were started for this run."""
    return len((folder.path / "starts").read_text().splitlines())


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Fail where `condition` does not come true: a deadline for a hang, not a measure of speed."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
