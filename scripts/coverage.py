"""Do 90% intervals hold 90% of the time? Synthetic sweeps of known truth, drawn anew again and again.

    python scripts/coverage.py [--draws 200] [--only isoflop]

Each design (which N and D are run) is crossed with each truth (a separable and a coupled surface) and each
noise level. A draw is a sweep with fresh noise and one new run at a target beyond it, scored by whether it
falls inside its interval. The share inside is given for all draws and for those whose verdict is
"supported", with its own standard error.
"""

from __future__ import annotations

import argparse

import numpy as np

from analysis.laws import COUPLED
from analysis.prediction import model, predict
from analysis.table import as_runs
from analysis.values import Target, Verdict

TRUTHS = {
    "separable": {"E": 1.69, "A": 406.4, "B": 410.7, "a": 0.34, "b": 0.28, "k": 1.0},
    "coupled": {"E": 1.2, "A": 60.0, "B": 300.0, "a": 0.55, "b": 0.5, "k": 0.65},
}
"""Hoffmann et al. 2022 (arXiv 2203.15556), equation 10; and a coupled surface (assumption)."""

NOISES = (0.002, 0.005)
"""Standard deviations of log loss: a large run's and a small one's (seeds of public runs: 0.14% in the
median, 1.0% at most)."""

RESAMPLES = 100
"""Only parameter intervals use them, and they are not scored here."""


def isoflop(values: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Six budgets over two decades, seven sizes each, around the true optimum of each."""
    budgets = np.geomspace(1e18, 1e20, 6)
    sizes = np.geomspace(1e6, 1e11, 2000)
    best = [sizes[np.argmin(COUPLED.loss_at(values, params=sizes, tokens=C / 6 / sizes))] for C in budgets]
    params = np.outer(best, np.geomspace(0.25, 4, 7)).ravel()
    return params, np.repeat(budgets, 7) / 6 / params


def grid(values: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Seven sizes by six token counts, whatever the truth."""
    params, tokens = np.meshgrid(np.geomspace(5e7, 2e9, 7), np.geomspace(2e9, 5e10, 6))
    return params.ravel(), tokens.ravel()


def trunks(values: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Ten sizes, each read at eight token counts along its own trunk."""
    params, multiple = np.meshgrid(np.geomspace(5e7, 2e9, 10), np.geomspace(10, 80, 8))
    return params.ravel(), (params * multiple).ravel()


DESIGNS = {"isoflop": isoflop, "grid": grid, "trunks": trunks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--only", choices=DESIGNS, help="one design alone")
    arguments = parser.parse_args()
    print(f"{'design':8} {'truth':10} {'noise':>6} {'draws':>6} {'inside':>7} {'supported':>10} {'inside':>7} {'± se':>6} "
          f"{'width %':>8} {'error %':>8}")
    everything: list[tuple[bool, bool]] = []
    for name, design in DESIGNS.items():
        if arguments.only in (None, name):
            for truth, values in TRUTHS.items():
                for noise in NOISES:
                    everything += report(name, design(values), truth, values, noise, arguments.draws)
    supported = [inside for inside, is_supported in everything if is_supported]
    print(f"all: {np.mean([i for i, _ in everything]):.1%} of {len(everything)} inside; "
          f"supported: {np.mean(supported):.1%} of {len(supported)}")


def report(
    name: str, design: tuple[np.ndarray, np.ndarray], truth: str, values: dict, noise: float, draws: int
) -> list[tuple[bool, bool]]:
    params, tokens = design
    found, widths, errors = [], [], []
    for seed in range(draws):
        generator = np.random.default_rng([seed, len(params), round(1e6 * noise)])
        loss = COUPLED.loss_at(values, params=params, tokens=tokens)
        runs = as_runs(params, tokens, loss * np.exp(noise * generator.standard_normal(len(params))))
        flops = 10 * runs.flops.max()
        size = runs.params.max() * generator.uniform(1, 3)
        target = Target(size, flops / 6 / size, flops)
        new = COUPLED.loss_at(values, params=target.params, tokens=target.tokens) * np.exp(
            noise * generator.standard_normal()
        )
        prediction = predict(model(runs, resamples=RESAMPLES), target, "")
        found.append((prediction.lo90 <= new <= prediction.hi90, prediction.verdict is Verdict.SUPPORTED))
        widths.append(100 * np.log(prediction.hi90 / prediction.lo90))
        errors.append(100 * abs(np.log(prediction.loss / new)))
    inside = np.mean([i for i, _ in found])
    supported = [i for i, s in found if s]
    share = np.mean(supported) if supported else np.nan
    error = np.sqrt(share * (1 - share) / len(supported)) if supported else np.nan
    print(f"{name:8} {truth:10} {noise:6.3f} {draws:6} {inside:7.1%} {len(supported):10} {share:7.1%} {error:6.1%} "
          f"{np.median(widths):8.2f} {np.mean(errors):8.2f}", flush=True)
    return found


if __name__ == "__main__":
    main()
