"""What else a table says of its runs: other counts of N and of C, and whether a run's rate had decayed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

PARAMS_COLUMNS = (
    "params",
    "n_params",
    "params_total",
    "params_non_embedding",
    "n_params_total",
    "n_params_no_embed",
    "n_params_non_embedding",
    "non_embedding_params",
    "total_params",
    "N",
)
"""Names under which tables count N, whatever is counted."""

FLOPS_COLUMNS = ("flops", "C", "flops_6nd", "flops_given", "flops_exact")
"""Names under which tables count C."""

TOTAL_STEPS = ("total_steps", "max_steps", "planned_steps", "schedule_steps")
"""The step at which a run's schedule ends, beside the `step` a row was taken at."""

NEVER_DECAYS = ("constant", "stable", "trunk")
"""Values of `schedule` under which the rate has not decayed when the loss is read."""

YES, NO = ("1", "true", "yes"), ("0", "false", "no")

Row = Mapping[str, str]


def columns_of(rows: Sequence[Row], names: Sequence[str]) -> dict[str, np.ndarray]:
    """{column: float64[row]} of those of `names` that are there with a finite number above 0 in any row;
    NaN where a row has none."""
    found = {name: np.array([_positive(row.get(name)) for row in rows], dtype=np.float64) for name in names}
    return {name: column for name, column in found.items() if np.isfinite(column).any()}


def decayed(rows: Sequence[Row]) -> np.ndarray:
    """1 where the row's loss was read after its schedule ended, 0 where before, NaN where nothing says;
    float64[row]. The column `decayed` decides, then `step` against one of TOTAL_STEPS, then `schedule`."""
    return np.array([_decayed(row) for row in rows], dtype=np.float64)


def _decayed(row: Row) -> float:
    said = (row.get("decayed") or "").strip().lower()
    if said in YES or said in NO:
        return float(said in YES)
    step = _positive(row.get("step"))
    total = next(
        (total for name in TOTAL_STEPS if math.isfinite(total := _positive(row.get(name)))), math.nan
    )
    if math.isfinite(step) and math.isfinite(total):
        return float(step >= total)
    return 0.0 if (row.get("schedule") or "").strip().lower() in NEVER_DECAYS else math.nan


def _positive(text: str | None) -> float:
    """NaN for what is no finite number above 0: such a column is no other count."""
    try:
        value = float(text or "")
    except ValueError:
        return math.nan
    return value if math.isfinite(value) and value > 0 else math.nan
