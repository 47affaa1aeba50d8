"""Do 90% intervals hold 90% of the time? Synthetic sweeps of known truth, drawn anew again and again.

    python scripts/coverage.py [--draws 200] [--only isoflop] [--keep draws.jsonl]

Each design (which N and D are run) is crossed with each truth (a separable and a coupled surface) and each
noise level. Designs stand around the truth's compute-optimal runs of 1e18 to 1e20 FLOPs, as those of a team
that knows roughly where the optimum is; the target costs ten times the dearest run, within a factor of two
of its optimal size. A draw is a sweep with fresh noise and one new run at a target, scored by whether it
falls inside its interval. The share inside is given for all draws and for those whose verdict is
"supported", with its own standard error; what kept the others from it is counted below.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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


BUDGETS = np.geomspace(1e18, 1e20, 6)

FARTHER = 10.0
"""Target FLOPs over the dearest run's."""

OFF_OPTIMUM = 2.0
"""Largest ratio of the target's size to the optimal one, either way."""

OF_TRUNK = 0.5
"""Share of the noise variance that branches of one trunk have in common. Assumption: they share their
start and nearly all batches."""


def optima(values: dict[str, float], flops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """N and D of least loss at each budget, by search; 6·N·D."""
    sizes = np.geomspace(1e6, 1e12, 4000)
    loss = COUPLED.loss_at(values, params=sizes[None, :], tokens=flops[:, None] / 6 / sizes[None, :])
    params = sizes[np.argmin(loss, axis=1)]
    return params, flops / 6 / params


def isoflop(values: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Six budgets over two decades, seven sizes each, around the optimum of each."""
    best, _ = optima(values, BUDGETS)
    params = np.outer(best, np.geomspace(0.25, 4, 7)).ravel()
    return params, np.repeat(BUDGETS, 7) / 6 / params


def grid(values: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Seven sizes times six token counts; the optima run along the diagonal."""
    best, data = optima(values, BUDGETS[[0, -1]])
    params, tokens = np.meshgrid(np.geomspace(*best, 7), np.geomspace(*data, 6))
    return params.ravel(), tokens.ravel()


def trunks(values: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Eight sizes, each decayed from one trunk at six token counts around the optimal one."""
    best, data = optima(values, np.geomspace(BUDGETS[0], BUDGETS[-1], 8))
    factors = np.geomspace(0.25, 4, 6)
    return np.repeat(best, 6), np.outer(data, factors).ravel()


DESIGNS = {"grid": grid, "trunks": trunks, "isoflop": isoflop}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--only", choices=DESIGNS, help="one design alone")
    parser.add_argument(
        "--keep", type=Path, help="file of draws (JSON lines) to add to; what it holds is not drawn again"
    )
    arguments = parser.parse_args()
    designs = DESIGNS if arguments.only is None else (arguments.only,)
    settings = list(itertools.product(designs, TRUTHS, NOISES))
    kept = read(arguments.keep) if arguments.keep else {}
    for seed, setting in itertools.product(range(arguments.draws), settings):
        if (*setting, seed) not in kept:
            kept[(*setting, seed)] = scored = draw(*setting, seed)
            if arguments.keep:
                with arguments.keep.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([*setting, seed, asdict(scored)]) + "\n")
    print(
        f"{'design':8} {'truth':10} {'noise':>6} {'draws':>6} {'inside':>7} {'supported':>10} {'inside':>7} "
        f"{'± se':>6} {'width %':>8} {'error %':>8}"
    )
    everything: list[Scored] = []
    for setting in settings:
        scored = [kept[(*setting, seed)] for seed in range(arguments.draws)]
        design, truth, noise = setting
        print(f"{design:8} {truth:10} {noise:6.3f} {row(scored)}")
        everything += scored
    print(f"{'all':26} {row(everything)}\n\nnot supported, because:")
    for reason, count in Counter(reason for one in everything for reason in one.against).most_common():
        print(f"{count:6}  {reason}")


def read(path: Path) -> dict[tuple, Scored]:
    """Draws by design, truth, noise and seed; none where there is no file yet."""
    if not path.exists():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        *key, scored = json.loads(line)
        found[tuple(key)] = Scored(**{**scored, "against": tuple(scored["against"])})
    return found


@dataclass(frozen=True)
class Scored:
    """One draw; width and error are log ratios. `against`: why it was not supported, numbers left out."""

    inside: bool
    width: float
    error: float
    supported: bool
    against: tuple[str, ...]


def draw(design: str, truth: str, noise: float, seed: int) -> Scored:
    """A sweep with noise of standard deviation `noise` in log loss, and one run at a target beyond it."""
    values = TRUTHS[truth]
    params, tokens = DESIGNS[design](values)
    generator = np.random.default_rng(
        [seed, list(DESIGNS).index(design), list(TRUTHS).index(truth), round(1e6 * noise)]
    )
    own = generator.standard_normal(len(params))
    if design == "trunks":
        _, trunk = np.unique(params, return_inverse=True)
        shared = generator.standard_normal(len(params))[trunk]
        own = np.sqrt(OF_TRUNK) * shared + np.sqrt(1 - OF_TRUNK) * own
    loss = COUPLED.loss_at(values, params=params, tokens=tokens)
    runs = as_runs(params, tokens, loss * np.exp(noise * own))
    flops = FARTHER * runs.flops.max()
    size = optima(values, np.array([flops]))[0][0] * OFF_OPTIMUM ** generator.uniform(-1, 1)
    target = Target(float(size), float(flops / 6 / size), float(flops))
    new = COUPLED.loss_at(values, params=target.params, tokens=target.tokens) * np.exp(
        noise * generator.standard_normal()
    )
    prediction = predict(model(runs, rolled=(), resamples=RESAMPLES), target, "")
    supported = prediction.verdict is Verdict.SUPPORTED
    return Scored(
        inside=bool(prediction.lo90 <= new <= prediction.hi90),
        width=float(np.log(prediction.hi90 / prediction.lo90)),
        error=float(abs(np.log(prediction.loss / new))),
        supported=supported,
        against=() if supported else tuple(re.sub(r"\d[\d.e+]*", "#", r) for r in prediction.reasons[:-1]),
    )


def row(scored: Sequence[Scored]) -> str:
    supported = [one.inside for one in scored if one.supported]
    share = np.mean(supported) if supported else np.nan
    error = np.sqrt(share * (1 - share) / len(supported)) if supported else np.nan
    return (
        f"{len(scored):6} {np.mean([one.inside for one in scored]):7.1%} {len(supported):10} {share:7.1%} "
        f"{error:6.1%} {100 * np.median([one.width for one in scored]):8.2f} "
        f"{100 * np.mean([one.error for one in scored]):8.2f}"
    )


if __name__ == "__main__":
    main()
