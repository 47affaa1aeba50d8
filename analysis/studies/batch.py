"""The critical batch: where more data a step stops buying fewer steps, against loss, N and D, and the noise
scale.

To reach a loss with a batch of B tokens takes S steps and E = B·S tokens with (S/S_min - 1)(E/E_min - 1) = 1
(McCandlish et al. 2018, arXiv 1812.06162, equation 2.11), which is S = S_min·(1 + B_crit/B) with B_crit =
E_min/S_min. Steps are read off courses at a constant rate, at each batch's own best rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from scipy.optimize import minimize_scalar

from analysis.finding import Chart, Finding, Number, Panel, Series
from analysis.rates import study_rates
from analysis.studies import Course, Evidence
from analysis.units import count
from analysis.values import LEVEL, Estimate, RunRow

SOURCE = (
    "McCandlish et al. 2018 (1812.06162), Kaplan et al. 2020 (2001.08361), Zhang et al. 2024 (2410.21676)"
)

KAPLAN_BATCH, KAPLAN_ALPHA = 2e8, 0.21
"""B_crit = B*/L^(1/alpha_B): Kaplan et al. 2020 (arXiv 2001.08361), equation 1.4."""

LEVELS = 6
"""Losses that steps are read at, of each size. Assumption: neighbours share most of their courses, so that
more say little more."""

FEWEST_BATCHES = 3
"""With a best rate, at one loss: one more than a hyperbola has unknowns."""

BEYOND = 10.0
"""Times the smallest and the largest batch within which a critical batch is told. Assumption: at ten times
the largest the hyperbola differs from 1/B by a tenth there."""

LOOSEST = 0.2
"""Residual of log steps about the hyperbolas above which they are no hyperbolas. Assumption: a fifth of the
steps."""


@dataclass(frozen=True, eq=False)
class Hyperbola:
    """At one size and loss: batches and the least steps they reach it in, float64[batch]; least_steps is
    S_min.
    noise_scale: B_simple of the runs when they pass this loss; NaN where none was measured, or chance hid
        it."""

    params: float
    loss: float
    batches: np.ndarray
    steps: np.ndarray
    critical: float
    least_steps: float
    noise_scale: float

    @property
    def least_tokens(self) -> float:
        return self.critical * self.least_steps

    @property
    def residual(self) -> np.ndarray:
        """Of log steps, float64[batch]."""
        return np.log(self.steps / (self.least_steps * (1 + self.critical / self.batches)))


def study(evidence: Evidence) -> Finding:
    """Raises ValueError: no such runs, or no loss at which a hyperbola can be told."""
    rows, courses = _runs(evidence)
    why: list[str] = []
    found = hyperbolas(rows, courses, why)
    if not found:
        raise ValueError(f"no critical batch can be told at any loss: {_most(why)}")
    freedom = sum(len(one.batches) - 2 for one in found)
    residual = math.sqrt(sum(float(one.residual @ one.residual) for one in found) / max(1, freedom))
    if residual > LOOSEST:
        raise ValueError(
            f"steps to a loss lie {100 * residual:.0f}% about the hyperbola; above {100 * LOOSEST:.0f}% it "
            "is taken for no law of "
            "these runs. Add rates, or batches"
        )
    batches = sorted({row.batch_tokens for row in rows})
    left_out = [
        hyperbolas([row for row in rows if row.batch_tokens != batch], courses, []) for batch in batches
    ]

    def number(value: Callable[[Sequence[Hyperbola]], float]) -> Estimate | None:
        return _jackknife(value, found, left_out)

    lowest = min(found, key=lambda one: one.loss)
    critical = number(lambda some: _at(some, lowest.params, lowest.loss))
    numbers = [
        Number(f"critical batch at loss {lowest.loss:.3g}, N = {count(lowest.params)}", critical, "tokens",
               f"{count(kaplan(lowest.loss))}, Kaplan et al. 2020, equation 1.4, at this loss",
               "their loss is of a BPE token of web text, another corpus and vocabulary: the same loss is "
               "not the same model"),
        Number("1/α_B of B_crit ∝ L^(-1/α_B)", number(by_loss), "",
               "4.8 (α_B = 0.21), Kaplan et al. 2020, equation 1.4", "sizes share the power, each has its own factor"),
        Number("exponent of tokens in B_crit, at one N", number(lambda some: by_scale(some)[0]), "",
               "about 0.47, Zhang et al. 2024, section 4", "D is E_min, the tokens that small batches need "
               "to that loss"),
        Number("exponent of N in B_crit, at one D", number(lambda some: by_scale(some)[1]), "",
               "about 0.09, Zhang et al. 2024, section 4", _sizes_note(found)),
        *_noise_numbers(found, number),
    ]  # fmt: skip
    numbers = [
        one if one.estimate else replace(one, note=f"not to be had from these runs; {one.note}")
        for one in numbers
    ]
    interval = (
        f" (90% {count(critical.lo)} to {count(critical.hi)})"
        if critical and math.isfinite(critical.lo)
        else ""
    )
    return Finding(
        "batch",
        "The critical batch",
        SOURCE,
        found=f"At loss {lowest.loss:.3g} with N = {count(lowest.params)} the critical batch is "
        f"{count(lowest.critical)} tokens"
        f"{interval}: there twice the fewest steps and twice the fewest tokens are taken.",
        means=f"Up to about {count(lowest.critical / 4)} tokens a batch costs at most a quarter more tokens "
        "than the fewest; "
        f"beyond {count(4 * lowest.critical)} at most a fifth of the steps can still be saved, at five times "
        "the tokens or more.",
        numbers=tuple(numbers),
        chart=_chart(found),
        notes=(*_slope_note(number(by_loss)), *_notes(rows, residual, why)),
    )


def kaplan(loss: float | np.ndarray) -> float | np.ndarray:
    return KAPLAN_BATCH / loss ** (1 / KAPLAN_ALPHA)


def _runs(evidence: Evidence) -> tuple[list[RunRow], dict[str, Course]]:
    """Runs whose rate never came down, with their courses."""
    courses, rows, annealed = {}, [], 0
    for row in evidence.table.rows:
        if row.role == "fit" and row.lr and row.batch_tokens and row.status in ("finished", "diverged"):
            try:
                course = evidence.courses[row.run_id]
            except KeyError:
                continue
            lr = course.lr[np.isfinite(course.lr)]
            if row.status == "finished" and not (len(lr) and lr[-1] >= 0.999 * lr.max()):
                annealed += 1
            elif np.isfinite(course.eval_loss).sum() > 3 or row.status == "diverged":
                courses[row.run_id] = course
                rows.append(row)
    batches = {row.batch_tokens for row in rows}
    if len(batches) < FEWEST_BATCHES:
        raise ValueError(
            f"runs of {len(batches)} batches at a constant rate, with evaluations on the way, were found, "
            f"and {FEWEST_BATCHES} are "
            f"wanted ({annealed} runs anneal: what they reach on the way is not what a run of that length "
            "would). Train "
            "+grid=batch"
        )
    return rows, courses


# --- steps to a loss ------------------------------------------------------------------------------


def steps_to(course: Course, loss: float) -> float:
    """The first step at which the held-out loss is down to `loss`, log-linear between evaluations; NaN: it
    never is, or was before the first of them."""
    known = np.isfinite(course.eval_loss)
    lowest = np.minimum.accumulate(course.eval_loss[known])
    log_step = np.log(course.step[known])
    if not len(lowest) or not lowest[-1] <= loss < lowest[0]:
        return math.nan
    after = int(np.argmax(lowest <= loss))
    share = (lowest[after - 1] - loss) / (lowest[after - 1] - lowest[after])
    return float(np.exp(log_step[after - 1] + share * (log_step[after] - log_step[after - 1])))


def hyperbolas(rows: Sequence[RunRow], courses: dict[str, Course], why: list[str]) -> list[Hyperbola]:
    """One for each size and loss where it can be told; `why` takes the reasons of the others."""
    found = []
    for params in sorted({row.params for row in rows}):
        ours = [row for row in rows if row.params == params]
        for loss in levels(ours, courses):
            one = _hyperbola(ours, courses, loss)
            if isinstance(one, Hyperbola):
                found.append(one)
            else:
                why.append(one)
    return found


def levels(rows: Sequence[RunRow], courses: dict[str, Course]) -> np.ndarray:
    """LEVELS losses, evenly in log loss, that the best rates of FEWEST_BATCHES batches or more pass between
    their first evaluation and their last."""
    best: dict[float, tuple[float, float]] = {}
    for row in rows:
        course = courses[row.run_id].eval_loss
        course = course[np.isfinite(course)]
        if (
            row.status == "finished"
            and len(course)
            and course.min() < best.get(row.batch_tokens, (0.0, math.inf))[1]
        ):
            best[row.batch_tokens] = float(course[0]), float(course.min())
    if len(best) < FEWEST_BATCHES:
        return np.empty(0)
    highest = sorted(first for first, _ in best.values())[len(best) - FEWEST_BATCHES]
    lowest = sorted(last for _, last in best.values())[FEWEST_BATCHES - 1]
    return np.geomspace(highest, lowest, LEVELS + 2)[1:-1] if lowest < highest else np.empty(0)


def _hyperbola(rows: Sequence[RunRow], courses: dict[str, Course], loss: float) -> Hyperbola | str:
    """Or why there is none. The rate of each batch is the one that reaches the loss in the fewest steps: the
    vertex of a parabola through log steps (analysis/rates.py, which takes steps as it takes losses)."""
    reached = []
    for row in rows:
        steps = steps_to(courses[row.run_id], loss)
        status = "finished" if math.isfinite(steps) else "failed"
        reached.append(replace(row, loss=steps if status == "finished" else None, status=status, reason=""))
    rates = study_rates(reached)
    curves = [curve for curve in rates.curves if curve.bracketed] if rates else []
    where = f"at loss {loss:.3g}, N = {count(rows[0].params)}"
    if len(curves) < FEWEST_BATCHES:
        edge = [curve.reason for curve in rates.curves if not curve.bracketed] if rates else []
        return f"{len(curves)} batches have a best rate {where}, {FEWEST_BATCHES} are wanted" + (
            f" ({edge[0]})" if edge else ""
        )
    batches = np.array([curve.batch_tokens for curve in curves])
    steps = np.array([float(curve.loss_at(np.exp2(curve.optimum.value))) for curve in curves])
    critical, least = fit_hyperbola(batches, steps)
    if not math.isfinite(critical):
        side = "above" if math.isnan(least) else "below"
        return f"the critical batch lies far {side} the batches tried {where}"
    scales = [_noise_at(courses[run], loss) for curve in curves for run in curve.run_ids]
    inverse = float(np.mean([1 / scale for scale in scales if math.isfinite(scale)] or [math.nan]))
    noise = 1 / inverse if inverse > 0 else math.nan
    return Hyperbola(rows[0].params, float(loss), batches, steps, critical, least, noise)


def fit_hyperbola(batches: np.ndarray, steps: np.ndarray) -> tuple[float, float]:
    """(B_crit, S_min) of S = S_min·(1 + B_crit/B), least squares in log steps. (inf, NaN) where B_crit lies
    BEYOND the largest batch, (-inf, 0) where it lies as far below the smallest."""

    def left(log_critical: float) -> np.ndarray:
        shape = np.log(steps) - np.log1p(np.exp(log_critical) / batches)
        return shape - shape.mean()

    lower, upper = math.log(batches.min() / BEYOND), math.log(batches.max() * BEYOND)
    grid = np.linspace(lower, upper, 60)
    k = int(np.argmin([float(left(x) @ left(x)) for x in grid]))
    if k in (0, len(grid) - 1):
        return (-math.inf, 0.0) if k == 0 else (math.inf, math.nan)
    best = minimize_scalar(
        lambda x: float(left(x) @ left(x)), bounds=(grid[k - 1], grid[k + 1]), method="bounded"
    ).x
    critical = math.exp(best)
    return critical, float(np.exp(np.mean(np.log(steps) - np.log1p(critical / batches))))


def _noise_at(course: Course, loss: float) -> float:
    """B_simple when the run passes `loss`; NaN beyond its measurements. Between them 1/B_simple, whose noise
    is |G|²'s and may take it below 0, is linear in the log of the step."""
    step, known = steps_to(course, loss), np.isfinite(course.noise_scale)
    at = course.step[known]
    if not known.any() or not at[0] <= step <= at[-1]:
        return math.nan
    return 1 / float(np.interp(math.log(step), np.log(at), 1 / course.noise_scale[known]))


# --- over losses and sizes ------------------------------------------------------------------------


def by_loss(found: Sequence[Hyperbola]) -> float:
    """1/alpha_B: minus the slope of log B_crit over log loss, a factor of each size's own; NaN: one loss a
    size."""
    return -_slopes(found, [np.log([one.loss for one in found])], own=True)[0]


def by_scale(found: Sequence[Hyperbola]) -> tuple[float, float]:
    """Exponents of E_min and N in B_crit; NaN where they do not vary."""
    tokens, params = (np.log([getattr(one, name) for one in found]) for name in ("least_tokens", "params"))
    return _slopes(found, [tokens, params], own=False)


def _slopes(found: Sequence[Hyperbola], over: list[np.ndarray], own: bool) -> tuple[float, ...]:
    sizes = sorted({one.params for one in found})
    constants = (
        [np.array([one.params == size for one in found], dtype=float) for size in sizes]
        if own
        else [np.ones(len(found))]
    )
    terms = np.column_stack([*over, *constants])
    if len(found) <= terms.shape[1] or np.linalg.matrix_rank(terms, tol=1e-3) < terms.shape[1]:
        return (math.nan,) * len(over)
    line, *_ = np.linalg.lstsq(terms, np.log([one.critical for one in found]), rcond=None)
    return tuple(float(slope) for slope in line[: len(over)])


def _at(found: Sequence[Hyperbola], params: float, loss: float) -> float:
    """B_crit at a loss, log-linear between this size's levels; NaN without any."""
    ours = sorted((one.loss, one.critical) for one in found if one.params == params)
    if not ours:
        return math.nan
    losses, critical = np.log(ours).T
    return float(np.exp(np.interp(math.log(loss), losses, critical)))


def _jackknife(value, found: Sequence[Hyperbola], left_out: Sequence[Sequence[Hyperbola]]) -> Estimate | None:
    """With an interval from leaving each batch out (the delete-one jackknife, Student's t): levels of one
    course share its luck, batches do not. NaN ends where fewer than three are to be had; None where there is
    no value."""
    here = value(found)
    if not math.isfinite(here):
        return None
    values = np.array([value(some) for some in left_out if some])
    values = values[np.isfinite(values)]
    if len(values) < 3:
        return Estimate(here, math.nan, math.nan, math.nan)
    n = len(values)
    is_log = here > 0 and (values > 0).all()
    on = np.log(values) if is_log else values
    se = math.sqrt((n - 1) / n * float(np.sum((on - on.mean()) ** 2)))
    wide = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * se
    if is_log:
        return Estimate(here, here * math.exp(-wide), here * math.exp(wide), here * se)
    return Estimate(here, here - wide, here + wide, se)


# --- what is said ---------------------------------------------------------------------------------


def _noise_ratio(found: Sequence[Hyperbola]) -> float:
    logs = [math.log(one.noise_scale / one.critical) for one in found if math.isfinite(one.noise_scale)]
    return math.exp(float(np.mean(logs))) if logs else math.nan


def _noise_numbers(found: Sequence[Hyperbola], number) -> list[Number]:
    if not any(math.isfinite(one.noise_scale) for one in found):
        return [
            Number(
                "noise scale over critical batch",
                None,
                "times",
                note="no noise scale was measured (executor.noise_scales)",
            )
        ]
    note = "B_simple is of plain gradients; the runs step with Adam's"
    return [Number("noise scale over critical batch", number(_noise_ratio), "times",
                   "it predicts the largest useful batch, McCandlish et al. 2018, abstract", note)]  # fmt: skip


def _sizes_note(found: Sequence[Hyperbola]) -> str:
    sizes = sorted({one.params for one in found})
    return f"over {len(sizes)} sizes, {count(sizes[0])} to {count(sizes[-1])}"


def _slope_note(slope: Estimate | None) -> tuple[str, ...]:
    if slope is None or math.isnan(slope.lo) or slope.lo * slope.hi > 0:
        return ()
    return (
        "Whether the critical batch grows while the loss falls, as Kaplan's and McCandlish's did, these runs do "
        f"not say: the power is {slope.value:+.1f} (90% {slope.lo:+.1f} to {slope.hi:+.1f}).",
    )


def _most(why: Sequence[str]) -> str:
    return (
        "; ".join(dict.fromkeys(why[:3]))
        or "no loss is passed by runs of three batches between their evaluations"
    )


def _notes(rows: Sequence[RunRow], residual: float, why: Sequence[str]) -> tuple[str, ...]:
    notes = [
        f"{len(rows)} runs at a constant rate. Steps lie {100 * residual:.1f}% about the hyperbolas. Each "
        "point is its batch's "
        "best rate, by a parabola through log steps; a batch whose best rate is at the edge of those tried "
        "is left out.",
        "Adam's betas are one for all batches; small ones want a larger beta2 (Porian et al. 2024, Zhang et "
        "al. 2024), so "
        "that the smallest may look a little worse, and the critical batch a little larger, than they are.",
        "Kaplan's and Zhang's are of BPE tokens; a batch of as many bytes holds less text. Exponents "
        "compare, factors do not.",
    ]
    if why:
        notes.append(f"Without a critical batch: {len(why)} losses, for example {why[0]}.")
    return tuple(notes)


def _chart(found: Sequence[Hyperbola]) -> Chart:
    sizes = sorted({one.params for one in found})
    trade, against = [], []
    ends = [[one for one in found if one.params == n] for n in dict.fromkeys((sizes[0], sizes[-1]))]
    shown = [pick(ours, key=lambda one: one.loss) for ours in ends for pick in (max, min)]
    for one in dict.fromkeys(shown):
        label = f"N = {count(one.params)}, loss {one.loss:.3g}"
        fine = np.geomspace(one.batches.min() / 2, one.batches.max() * 2, 60)
        steps = one.least_steps * (1 + one.critical / fine)
        trade += [
            Series(label, one.steps, one.steps * one.batches),
            Series(label, steps, steps * fine, "line"),
        ]
    for n in sizes:
        ours = sorted((one for one in found if one.params == n), key=lambda one: one.loss)
        losses = np.array([one.loss for one in ours])
        against.append(
            Series(f"critical batch, N = {count(n)}", losses, np.array([one.critical for one in ours]))
        )
        scales = np.array([one.noise_scale for one in ours])
        if np.isfinite(scales).any():
            known = np.isfinite(scales)
            against.append(Series(f"noise scale, N = {count(n)}", losses[known], scales[known], "line"))
    ends = np.array([min(one.loss for one in found), max(one.loss for one in found)])
    factor = np.exp(np.mean([math.log(one.critical / kaplan(one.loss)) for one in found]))
    against.append(Series("Kaplan et al.'s slope", ends, factor * kaplan(ends), "dashed"))
    return Chart(
        "Steps against tokens: steps and tokens to one loss, a point a batch at its own best rate, and the "
        "hyperbola through them. Critical "
        "batch against loss: the critical batch of each loss beside the gradient noise scale there.",
        (
            Panel(
                "Steps against tokens", "steps to the loss", "tokens to the loss", tuple(trade), log_y=True
            ),
            Panel("Critical batch against loss", "loss, nats a token", "tokens", tuple(against), log_y=True),
        ),
    )
