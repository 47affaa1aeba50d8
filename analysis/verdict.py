"""Do the data carry the extrapolation? A verdict, and its reasons in words.

Each check looks at one thing and says nothing where all is well. The thresholds are judgements;
they stand here with names so that they can be argued with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from analysis.design import helpful_runs, in_words
from analysis.patterns import clipped, robust_sd, trend
from analysis.rollout import SAME_BUDGET, budgets, levels
from analysis.values import (
    BacktestRow,
    ByConvention,
    Isoflop,
    LawFit,
    Runs,
    Status,
    Target,
    Verdict,
)
from analysis.windows import planned_budgets

FAR, TOO_FAR = 12.0, 110.0
"""Target FLOPs over the dearest fitted run's. Assumption: one decade, the usual last step of a sweep,
is ordinary, and beyond two no backtest inside a sweep can speak (10% slack for rounding)."""

FEW_BUDGETS, TOO_FEW_BUDGETS = 4, 3
"""Cost levels. Assumption: with two, a law's curvature is a guess."""

NEARLY_AS_DEAR = 10.0
"""Factor in cost to the dearest run within which tokens a parameter show on which side of the optimum the
runs lie: by Hoffmann et al. 2022 (table 2) the optimal ratio moves by at most 1.2 over it."""

FEW_RATIOS = 3
"""Levels of D/N. Assumption: two give a slope between size and data, and no bend in it."""

SAME_RATIO = 1.25
"""Tokens a parameter that differ by less are one level: rounding D to whole steps. Assumption."""

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

CREDIBLE = 1.5
"""A law whose residuals are larger than the predicting law's by more than this factor is no witness
against it. Assumption."""

CHANCE = 0.01
"""Probability of a pattern in the residuals of a right law from which it is told. Assumption: the
three tests of it together warn wrongly in at most one sweep of thirty."""

MATTERS = 0.5
"""Share of the interval's half-width below which a pattern in the residuals is inside what the interval
says anyhow. Assumption."""

FEWEST_DEAREST, DEAREST_SHARE = 3, 0.1
"""Runs whose mean residual speaks for the dear end, where the dearest budget has fewer. Assumption."""

MANY_CHECKPOINTS, REGULAR = 6, 0.1
"""Rows of one cluster and size, and the largest relative spread of their steps in D, that look like
checkpoints of one run. Assumption."""

IN_BACKTESTS, UNTESTED = "in backtests inside the sweep", "the interval is untested"
ADVICE = "runs that would help most"
"""How reasons that tell the interval's coverage, or that nothing tells it, are known to the report."""

Finding = tuple[Verdict, str]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a prediction rests on. `half_width` of the 90% interval, in log loss; `scale` as in
    rollout.Calibration; fits and by_law by law name, weights of those laws that predict.

    slopes: d log L / d theta of each law at its fit, [run, unknown] by name; conventions: what other
    ways of counting N and C say, None where the table offers one alone. By the laws that predict:
    optima: the compute-optimal N at each isoFLOP curve's cost, [curve]; optimal_ratio: the D/N of the
    compute-optimal run at the dearest run's cost; each None where unknown.
    """

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
    slopes: Mapping[str, np.ndarray] = field(default_factory=dict)
    conventions: ByConvention | None = None
    optima: Sequence[float] | None = None
    optimal_ratio: float | None = None


def judge(evidence: Evidence) -> tuple[Verdict, tuple[str, ...]]:
    """The worst finding decides; all are told, worst first, then which runs would help, what to mind,
    and what speaks for the prediction."""
    findings = [finding for check in CHECKS for finding in check(evidence)]
    findings.sort(key=lambda finding: finding[0] != Verdict.NOT_SUPPORTED)
    verdict = findings[0][0] if findings else Verdict.SUPPORTED
    return verdict, (
        *(reason for _, reason in findings),
        *_advice(evidence),
        *_notes(evidence),
        *_in_favour(evidence),
    )


def _distance(e: Evidence) -> Iterator[Finding]:
    ratio = e.target.flops / e.runs.flops.max()
    if ratio > TOO_FAR:
        yield (
            Verdict.NOT_SUPPORTED,
            f"the target costs {ratio:,.0f}x the dearest run fitted; beyond 100x nothing was tested",
        )
    elif ratio > FAR:
        yield Verdict.WEAK, f"the target costs {ratio:.3g}x the dearest run fitted"


def _levels(e: Evidence) -> Iterator[Finding]:
    count = levels(e.runs.flops, SAME_BUDGET)
    if count < TOO_FEW_BUDGETS:
        yield (
            Verdict.NOT_SUPPORTED,
            f"the runs have {count} cost level{'s' * (count > 1)}; a law needs {TOO_FEW_BUDGETS} or more",
        )
    elif count < FEW_BUDGETS:
        yield Verdict.WEAK, f"the runs have only {count} cost levels"


def _line(runs: Runs) -> tuple[np.ndarray, float]:
    """log D = c0 + c1·log N through the runs, and the standard deviation about it."""
    log_n, log_d = np.log(runs.params), np.log(runs.tokens)
    design = np.column_stack([np.ones_like(log_n), log_n])
    line = np.linalg.lstsq(design, log_d, rcond=None)[0]
    return line, float(np.std(log_d - design @ line))


def _collinear(e: Evidence) -> Iterator[Finding]:
    line, apart = _line(e.runs)
    ratios = levels(e.runs.tokens / e.runs.params, SAME_RATIO)
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
    elif ratios < FEW_RATIOS:
        yield Verdict.WEAK, f"the runs have only {ratios} levels of tokens a parameter"


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
    """Were runs made on both sides of the compute-optimal one? Of planned budgets each is asked, else the
    dear end. A budget's few noisy losses can put its own minimum outside by chance, so what all budgets
    together say, the law, must agree."""
    if e.isoflops and planned_budgets(e.runs):
        optima = e.optima if e.optima is not None else [np.nan] * len(e.isoflops)
        open_ended = [
            curve.group
            for curve, optimum in zip(e.isoflops, optima, strict=True)
            if not (curve.bracketed or curve.params[0] < optimum < curve.params[-1])
        ]
        if open_ended:
            yield (
                Verdict.WEAK,
                (
                    f"the optimum is not bracketed in {len(open_ended)} of {len(e.isoflops)} budgets "
                    f"({', '.join(open_ended[:4])}{', ...' if len(open_ended) > 4 else ''})"
                ),
            )
    elif e.optimal_ratio is not None:
        dear = e.runs.flops >= e.runs.flops.max() / NEARLY_AS_DEAR
        seen = e.runs.tokens[dear] / e.runs.params[dear]
        if not seen.min() <= e.optimal_ratio <= seen.max():
            yield (
                Verdict.WEAK,
                (
                    f"the compute-optimal run at the dearest run's cost has {e.optimal_ratio:.3g} tokens a "
                    f"parameter; those run within a factor of {NEARLY_AS_DEAR:g} of that cost have "
                    f"{seen.min():.3g} to {seen.max():.3g}"
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
    own = max((e.fits[name].rms_pct for name in e.weights if name in e.fits), default=np.inf)
    heard = {
        name: loss
        for name, loss in e.by_law.items()
        if name not in e.fits
        or name in e.weights
        or (e.fits[name].status == Status.CONVERGED and e.fits[name].rms_pct <= CREDIBLE * own)
    }
    lo, hi = min(heard.values()), max(heard.values())
    if np.log(hi / lo) > 2 * e.half_width:
        said = ", ".join(f"{name} {loss:.4f}" for name, loss in heard.items())
        yield Verdict.WEAK, f"the laws disagree by more than the interval is wide ({said})"


def _patterns(e: Evidence) -> Iterator[Finding]:
    """A predicting law's residuals still bend along C or along D/N: it cannot have the right form there."""
    runs = e.runs
    for name in _predicting(e):
        residuals = clipped(e.fits[name].log_residuals)
        base = np.column_stack([np.ones(len(runs)), e.slopes.get(name, np.empty((len(runs), 0)))])
        for what, values in (("compute", runs.flops), ("tokens a parameter", runs.tokens / runs.params)):
            x = np.log(values) - np.log(values).mean()
            chance, size = trend(residuals, base, np.column_stack([x, x * x]), runs.cluster)
            if chance <= CHANCE and size > MATTERS * e.half_width:
                yield (
                    Verdict.WEAK,
                    (
                        f"residuals of the {name} law have a trend along {what} of {100 * size:.2g}% of the "
                        f"loss (root mean square; chance {chance:.1g})"
                    ),
                )


def _dear_end(e: Evidence) -> Iterator[Finding]:
    """The dearest runs, next to which the prediction goes on, lie on one side of a predicting law."""
    dearest = budgets(e.runs.flops)[-1]
    if len(dearest) < FEWEST_DEAREST:
        count = max(FEWEST_DEAREST, int(DEAREST_SHARE * len(e.runs)))
        dearest = np.argsort(e.runs.flops, kind="stable")[-count:]
    clusters = np.array(e.runs.cluster)[dearest]
    for name in _predicting(e):
        fit = e.fits[name]
        freedom = max(len(e.runs) - len(fit.parameters), 1)
        means = [fit.log_residuals[dearest[clusters == cluster]].mean() for cluster in np.unique(clusters)]
        if len(means) < FEWEST_DEAREST:
            continue
        middle = float(np.median(means))
        noise = robust_sd(fit.log_residuals) * np.sqrt(len(e.runs) / freedom)
        error = float(np.sqrt(np.pi / 2 / len(means)) * noise)  # of a median of normals
        if abs(middle) > max(stats.t.ppf(1 - CHANCE / 2, freedom) * error, MATTERS * e.half_width):
            side = "above" if middle > 0 else "below"
            yield (
                Verdict.WEAK,
                (
                    f"the dearest {len(dearest)} runs lie {100 * abs(middle):.2g}% {side} the {name} law in "
                    f"the median (standard error {100 * error:.2g}%)"
                ),
            )


def _predicting(e: Evidence) -> list[str]:
    """Laws with a say whose residuals are those of the runs."""
    return [
        name
        for name, weight in e.weights.items()
        if weight >= COUNTS and name in e.fits and e.fits[name].run_ids == e.runs.run_id
    ]


def _conventions(e: Evidence) -> Iterator[Finding]:
    if e.conventions and e.conventions.loss_spread > e.half_width:
        said = ", ".join(
            f"{loss:.4f} by {params}"
            for params, loss in {c.params: c.loss for c in e.conventions.conventions}.items()
        )
        yield (
            Verdict.WEAK,
            f"what N counts changes the prediction by more than the interval holds ({said})",
        )


def _decays(e: Evidence) -> Iterator[Finding]:
    if e.runs.decayed is None:
        return
    before = int(np.sum(e.runs.decayed == 0))
    if before:
        yield (
            Verdict.WEAK,
            (
                f"{before} of {len(e.runs)} losses were read before their schedule had ended: they are higher "
                "than those of finished runs, and a law of them predicts no finished run"
            ),
        )


def _rollouts(e: Evidence) -> Iterator[Finding]:
    if not e.backtests:
        yield Verdict.WEAK, f"too few runs to hold the dearer ones back: {UNTESTED}"
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
    _patterns,
    _dear_end,
    _agreement,
    _conventions,
    _decays,
    _brackets,
    _ratio,
)


def _advice(e: Evidence) -> Iterator[str]:
    """Where the interval is wide, or size and data were never varied apart."""
    if e.half_width > WIDE or _line(e.runs)[1] < COLLINEAR:
        helpful = helpful_runs(e.runs, e.target, e.fits.get("separable"))
        yield f"{ADVICE}: {in_words(helpful)}"


def _notes(e: Evidence) -> Iterator[str]:
    """What looks like checkpoints of one schedule, where the table does not say."""
    if e.runs.decayed is not None and np.isfinite(e.runs.decayed).all():
        return
    labels = np.array([f"{cluster}\0{size:.10g}" for cluster, size in zip(e.runs.cluster, e.runs.params)])
    rows = 0
    for label in np.unique(labels):
        tokens = np.unique(e.runs.tokens[labels == label])
        steps = np.diff(tokens)
        if len(tokens) >= MANY_CHECKPOINTS and np.std(steps) <= REGULAR * np.mean(steps):
            rows += int(np.sum(labels == label))
    if rows:
        yield (
            f"{rows} of {len(e.runs)} rows look like checkpoints of one run (one size, D in equal steps): if the "
            "rate had not decayed when their loss was read, the law is one of unfinished runs"
        )


def _in_favour(e: Evidence) -> Iterator[str]:
    combined = [row for row in e.backtests if row.law == "combined"]
    if combined:
        inside = sum(bool(row.inside) for row in combined)
        farthest = np.exp(max(row.distance for row in combined))
        error = 100 * float(np.mean([abs(row.log_error) for row in combined]))
        yield (
            f"{IN_BACKTESTS} {inside} of {len(combined)} dearer runs fell in their 90% "
            f"interval, with a mean error of {error:.2g}%, at up to {farthest:.3g}x"
        )
