"""Where everything of a sweep lies on disk, and how it is written: atomically, or not at all."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunFolder:
    """`runs/<run_id>/` of a sweep: one run's request, its history and what came of it."""

    path: Path

    def sibling(self, run_id: str) -> RunFolder:
        """The folder of another run of the same sweep. Raises ValueError for what is no run's id."""
        return RunFolder(self.path.parent / _checked(run_id))

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def superseded_result(self) -> Path:
        """A failure, or a damaged file, that lay at `result` when the run was started again."""
        return self.path / "result.superseded.json"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def weights(self) -> Path:
        return self.checkpoint / "model.safetensors"

    @property
    def architecture(self) -> Path:
        """What `sweep import` writes in place of a spec: the shape and the multipliers of the weights."""
        return self.path / "architecture.json"

    @property
    def log(self) -> Path:
        return self.path / "worker.log"

    @property
    def lock(self) -> Path:
        return self.path / "worker.lock"

    @property
    def ended(self) -> Path:
        """How the last batch job of this run ended (sweep/execute/attend.py)."""
        return self.path / "ended.json"

    @property
    def heartbeat(self) -> Path:
        """Touched by the worker while it makes updates."""
        return self.path / "heartbeat"


@dataclass(frozen=True)
class SweepFolder:
    """`outputs/<sweep>/`: the one owner of its paths."""

    path: Path

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def runs_csv(self) -> Path:
        return self.path / "runs.csv"

    @property
    def lock(self) -> Path:
        return self.path / "coordinator.lock"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def jobs(self) -> Path:
        """What SLURM and submitit write: submissions, logs, and which run is which job."""
        return self.path / "jobs"

    def run(self, run_id: str) -> RunFolder:
        """Raises ValueError for what is no run's id."""
        return RunFolder(self.path / "runs" / _checked(run_id))


def _checked(run_id: str) -> str:
    """A run's id, from a file perhaps, that can name no folder but a run's."""
    if re.fullmatch("[0-9a-f]{12}", run_id) is None:
        raise ValueError(f"{run_id!r} is no run's id, which has 12 hexadecimal digits; nothing was read or written")
    return run_id


def describe_holder(descriptor: int) -> None:
    """Leave this process' name in the file of a lock that it holds."""
    said = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(said).encode(), 0)


def write_atomically(path: Path, text: str, durable: bool = True) -> None:
    """Write `text` so that `path` holds either its old content or all of the new, also after a
    power cut where `durable`, which takes as long as the disk does. Raises OSError (a full disk, a read-only
    folder) and then leaves no partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    """`write_atomically` of indented JSON; NaN and infinity are refused (ValueError)."""
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False) + "\n", durable)


def read_json(path: Path) -> Any:
    """Raises FileNotFoundError, or ValueError naming the file where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
