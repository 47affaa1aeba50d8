"""Predict the dearest runs of public tables from the cheaper ones, and score: error, coverage, width.

    python scripts/score_splits.py FOLDER [--plant]

FOLDER holds tables (.csv) with n_params, tokens, flops, loss, a column `test` (1: a run to predict) and
optionally `cluster`. Beside our prediction stands a plain fit of E + A/N^alpha + B/D^beta (log-Huber
1e-3, every start converged). --plant adds what a careless table holds: a failed run with a loss of 10, a
copy of another run, and one measured on another split (8% higher), and says how far that moved each
table's predictions.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from analysis.ensemble import forecast
from analysis.fitting import fit_law
from analysis.laws import SEPARABLE
from analysis.prediction import Model, model, spots
from analysis.table import Table, read_holdout_losses, read_table
from analysis.values import Target

COLUMNS = {"params": "n_params", "role": "test"}
OTHER_SPLIT = 1.08


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plant", action="store_true", help="also with three bad rows added")
    arguments = parser.parse_args()
    paths = sorted(arguments.folder.glob("*.csv"))
    if not paths:
        sys.exit(f"{arguments.folder} holds no .csv tables")
    print(f"{'table':22} {'fit':>4} {'new':>4} {'error %':>8} {'plain %':>8} {'inside':>7} {'width %':>8} "
          f"{'law':>8} {'out':>4} {'CPU s':>6}" + ("  moved %  named" if arguments.plant else ""))
    errors, plain, shares, widths, inside = [], [], [], [], []
    for path in paths:
        began = time.process_time()
        table = read_table(path, COLUMNS)
        known = model(table.runs)
        log_loss, half = predictions(table, known)
        seconds = time.process_time() - began
        measured = losses(table)
        wrong = 100 * np.abs(np.expm1(log_loss - measured))
        held = np.abs(log_loss - measured) <= half
        by_plain = 100 * np.abs(np.expm1(plain_fit(table) - measured))
        errors.append(wrong.mean())
        plain.append(by_plain.mean())
        shares.append(held.mean())
        widths.append(100 * np.median(2 * half))
        inside += list(held)
        line = (
            f"{path.stem:22} {len(table.runs):4} {len(held):4} {errors[-1]:8.2f} {plain[-1]:8.2f} {shares[-1]:7.2f} "
            f"{widths[-1]:8.2f} {known.predicting[0][0].law.name:>8} {len(known.outliers):4} {seconds:6.1f}"
        )
        if arguments.plant:
            line += "  {:7.3f}  {}".format(*planted(path, log_loss))
        print(line, flush=True)
    print(
        f"{'mean':22} {'':9} {np.mean(errors):8.2f} {np.mean(plain):8.2f} {np.mean(shares):7.2f} "
        f"{np.median(widths):8.2f} (median)"
    )
    print(f"pooled: {sum(inside)} of {len(inside)} new runs inside their 90% interval ({np.mean(inside):.1%})")


def predictions(table: Table, known: Model) -> tuple[np.ndarray, np.ndarray]:
    """log L of each run to predict, and half its 90% interval; float64[run] both."""
    targets = [Target(h.params, h.tokens, h.flops) for h in table.holdouts]
    said = forecast(known.members, known.calibration.weights, spots(targets, [h.cluster for h in table.holdouts]))
    return said.log_loss, known.calibration.half_width(said)


def losses(table: Table) -> np.ndarray:
    found = read_holdout_losses(table, {h.run_id for h in table.holdouts})
    return np.log([found[h.run_id][0] for h in table.holdouts])


def plain_fit(table: Table) -> np.ndarray:
    fit, _, _ = fit_law(SEPARABLE, table.runs, delta=1e-3)
    params, tokens = (np.array([getattr(h, name) for h in table.holdouts]) for name in ("params", "tokens"))
    return np.log(SEPARABLE.loss_at(fit.values, params=params, tokens=tokens))


def planted(path: Path, before: np.ndarray) -> tuple[float, str]:
    """How far three bad rows move the predictions (worst, %), and whether each is named."""
    lines = path.read_text(encoding="utf-8").splitlines()
    header = lines[0].split(",")
    fitted = [dict(zip(header, line.split(","), strict=True)) for line in lines[1:]]
    fitted = [row for row in fitted if row["test"] == "0"]
    failed, copy, other = (dict(fitted[len(fitted) * i // 4]) for i in (1, 2, 3))
    failed |= {"run_id": "planted-failed", "loss": "10.0"}
    copy |= {"run_id": "planted-copy"}
    other |= {"run_id": "planted-split", "loss": repr(OTHER_SPLIT * float(other["loss"]))}
    for row in (failed, other):  # runs of their own, not two losses of one run
        row["tokens"] = repr(1.01 * float(row["tokens"]))
    with tempfile.TemporaryDirectory() as folder:
        dirty = Path(folder) / path.name
        rows = [",".join(row[name] for name in header) for row in (failed, copy, other)]
        dirty.write_text("\n".join([*lines, *rows]) + "\n", encoding="utf-8")
        table = read_table(dirty, COLUMNS)
        known = model(table.runs)
        after, _ = predictions(table, known)
    named = {e.run_id for e in (*table.exclusions, *known.outliers)}
    told = ", ".join(
        name if f"planted-{name}" in named else f"NOT {name}" for name in ("failed", "copy", "split")
    )
    return float(100 * np.abs(np.expm1(after - before)).max()), told


if __name__ == "__main__":
    main()
