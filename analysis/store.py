"""What the analysis leaves on disk: predictions that are never rewritten, and fits."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from analysis.values import Analysis, Measured, Prediction, Runs, Target, Verdict


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """Those in the file, oldest first; none where there is no file. Raises ValueError: not such a file."""
    if not path.exists():
        return ()
    try:
        return tuple(_prediction(entry) for entry in json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a list of predictions ({type(error).__name__}: {error}). It was left as it is; "
            "move it away to start a new one."
        ) from error


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    write_text(path, json.dumps([as_json(p) for p in predictions], indent=1, allow_nan=False) + "\n")


def write_predictions_csv(path: Path, predictions: Sequence[Prediction]) -> None:
    """A row each: N, D, C, law, loss, lo90, hi90, verdict, and what was measured where it was."""
    header = ["params", "tokens", "flops", "law", "loss", "lo90", "hi90", "verdict", "created"]
    rows = [
        [
            p.target.params,
            p.target.tokens,
            p.target.flops,
            p.law,
            p.loss,
            p.lo90,
            p.hi90,
            p.verdict.value,
            p.created,
        ]
        + ([p.measured.loss, p.measured.error_pct, p.measured.inside] if p.measured else ["", "", ""])
        for p in predictions
    ]
    write_text(path, _csv([*header, "measured_loss", "error_pct", "inside"], rows))


def write_exclusions(path: Path, analysis: Analysis) -> None:
    write_text(path, _csv(["run_id", "reason"], [[e.run_id, e.reason] for e in analysis.exclusions]))


def write_fits(path: Path, analysis: Analysis) -> None:
    """Every fitted number: laws, isoFLOP curves, exponents, backtests, the verdict and its reasons."""
    names = ("params_kind", "flops_kind", "verdict", "reasons", "problems", "fits", "isoflops", "allocations")
    names += ("remedies", "isoflop_bias", "conventions", "advice", "backtests", "skipped", "entropy")
    content = {name: as_json(getattr(analysis, name)) for name in (*names, "frontier")}
    content["range"] = fitted_range(analysis.runs)
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def fitted_range(runs: Runs) -> dict[str, tuple[float, float]]:
    """The least and the largest N, D and C among the fitted runs."""
    columns = {name: getattr(runs, name) for name in ("params", "tokens", "flops")}
    return {name: (float(column.min()), float(column.max())) for name, column in columns.items()}


def as_json(value: Any) -> Any:
    """Dataclasses, enums, mappings and arrays as what JSON can hold; a knee or condition of infinity is
    null."""
    if dataclasses.is_dataclass(value):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return None
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def write_text(path: Path, text: str) -> None:
    """All of `text` or none of it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _prediction(entry: dict[str, Any]) -> Prediction:
    measured = entry["measured"]
    fields = {
        **entry,
        "target": Target(**entry["target"]),
        "verdict": Verdict(entry["verdict"]),
        "reasons": tuple(entry["reasons"]),
        "measured": Measured(**{**measured, "run_ids": tuple(measured["run_ids"])}) if measured else None,
    }
    return Prediction(**fields)


def _csv(header: list[str], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
