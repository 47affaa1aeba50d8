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

from analysis.values import (
    Analysis,
    BacktestRow,
    HealthFinding,
    Measured,
    Prediction,
    Runs,
    Target,
    Verdict,
    latest,
)

PREDICTION_COLUMNS = (
    *("params", "tokens", "flops", "loss", "lo90", "hi90", "law", "extrapolation", "verdict"),
    *("measured_loss", "error_pct", "inside", "created"),
)


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


def write_results(out: Path, analysis: Analysis) -> None:
    """fits.json, predictions.csv (the latest prediction of each target), backtest.csv,
    exclusions.csv and health.csv."""
    write_fits(out / "fits.json", analysis)
    newest = {id(prediction) for prediction in latest(analysis.predictions)}
    predicted = [_prediction_row(p) for p in analysis.predictions if id(p) in newest]
    write_csv(out / "predictions.csv", PREDICTION_COLUMNS, predicted)
    names = [field.name for field in dataclasses.fields(BacktestRow)]
    tested = [[*(getattr(row, name) for name in names), row.log_error] for row in analysis.backtests]
    write_csv(out / "backtest.csv", [*names, "log_error"], tested)
    left_out = [[exclusion.run_id, exclusion.reason] for exclusion in analysis.exclusions]
    write_csv(out / "exclusions.csv", ["run_id", "reason"], left_out)
    names = [field.name for field in dataclasses.fields(HealthFinding)]
    sick = [[getattr(finding, name) for name in names] for finding in analysis.health]
    write_csv(out / "health.csv", names, sick)


def _prediction_row(p: Prediction) -> list[Any]:
    measured = [p.measured.loss, p.measured.error_pct, p.measured.inside] if p.measured else [None] * 3
    target = p.target.params, p.target.tokens, p.target.flops
    return [*target, p.loss, p.lo90, p.hi90, p.law, p.extrapolation, p.verdict.value, *measured, p.created]


def write_fits(path: Path, analysis: Analysis) -> None:
    """Every fitted number: laws, isoFLOP curves, exponents, backtests, the verdict and its reasons."""
    names = ("params_kind", "flops_kind", "verdict", "reasons", "problems", "fits", "isoflops", "allocations")
    names += ("remedies", "isoflop_bias", "conventions", "advice", "backtests", "skipped", "entropy", "rates")
    names += ("findings",)
    content = {name: as_json(getattr(analysis, name)) for name in (*names, "frontier")}
    content["range"] = fitted_range(analysis.runs)
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def fitted_range(runs: Runs) -> dict[str, tuple[float, float]]:
    """The least and the largest N, D and C among the fitted runs; empty without any."""
    if not len(runs):
        return {}
    columns = {name: getattr(runs, name) for name in ("params", "tokens", "flops")}
    return {name: (float(column.min()), float(column.max())) for name, column in columns.items()}


def as_json(value: Any) -> Any:
    """Dataclasses, enums, mappings and arrays as what JSON can hold; a knee or condition of infinity, and
    the end of an interval that is not known, is null."""
    if dataclasses.is_dataclass(value):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return as_json(value.tolist()) if isinstance(value, (np.ndarray, np.generic)) else value


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


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A cell that is None stays empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
