"""Synthetic sweeps whose truth is known, as runs and as the folder of a sweep."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from analysis.laws import COUPLED
from analysis.table import as_runs
from analysis.values import Runs, Target

TRUTH = {"E": 0.9, "A": 60.0, "B": 250.0, "a": 0.45, "b": 0.42, "k": 0.85}
"""A coupled surface like those of small decoders: 1.9 nats at 1e11 FLOPs, 1.3 at 1e13."""

BUDGETS = tuple(np.geomspace(1e11, 1e12, 5))
COLUMNS = (
    "run_id,group,role,status,arch,n_layer,d_model,params_total,params_non_embedding,vocab_size,seq_len,"
    "batch_tokens,lr,param,seed,tokens,unique_tokens,epochs,flops,flops_6nd,loss,loss_se,bits_per_byte,parent,"
    "wall_seconds,tokens_per_second,device,data_fingerprint"
).split(",")


def true_loss(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return COUPLED.loss_at(TRUTH, params=params, tokens=tokens)


def optimal_params(flops: float) -> float:
    """By brute force, with C = 6·N·D."""
    sizes = np.geomspace(1e2, 1e9, 200_001)
    return float(sizes[np.argmin(true_loss(sizes, flops / 6 / sizes))])


def sweep(noise: float = 0.0, seed: int = 0, sizes: int = 6) -> Runs:
    """An isoFLOP sweep: `sizes` around each budget's optimum; log-normal noise of sd `noise`."""
    generator = np.random.default_rng(seed)
    params = np.concatenate([optimal_params(C) * np.geomspace(0.3, 3.0, sizes) for C in BUDGETS])
    tokens = np.repeat(BUDGETS, sizes) / 6 / params
    loss = true_loss(params, tokens) * np.exp(noise * generator.standard_normal(len(params)))
    return as_runs(params, tokens, loss, group=[f"{C:.3g}" for C in np.repeat(BUDGETS, sizes)])


def target(flops: float = 1e13) -> Target:
    params = round(optimal_params(flops))
    return Target(float(params), flops / 6 / params, flops)


def write_table(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)


def rows_of(runs: Runs) -> list[dict]:
    """As rows of a sweep's runs.csv, all finished."""
    return [
        {
            "run_id": f"r{i:03d}",
            "group": runs.group[i],
            "role": "fit",
            "status": "finished",
            "params_total": 1.2 * runs.params[i],
            "params_non_embedding": repr(float(runs.params[i])),
            "tokens": repr(float(runs.tokens[i])),
            "flops": repr(float(runs.flops[i])),
            "loss": repr(float(runs.loss[i])),
            "loss_se": 0.002,
            "batch_tokens": 1024,
            "lr": 0.01,
            "seed": i,
            "wall_seconds": 2.5,
        }
        for i in range(len(runs))
    ]


def holdout_row(spot: Target, loss: float | None, run_id: str = "target") -> dict:
    """The target's row: planned without a loss, finished with one."""
    return {
        "run_id": run_id,
        "group": "target",
        "role": "holdout",
        "status": "planned" if loss is None else "finished",
        "params_non_embedding": repr(spot.params),
        "tokens": repr(spot.tokens),
        "flops": repr(spot.flops),
        "loss": "" if loss is None else repr(loss),
        "batch_tokens": 1024,
    }
