"""The ledger: what came of each planned run, read from results on disk, written as runs.csv."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Sequence
from typing import Any

from models.count import count_flops, count_parameters
from sweep.files import RunFolder, SweepFolder, read_json, write_atomically
from sweep.plan.batch import BatchSpec
from sweep.plan.spec import PlannedRun, digest

log = logging.getLogger(__name__)

Result = dict[str, Any]

COLUMNS = (
    "run_id", "group", "role", "status", "arch", "n_layer", "d_model", "params_total",
    "params_non_embedding", "vocab_size", "seq_len", "batch_tokens", "lr", "param", "seed", "order_seed",
    "n_head", "d_ff", "tokens",
    "unique_tokens", "epochs", "flops", "flops_6nd", "loss", "loss_se", "bits_per_byte", "parent",
    "wall_seconds", "tokens_per_second", "device", "data_fingerprint",
)  # fmt: skip
"""Columns of runs.csv. An empty cell is "not known", never zero.

run_id                digest of the run's spec, 12 hexadecimal digits
group                 the set it is compared within (its budget, say)
role                  fit | holdout | trunk (trained for the runs that branch off it; it has no loss to fit) |
                      arm (made otherwise than those to fit, for a study)
status                planned | finished | failed | diverged
arch                  architecture; decoder
n_layer, d_model      count; width in coordinates
params_total          parameters, all
params_non_embedding  parameters but for the input embedding; an untied output head counts
vocab_size, seq_len   tokens in the vocabulary; tokens in a sequence
batch_tokens          tokens in an optimiser step, the mean where batches grow
lr                    peak learning rate at the recipe's base width, as asked; dimensionless
param                 parametrisation: mup | sp
seed                  of initialisation, and of the order of the data where order_seed is empty
order_seed            of the order of the data, where that is another
n_head, d_ff          count; width of a feed-forward matrix
tokens                D: training tokens seen, repeats included; those to be seen while `planned`
unique_tokens         U: distinct training tokens seen
epochs                tokens / tokens of the training split
flops                 C: exact training FLOPs of `tokens` (models/count.py)
flops_6nd             6 · params_non_embedding · tokens
loss                  held-out cross-entropy after the last step, nats per token
loss_se               its standard error, nats per token
bits_per_byte         the same loss in bits per byte of text
parent                run_id of the trunk, or of its segment, whose last checkpoint it went on from
wall_seconds          seconds spent training, over all resumptions; those of its trunk not among them
tokens_per_second     training throughput
device                what it ran on
data_fingerprint      digest of the corpus, its split and its tokenizer
"""

OUTCOMES = ("finished", "failed", "diverged")
FINAL = ("finished", "diverged")
"""Outcomes that the same spec would reach again. A failure's cause may have been mended."""

_REACHED = ("tokens", "flops", "flops_6nd")
_MEASURED = (
    "unique_tokens", "epochs", "loss", "loss_se", "bits_per_byte",
    "wall_seconds", "tokens_per_second", "device",
)  # fmt: skip


class InvalidResult(ValueError):
    """A result.json that is not the result of its run. The message names file, fault and remedy."""


def load_result(folder: RunFolder) -> Result:
    """The run's result, checked to be whole and its own.

    Raises:
        FileNotFoundError: there is none.
        InvalidResult: cut off or not JSON; of another run; a finished one without its loss or short
            of its tokens; beside a spec.json that is not this run's.
    """
    try:
        result = read_json(folder.result)
    except ValueError as error:
        raise InvalidResult(f"{error}; the run counts as unfinished") from error
    fault = _fault(result, folder)
    if fault:
        raise InvalidResult(f"{folder.result}: {fault}; the run counts as unfinished")
    return result


def read_result(folder: RunFolder) -> Result | None:
    """`load_result`, with None where there is no result; one that is not valid is logged, and is none."""
    try:
        return load_result(folder)
    except FileNotFoundError:
        return None
    except InvalidResult as error:
        log.warning("%s", error)
        return None


def row(planned: PlannedRun, result: Result | None) -> dict[str, Any]:
    """One row of runs.csv, by column; None where nothing is known (yet)."""
    spec, shape = planned.spec, planned.spec.shape
    parameters = count_parameters(shape)
    values: dict[str, Any] = dict.fromkeys(COLUMNS)
    values |= {
        "run_id": spec.run_id,
        "group": planned.group,
        "role": planned.role,
        "status": "planned",
        "arch": "decoder",  # the one architecture that a RunSpec can name
        "n_layer": shape.n_layer,
        "d_model": shape.d_model,
        "params_total": parameters.total,
        "params_non_embedding": parameters.non_embedding,
        "vocab_size": shape.vocab_size,
        "seq_len": shape.seq_len,
        "batch_tokens": spec.batch_tokens,
        "lr": spec.optim.lr,
        "param": spec.optim.param,
        "seed": spec.seed,
        "order_seed": spec.order_seed,
        "n_head": shape.n_head,
        "d_ff": shape.d_ff,
        "tokens": spec.tokens,
        "flops": spec.flops,
        "flops_6nd": float(spec.tokens) * count_flops(shape).six_n,
        "parent": planned.parent.run_id if planned.parent else None,
        "data_fingerprint": spec.data.fingerprint,
    }
    if result is not None:
        values["status"] = result["status"]
        values |= {name: result.get(name) for name in (*_REACHED, *_MEASURED)}
    return values


class Ledger:
    """The results of a plan, read once and then one by one, so that 10,000 runs stay cheap.

    `runs` may name a run twice (in two groups, say): it has one result and two rows.
    """

    def __init__(self, folder: SweepFolder, runs: Sequence[PlannedRun]) -> None:
        self._folder = folder
        self._runs: dict[str, list[PlannedRun]] = {}
        self._places: dict[str, list[int]] = {}
        for place, planned in enumerate(runs):
            self._runs.setdefault(planned.run_id, []).append(planned)
            self._places.setdefault(planned.run_id, []).append(place)
        self._results: dict[str, Result | None] = {}
        self._lines = [""] * len(runs)
        for run_id in self._runs:
            self.refresh(run_id)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._runs

    @property
    def rows(self) -> int:
        """Of runs.csv."""
        return len(self._lines)

    def result(self, run_id: str) -> Result | None:
        """As last read. Raises KeyError for a run outside the plan."""
        return self._results[run_id]

    def settled(self) -> dict[str, Result]:
        """By run id, in the plan's order, the results that no repetition would change."""
        return {run_id: result for run_id, result in self._results.items() if result and result["status"] in FINAL}

    def refresh(self, run_id: str) -> Result | None:
        """Read this run's result again, and return it."""
        self._results[run_id] = read_result(self._folder.run(run_id))
        for place, planned in zip(self._places[run_id], self._runs[run_id], strict=True):
            values = row(planned, self._results[run_id])
            self._lines[place] = _csv_line([values[name] for name in COLUMNS])
        return self._results[run_id]

    def write(self, durable: bool = True) -> None:
        """Rewrite runs.csv, atomically, a row for each planned run in the plan's order; `durable` as in
        `write_atomically`.

        Raises OSError where it cannot be written; the old file, and every result, stays whole.
        """
        write_atomically(self._folder.runs_csv, _csv_line(COLUMNS) + "".join(self._lines), durable)


def failure(planned: PlannedRun, reason: str, step: int, resumes: int, status: str = "failed") -> Result:
    """The result of a run that no worker wrote one for: its workers died, or its trunk came to nothing.
    It got to `step`."""
    spec, shape = planned.spec, planned.spec.shape
    parameters, flops = count_parameters(shape), count_flops(shape)
    tokens = spec.tokens_after(step)
    unknown = dict.fromkeys((*_MEASURED, "traceback", "eval_tokens", "peak_bytes", "micro_batch_sequences"))
    return unknown | {
        "run_id": spec.run_id,
        "status": status,
        "reason": reason,
        "step": step,
        "tokens": tokens,
        "params_total": parameters.total,
        "params_non_embedding": parameters.non_embedding,
        "flops": float(tokens) * flops.exact,
        "flops_6nd": float(tokens) * flops.six_n,
        "resumes": resumes,
        "versions": {},
    }


def _fault(result: Any, folder: RunFolder) -> str | None:
    """What keeps `result` from being the result of this folder's run, or None."""
    if not isinstance(result, dict):
        return f"holds a {type(result).__name__}, not an object"
    if result.get("run_id") != folder.path.name:
        return f"is the result of run {result.get('run_id')!r}, not of {folder.path.name!r}"
    if result.get("status") not in OUTCOMES:
        return f"has status {result.get('status')!r}, which is none of {', '.join(OUTCOMES)}"
    try:
        spec = read_json(folder.spec)["spec"]
        batch = BatchSpec(spec["batch_sequences"], spec["batch_doubles_at"])
        asked = batch.seen(spec["steps"]) * spec["shape"]["seq_len"]
        asked_id = digest(spec)[:12]
    except FileNotFoundError:
        return f"lies beside no {folder.spec.name}, so what it answers cannot be checked"
    except (ValueError, KeyError, TypeError) as error:
        return f"lies beside a {folder.spec.name} that cannot be read ({error!r})"
    if asked_id != folder.path.name:
        return f"lies beside the {folder.spec.name} of run {asked_id!r}"
    if result["status"] == "finished":
        if not _finite(result.get("loss")) and spec["schedule"]["kind"] != "constant":  # a trunk has none
            return f"is finished with loss {result.get('loss')!r}"
        if result.get("tokens") != asked:
            return f"is finished after {result.get('tokens')!r} of {asked} tokens"
    return None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _csv_line(values: Sequence[Any]) -> str:
    line = io.StringIO()
    # csv writes None as an empty cell, and a float so that the same float64 is read again.
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()
