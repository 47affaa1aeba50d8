"""Do the data carry the extrapolation? A verdict, and its reasons in words.

Each check looks at one thing and says nothing where all is well. The thresholds are judgements;
they stand here with names so that they can be argued with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.rollout import budgets
from analysis.values import BacktestRow, Isoflop, LawFit, Runs, Status, Target, Verdict

FAR, TOO_FAR = 12.0, 110.0
"""Target FLOPs over the dearest fitted run's. Assumption: one decade, the usual last step of a sweep,
is ordinary, and beyond two no backtest inside a sweep can speak (10% slack for rounding)."""

FEW_BUDGETS, TOO_FEW_BUDGETS = 4, 3
"""Cost levels. Assumption: with two, a law's curvature is a guess."""

COLLINEAR = 0.1
"""Standard deviation of log(D/N) around its line in log N below which N and D were never varied
apart. Assumption."""

WIDE, TOO_WIDE = 0.05, 0.20
"""Half-widths of the interval, as log ratios. Assumption."""

UNRELIABLE = 2.0
"""Scale of forecast variances earned in the rollouts that says the laws promise too much. Assumption."""

FAR_RATIO = 3.0
"""How far D/N of the target may lie outside the runs' own range, as a factor. Assumption."""

COUNTS = 0.2
"""Weight from which a law's troubles are the prediction's. Assumption."""

Finding = tuple[Verdict, str]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a prediction rests on. `half_width` of the 90% interval, in log loss; `scale` as in
    rollout.Calibration; fits and by_law by law name, weights of those laws that predict."""

    runs: Runs
    fits: Mapping[str, LawFit]
    weights: Mapping[str, float]
    by_law: Mapping[str, float]
    loss: float
    half_width: float
    scale: float
    backtests: Sequence[BacktestRow]
    isoflops: Sequence[Isoflop]
    target: Target


def judge(evidence: Evidence) -> tuple[Verdict, tuple[str, ...]]:
    """The worst finding decides; all are told, worst first, then what speaks for the prediction."""
    findings = [finding for check in CHECKS for finding in check(evidence)]
    findings.sort(key=lambda finding: finding[0] != Verdict.NOT_SUPPORTED)
    verdict = findings[0][0] if findings else Verdict.SUPPORTED
    return verdict, (*(reason for _, reason in findings), *_in_favour(evidence))


def _distance(e: Evidence) -> Iterator[Finding]:
    ratio = e.target.flops / e.runs.flops.max()
    if ratio > TOO_FAR:
        yield (
            Verdict.NOT_SUPPORTED,
            f"the target costs {ratio:.3g}x the dearest run fitted; beyond 100x nothing was tested",
        )
    elif ratio > FAR:
        yield Verdict.WEAK, f"the target costs {ratio:.3g}x the dearest run fitted"


def _levels(e: Evidence) -> Iterator[Finding]:
    levels = len(budgets(e.runs.flops))
    if levels < TOO_FEW_BUDGETS:
        yield (
            Verdict.NOT_SUPPORTED,
            f"the runs have {levels} cost levels; a law needs {TOO_FEW_BUDGETS} or more",
        )
    elif levels < FEW_BUDGETS:
        yield Verdict.WEAK, f"the runs have only {levels} cost levels"


def _collinear(e: Evidence) -> Iterator[Finding]:
    log_n, log_d = np.log(e.runs.params), np.log(e.runs.tokens)
    design = np.column_stack([np.ones_like(log_n), log_n])
    line = np.linalg.lstsq(design, log_d, rcond=None)[0]
    apart = float(np.std(log_d - design @ line))
    if apart < COLLINEAR:
        away = abs(np.log(e.target.tokens) - line[0] - line[1] * np.log(e.target.params))
        verdict = Verdict.NOT_SUPPORTED if away > 3 * COLLINEAR else Verdict.WEAK
        where = "off that line" if away > 3 * COLLINEAR else "on that line, where a law of C alone would do"
        yield (
            verdict,
            (
                f"D follows N in every run (within {100 * apart:.0f}%), so the effects of size and data "
                f"cannot be told apart; the target lies {where}"
            ),
        )


def _ratio(e: Evidence) -> Iterator[Finding]:
    ratio, seen = e.target.tokens / e.target.params, e.runs.tokens / e.runs.params
    if not seen.min() / FAR_RATIO <= ratio <= seen.max() * FAR_RATIO:
        yield (
            Verdict.WEAK,
            (
                f"the target has {ratio:.3g} tokens a parameter; "
                f"the runs have {seen.min():.3g} to {seen.max():.3g}"
            ),
        )


def _brackets(e: Evidence) -> Iterator[Finding]:
    open_ended = [curve.group for curve in e.isoflops if not curve.bracketed]
    if open_ended:
        verdict = Verdict.WEAK
        yield (
            verdict,
            (
                f"the optimum is not bracketed in {len(open_ended)} of {len(e.isoflops)} budgets "
                f"({', '.join(open_ended[:4])}{', ...' if len(open_ended) > 4 else ''})"
            ),
        )


def _fits(e: Evidence) -> Iterator[Finding]:
    if all(fit.status == Status.NOT_CONVERGED for fit in e.fits.values()):
        yield Verdict.NOT_SUPPORTED, "no fit converged"
        return
    for name, fit in e.fits.items():
        if fit.status != Status.CONVERGED and e.weights.get(name, 0.0) >= COUNTS:
            yield Verdict.WEAK, f"{name} law, which predicts: {fit.reason}"


def _agreement(e: Evidence) -> Iterator[Finding]:
    lo, hi = min(e.by_law.values()), max(e.by_law.values())
    if np.log(hi / lo) > 2 * e.half_width:
        said = ", ".join(f"{name} {loss:.4f}" for name, loss in e.by_law.items())
        yield Verdict.WEAK, f"the laws disagree by more than the interval is wide ({said})"


def _rollouts(e: Evidence) -> Iterator[Finding]:
    if not e.backtests:
        yield Verdict.WEAK, "too few runs to hold the dearer ones back: the interval is untested"
    elif e.scale > UNRELIABLE:
        yield (
            Verdict.WEAK,
            (
                f"inside the sweep, predictions missed {np.sqrt(e.scale):.1f}x further than their own error "
                "estimates; the interval is widened by as much"
            ),
        )


def _width(e: Evidence) -> Iterator[Finding]:
    if e.half_width > TOO_WIDE:
        yield (
            Verdict.NOT_SUPPORTED,
            f"the 90% interval is ±{100 * e.half_width:.0f}% of the loss: nothing to bet on",
        )
    elif e.half_width > WIDE:
        yield Verdict.WEAK, f"the 90% interval is ±{100 * e.half_width:.1f}% of the loss"


CHECKS: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (
    _distance,
    _levels,
    _collinear,
    _width,
    _fits,
    _rollouts,
    _agreement,
    _brackets,
    _ratio,
)


def _in_favour(e: Evidence) -> Iterator[str]:
    combined = [row for row in e.backtests if row.law == "combined"]
    if combined:
        inside = sum(bool(row.inside) for row in combined)
        farthest = np.exp(max(row.distance for row in combined))
        error = 100 * float(np.mean([abs(row.log_error) for row in combined]))
        yield (
            f"in backtests inside the sweep {inside} of {len(combined)} dearer runs fell in their 90% "
            f"interval, with a mean error of {error:.2g}%, at up to {farthest:.3g}x"
        )
