"""The tables: Analysis -> rows of words. A column that is empty in every row is left out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from analysis.report import words
from analysis.values import (
    Allocation,
    Analysis,
    ByConvention,
    Estimate,
    Isoflop,
    IsoflopBias,
    LawFit,
    Prediction,
    RunRow,
    Status,
    TrackRecord,
    latest,
)

ROWS_SHOWN, TARGETS_SHOWN = 100, 20
"""Longest lists of rows and of predictions. Assumption: nobody reads further down, and ten thousand rows
make a page that a browser scrolls badly; the notes say which file has them all."""


UNBOUNDED = 1000.0
"""Factor from the optimal N beyond which an end of its interval bounds nothing. Assumption."""

ORIGINS: Mapping[str, str] = {
    "parameters": "the laws' parameters, as far as the runs tell them",
    "discrepancy": "what a law itself leaves: effects of a size or trunk, and a smooth misfit",
    "laws": "disagreement of the laws that predict",
    "noise": "chance in one run",
    "rollouts": "how much further backtests missed than all these allow",
}
"""What each of a prediction's standard deviations stands for."""


@dataclass(frozen=True)
class Column:
    """`text` columns are set to the left and wrap; the others are numbers, to the right."""

    name: str
    text: bool = False


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def table(
    title: str, headings: Iterable[str], rows: Iterable[tuple[str, ...]], note: str = ""
) -> Table | None:
    """None without rows. A heading's leading "|" marks a column of words."""
    rows = tuple(rows)
    columns = [Column(heading.removeprefix("|"), text=heading.startswith("|")) for heading in headings]
    kept = [i for i in range(len(columns)) if any(row[i] not in ("", words.NONE) for row in rows)]
    cells = tuple(tuple(row[i] for i in kept) for row in rows)
    return Table(title, tuple(columns[i] for i in kept), cells, note) if rows else None


# --- the prediction -------------------------------------------------------------------------------


def predictions(analysis: Analysis) -> Table | None:
    """Every prediction ever written for this sweep: the latest of each target, the dearest first, and
    then those that they replace."""
    newest = latest(analysis.predictions)[::-1]
    kept = {id(prediction) for prediction in newest}
    made = [*newest, *(p for p in reversed(analysis.predictions) if id(p) not in kept)]
    headings = ("N", "D", "C, FLOPs", "reach", "predicted", "90% interval", "±", "measured", "error")
    note = (
        "Reach: C over that of the dearest run fitted. Error: predicted over measured. A prediction is "
        "written before its run's loss is read, and is never changed afterwards."
    )
    if len(made) > TARGETS_SHOWN:
        note = f"{TARGETS_SHOWN} of {len(made):,}; predictions.csv beside this report has all. {note}"
    headings = (*headings, "|inside", "|verdict", "made, UTC")
    return table("Predictions", headings, map(_prediction, made[:TARGETS_SHOWN]), note)


def _prediction(prediction: Prediction) -> tuple[str, ...]:
    target, measured = prediction.target, prediction.measured
    outcome = (words.NONE,) * 3
    if measured is not None:
        loss = words.loss_with_error(measured.loss, measured.loss_se)
        error = words.percent(measured.error_pct, signed=True)
        outcome = (loss, error, _yes(measured.inside))
    return (
        words.count(target.params),
        words.count(target.tokens),
        words.flops(target.flops),
        words.NONE if prediction.extrapolation is None else words.factor(prediction.extrapolation),
        words.loss(prediction.loss),
        f"[{words.loss(prediction.lo90)}, {words.loss(prediction.hi90)}]",
        words.percent(prediction.half_width_pct),
        *outcome,
        prediction.verdict.value,
        words.moment(prediction.created),
    )


def laws_of(prediction: Prediction, analysis: Analysis) -> Table | None:
    """What each law alone says of the target, and how it did in the backtests."""
    records = {record.law: record for record in analysis.records}
    rows = []
    for law, loss in prediction.by_law.items():
        weight, record = prediction.weights.get(law), records.get(law)
        share = words.NONE if weight is None else words.percent(100 * weight)
        rows.append((law, words.loss(loss), share, *(_errors(record) if record else (words.NONE,) * 3)))
    headings = ("|law", "predicted loss", "weight", "backtests", "mean error", "bias")
    note = f"Target: {words.flops(prediction.target.flops)} FLOPs. Predicting: {prediction.law}."
    return table("What each law says", headings, rows, note)


def _errors(record: TrackRecord) -> tuple[str, str, str]:
    return f"{record.n:,}", words.percent(record.error_pct), words.percent(record.bias_pct, signed=True)


def backtests(analysis: Analysis) -> Table | None:
    """What a prediction at each distance was worth inside the sweep."""
    rows = [
        (
            " to ".join(dict.fromkeys((words.factor(record.nearest), words.factor(record.farthest)))),
            *_errors(record),
            f"{record.inside:,} of {record.n:,}",
        )
        for record in analysis.records_by_distance
        if record.inside is not None
    ]
    headings = ("reach", "backtests", "mean error", "bias", "in the 90% interval")
    note = (
        "Predictions as a target gets them, of dearer runs from cheaper ones; a run may be foretold from "
        "several cuts. backtest.csv beside this report has every one, for each law too."
    )
    return table("Backtests by distance", headings, rows, note)


def spread_of(prediction: Prediction) -> Table | None:
    """What the interval is made of."""
    rows = [(name, words.percent(100 * sd), ORIGINS.get(name, "")) for name, sd in prediction.spread.items()]
    headings = ("|origin", "standard deviation, % of the loss", "|what it is")
    return table("What the interval is made of", headings, rows)


def advice(analysis: Analysis) -> Table | None:
    """The runs to add."""
    rows = [
        (
            words.count(run.params),
            words.count(run.tokens),
            words.flops(run.flops),
            words.percent(100 * run.error_left),
        )
        for run in analysis.advice
    ]
    note = (
        "Added one after another. Left: what a run and those above it leave of the standard error that the "
        "law's parameters give the prediction, as a share of today's."
    )
    return table("Runs that would help most", ("N", "D", "C, FLOPs", "error left"), rows, note)


# --- optimal size and data ------------------------------------------------------------------------


def budgets(analysis: Analysis) -> Table | None:
    """Optimal N and D of each budget, by approach 2."""
    ordered = sorted(analysis.isoflops, key=lambda isoflop: isoflop.flops)
    headings = ("C, FLOPs", "sizes", "optimal N", "90% interval", "optimal D", "D/N", "loss there")
    note = f"N counts {words.parameters(analysis.params_kind)}."
    if any(_unbounded(isoflop) for isoflop in ordered):
        note += " “none”: too many resampled curves have no minimum on that side to name a bound."
    return table("Optimum of each budget", (*headings, "|bracketed", "|remark"), map(_budget, ordered), note)


def _budget(isoflop: Isoflop) -> tuple[str, ...]:
    optimum = isoflop.params_opt
    found = (words.NONE,) * 5
    if optimum is not None:
        found = (
            words.count(optimum.value),
            f"[{_bound(optimum.lo, optimum.value)}, {_bound(optimum.hi, optimum.value)}]",
            words.count(isoflop.tokens_opt),
            words.count(isoflop.tokens_opt / optimum.value),
            words.loss(isoflop.loss_min),
        )
    sizes = str(len(set(isoflop.params.tolist())))
    return words.flops(isoflop.flops), sizes, *found, _yes(isoflop.bracketed), isoflop.reason


def _unbounded(isoflop: Isoflop) -> bool:
    optimum = isoflop.params_opt
    return optimum is not None and "none" in (_bound(e, optimum.value) for e in (optimum.lo, optimum.hi))


def _bound(end: float, optimum: float) -> str:
    return words.count(end) if 1 / UNBOUNDED < end / optimum < UNBOUNDED else "none"


def exponents(analysis: Analysis) -> Table | None:
    """a and b by each approach, then as published; none where none could be fitted."""
    found = sorted((*analysis.allocations, *analysis.remedies), key=lambda allocation: allocation.approach)
    if not found:
        return None
    none = words.NONE
    published = [
        (row.who, row.approach, f"{row.a:.2f}", none, f"{row.b:.2f}", none, none, row.source)
        for row in analysis.published
    ]
    headings = ("|who", "|approach", "a", "90% interval", "b", "90% interval", "points", "|remark or source")
    rows = (*map(_exponents, found), *published)
    note = f"N_opt ∝ C^a and D_opt ∝ C^b; in this analysis N counts {words.parameters(analysis.params_kind)}."
    return table("Exponents beside published ones", headings, rows, note)


def _exponents(allocation: Allocation) -> tuple[str, ...]:
    values = [
        said
        for estimate in (allocation.a, allocation.b)
        for said in (f"{estimate.value:.3f}", f"[{estimate.lo:.3f}, {estimate.hi:.3f}]")
    ]
    return (
        "this analysis",
        f"approach {allocation.approach}" + (f", {allocation.method}" if allocation.method else ""),
        *values,
        str(allocation.points),
        allocation.reason,
    )


def bias(analysis: Analysis) -> Table | None:
    """Approach 2's error on these budgets with the predicting law of the largest weight as the truth."""
    weights = next((prediction.weights for prediction in latest(analysis.predictions)[-1:]), {})
    truth = max(analysis.isoflop_bias, key=lambda found: weights.get(found.law, 0.0), default=None)
    if truth is None:
        return None
    rows = [
        (
            reading.method,
            reading.grid,
            words.NONE if reading.a is None else f"{round(reading.a, 3) + 0.0:+.3f}",
            words.percent(reading.params_pct, signed=True),
            _causes(truth) if reading is truth.on("as run") else "",
        )
        for reading in (*truth.methods, *truth.grids)
    ]
    headings = ("|reading", "|budgets", "bias of a", "bias of optimal N", "|causes")
    note = (
        f"Read off losses without noise, were the {truth.law} law the truth (a {truth.a:.3f}, optimal N "
        f"{words.count(truth.params)} at {words.flops(truth.flops)} FLOPs). Grids from “equal cost” to "
        "“narrow” each remove one more cause; the causes, as factors, multiply to the bias."
    )
    return table("Bias of approach 2 on these budgets", headings, rows, note)


def _causes(truth: IsoflopBias) -> str:
    """What each adds to the optimal N."""
    told = [
        f"{name} {words.percent(100 * math.expm1(value), signed=True)}"
        for name, value in truth.causes.items()
    ]
    return ", ".join(told)


# --- laws -----------------------------------------------------------------------------------------


def laws(analysis: Analysis) -> Table | None:
    """How each fit ended."""
    headings = (
        "|law",
        "|equation",
        "points",
        "RMS residual",
        "starts at the optimum",
        "basins",
        "condition number",
        "objective",
        "|status",
    )
    knees = ", ".join(dict.fromkeys(f"{fit.delta:g}" for fit in analysis.fits))
    sources = words.listing([f"{fit.law}: {fit.source}" for fit in analysis.fits])
    note = (
        f"Objective: sum over the runs of Huber(log fitted − log measured loss), knee {knees}. "
        "Basins: distinct optima within 1% of the best objective. Condition number: of the curvature at the "
        "optimum; from about 1e8 on, the parameters are not told apart. "
        f"N counts {words.parameters(analysis.params_kind)}. Sources: {sources}."
    )
    return table("Laws", headings, map(_law, analysis.fits), note)


def _law(fit: LawFit) -> tuple[str, ...]:
    status = (
        fit.status.value
        if fit.status is Status.CONVERGED
        else f"{fit.status.value}: {words.listing([fit.reason])}"
    )
    starts = f"{fit.starts_at_optimum} of {fit.starts}"
    return (
        fit.law,
        fit.equation,
        str(fit.n),
        words.percent(fit.rms_pct),
        starts,
        str(len(fit.basins) or words.NONE),
        words.NONE if fit.condition is None else f"{fit.condition:.2g}",
        f"{fit.objective:.6g}",
        status,
    )


def parameters(analysis: Analysis) -> Table | None:
    """Every law's natural parameters."""
    rows = [
        (
            fit.law,
            parameter.name,
            words.number(parameter.value),
            _ends(parameter.interval),
            words.number(parameter.interval.se if parameter.interval else None),
            "on its bound" if parameter.at_bound else "",
        )
        for fit in analysis.fits
        for parameter in fit.parameters
    ]
    return table(
        "Parameters", ("|law", "|parameter", "value", "90% interval", "standard error", "|remark"), rows
    )


def conventions(analysis: Analysis) -> Table | None:
    """The target under each way of counting that the table offers."""
    found = analysis.conventions
    if found is None:
        return None
    rows = [
        (
            f"{way.params} (this analysis)" if way.used else way.params,
            way.flops,
            words.count(way.target_params),
            way.mapping,
            words.loss(way.loss),
            f"{way.a:.3f}",
        )
        for way in found.conventions
    ]
    headings = ("|N counted by", "|C counted by", "target's N", "|which is", "predicted loss", "a")
    return table("If N and C were counted otherwise", headings, rows, _spread(found))


def _spread(found: ByConvention) -> str:
    least, most = found.a_range
    farthest = words.percent(100 * math.expm1(found.loss_spread))
    note = (
        f"Fits of the {found.law} law alone: counting moves the predicted loss by up to {farthest} and a "
        f"within {least:.3f} to {most:.3f}."
    )
    skipped = words.listing([f"{item.what}: {item.reason}" for item in found.skipped])
    return f"{note} Not fitted: {skipped}." if skipped else note


def entropy(analysis: Analysis) -> Table | None:
    """The fitted irreducible loss beside the truth, where the corpus has a known one."""
    check = analysis.entropy
    if check is None:
        return None
    found = check.irreducible
    row = (check.law, words.number(check.entropy_rate), words.number(found.value), _ends(found.interval))
    headings = ("|law", "entropy rate of the corpus", "fitted E", "90% interval")
    return table("Irreducible loss beside the truth", headings, [row], "Nats a token.")


# --- runs -----------------------------------------------------------------------------------------


def runs(analysis: Analysis) -> Table | None:
    """Every row of the analysed table, or the dearest of very many."""
    shown = analysis.rows
    note = f"N counts {words.parameters(analysis.params_kind)}; a loss is ± its standard error."
    if len(shown) > ROWS_SHOWN:
        shown = sorted(shown, key=lambda row: row.flops or 0.0, reverse=True)[:ROWS_SHOWN]
        all_of_them = f"{len(analysis.rows):,} runs; the analysed table has them all."
        note = f"The dearest {ROWS_SHOWN} of {all_of_them} {note}"
    headings = ("|run", "|group", "|role", "N", "D", "C, FLOPs", "lr", "loss", "|status", "wall time")
    return table("Every run", headings, map(_run, shown), note)


def _run(row: RunRow) -> tuple[str, ...]:
    return (
        row.run_id,
        row.group,
        row.role,
        words.count(row.params),
        words.count(row.tokens),
        words.flops(row.flops),
        words.number(row.lr),
        words.loss_with_error(row.loss, row.loss_se),
        f"{row.status}: {row.reason}" if row.reason else row.status,
        words.duration(row.wall_seconds),
    )


def exclusions(analysis: Analysis) -> Table | None:
    rows = [(exclusion.run_id, exclusion.reason) for exclusion in analysis.exclusions[:ROWS_SHOWN]]
    left = len(analysis.exclusions) > ROWS_SHOWN
    all_of_them = f"{len(analysis.exclusions):,}; exclusions.csv beside this report has all."
    note = f"The first {ROWS_SHOWN} of {all_of_them}" if left else ""
    return table("Not used in any fit", ("|run", "|reason"), rows, note)


def _ends(estimate: Estimate | None) -> str:
    return words.NONE if estimate is None else words.interval(estimate.lo, estimate.hi)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
