"""Do branches off a trunk cost quality? Each against runs made for that very token count.

    python scripts/branch_quality.py [--seeds 3] [--out outputs/branch_quality] [key=value ...]

The same sizes, token counts and seeds five times: branches off trunks; and independent runs at the rate of their own D,
with the trunks' warmup and from there on linear decay, or a cosine, at the constant batch of their own D, or at the
branches' growing batch and their base rate, so that the schedule alone differs. For each (N, D) the mean loss over
seeds of the branch against the better of linear and cosine. Further arguments go to every sweep; a second call
trains nothing again.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

PARAMS = (13e3, 27e3, 54e3)
TOKENS = (4e5, 8e5, 1.6e6, 3.2e6)
WARMUP = 1.2e5  # tokens: scale.warmup_tokens

WARM = f"schedule.warmup_tokens={WARMUP}"
BATCHES = {  # what the independent runs' batch is, and how it is asked for
    "own": ("the constant batch of their own D", []),
    "growing": ("the branches' growing batch", ["optim.batch_follows=seen", "optim.lr=${scale.trunk_lr}"]),
}


def independent(batch: str) -> dict[str, tuple[Sequence[float], list[str]]]:
    """The sweeps of independent runs with this batch, by name: their token counts and overrides."""
    _, asked = BATCHES[batch]
    linear = {  # the share of a run that its decay can have goes with its length; a thousandth is left for rounding
        f"linear {batch} {tokens:.0f}": (
            [tokens],
            ["schedule=independent", WARM, f"schedule.decay_fraction={0.999 - WARMUP / tokens:.4f}", *asked],
        )
        for tokens in TOKENS
    }
    return {f"cosine {batch}": (TOKENS, ["schedule=cosine", WARM, *asked]), **linear}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("outputs/branch_quality"))
    arguments, more = parser.parse_known_args()
    branch = train("branch", TOKENS, ["schedule=trunk", WARM, *more], arguments)
    for batch, (words, _) in BATCHES.items():
        losses: dict[str, dict] = {"branch": branch, "linear": {}, "cosine": {}}
        for name, (tokens, overrides) in independent(batch).items():
            losses[name.split()[0]].update(train(name, tokens, overrides + more, arguments))
        print(f"against runs with {words}\n{report(losses)}\n", flush=True)


def train(
    name: str, tokens: Sequence[float], overrides: list[str], arguments: argparse.Namespace
) -> dict[tuple[int, float], list[float]]:
    """The sweep of one schedule; its losses by (N, D as asked for), a seed each."""
    over = f"{{params: {list(PARAMS)}, tokens: {list(tokens)}, seed: {list(range(arguments.seeds))}}}"
    out = arguments.out / name.replace(" ", "-")
    command = [
        sys.executable, "-m", "sweep", "+grid=product", "scale=cpu", "logger=none", f"+grid.over={over}", f"out={out}",
        *overrides,
    ]  # fmt: skip
    print(" ".join(command), flush=True)
    ended = subprocess.run(command, check=False)
    if ended.returncode not in (0, 1) or not (out / "runs.csv").exists():
        raise SystemExit(f"the sweep ended with status {ended.returncode}")
    found = defaultdict(list)
    with open(out / "runs.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["role"] == "fit" and row["status"] == "finished":
                asked = min(TOKENS, key=lambda tokens: abs(np.log(float(row["tokens"]) / tokens)))
                found[int(row["params_non_embedding"]), asked].append(float(row["loss"]))
    return dict(found)


def report(losses: dict[str, dict[tuple[int, float], list[float]]]) -> str:
    cells = sorted(set.intersection(*(set(found) for found in losses.values())))
    mean = {name: np.array([np.mean(found[cell]) for cell in cells]) for name, found in losses.items()}
    spread = [np.std(np.log(found[cell]), ddof=1) for found in losses.values() for cell in cells if len(found[cell]) > 1]
    better = np.minimum(mean["linear"], mean["cosine"])
    difference = 100 * np.log(mean["branch"] / better)
    lines = [f"{'N':>8} {'D':>9} {'D/N':>6} {'branch':>8} {'linear':>8} {'cosine':>8} {'difference':>11}"]
    for i, (params, tokens) in enumerate(cells):
        lines.append(
            f"{params:8,} {tokens:9,.0f} {tokens / params:6.1f} {mean['branch'][i]:8.4f} {mean['linear'][i]:8.4f} "
            f"{mean['cosine'][i]:8.4f} {difference[i]:+10.2f}%"
        )
    error = difference.std(ddof=1) / np.sqrt(len(cells))
    lines.append(f"mean difference {difference.mean():+.2f}% ± {error:.2f}% (standard error over {len(cells)} cells)")
    logs = np.log2(np.array(cells, dtype=np.float64))
    design = np.column_stack([np.ones(len(cells)), logs - logs.mean(axis=0)])
    slopes, *_ = np.linalg.lstsq(design, difference, rcond=None)
    left = difference - design @ slopes
    covariance = np.linalg.inv(design.T @ design) * (left @ left) / (len(cells) - 3)
    for name, slope, variance in zip(("N", "D"), slopes[1:], np.diag(covariance)[1:]):
        lines.append(f"trend {slope:+.2f}% ± {np.sqrt(variance):.2f}% for each doubling of {name}")
    if spread:
        lines.append(f"spread of seeds {100 * np.sqrt(np.mean(np.square(spread))):.2f}% of the loss")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
