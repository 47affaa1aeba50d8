"""A run's final loss from its beginning: what is known after 10 to 50% of it, and which runs that could have
stopped.

Tissue et al. 2024 (arXiv 2408.11029) and Luo et al. 2025 (2503.12811) fit the whole course of a loss under
its schedule. What annealing gains cannot be learnt from a stretch without any: it is learnt from finished,
cheaper runs (analysis/annealing.py), and each run is predicted from these and its own beginning alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.annealing import (
    AREA,
    POWER,
    Annealing,
    CourseError,
    CourseRun,
    SharedLaw,
    course_run,
    fit_shared,
    predict_final,
    predict_unseen,
)
from analysis.finding import Chart, Finding, Number, Panel, Series
from analysis.studies import Evidence
from analysis.values import LEVEL, Estimate

TITLE = "The final loss from the first part of a run"
SOURCE = "Tissue et al. 2024 (arXiv 2408.11029); Luo et al. 2025 (arXiv 2503.12811)"

SHARES = (0.1, 0.2, 0.3, 0.5)
CHEAPER = 0.98
"""A run is predicted from those of at most this share of its FLOPs: in practice they are finished first."""
FEWEST = 5
"""Finished runs that a law is learnt from: one more than it has unknowns that they share. Assumption."""
FEWEST_TESTS = 4
"""Predicted runs below which their errors make no interval. Assumption."""
COARSEST = 0.1
"""Residual of a line of the log, as a share of the loss, above which the law describes no course. Assumption:
three times what the luck of 5,000 tokens does."""
SAME_BUDGET = 0.02
"""Relative difference of FLOPs within which runs compete: a run has whole batches."""
GROUPS = 6


@dataclass(frozen=True, eq=False)
class Tests:
    """Of each run that has cheaper ones. errors: log(predicted / measured), float64[run, share]; NaN: not to
    be had. unseen: likewise without looking at the run, float64[run]."""

    runs: tuple[CourseRun, ...]
    errors: np.ndarray
    unseen: np.ndarray
    reasons: tuple[str, ...]

    def predicted(self, i: int, s: int) -> float:
        return self.runs[i].final * math.exp(self.errors[i, s])

    def told(self, s: int) -> int:
        """How many runs could be predicted from share `s`."""
        return int(np.isfinite(self.errors[:, s]).sum())

    def half_width(self, i: int, s: int) -> float:
        """In log loss: the errors of the other runs, as Student's t has it."""
        return _half_width(np.delete(self.errors[:, s], i))


def study(evidence: Evidence) -> Finding:
    """Raises ValueError: what is wanted is not there, or the law does not hold."""
    runs, left_out = _runs(evidence)
    tests = {law.name: backtest(runs, law) for law in (AREA, POWER)}
    main = tests[AREA.name]
    if len(main.runs) < FEWEST_TESTS:
        raise ValueError(
            f"{len(main.runs)} runs can be predicted from {FEWEST} or more finished ones of at most "
            f"{CHEAPER:g} times their "
            f"FLOPs; {FEWEST_TESTS} are wanted. Add budgets or sizes. {'; '.join(main.reasons[:1])}"
        )
    law = fit_shared(runs)
    numbers = _law_numbers(law)
    stops = stopped(main)
    rms = {name: [_rms(one.errors[:, s]) for s in range(len(SHARES))] for name, one in tests.items()}
    unseen = _rms(main.unseen)
    numbers += _error_numbers(tests) + _stop_numbers(main, stops)
    usable = [s for s in range(len(SHARES)) if np.isfinite(rms[AREA.name][s])]
    first, last = usable[0], usable[-1]
    found = (
        f"From the first {SHARES[first]:.0%} of a run its final loss is predicted to {100 * rms[AREA.name][first]:.1f}% "
        f"({main.told(first)} of {len(main.runs)} runs), from the first {SHARES[last]:.0%} to {100 * rms[AREA.name][last]:.1f}% "
        f"({main.told(last)}); their sizes and tokens alone give {100 * unseen:.1f}%; {len(stops)} could have been stopped "
        "on the way."
    )
    return Finding(
        "curve",
        TITLE,
        SOURCE,
        found,
        _means(main, stops, rms[AREA.name], unseen),
        tuple(numbers),
        _chart(tests, stops),
        _notes(law, main, left_out),
    )


def _runs(evidence: Evidence) -> tuple[list[CourseRun], list[str]]:
    if not len(evidence.courses):
        raise ValueError(
            "the course of each run is wanted (runs/*/metrics.jsonl), and a table has none; give the folder "
            "of a sweep"
        )
    excluded = {exclusion.run_id for exclusion in evidence.table.exclusions}
    runs, left_out = [], []
    for row in evidence.finished():
        if row.run_id not in excluded:
            try:
                runs.append(course_run(row, evidence.courses))
            except CourseError as error:
                left_out.append(str(error))
    if len(runs) < FEWEST + FEWEST_TESTS:
        raise ValueError(
            f"{len(runs)} finished runs have a course from the beginning on, {FEWEST + FEWEST_TESTS} are "
            f"wanted: {FEWEST} "
            f"to learn from and {FEWEST_TESTS} to predict. {'; '.join(left_out[:1])}"
        )
    return sorted(runs, key=lambda run: run.flops), left_out


def backtest(runs: Sequence[CourseRun], annealing: Annealing) -> Tests:
    """Predict every run from its beginnings and the cheaper runs; `runs` by FLOPs."""
    kept, errors, unseen, reasons = [], [], [], []
    laws: dict[int, SharedLaw] = {}
    for run in runs:
        cheaper = [other for other in runs if other.flops <= CHEAPER * run.flops]
        if len(cheaper) < FEWEST:
            continue
        if len(cheaper) not in laws:
            start = list(laws.values())[-1].theta if laws else None
            laws[len(cheaper)] = fit_shared(cheaper, annealing, start)
        law, found = laws[len(cheaper)], []
        for share in SHARES:
            try:
                found.append(math.log(predict_final(law, run, share) / run.final))
            except CourseError as error:
                found.append(math.nan)
                reasons.append(str(error))
        if np.isnan(found).all():
            continue
        kept.append(run)
        errors.append(found)
        unseen.append(math.log(predict_unseen(law, run) / run.final))
    return Tests(tuple(kept), np.array(errors).reshape(-1, len(SHARES)), np.array(unseen), tuple(reasons))


# --- stopping -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stop:
    """A run that need not have gone on after `share`: by then its loss was known to end above another's of
    its budget. right: so it did."""

    run: CourseRun
    share: float
    right: bool


def stopped(tests: Tests) -> list[Stop]:
    """At each share, runs whose predicted loss lies above the lowest of their budget by more than differences
    of predictions within a budget err in 95 of 100 cases; those of the run itself are not counted."""
    stops: dict[int, Stop] = {}
    sets = _budgets(tests.runs)
    for s, share in enumerate(SHARES):
        pairs = [(i, j) for members in sets for i in members for j in members if i < j]
        gaps = {pair: tests.errors[pair[0], s] - tests.errors[pair[1], s] for pair in pairs}
        for members in sets:
            known = [i for i in members if np.isfinite(tests.errors[i, s])]
            best = min(known, key=lambda i: tests.predicted(i, s), default=None)
            for i in known:
                wide = _half_width(np.array([gap for pair, gap in gaps.items() if i not in pair]))
                above = math.log(tests.predicted(i, s) / tests.predicted(best, s))
                if i not in stops and above > wide:
                    right = tests.runs[i].final > min(tests.runs[j].final for j in members)
                    stops[i] = Stop(tests.runs[i], share, right)
    return list(stops.values())


def _budgets(runs: Sequence[CourseRun]) -> list[list[int]]:
    """Indices of runs of one budget, by FLOPs."""
    sets: list[list[int]] = []
    for i in sorted(range(len(runs)), key=lambda i: runs[i].flops):
        if sets and runs[i].flops <= (1 + SAME_BUDGET) * runs[sets[-1][0]].flops:
            sets[-1].append(i)
        else:
            sets.append([i])
    return sets


def _rms(errors: np.ndarray) -> float:
    errors = errors[np.isfinite(errors)]
    return math.sqrt(float(np.mean(errors**2))) if len(errors) else math.nan


def _half_width(errors: np.ndarray) -> float:
    """Infinite with fewer than two errors. Errors are taken about nothing, so that a bias widens it."""
    count = int(np.isfinite(errors).sum())
    return float(stats.t.ppf((1 + LEVEL) / 2, count)) * _rms(errors) if count > 1 else math.inf


# --- what is said ---------------------------------------------------------------------------------


def _law_numbers(law: SharedLaw) -> list[Number]:
    """The law of all runs; intervals by leaving out groups of them (the delete-a-group jackknife)."""
    if law.noise > COARSEST:
        raise ValueError(
            f"the law leaves {100 * law.noise:.0f}% of the loss at a line of the log; above "
            f"{100 * COARSEST:.0f}% it is taken "
            "to describe no course. Look for spikes and restarts in metrics.jsonl"
        )
    groups = np.array_split(np.random.default_rng(0).permutation(len(law.runs)), min(GROUPS, len(law.runs)))
    left = [
        fit_shared([run for i, run in enumerate(law.runs) if i not in group], law.annealing, law.theta)
        for group in groups
    ]

    def number(value) -> Estimate:
        values = np.array([value(one) for one in left])
        se = math.sqrt((len(left) - 1) / len(left) * float(np.sum((values - values.mean()) ** 2)))
        wide = float(stats.t.ppf((1 + LEVEL) / 2, len(left) - 1)) * se
        here = float(value(law))
        return Estimate(here, here - wide, here + wide, se)

    dearest = law.runs[-1]
    gained = number(
        lambda one: 100 * one.gain * one.annealing.term(dearest, one.constant)[-1] / dearest.final
    )
    if gained.value <= 0:
        raise ValueError(
            "in these runs annealing does not lower the loss (by the law the dearest run ends "
            f"{-gained.value:.1f}% above "
            "where it would without), so that the law does not hold. A decay of too few steps, or a rate "
            "that was too low, do this"
        )
    alpha_note = (
        f"on the bound of {law.alpha:.2g}, no interval: the courses fall as a logarithm of S1"
        if law.at_bound[0]
        else "theirs is of web text and 25M to 400M parameters; the luck of the data, which moves all runs "
        "alike, is not "
        "in the interval"
    )
    memory_note = "a step here has other tokens than theirs"
    if law.at_bound[1]:
        memory_note = f"on the bound of {1 - law.constant:.4g}, no interval: the loss follows the rate at once, or never"
    return [
        Number(
            "exponent α of the area under the rate",
            None if law.at_bound[0] else number(lambda one: one.alpha),
            "",
            "0.43 to 0.51, Luo et al. 2025, README of their repository",
            alpha_note,
        ),
        Number(
            "λ, by which a fall of the rate is remembered",
            None if law.at_bound[1] else number(lambda one: 1 - one.constant),
            "a step",
            "0.999, Tissue et al. 2024, section 3",
            memory_note,
        ),
        Number("what annealing gave the dearest run", gained, "% of its final loss"),
    ]


def _error_numbers(tests: dict[str, Tests]) -> list[Number]:
    main = tests[AREA.name]
    numbers = [
        Number(
            "error of the final loss, run not looked at",
            _rms_estimate(main.unseen),
            "% rms",
            note="from sizes, tokens and losses of cheaper runs",
        )
    ]
    for s, share in enumerate(SHARES):
        errors = main.errors[:, s]
        inside = sum(abs(errors[i]) <= main.half_width(i, s) for i in range(len(errors)))
        told = main.told(s)
        note = main.reasons[0] if main.reasons else ""
        if told > 1:
            other = 100 * _rms(tests[POWER.name].errors[:, s])
            note = f"multi-power law: {other:.1f}%; {inside} of {told} within their 90% interval"
        numbers.append(
            Number(
                f"… first {share:.0%} seen", _rms_estimate(errors) if told > 1 else None, "% rms", note=note
            )
        )
    return numbers


def _rms_estimate(errors: np.ndarray) -> Estimate:
    """In %; the interval is chi-squared's, for independent normal errors."""
    errors = 100 * errors[np.isfinite(errors)]
    total, n = float(errors @ errors), len(errors)
    lo, hi = (math.sqrt(total / stats.chi2.ppf(q, n)) for q in ((1 + LEVEL) / 2, (1 - LEVEL) / 2))
    return Estimate(math.sqrt(total / n), lo, hi, math.sqrt(total / n) / math.sqrt(2 * n))


def _saved(tests: Tests, stops: Sequence[Stop]) -> float:
    return (
        100 * sum((1 - stop.share) * stop.run.flops for stop in stops) / sum(run.flops for run in tests.runs)
    )


def _stop_numbers(tests: Tests, stops: Sequence[Stop]) -> list[Number]:
    saved, wrong = _saved(tests, stops), sum(not stop.right for stop in stops)
    named = ", ".join(f"{stop.run.run_id} at {stop.share:.0%}" for stop in stops[:6])
    note = f"a count, without an interval; {wrong} of {len(stops)} stopped runs were the best of their budget"
    return [
        Number(
            "runs that could have been stopped",
            Estimate(len(stops), math.nan, math.nan, math.nan),
            f"of {len(tests.runs)}",
            note=named + (" …" if len(stops) > 6 else ""),
        ),
        Number(
            "FLOPs that this saves",
            Estimate(saved, math.nan, math.nan, math.nan),
            "% of the predicted runs'",
            note=note,
        ),
    ]


def _means(tests: Tests, stops: Sequence[Stop], rms: Sequence[float], unseen: float) -> str:
    better = [share for share, error in zip(SHARES, rms) if error < unseen]
    if not better:
        return (
            "The beginning of a run tells no more here than its size and tokens do: decide before it "
            "starts, not on the way."
        )
    wrong = sum(not stop.right for stop in stops)
    told = f"From {better[0]:.0%} on, the beginning of a run tells more than its size and tokens"
    if not stops:
        return f"{told}, but the runs of one budget lie too close together to stop one of them for another."
    safe = "none of them the best" if not wrong else f"{wrong} of them wrongly"
    return f"{told}: stopping what is known to lose saves {_saved(tests, stops):.0f}% of the FLOPs, {safe}."


def _notes(law: SharedLaw, tests: Tests, left_out: Sequence[str]) -> tuple[str, ...]:
    notes = [
        "Each run is predicted from its own beginning and from finished runs of fewer FLOPs; none of its "
        "later lines is "
        "used. Annealing's gain, λ and α are those runs'. Its interval is the error of the other predicted "
        "runs.",
        "Stopping is about the best run of a budget. A law is fitted through the others too: a run that is "
        "stopped leaves "
        "its predicted loss, with that interval, in the place of a measured one.",
    ]
    if law.luck[0].any():
        notes.append(
            "Runs of one seed see the same data at the same place: what of a line's loss is common to them "
            "is taken out, "
            f"and {100 * law.noise:.1f}% is left."
        )
    if tests.reasons:
        notes.append(f"Not predicted ({len(tests.reasons)} times), for example {tests.reasons[0]}.")
    if left_out:
        notes.append(f"Left out: {len(left_out)} runs, for example {left_out[0]}.")
    return tuple(notes)


def _chart(tests: dict[str, Tests], stops: Sequence[Stop]) -> Chart:
    main = tests[AREA.name]
    shares = 100 * np.array(SHARES)
    by_share = []
    for (name, one), kind in zip(tests.items(), ("dots", "line")):
        told = [s for s in range(len(SHARES)) if np.isfinite(one.errors[:, s]).sum() > 1]
        rms = [_rms_estimate(one.errors[:, s]) for s in told]
        y, lo, hi = (np.array([getattr(e, end) for e in rms]) for end in ("value", "lo", "hi"))
        bars = {"lo": lo, "hi": hi} if kind == "dots" else {}
        by_share.append(Series(name, shares[told], y, kind, **bars))
    nothing = np.full(2, 100 * _rms(main.unseen))
    by_share.append(Series("size and tokens alone", shares[[0, -1]], nothing, "dashed"))
    run, losses = main.runs[-1], main.runs[-1].loss
    known = [s for s in range(len(SHARES)) if np.isfinite(main.errors[-1, s])]
    value = np.array([main.predicted(len(main.runs) - 1, s) for s in known])
    wide = np.array([main.half_width(len(main.runs) - 1, s) for s in known])
    after = run.fitted
    course = (
        Series("training loss", 100 * run.step[after] / run.step[-1], losses[after], "line"),
        Series(
            "final loss, as predicted there",
            shares[known],
            value,
            "dots",
            value * np.exp(-wide),
            value * np.exp(wide),
        ),
        Series("final loss", np.array([100.0]), np.array([run.final])),
    )
    ids = {id(stop.run): stop.share for stop in stops}
    best = {i: min(main.runs[j].final for j in members) for members in _budgets(main.runs) for i in members}
    off = [100 * (run.final / best[i] - 1) for i, run in enumerate(main.runs)]
    when = [100 * ids.get(id(run), 1.0) for run in main.runs]
    return Chart(
        "Error by share seen: how well the final loss is known after a share of a run. The dearest run: "
        "what was predicted "
        "of its end on the way. Which runs could stop: when, by how far each ended above the best of its "
        "budget; at 100% stand those that could not.",
        (
            Panel(
                "Error by share seen",
                "share of the run seen, %",
                "error of the final loss, % rms",
                tuple(by_share),
                log_x=False,
            ),
            Panel("The dearest run", "share of the run, %", "loss, nats a token", course, log_x=False),
            Panel(
                "Which runs could stop",
                "final loss above the best, %",
                "stopped at, % of the run",
                (Series("runs", np.array(off), np.array(when)),),
                log_x=False,
            ),
        ),
    )
