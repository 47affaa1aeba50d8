"""The course of a loss under its schedule: a power of the area under the rate, less what annealing gains.

Of finished runs it is fitted; of a run of which a beginning was seen, with what finished runs teach, it is
carried to the end. Losses are nats a token; rates are shares of a run's own peak, so that runs of other
peaks share a law.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.signal import lfilter

from analysis.values import RunRow

AFTER_WARMUP = 2.0
"""Lines from this many times the warmup on are fitted. Measured on three sweeps of small decoders: from once
the warmup on, the early transient made predictions at 20% seen a third worse."""

ALPHA = (0.05, 2.0)
"""Bounds of the exponent; at the lower one S^-alpha is a logarithm for all that a course can show.
Assumption."""

BINS = 2000
"""Of the token axis, on which the luck of the data is kept. Assumption: finer than any log."""


class CourseError(ValueError):
    """A run whose course cannot be used; the message says why."""


@dataclass(frozen=True, eq=False)
class CourseRun:
    """A finished run, line by line of its log: float64[line]; `rate` is float64[step], shares of the peak.

    loss: training loss, mean since the line before; fitted: bool[line], past the warmup. The laws are
    evaluated at `places`, int64[line + 1]: the middle step of what each line is the mean of, and the last
    step of all.
    forward: S1 of the laws there, in tokens weighed by their rate, float64[line + 1].
    """

    run_id: str
    params: float
    flops: float
    final: float
    seed: int | None
    step: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    rate: np.ndarray
    places: np.ndarray
    forward: np.ndarray
    fitted: np.ndarray

    @property
    def anneals(self) -> bool:
        return bool(self.rate[-1] < 0.9)

    def seen(self, share: float) -> np.ndarray:
        """bool[line]: fitted, and within the first `share` of the steps."""
        return self.fitted & (self.step <= share * self.step[-1])


def course_run(row: RunRow, courses: Mapping) -> CourseRun:
    """`row` with its course, its trunks' before its own. Raises CourseError."""
    try:
        parts = [courses[row.run_id]]
        while parent := parts[0].spec.get("execution", {}).get("parent"):
            parts.insert(0, courses[parent])
    except KeyError as error:
        raise CourseError(f"{row.run_id}: its course is not at hand ({error})") from error
    step, tokens, loss, lr = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("step", "tokens", "loss", "lr")
    )
    kept = np.isfinite(loss) & np.isfinite(lr)
    step, tokens, loss, lr = (column[kept] for column in (step, tokens, loss, lr))
    if len(step) < 20 or not (np.diff(step) > 0).all() or step[0] > 0.05 * step[-1]:
        raise CourseError(
            f"{row.run_id}: its log has {len(step)} lines of a training loss, or not from the beginning on"
        )
    peak = lr.max()
    rate = np.interp(np.arange(1, int(step[-1]) + 1), np.append(0, step), np.append(0, lr) / peak)
    warm = step[np.argmax(lr >= 0.999 * peak)]
    places = np.append((np.append(0.0, step[:-1]) + step) // 2, step[-1] - 1).astype(int)
    at_step = np.diff(
        np.interp(np.arange(len(rate) + 1), np.append(0, step), np.append(0, tokens))
    )  # batches may grow
    forward = np.cumsum(rate * at_step)[places]
    fitted = step > AFTER_WARMUP * warm
    spec = parts[-1].spec.get("spec", {})
    seed = spec.get("order_seed", spec.get("seed"))
    return CourseRun(
        row.run_id, row.params, row.flops, row.loss, seed, step, tokens, loss, rate, places, forward, fitted
    )


# --- the annealing term ---------------------------------------------------------------------------


def annealing_area(run: CourseRun, forgetting: float) -> np.ndarray:
    """S2 = sum_i sum_{k<=i} (eta_{k-1} - eta_k)·lambda^(i-k), with lambda = 1 - forgetting; float64[line + 1]
    (Tissue et al. 2024, arXiv 2408.11029, equation 1). The warmup, where the rate rises, is left out."""
    momentum = lfilter([1.0], [1.0, forgetting - 1.0], _drops(run))
    return np.cumsum(momentum)[run.places]


BETA, GAMMA = 0.59, 0.64
"""Of the multi-power law: 0.583 to 0.598 and 0.635 to 0.655 for 25M, 100M and 400M parameters in its authors'
repository (github.com/thu-yao-01-luo/MultiPowerLaw, README). Held, since one schedule tells one of them."""

GROUPS = 64
"""Drops of the rate that are told apart in the multi-power law. Assumption: its kernel is smoother than
that."""


def power_drop(run: CourseRun, scale: float) -> np.ndarray:
    """sum_k (eta_{k-1} - eta_k)·G(eta_k^-gamma·S_k(t)), G(x) = 1 - (scale·x + 1)^-beta, S_k(t) the area
    under the rate since step k; float64[line + 1] (Luo et al. 2025, arXiv 2503.12811, equations 2 and 3)."""
    drops = _drops(run)
    area = np.cumsum(run.rate)
    first = int(np.argmax(drops != 0)) if drops.any() else 0
    ends = np.unique(np.linspace(first, len(drops), GROUPS + 1).astype(int))
    middle = (ends[:-1] + ends[1:]) // 2
    drop = np.add.reduceat(drops, ends[:-1])
    since = area[run.places][:, None] - area[middle] + run.rate[middle]
    x = np.maximum(since, 0.0) * np.maximum(run.rate[middle], 1e-3) ** -GAMMA
    return (1 - (scale * x + 1) ** -BETA) @ drop


def _drops(run: CourseRun) -> np.ndarray:
    """By how much the rate falls at each step once the warmup is over; float64[step]."""
    falls = -np.diff(run.rate, prepend=run.rate[0])
    falls[: int(np.argmax(run.rate >= 0.999)) + 1] = 0.0
    return falls


@dataclass(frozen=True)
class Annealing:
    """One form of the annealing term. bounds: of its one non-linear constant; shown: how that is called."""

    name: str
    term: object
    bounds: tuple[float, float]


AREA = Annealing("annealing area", annealing_area, (1e-4, 0.2))
POWER = Annealing("multi-power", power_drop, (1e-4, 100.0))


# --- fitted to finished runs ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SharedLaw:
    """What finished runs teach: L = L0 + A·S1^-alpha - gain·S2, with L0 and A of each run its own.

    constant: the annealing term's non-linear one (1 - lambda, or the multi-power law's C).
    own: float64[run, 2], L0 + A and A, with S1 in `unit` tokens. offset: mean of log(final held-out loss /
        law at the end).
    noise: standard deviation of a line's log residual. luck: (tokens, cumulated log difficulty), of `seed`'s
        data.
    """

    annealing: Annealing
    unit: float
    alpha: float
    constant: float
    gain: float
    own: np.ndarray
    offset: float
    noise: float
    luck: tuple[np.ndarray, np.ndarray]
    seed: int | None
    runs: tuple[CourseRun, ...]

    @property
    def theta(self) -> np.ndarray:
        return np.log([self.alpha, self.constant])

    @property
    def at_bound(self) -> tuple[bool, bool]:
        """Whether alpha, and the annealing term's constant, lie at the edge of what was allowed."""
        sides = (self.alpha, ALPHA), (self.constant, self.annealing.bounds)
        return tuple(not lo * 1.01 < x < hi / 1.01 for x, (lo, hi) in sides)


STARTS = tuple(np.log([alpha, place]) for alpha in (0.1, 0.4) for place in (0.003, 0.03))


def fit_shared(
    runs: Sequence[CourseRun], annealing: Annealing = AREA, start: np.ndarray | None = None
) -> SharedLaw:
    """Least squares on relative residuals; for given alpha and constant all else is linear and solved exactly
    (variable projection, Golub & Pereyra 1973). The luck of the data, which runs of one stream share, is read
    off the residuals and taken out, and all is fitted once more.

    Raises ValueError: no run's rate came down, so that nothing tells what annealing gains.
    """
    if not any(run.anneals for run in runs):
        raise ValueError(
            f"the rate of none of the {len(runs)} finished runs came down, so that nothing tells what "
            "annealing gains; "
            "finish cheaper runs under the same schedule"
        )
    unit = float(np.median([run.forward[-1] for run in runs]))
    luck, seed = (np.zeros(2), np.zeros(2)), _common_seed(runs)
    for _ in range(2):
        lines = [(run, _without_luck(run, luck) if run.seed == seed else run.loss) for run in runs]
        starts = STARTS if start is None else [start]
        ends = [
            minimize(
                _misfit,
                x0,
                args=(lines, unit, annealing),
                method="Nelder-Mead",
                options={"xatol": 3e-2, "fatol": 1e-6},
            )
            for x0 in starts
        ]
        best = min(ends, key=lambda end: end.fun)
        start = best.x
        alpha, constant = _clipped(best.x, annealing)
        gain, residuals = _solve(lines, unit, alpha, constant, annealing)
        luck = _luck([pair for pair in zip(runs, residuals) if pair[0].seed == seed])
    own, offsets = [], []
    for run, loss in lines:
        forward = _columns(run, unit, alpha)
        drop = gain * annealing.term(run, constant)
        k = np.flatnonzero(run.fitted)
        own.append(np.linalg.lstsq(forward[k] / loss[k, None], (loss[k] + drop[k]) / loss[k], rcond=None)[0])
        offsets.append(math.log(run.final / (forward[-1] @ own[-1] - drop[-1])))
    freedom = max(1, sum(map(len, residuals)) - 2 * len(runs) - 3)
    noise = math.sqrt(sum(float(r @ r) for r in residuals) / freedom)
    return SharedLaw(
        annealing,
        unit,
        alpha,
        constant,
        gain,
        np.array(own),
        float(np.mean(offsets)),
        noise,
        luck,
        seed,
        tuple(runs),
    )


def _columns(run: CourseRun, unit: float, alpha: float) -> np.ndarray:
    """1 and (S1/unit)^-alpha - 1, float64[line + 1, 2]: what they are multiplied with are the loss at `unit`
    tokens of full rate, L0 + A, and A."""
    return np.column_stack([np.ones(len(run.forward)), (run.forward / unit) ** -alpha - 1.0])


def _clipped(theta: np.ndarray, annealing: Annealing) -> tuple[float, float]:
    return tuple(float(np.clip(np.exp(x), *bounds)) for x, bounds in zip(theta, (ALPHA, annealing.bounds)))


def _solve(
    lines: list, unit: float, alpha: float, constant: float, annealing: Annealing
) -> tuple[float, list[np.ndarray]]:
    """The annealing term's coefficient, and each run's relative residuals [fitted line]."""
    terms, losses = [], []
    for run, loss in lines:
        k, weight = np.flatnonzero(run.fitted), 1 / loss[run.fitted]
        q, _ = np.linalg.qr(_columns(run, unit, alpha)[k] * weight[:, None])
        for column, target in (
            (annealing.term(run, constant)[k] * weight, terms),
            (loss[k] * weight, losses),
        ):
            target.append(column - q @ (q.T @ column))
    z, t = np.concatenate(terms), np.concatenate(losses)
    gain = -float(z @ t / max(z @ z, 1e-300))
    return gain, [loss + gain * term for loss, term in zip(losses, terms)]


def _misfit(theta: np.ndarray, lines: list, unit: float, annealing: Annealing) -> float:
    _, residuals = _solve(lines, unit, *_clipped(theta, annealing), annealing)
    return sum(float(r @ r) for r in residuals)


def _without_luck(run: CourseRun, luck: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The run's losses, float64[line], without what its data added to everybody's."""
    before = np.append(0.0, run.tokens[:-1])
    return run.loss * np.exp(
        -(np.interp(run.tokens, *luck) - np.interp(before, *luck)) / (run.tokens - before)
    )


def _common_seed(runs: Sequence[CourseRun]) -> int | None:
    seeds = [run.seed for run in runs if run.seed is not None]
    return max(set(seeds), key=seeds.count) if seeds else None


def _luck(pairs: Sequence[tuple[CourseRun, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean log residual along the stream, cumulated over its tokens, (tokens, cumulated): runs of one seed
    see the same tokens at the same place, whatever their batch. None of it where fewer than three runs
    tell."""
    if len(pairs) < 3:
        return np.zeros(2), np.zeros(2)
    ends = np.linspace(0.0, max(run.tokens[-1] for run, _ in pairs), BINS + 1)
    total, weight = np.zeros((2, BINS))
    for run, residual in pairs:
        after = run.tokens[run.fitted]
        before = np.append(0.0, run.tokens[:-1])[run.fitted]
        cumulated = np.append(0.0, np.cumsum(residual * (after - before)))
        edges = np.append(before[0], after)
        within = (ends[:-1] >= edges[0]) & (ends[1:] <= edges[-1])
        total += np.where(within, np.diff(np.interp(ends, edges, cumulated)), 0.0)
        weight += within * np.diff(ends)
    mean = np.divide(total, weight, out=np.zeros(BINS), where=weight > 0)
    return ends, np.append(0.0, np.cumsum(mean * np.diff(ends)))


# --- carried to the end ---------------------------------------------------------------------------


TRUST = tuple(2.0**k for k in range(8))
"""By how much a line's own noise is multiplied before it is weighed against what other runs had. Assumption:
128 leaves nothing of it."""


def predict_final(law: SharedLaw, run: CourseRun, share: float) -> float:
    """The final held-out loss of a run that is not among the law's, from its first `share` and its schedule.

    Its level is what its own lines say. Its slope A is held to that of the law's runs, as a share of the
    level and with what it scatters between them (Bayesian least squares). Residuals of a law that is not
    quite right hang together, so how far a beginning's own slope is to be trusted is learnt from the law's
    runs: the factor on its noise under which they, each without itself, are predicted best at this share.
    Raises CourseError: fewer than three lines were seen after the warmup, or no run tells the slope.
    """
    told = [others for i in range(len(law.runs)) if (others := _told(law, i, share))]
    if not told:
        raise CourseError(f"no finished run tells how far the first {share:.0%} of a course is to be trusted")
    errors = [sum(math.log(_end(law, *one, trust) / one[0].final) ** 2 for one in told) for trust in TRUST]
    everyone = np.arange(len(law.runs))
    return _end(law, run, _seen(run, share), _slope(law, run.params, everyone), TRUST[int(np.argmin(errors))])


def _told(law: SharedLaw, i: int, share: float) -> tuple | None:
    """What predicts the law's own run i, but for itself; None where the others don't tell."""
    run, others = law.runs[i], np.delete(np.arange(len(law.runs)), i)
    try:
        return run, _seen(run, share), _slope(law, run.params, others)
    except CourseError:
        return None


def _seen(run: CourseRun, share: float) -> np.ndarray:
    seen = run.seen(share)
    if seen.sum() < 3:
        raise CourseError(
            f"{run.run_id}: {seen.sum()} lines between {AFTER_WARMUP:g} times its warmup and {share:.0%}"
        )
    return seen


def _end(law: SharedLaw, run: CourseRun, seen: np.ndarray, slope: tuple[float, float], trust: float) -> float:
    """slope: A as a share of the level and its standard deviation."""
    forward = _columns(run, law.unit, law.alpha)
    drop = law.gain * law.annealing.term(run, law.constant)
    loss = _without_luck(run, law.luck) if run.seed == law.seed else run.loss
    seen = np.flatnonzero(seen)
    x, y = forward[seen] / loss[seen, None], (loss[seen] + drop[seen]) / loss[seen]
    noise = law.noise * trust
    held = np.array([-slope[0], 1.0]) / (slope[1] * float(np.median(loss[seen])))
    own, *_ = np.linalg.lstsq(np.vstack([x / noise, held]), np.append(y / noise, 0.0), rcond=None)
    return math.exp(law.offset) * max(float(forward[-1] @ own - drop[-1]), 1e-6)


def _slope(law: SharedLaw, params: float, others: np.ndarray) -> tuple[float, float]:
    """A as a share of the level, as the law's runs `others` have it at this size, and its standard deviation:
    a line in log N through three sizes or more, or the mean of runs of this very size. Raises CourseError:
    neither."""
    sizes = np.log([run.params for run in law.runs])[others]
    distinct = len(np.unique(sizes.round(2)))
    if distinct < 3 and np.abs(sizes - math.log(params)).max(initial=0.0) > 0.1 or len(others) < 3:
        raise CourseError(
            f"{len(others)} finished runs of {distinct} sizes do not tell how steep a course of another "
            "size is"
        )
    terms = np.vander(sizes, 2 if distinct > 2 else 1, increasing=True)
    here = np.array([1.0, math.log(params)])[: terms.shape[1]]
    slopes = law.own[others, 1] / law.own[others, 0]
    line, *_ = np.linalg.lstsq(terms, slopes, rcond=None)
    spread = float(np.sum((slopes - terms @ line) ** 2)) / max(1, len(slopes) - terms.shape[1])
    spread *= 1 + float(here @ np.linalg.pinv(terms.T @ terms) @ here)
    return float(here @ line), math.sqrt(spread) + 1e-6


def predict_unseen(law: SharedLaw, run: CourseRun) -> float:
    """The final loss from the law's runs' final losses alone, log-linear in log N and log D as far as these
    vary on their own: what the beginning of a course must better."""
    points = np.log([[r.params, r.tokens[-1]] for r in (*law.runs, run)])
    log_final = np.log([r.final for r in law.runs])
    points -= points[:-1].mean(axis=0)
    line, *_ = np.linalg.lstsq(points[:-1], log_final - log_final.mean(), rcond=0.2)
    return math.exp(log_final.mean() + float(points[-1] @ line))
