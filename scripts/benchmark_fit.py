"""Our fit and 4,000 resamples of E + A/N^alpha + B/D^beta against the published way, in one process.

    python scripts/benchmark_fit.py [runs.csv] [--where COLUMN=VALUE] [--full]

The published way is the notebook of Besiroglu et al. 2024 (arXiv 2404.10102,
github.com/epoch-research/analyzing-chinchilla): scipy's L-BFGS-B without a gradient from each of 4,500
points of a grid, then for each of 4,000 resamples scipy's BFGS from the parameters of Hoffmann et al.
Its gradient there is autograd's; here it is written out, which favours it. A second line has the
resamples by L-BFGS-B without a gradient from the best fit instead. A seeded sample of both is measured
and extrapolated linearly, unless --full. One thread each; times are of this process's CPU.
"""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before NumPy is imported

import argparse
import csv
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from scipy.optimize import minimize

from analysis.fitting import DELTA, fit_law
from analysis.laws import SEPARABLE
from analysis.resample import cluster_weights, refit
from analysis.table import as_runs
from analysis.values import Runs

RESAMPLES = 4000
GRID = tuple(
    product(
        np.arange(0, 30, 5),
        np.arange(0, 30, 5),
        np.arange(-1, 1.5, 0.5),
        np.arange(0, 2.5, 0.5),
        np.arange(0, 2.5, 0.5),
    )
)
"""Starts (log A, log B, log E, alpha, beta) of the notebook: 4,500."""

HOFFMANN = (6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083)
"""log A, log B, log E, alpha, beta that the notebook's bootstrap starts from."""

REACHED = 1e-4
"""Relative excess over the best objective that still counts as the optimum. Assumption."""

REPEATS = 5
"""Of our side, of which the median is shown."""


def published_objective(theta: np.ndarray, N: np.ndarray, D: np.ndarray, loss: np.ndarray) -> float:
    """Hoffmann et al. 2022, section 3.3, as the notebook computes it."""
    a, b, e, alpha, beta = theta
    said = np.log(np.exp(a - alpha * np.log(N)) + np.exp(b - beta * np.log(D)) + np.exp(e))
    off = np.log(loss) - said
    inside = np.abs(off) <= DELTA
    return float(np.sum(np.where(inside, 0.5 * off**2, DELTA * (np.abs(off) - 0.5 * DELTA))))


def published_gradient(theta: np.ndarray, N: np.ndarray, D: np.ndarray, loss: np.ndarray) -> np.ndarray:
    a, b, e, alpha, beta = theta
    size, data, rest = np.exp(a - alpha * np.log(N)), np.exp(b - beta * np.log(D)), np.exp(e)
    total = size + data + rest
    pull = np.clip(np.log(total) - np.log(loss), -DELTA, DELTA) / total
    by_size, by_data = pull * size, pull * data
    return np.array(
        [by_size.sum(), by_data.sum(), pull.sum() * rest, -(by_size @ np.log(N)), -(by_data @ np.log(D))]
    )


def read(path: Path | None, where: Sequence[str]) -> Runs:
    """The table's runs; or 240 made-up ones like the Chinchilla points, Student t noise of 0.3%."""
    if path is None:
        generator = np.random.default_rng(0)
        params = np.exp(generator.uniform(np.log(5e7), np.log(1.6e10), 240))
        tokens = np.exp(generator.uniform(np.log(1e9), np.log(3e11), 240))
        truth = {"E": 1.817, "A": 480.0, "B": 2140.0, "alpha": 0.347, "beta": 0.367}
        loss = SEPARABLE.loss_at(truth, params=params, tokens=tokens)
        return as_runs(params, tokens, loss * np.exp(0.003 * generator.standard_t(3, 240)))
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for condition in where:
        column, _, value = condition.partition("=")
        rows = [row for row in rows if row[column] == value]
    size = "n_params" if "n_params" in rows[0] else "params"
    return as_runs(*([float(row[name]) for row in rows] for name in (size, "tokens", "loss")))


def timed(work: Callable[[], object]) -> tuple[object, float, float]:
    """What `work` returns, its CPU seconds and its wall seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def ours(runs: Runs) -> tuple[float, np.ndarray]:
    fit, theta, problem = fit_law(SEPARABLE, runs)
    alone = as_runs(runs.params, runs.tokens, runs.loss, cluster=runs.run_id)  # as published: run by run
    draws = refit(problem, theta, cluster_weights(alone, len(theta) + 1, RESAMPLES))
    return fit.objective, SEPARABLE.natural(draws, problem.centre)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", nargs="?", type=Path, help="CSV with n_params or params, tokens, loss")
    parser.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE", help="rows to keep")
    parser.add_argument("--starts", type=int, default=100, help="grid starts to measure (default 100)")
    parser.add_argument("--resamples", type=int, default=40, help="resamples to measure (default 40)")
    parser.add_argument("--full", action="store_true", help="measure all 4,500 starts and 4,000 resamples")
    options = parser.parse_args(arguments)
    starts = len(GRID) if options.full else options.starts
    resamples = RESAMPLES if options.full else options.resamples

    runs = read(options.table, options.where)
    data = (runs.params, runs.tokens, runs.loss)
    print(f"{len(runs)} runs from {options.table or 'a synthetic table'}; one thread")
    measured = [timed(lambda: ours(runs)) for _ in range(REPEATS + 1)][1:]  # the first warms up
    (objective, natural), *_ = measured[0]
    our_cpu, our_wall = np.median([[cpu, wall] for _, cpu, wall in measured], axis=0)
    spread = "  ".join(
        f"{n} {s:.4g}" for n, s in zip(SEPARABLE.unknowns, natural.std(axis=0, ddof=1), strict=True)
    )
    print(
        f"ours: fit and {RESAMPLES} resamples: {our_cpu:.3f} s CPU, {our_wall:.3f} s wall (median of {REPEATS})"
    )
    print(f"      objective {objective:.9e}; standard errors {spread}")

    generator = np.random.default_rng(42)
    chosen = [GRID[i] for i in generator.choice(len(GRID), starts, replace=False)]
    with np.errstate(all="ignore"):
        ends, grid_cpu, _ = timed(
            lambda: [minimize(published_objective, s, args=data, method="L-BFGS-B") for s in chosen]
        )
        best = min(ends, key=lambda end: end.fun)
        drawn = [generator.integers(0, len(runs), len(runs)) for _ in range(resamples)]
        sets = [tuple(column[draw] for column in data) for draw in drawn]
        _, bfgs_cpu, _ = timed(
            lambda: [
                minimize(published_objective, HOFFMANN, args=s, jac=published_gradient, method="BFGS")
                for s in sets
            ]
        )
        _, lbfgs_cpu, _ = timed(
            lambda: [minimize(published_objective, best.x, args=s, method="L-BFGS-B") for s in sets]
        )
    reached = np.mean([end.fun <= objective * (1 + REACHED) for end in ends])
    grid_all = grid_cpu * len(GRID) / starts
    how = "all measured" if options.full else f"extrapolated from {starts} starts and {resamples} resamples"
    print(f"published, {how}; {100 * reached:.0f}% of the starts reached our objective, best {best.fun:.9e}")
    for name, cpu in (("BFGS with gradient", bfgs_cpu), ("L-BFGS-B without", lbfgs_cpu)):
        every = cpu * RESAMPLES / resamples
        print(
            f"      {len(GRID)} starts {grid_all:.1f} s + {RESAMPLES} resamples by {name} {every:.1f} s CPU: "
            f"{(grid_all + every) / our_cpu:.0f} times ours"
        )


if __name__ == "__main__":
    main()
