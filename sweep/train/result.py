"""What came of a run, success or failure: a value, and the JSON that the ledger reads."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy
import torch

from models.count import count_flops, count_parameters
from sweep.files import RunFolder, write_json
from sweep.plan.spec import RunSpec


@dataclass(frozen=True)
class RunResult:
    """`result.json`. status: "finished", "diverged" or "failed", with the reason for the latter two.

    loss, loss_se: held-out, nats a token, None unless finished, and for a trunk. flops: exact, of the whole run;
    flops_6nd: 6·N·D with N non-embedding. peak_bytes: of the device, or of the process on a CPU.
    resumes: how many times it went on from a checkpoint. micro_batch_sequences: that went through the model at
    once in the end, after oom_halvings: in the process that ended the run, and for killed ones before it.
    """

    run_id: str
    status: str
    params_total: int
    params_non_embedding: int
    flops: float
    flops_6nd: float
    step: int
    tokens: int
    reason: str | None = None
    traceback: str | None = None
    loss: float | None = None
    loss_se: float | None = None
    bits_per_byte: float | None = None
    eval_tokens: int | None = None
    unique_tokens: int | None = None
    epochs: float | None = None
    wall_seconds: float | None = None
    tokens_per_second: float | None = None
    device: str | None = None
    resumes: int = 0
    peak_bytes: int | None = None
    micro_batch_sequences: int | None = None
    oom_halvings: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    def write(self, folder: RunFolder) -> None:
        write_json(folder.result, asdict(self))


def result_for(spec: RunSpec, status: str, step: int, **outcome: Any) -> RunResult:
    """A result with everything that follows from the spec filled in; `step` updates were made."""
    parameters, flops = count_parameters(spec.shape), count_flops(spec.shape)
    tokens = spec.tokens_after(step)
    return RunResult(
        run_id=spec.run_id,
        status=status,
        params_total=parameters.total,
        params_non_embedding=parameters.non_embedding,
        flops=float(tokens) * flops.exact,
        flops_6nd=float(tokens) * flops.six_n,
        step=step,
        tokens=tokens,
        versions=_versions(),
        **outcome,
    )


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": sys.platform,
    }
