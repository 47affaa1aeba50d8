"""Any table of runs -> float64 columns, every row that is left out listed with its reason."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.offers import FLOPS_COLUMNS, PARAMS_COLUMNS, columns_of, decayed
from analysis.values import Exclusion, HealthFinding, RunRow, Runs

ALIASES = {
    "run_id": ("run_id", "run", "id", "name"),
    "params": ("params", "n_params", "params_non_embedding", "params_total", "N"),
    "tokens": ("tokens", "n_tokens", "train_tokens", "D"),
    "flops": ("flops", "C"),
    "loss": ("loss", "eval_loss", "val_loss", "L"),
    "loss_se": ("loss_se",),
    "unique_tokens": ("unique_tokens", "U"),
    "group": ("group",),
    "role": ("role",),
    "status": ("status",),
    "cluster": ("cluster",),
    "lr": ("lr",),
    "batch_tokens": ("batch_tokens",),
    "wall_seconds": ("wall_seconds",),
    "n_layer": ("n_layer", "depth"),
    "d_model": ("d_model", "width"),
    "param": ("param", "parametrisation", "parametrization"),
    "bits_per_byte": ("bits_per_byte",),
    "seed": ("seed",),
    "order_seed": ("order_seed", "data_seed"),
    "n_head": ("n_head", "heads"),
    "d_ff": ("d_ff",),
    "params_total": ("params_total",),
}
"""Names a column is known by where the user names none, the first that is there."""

ROLES = {
    "holdout": "holdout",
    "1": "holdout",
    "true": "holdout",
    "fit": "fit",
    "0": "fit",
    "false": "fit",
    "": "fit",
    "trunk": "trunk",
    "arm": "arm",
}
"""What stands in a role column, and the role it means. A trunk is what other runs branch off: its rate
never comes down, so it is in no fit. Nor is an arm, a run made otherwise than those to fit, for a study."""

DIGITS = 6
"""Significant digits of a loss from which two runs of one N and D that share them are one run. Assumption:
seeds differ by 0.1% or more."""

Row = Mapping[str, str]


class TableError(ValueError):
    """The table cannot be used as it stands; the message says where, why and what to do."""


@dataclass(frozen=True)
class Rules:
    """Which finished cells are too short to belong to any scaling law; 0 keeps all.

    Cells under about one token a parameter, or a hundred optimiser steps, are ruled by warm-up and
    seed: measured on small decoders, where seeds of such cells differ by up to 7% of the loss.
    `min_steps` is only applied where the table says `batch_tokens`.
    """

    min_tokens_per_param: float = 0.0
    min_steps: float = 0.0


SWEEP_RULES = Rules(min_tokens_per_param=1.0, min_steps=100.0)


@dataclass(frozen=True)
class Holdout:
    """A run kept for scoring: all that is known of it but its loss."""

    run_id: str
    params: float
    tokens: float
    flops: float
    finished: bool
    cluster: str


@dataclass(frozen=True, eq=False)
class Table:
    """What was read. `params_kind` and `flops_kind` say what N and C count; `columns` is what each
    meaning was read from; `notes` say what was derived. `digest` is the SHA-256 of (run_id, status,
    loss) of all rows to fit, sorted: what any fit of this table rests on. `health` is what
    `analysis.health` found wrong with finished runs."""

    path: Path
    runs: Runs
    rows: tuple[RunRow, ...]
    exclusions: tuple[Exclusion, ...]
    holdouts: tuple[Holdout, ...]
    columns: Mapping[str, str]
    params_kind: str
    flops_kind: str
    notes: tuple[str, ...]
    digest: str
    health: tuple[HealthFinding, ...] = ()


def read_table(path: Path, columns: Mapping[str, str] | None = None, rules: Rules = Rules()) -> Table:
    """Read .csv, .tsv, .jsonl or .parquet, a run a row.

    Args:
        columns: {meaning: column} for the meanings of ALIASES that go by another name here.
            A missing flops column is taken as 6·N·D, a missing tokens column as C/(6·N).
    Raises:
        TableError: no such file or column, an id used for different runs in different rows, or a
            size, token count, cost or loss that is not a number above 0 (naming row and column).
    """
    records = read_records(path)
    found = find_columns(path, records, columns or {})
    ids = _run_ids(records, found)
    reader = _Reader(path, records, found, ids)
    rows, exclusions, kept, holdouts = [], [], [], []
    seen: dict[tuple, str] = {}
    for i in range(len(records)):
        row = reader.row(i)
        if row.role in ("trunk", "arm"):
            rows.append(row)
            continue
        if row.role == "holdout":
            rows.append(row)
            finished = row.status == "finished"
            spot = (row.run_id, row.params, row.tokens, row.flops)
            holdouts.append(Holdout(*spot, finished, reader.cluster(i)))
            continue
        content = reader.content(i)
        reason = reader.exclusion(i, row, rules) or (
            f"an exact copy of {seen[content]}" if content in seen else ""
        )
        seen.setdefault(content, row.run_id)
        if reason:
            exclusions.append(Exclusion(row.run_id, reason))
            rows.append(_replace_reason(row, reason))
        else:
            rows.append(row)
            kept.append(i)
    usable = [rows[i] for i in kept]
    told = [records[i] for i in kept]
    of_params, of_flops = (
        dict.fromkeys([*([found[meaning]] if meaning in found else []), *names])
        for meaning, names in (("params", PARAMS_COLUMNS), ("flops", FLOPS_COLUMNS))
    )
    runs = Runs(
        run_id=tuple(row.run_id for row in usable),
        group=tuple(row.group for row in usable),
        cluster=tuple(reader.cluster(i) for i in kept),
        params=np.array([row.params for row in usable], dtype=np.float64),
        tokens=np.array([row.tokens for row in usable], dtype=np.float64),
        flops=np.array([row.flops for row in usable], dtype=np.float64),
        loss=np.array([row.loss for row in usable], dtype=np.float64),
        loss_se=np.array([math.nan if row.loss_se is None else row.loss_se for row in usable]),
        unique_tokens=np.array([reader.positive(i, "unique_tokens") or math.nan for i in kept]),
        params_columns=columns_of(told, tuple(of_params)),
        flops_columns=columns_of(told, tuple(of_flops)),
        decayed=decayed(told),
    )
    return Table(
        path=path,
        runs=runs,
        rows=tuple(rows),
        exclusions=tuple(exclusions),
        holdouts=tuple(holdouts),
        columns=found,
        params_kind=_params_kind(found["params"]),
        flops_kind="6·N·D" if "flops" not in found else f"column {found['flops']}",
        notes=reader.notes(),
        digest=reader.digest(),
    )


@dataclass(frozen=True)
class Spot:
    """A run to predict: `tokens` or `flops` may be None, not both; cluster "" where none is named."""

    params: float
    tokens: float | None
    flops: float | None
    cluster: str


def read_targets(path: Path, columns: Mapping[str, str]) -> tuple[Spot, ...]:
    """The runs of a table that has no losses, or whose losses are not looked at.

    Args: `columns` as for `read_table`; those that this table lacks are left to their usual names.
    Raises TableError: as `read_table`.
    """
    records = read_records(path)
    there = {name for record in records for name in record}
    named = {meaning: column for meaning, column in columns.items() if column in there}
    found = find_columns(path, records, named, needed=("params",))
    reader = _Reader(path, records, found, _run_ids(records, found))
    spots = []
    for i in range(len(records)):
        params, tokens, flops = (reader.positive(i, name) for name in ("params", "tokens", "flops"))
        if params is None:
            raise reader.error(i, "params", "a finite number above 0")
        if tokens is None and flops is None:
            raise reader.error(i, "tokens" if "tokens" in found else "flops", "a finite number above 0")
        spots.append(Spot(params, tokens, flops, reader.text(i, "cluster")))
    return tuple(spots)


def read_holdout_losses(table: Table, run_ids: set[str]) -> dict[str, tuple[float, float | None]]:
    """{run_id: (loss, loss_se or None)} of those of `run_ids` that are finished holdouts with a
    finite loss: to be read once their predictions are written, and never before."""
    records = read_records(table.path)
    ids = _run_ids(records, table.columns)
    finished = {holdout.run_id for holdout in table.holdouts if holdout.finished} & run_ids
    reader = _Reader(table.path, records, table.columns, ids)
    losses = {}
    for i, run_id in enumerate(ids):
        loss = reader.number(i, "loss") if run_id in finished else None
        if loss is not None and math.isfinite(loss):
            losses[run_id] = (loss, reader.number(i, "loss_se"))
    return losses


def as_runs(
    params: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    *,
    flops: np.ndarray | None = None,
    cluster: Sequence[str] | None = None,
    group: Sequence[str] | None = None,
    loss_se: np.ndarray | None = None,
    unique_tokens: np.ndarray | None = None,
) -> Runs:
    """Runs from arrays [run]; flops are 6·N·D and clusters the sizes where they are not given, standard
    errors and unique tokens unknown.

    Raises ValueError: unequal lengths.
    """
    columns = [np.asarray(column, dtype=np.float64) for column in (params, tokens, loss)]
    columns.insert(2, 6 * columns[0] * columns[1] if flops is None else np.asarray(flops, dtype=np.float64))
    count = len(columns[0])
    labels = [
        tuple(f"row {i + 1}" for i in range(count)),
        tuple(group) if group is not None else ("",) * count,
        tuple(cluster) if cluster is not None else tuple(map(size_cluster, columns[0])),
    ]
    for known in (loss_se, unique_tokens):
        columns.append(np.full(count, np.nan) if known is None else np.asarray(known, dtype=np.float64))
    if {len(column) for column in (*columns, *labels)} != {count}:
        raise ValueError(f"columns of unequal lengths: {[len(column) for column in (*columns, *labels)]}")
    return Runs(*labels, *columns)


def read_records(path: Path) -> list[dict[str, str]]:
    """The rows as text by column, whatever the format. Raises TableError."""
    path = Path(path)
    if not path.is_file():
        raise TableError(f"no table at {path}. Give runs= the path of a .csv, .tsv, .jsonl or .parquet file.")
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            with open(path, newline="", encoding="utf-8-sig") as file:
                return [
                    dict(row) for row in csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ",")
                ]
        if suffix in (".jsonl", ".ndjson"):
            lines = path.read_text(encoding="utf-8").splitlines()
            return [_as_text(json.loads(line)) for line in lines if line.strip()]
        if suffix == ".parquet":
            import pyarrow.parquet  # only where one is read: it takes half a second to import

            return [_as_text(row) for row in pyarrow.parquet.read_table(path).to_pylist()]
    except (ValueError, UnicodeDecodeError, AttributeError) as error:
        raise TableError(f"{path} cannot be read as {suffix[1:]}: {error}") from error
    raise TableError(f"{path}: a table must end in .csv, .tsv, .jsonl or .parquet")


def find_columns(
    path: Path,
    records: Sequence[Row],
    wanted: Mapping[str, str],
    needed: Sequence[str] = ("params", "loss"),
) -> dict[str, str]:
    """{meaning: column} of what the table has; `needed` beside tokens or flops. Raises TableError
    naming the columns there are."""
    if not records:
        raise TableError(f"{path} has no rows")
    there = list(dict.fromkeys(name for record in records for name in record if name is not None))
    found = {}
    for meaning, aliases in ALIASES.items():
        named = wanted.get(meaning)
        if named and named not in there:
            raise TableError(
                f"{path} has no column '{named}' (columns.{meaning}); it has: {', '.join(there)}. "
                "Nothing was fitted."
            )
        choice = named or next((alias for alias in aliases if alias in there), None)
        if choice:
            found[meaning] = choice
    missing = [meaning for meaning in needed if meaning not in found]
    if not {"tokens", "flops"} & set(found):
        missing.append("tokens or flops")
    if missing:
        hints = " ".join(f"columns.{meaning.split()[0]}=NAME" for meaning in missing)
        raise TableError(
            f"{path}: found no column for {', '.join(missing)}; name it with {hints}. "
            f"The columns are: {', '.join(there)}. Nothing was fitted."
        )
    return found


def size_cluster(params: float) -> str:
    """What runs of one size are labelled with where the table names no cluster."""
    return f"N={params:.10g}"


class _Reader:
    """Numbers out of the text of one table; every failure names row and column."""

    def __init__(self, path: Path, records: Sequence[Row], found: Mapping[str, str], ids: Sequence[str]):
        self.path, self.records, self.found, self.ids = path, records, found, ids

    def text(self, i: int, meaning: str) -> str:
        value = self.records[i].get(self.found.get(meaning, ""))
        return "" if value is None else value.strip()

    def number(self, i: int, meaning: str) -> float | None:
        """None for an empty cell or an absent column."""
        text = self.text(i, meaning)
        if not text:
            return None
        try:
            return float(text)
        except ValueError:
            raise self.error(i, meaning, "a number") from None

    def positive(self, i: int, meaning: str) -> float | None:
        value = self.number(i, meaning)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise self.error(i, meaning, "a finite number above 0")
        return value

    def if_any(self, i: int, meaning: str) -> float | None:
        """For what no fit needs: None where it is no finite number above 0."""
        try:
            value = float(self.text(i, meaning))
        except ValueError:
            return None
        return value if math.isfinite(value) and value > 0 else None

    def error(self, i: int, meaning: str, wanted: str) -> TableError:
        return TableError(
            f"{self.path}, row {i + 1} of {len(self.records)} ({self.ids[i]}), column "
            f"'{self.found[meaning]}': wanted {wanted}, found {self.text(i, meaning)!r}. "
            "Mend or remove the row. Nothing was fitted."
        )

    def row(self, i: int) -> RunRow:
        role_text = self.text(i, "role").lower()
        if role_text not in ROLES:
            raise self.error(i, "role", "'fit', 'holdout', 'trunk' or 'arm' (or 0 or 1 for the first two)")
        role = ROLES[role_text]
        holdout = role == "holdout"
        params, tokens, flops = (self.positive(i, name) for name in ("params", "tokens", "flops"))
        if params is None:
            raise self.error(i, "params", "a finite number above 0")
        if tokens is None and flops is None:
            raise self.error(i, "tokens" if "tokens" in self.found else "flops", "a finite number above 0")
        return RunRow(
            run_id=self.ids[i],
            group=self.text(i, "group"),
            role=role,
            status=self.text(i, "status") or "finished",
            params=params,
            tokens=flops / (6 * params) if tokens is None else tokens,
            flops=6 * params * tokens if flops is None else flops,
            loss=None if holdout else self.number(i, "loss"),
            loss_se=None if holdout else self.number(i, "loss_se"),
            lr=self.number(i, "lr"),
            wall_seconds=self.number(i, "wall_seconds"),
            batch_tokens=self.if_any(i, "batch_tokens"),
            n_layer=self.if_any(i, "n_layer"),
            d_model=self.if_any(i, "d_model"),
            param=self.text(i, "param"),
            bits_per_byte=None if holdout else self.if_any(i, "bits_per_byte"),
            seed=self.text(i, "seed"),
            order_seed=self.text(i, "order_seed"),
            **{name: self.if_any(i, name) for name in ("n_head", "d_ff", "params_total")},
        )

    def exclusion(self, i: int, row: RunRow, rules: Rules) -> str:
        """Why this row belongs in no fit, "" if it does. Raises TableError for a loss <= 0."""
        if row.status != "finished":
            return f"status is {row.status}"
        if row.loss is None or not math.isfinite(row.loss):
            return f"loss is not finite ({self.text(i, 'loss') or 'empty'})"
        if row.loss <= 0:
            raise self.error(i, "loss", "a finite number above 0")
        if row.tokens / row.params < rules.min_tokens_per_param:
            return f"{row.tokens / row.params:.2g} tokens a parameter, under {rules.min_tokens_per_param:g}"
        batch = self.positive(i, "batch_tokens")
        if batch and row.tokens / batch < rules.min_steps:
            return f"{row.tokens / batch:.0f} steps, under {rules.min_steps:g}"
        return ""

    def content(self, i: int) -> tuple[str, ...]:
        """What makes a row the copy of another: all of it but its id; or its variables and loss alone, where
        the loss has digits enough that two runs would not share them and no seed tells them apart."""
        row = self.records[i]
        if len(self.text(i, "loss").replace(".", "").strip("0")) >= DIGITS and not row.get("seed"):
            return tuple(self.text(i, name) for name in ("params", "tokens", "flops", "unique_tokens", "loss"))
        return tuple(f"{k}={v}" for k, v in sorted(row.items()) if k != self.found.get("run_id"))

    def cluster(self, i: int) -> str:
        """The table's own label, or the size."""
        return self.text(i, "cluster") or size_cluster(self.number(i, "params"))

    def digest(self) -> str:
        fitted = [i for i in range(len(self.records)) if ROLES[self.text(i, "role").lower()] == "fit"]
        content = sorted([self.ids[i], self.text(i, "status"), self.text(i, "loss")] for i in fitted)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def notes(self) -> tuple[str, ...]:
        notes = []
        if "flops" not in self.found:
            notes.append("The table gives no FLOPs: they are taken as 6·N·D.")
        if "tokens" not in self.found:
            notes.append("The table gives no tokens: they are taken as C/(6·N).")
        return tuple(notes)


def _run_ids(records: Sequence[Row], found: Mapping[str, str]) -> list[str]:
    """The table's ids, or "row 7"; an id that several rows share gets its row number added."""
    names = [(record.get(found.get("run_id", "")) or "").strip() for record in records]
    shared = Counter(names)
    return [
        f"row {i + 1}" if not name else name if shared[name] == 1 else f"{name} (row {i + 1})"
        for i, name in enumerate(names)
    ]


def _params_kind(column: str) -> str:
    known = {"params_non_embedding": "non-embedding", "params_total": "total"}
    return known.get(column, f"column {column}")


def _replace_reason(row: RunRow, reason: str) -> RunRow:
    return RunRow(**{**row.__dict__, "reason": reason})


def _as_text(row: Mapping[str, object]) -> dict[str, str]:
    return {key: "" if value is None else str(value) for key, value in row.items()}
