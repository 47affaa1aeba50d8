"""The classical experiments: each a module that reads a table of runs and says what a paper's experiment shows there.

A module has `study(evidence: Evidence) -> Finding`. A grid names its studies (`studies: [noise]`), and so does
`python -m analysis runs=… studies=[noise]`; a name with a dot in it is a module of the user's own.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from analysis.finding import Finding
from analysis.table import Table
from analysis.values import RunRow


class StudyError(ValueError):
    """A study that cannot be had; the message says which there are."""


@dataclass(frozen=True, eq=False)
class Course:
    """What one run wrote while it trained, by step: float64[line] each, NaN where a line has none of it.

    loss: training loss, mean since the line before; eval_loss: on the held-out tokens. Nats a token. `spec` is the
    run's spec.json.
    """

    step: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    eval_loss: np.ndarray
    lr: np.ndarray
    noise_scale: np.ndarray
    spec: Mapping = field(default_factory=dict)

    @property
    def made(self) -> Mapping:
        """The run's RunSpec (sweep/plan/spec.py) as JSON; empty where it is not known."""
        return self.spec.get("spec", {})


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a study may look at. `courses` reads a run's own files only when it is asked for that run; a table has
    none. A holdout's row has a loss only where its prediction has been written."""

    table: Table
    courses: Mapping[str, Course] = field(default_factory=dict)

    def finished(self, roles: Sequence[str] = ("fit",)) -> list[RunRow]:
        """Rows with a loss, in the table's order."""
        return [row for row in self.table.rows if row.role in roles and row.status == "finished" and row.loss]


class Courses(Mapping):
    """Of a sweep's folder, by run id."""

    COLUMNS = ("step", "tokens", "flops", "loss", "eval_loss", "lr", "noise_scale")

    def __init__(self, folder: Path) -> None:
        self._runs = Path(folder) / "runs"

    def __getitem__(self, run_id: str) -> Course:
        """Raises KeyError: it has left no metrics."""
        folder = self._runs / run_id
        try:
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
            spec = json.loads((folder / "spec.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise KeyError(f"{run_id}: {error}") from error
        columns = {name: np.array([line.get(name, np.nan) for line in lines], dtype=np.float64) for name in self.COLUMNS}
        return Course(**columns, spec=spec)

    def __iter__(self) -> Iterator[str]:
        return (path.parent.name for path in sorted(self._runs.glob("*/metrics.jsonl")))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def load(name: str) -> Callable[[Evidence], Finding]:
    """The study of that name. Raises StudyError."""
    module = _module(name)
    if not callable(getattr(module, "study", None)):
        raise StudyError(f"studies: {name}: {module.__name__} has no function study(evidence). Nothing was launched.")
    return module.study


def _module(name: str) -> ModuleType:
    where = name if "." in name else f"{__name__}.{name}"
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not where.startswith(error.name):
            raise
        raise StudyError(
            f"studies: {name}: there is no such study; there are {', '.join(known())}, or name a module of your own as "
            "package.module. Nothing was launched."
        ) from error


def known() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def findings(names: Sequence[str], evidence: Evidence) -> tuple[Finding, ...]:
    """Each study's finding, in the order they are named; what a study raises as ValueError is why it has none."""
    return tuple(_finding(name, evidence) for name in names)


def _finding(name: str, evidence: Evidence) -> Finding:
    try:
        return load(name)(evidence)
    except StudyError:
        raise
    except ValueError as error:
        return Finding(name, name.rpartition(".")[2].capitalize(), "", "", "", refused=str(error))
