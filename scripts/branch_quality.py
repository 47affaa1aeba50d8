"""Do branches off a trunk cost quality? Each against runs made for that very token count.

    python scripts/branch_quality.py [--seeds 3] [--out outputs/branch_quality] [key=value ...]

Branches off trunks of three sizes, for four token counts; and independent runs of the same sizes, token counts and
seeds, from their first update at the rate and weight decay of their own D: with a decay from the warmup's end on,
linear or a cosine, at the constant batch of their own D or at the branches' growing batch; and with the branches' own
batch and schedule. For each (N, D) the branch's mean loss over seeds against theirs, or the better of linear and
cosine. Further arguments go to every sweep; a second call trains nothing again.
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

Losses = dict[tuple[int, float], list[float]]
"""By (N, D as asked for), a seed each."""

PARAMS = (13e3, 27e3, 54e3)
TOKENS = (4e5, 8e5, 1.6e6, 3.2e6)
WARMUP = 1.2e5  # tokens: scale.warmup_tokens

WARM = f"schedule.warmup_tokens={WARMUP}"
BATCHES = {"own": [], "growing": ["optim.batch_follows=seen", "optim.lr=${scale.trunk_lr}"]}
AGAINST = {
    "runs that decay from the warmup's end on, at the constant batch of their own D": ("linear own", "cosine own"),
    "runs that decay from the warmup's end on, at the branches' growing batch": ("linear growing", "cosine growing"),
    "runs with the branches' batch and schedule, at the rate and decay of their own D": ("wsd growing",),
}


def sweeps(arm: str) -> dict[str, tuple[Sequence[float], list[str]]]:
    """The sweeps that an arm of independent runs takes, by name: token counts and overrides."""
    schedule, batch = arm.split()
    if schedule == "linear":  # the share of a run that its decay can have goes with its length
        return {
            f"{arm} {tokens:.0f}": (
                [tokens],  # a thousandth is left for rounding
                ["schedule=independent", WARM, f"schedule.decay_fraction={0.999 - WARMUP / tokens:.4f}", *BATCHES[batch]],
            )
            for tokens in TOKENS
        }
    asked = {"cosine": "schedule=cosine", "wsd": "schedule=independent"}[schedule]
    return {arm: (TOKENS, [asked, WARM, *BATCHES[batch]])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("outputs/branch_quality"))
    arguments, more = parser.parse_known_args()
    branch = train("branch", TOKENS, ["schedule=trunk", WARM, *more], arguments)
    reports = []
    for words, arms in AGAINST.items():
        losses: dict[str, Losses] = {arm: {} for arm in arms}
        for arm in arms:
            for name, (tokens, overrides) in sweeps(arm).items():
                losses[arm].update(train(name, tokens, overrides + more, arguments))
        reports.append(f"against {words}\n{report(branch, losses)}\n")
    print("\n".join(reports))


def train(name: str, tokens: Sequence[float], overrides: list[str], arguments: argparse.Namespace) -> Losses:
    """One sweep; its losses."""
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


def report(branch: Losses, others: dict[str, Losses]) -> str:
    """The branches' losses against the best of the others', cell by cell, and what is systematic in that."""
    all_of_them = {"branch": branch, **others}
    cells = sorted(set.intersection(*map(set, all_of_them.values())))
    mean = {name: np.array([np.mean(found[cell]) for cell in cells]) for name, found in all_of_them.items()}
    spread = [np.std(np.log(found[cell]), ddof=1) for found in all_of_them.values() for cell in cells if len(found[cell]) > 1]
    difference = 100 * np.log(mean["branch"] / np.minimum.reduce([mean[name] for name in others]))
    lines = [f"{'N':>8} {'D':>9} {'D/N':>6}" + "".join(f" {name:>14}" for name in mean) + f" {'difference':>11}"]
    for i, (params, tokens) in enumerate(cells):
        each = "".join(f" {losses[i]:14.4f}" for losses in mean.values())
        lines.append(f"{params:8,} {tokens:9,.0f} {tokens / params:6.1f}{each} {difference[i]:+10.2f}%")
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
