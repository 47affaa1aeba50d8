"""What the report says: Analysis -> Document, words and tables only, from which both formats are rendered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from analysis import words
from analysis.figures import latest_predictions
from analysis.values import Analysis, Estimate, Measured, Prediction, RunRow, Status, Verdict

ROWS_SHOWN = 300
"""Longest table in the report. Assumption: nobody reads further down, and ten thousand rows make a
page that a browser scrolls badly; the analysed table itself has them all."""

VERDICTS = {
    Verdict.SUPPORTED: "The data support this extrapolation",
    Verdict.WEAK: "The data support this extrapolation only weakly",
    Verdict.NOT_SUPPORTED: "The data do not support this extrapolation",
}


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


@dataclass(frozen=True)
class Listing:
    """Text to be shown letter by letter: a command, a configuration."""

    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """`figures` are names of drawings, shown above the tables."""

    title: str
    figures: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    listings: tuple[Listing, ...] = ()


@dataclass(frozen=True)
class Document:
    """`lede`: what a decision rests on, a sentence each. `problems`: what may overturn it."""

    title: str
    verdict: Verdict
    tally: str
    units: str
    lede: tuple[str, ...]
    problems: tuple[str, ...]
    sections: tuple[Section, ...]


def compose(analysis: Analysis, drawn: Collection[str] = ()) -> Document:
    """Everything that the report says about `analysis`; `drawn` names the figures that there are."""

    def shown(*names: str) -> tuple[str, ...]:
        return tuple(name for name in names if name in drawn)

    sections = (
        Section("Prediction and measurement", shown("loss-against-compute"), _prediction_tables(analysis)),
        Section("Compute-optimal size and data", shown("isoflop-curves", "optimal-allocation"), _optimum_tables(analysis)),
        Section("Fitted laws", shown("residuals"), _law_tables(analysis)),
        Section("Backtests", shown("backtests")),
        Section("Runs", (), _run_tables(analysis)),
        Section("How to reproduce this", (), *_metadata(analysis)),
    )
    return Document(
        title=analysis.title,
        verdict=analysis.verdict,
        tally=tally(analysis),
        units=_units(analysis),
        lede=lede(analysis),
        problems=problems(analysis),
        sections=tuple(s for s in sections if s.figures or s.tables or s.listings),
    )


def lede(analysis: Analysis) -> tuple[str, ...]:
    """Three sentences: what is predicted, what was measured, and whether the data carry it."""
    predictions = latest_predictions(analysis)
    if not predictions:
        return ("No target run was predicted.", _measured_range(analysis), _verdict(analysis.verdict, analysis.reasons))
    prediction = predictions[-1]
    return (
        _predicted(prediction, analysis),
        _outcome(prediction.measured),
        _verdict(prediction.verdict, prediction.reasons),
    )


def problems(analysis: Analysis) -> tuple[str, ...]:
    """The analysis' own problems, what it had to leave out, and a verdict that has changed since."""
    found = [*analysis.problems, *(f"Left out: {s.what} ({words.listing([s.reason])})." for s in analysis.skipped)]
    predictions = latest_predictions(analysis)
    if predictions and predictions[-1].verdict is not analysis.verdict:
        found.insert(
            0,
            f"The prediction was made when its data were judged “{predictions[-1].verdict.value}”; the runs there are "
            f"now are judged “{analysis.verdict.value}”{_because(analysis.reasons)}.",
        )
    return tuple(found)


def tally(analysis: Analysis) -> str:
    """ "36 runs in the table: 32 fitted, 1 held out, 2 failed, 1 excluded otherwise"."""
    fitted = set(analysis.runs.run_id)
    kinds = Counter(_kind(row, fitted) for row in analysis.rows)
    order = ("fitted", "held out", "failed", "diverged", "excluded", "not finished")
    parts = [f"{kinds[kind]:,} {kind}" for kind in order if kinds[kind]]
    return f"{words.plural(len(analysis.rows), 'run')} in the table" + (": " + ", ".join(parts) if parts else "")


def _kind(row: RunRow, fitted: set[str]) -> str:
    if row.run_id in fitted:
        return "fitted"
    if row.status in ("failed", "diverged"):
        return row.status
    if row.role == "holdout":
        return "held out"
    return "excluded" if row.status in ("finished", "") else "not finished"


def _units(analysis: Analysis) -> str:
    return (
        f"N counts {analysis.params_kind} parameters, D training tokens (repeats included), C training FLOPs "
        f"({analysis.flops_kind}). A loss is held-out cross-entropy in nats a token. Intervals are 90% intervals."
    )


def _predicted(prediction: Prediction, analysis: Analysis) -> str:
    target = prediction.target
    distance = ""
    if len(analysis.runs):
        ratio = target.flops / analysis.runs.flops.max()
        distance = f", {words.factor(ratio)} the dearest run fitted" if ratio > 1 else ", within the range of the runs fitted"
    return (
        f"A run of {words.count(target.params)} {analysis.params_kind} parameters on {words.count(target.tokens)} tokens "
        f"({words.flops(target.flops)} FLOPs{distance}) is predicted to reach a loss of {words.loss(prediction.loss, 3)} "
        f"nats a token, with a 90% interval of {words.loss(prediction.lo90, 3)} to {words.loss(prediction.hi90, 3)} "
        f"(±{words.percent(prediction.half_width_pct)})."
    )


def _outcome(measured: Measured | None) -> str:
    if measured is None:
        return "No measurement of this run is known yet, so the prediction is not scored."
    runs = "" if len(measured.run_ids) < 2 else f" (mean of {words.plural(len(measured.run_ids), 'run')})"
    side = "high" if measured.error_pct > 0 else "low"
    where = "inside" if measured.inside else "outside"
    return (
        f"Trained afterwards, it measured {words.loss_with_error(measured.loss, measured.loss_se)}{runs}: the prediction "
        f"was {words.percent(abs(measured.error_pct))} too {side}, and the measurement lies {where} the interval."
    )


def _verdict(verdict: Verdict, reasons: Iterable[str]) -> str:
    return f"{VERDICTS[verdict]}{_because(reasons)}."


def _because(reasons: Iterable[str]) -> str:
    reasons = tuple(reasons)
    return f": {words.listing(reasons)}" if reasons else ""


def _measured_range(analysis: Analysis) -> str:
    runs = analysis.runs
    if not len(runs):
        return f"None of the {words.plural(len(analysis.rows), 'run')} in the table can be fitted, so there is no law."
    return (
        f"{words.plural(len(runs), 'run')} from {words.flops(runs.flops.min())} to {words.flops(runs.flops.max())} FLOPs "
        f"measured losses from {words.loss(runs.loss.max(), 3)} down to {words.loss(runs.loss.min(), 3)} nats a token."
    )


def _prediction_tables(analysis: Analysis) -> tuple[Table, ...]:
    if not analysis.predictions:
        return ()
    made = sorted(analysis.predictions, key=lambda p: p.created, reverse=True)
    columns = _columns("N", "D", "C, FLOPs", "predicted", "90% interval", "±", "measured", "error", "|inside", "|verdict", "|made, UTC")
    rows = [
        (
            words.count(p.target.params),
            words.count(p.target.tokens),
            words.flops(p.target.flops),
            words.loss(p.loss),
            words.interval(p.lo90, p.hi90),
            words.percent(p.half_width_pct),
            words.NONE if p.measured is None else words.loss_with_error(p.measured.loss, p.measured.loss_se),
            words.NONE if p.measured is None else words.percent(p.measured.error_pct, signed=True),
            words.NONE if p.measured is None else "yes" if p.measured.inside else "no",
            p.verdict.value,
            p.created,
        )
        for p in made
    ]
    note = "A prediction is written before its run's loss is read, and is never changed afterwards. Error: predicted over measured."
    return (_table("Prediction and measurement", columns, rows, note), *_makeup(latest_predictions(analysis)[-1]))


def _makeup(prediction: Prediction) -> tuple[Table, ...]:
    """How the headline's number and interval came about."""
    laws = [
        (law, words.loss(loss), words.percent(100 * prediction.weights[law]) if law in prediction.weights else words.NONE)
        for law, loss in prediction.by_law.items()
    ]
    spread = [(origin, words.percent(100 * value)) for origin, value in prediction.spread.items()]
    tables = []
    if laws:
        note = f"For {words.flops(prediction.target.flops)} FLOPs. {prediction.law}"
        tables.append(_table("What each law says", _columns("|law", "predicted loss", "weight"), laws, note))
    if spread:
        tables.append(_table("What the interval is made of", _columns("|origin", "standard deviation, % of the loss"), spread))
    return tuple(tables)


def _optimum_tables(analysis: Analysis) -> tuple[Table, ...]:
    tables = []
    if analysis.isoflops:
        rows = [
            (
                words.flops(i.flops),
                str(len(set(i.params.tolist()))),
                words.count(i.params_opt.value if i.params_opt else None),
                _counts(i.params_opt),
                words.count(i.tokens_opt),
                words.number(i.tokens_opt / i.params_opt.value) if i.params_opt and i.tokens_opt else words.NONE,
                words.loss(i.loss_min),
                "yes" if i.bracketed else "no",
                i.reason,
            )
            for i in sorted(analysis.isoflops, key=lambda i: i.flops)
        ]
        columns = _columns("C, FLOPs", "sizes", "optimal N", "90% interval", "optimal D", "D/N", "loss there", "|bracketed", "|remark")
        tables.append(_table("Optimum of each budget", columns, rows, f"N counts {analysis.params_kind} parameters."))
    if analysis.allocations:
        ours = [
            ("this analysis", f"approach {a.approach}", _exponent(a.a), _ends(a.a), _exponent(a.b), _ends(a.b), str(a.points), a.reason)
            for a in analysis.allocations
        ]
        theirs = [
            (p.who, p.approach, f"{p.a:.2f}", words.NONE, f"{p.b:.2f}", words.NONE, words.NONE, p.source) for p in analysis.published
        ]
        columns = _columns("|who", "|approach", "a", "90% interval", "b", "90% interval", "points", "|remark or source")
        note = f"N_opt ∝ C^a and D_opt ∝ C^b; N here counts {analysis.params_kind} parameters."
        tables.append(_table("Exponents beside published ones", columns, [*ours, *theirs], note))
    return tuple(tables)


def _law_tables(analysis: Analysis) -> tuple[Table, ...]:
    if not analysis.fits:
        return ()
    laws = [
        (
            fit.law,
            fit.equation,
            fit.status.value if fit.status is Status.CONVERGED else f"{fit.status.value}: {words.listing([fit.reason])}",
            str(fit.n),
            words.percent(fit.rms_pct),
            f"{fit.starts_at_optimum} of {fit.starts}",
            f"{fit.objective:.6g}",
            fit.source,
        )
        for fit in analysis.fits
    ]
    columns = _columns("|law", "|equation", "|status", "runs", "RMS residual", "starts at the optimum", "objective", "|source")
    knees = ", ".join(dict.fromkeys(f"{fit.delta:g}" for fit in analysis.fits))
    note = f"Objective: sum over the runs of Huber(log fitted − log measured loss), knee {knees}."
    parameters = [
        (fit.law, p.name, words.number(p.value), _ends(p.interval), words.number(p.interval.se) if p.interval else words.NONE,
         "on its bound" if p.at_bound else "")
        for fit in analysis.fits
        for p in fit.parameters
    ]  # fmt: skip
    parameter_columns = _columns("|law", "|parameter", "value", "90% interval", "standard error", "|remark")
    tables = [_table("Laws", columns, laws, note), _table("Parameters", parameter_columns, parameters)]
    if analysis.entropy is not None:
        check = analysis.entropy
        row = (check.law, words.number(check.entropy_rate), words.number(check.irreducible.value), _ends(check.irreducible.interval))
        columns = _columns("|law", "entropy rate of the corpus", "fitted E", "90% interval")
        tables.append(_table("Irreducible loss beside the truth", columns, [row], "Nats a token; the corpus was made with a known entropy."))
    return tuple(tables)


def _run_tables(analysis: Analysis) -> tuple[Table, ...]:
    rows = analysis.rows
    note = f"N counts {analysis.params_kind} parameters; the loss is ± its standard error over the held-out tokens."
    if len(rows) > ROWS_SHOWN:
        rows = tuple(sorted(rows, key=lambda row: row.flops or 0.0, reverse=True)[:ROWS_SHOWN])
        note = f"The dearest {ROWS_SHOWN} of {len(analysis.rows):,} runs; the analysed table has them all. {note}"
    cells = [
        (
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
        for row in rows
    ]
    columns = _columns("|run", "|group", "|role", "N", "D", "C, FLOPs", "learning rate", "loss", "|status", "wall time")
    tables = [_table("Every run", columns, cells, note)] if rows else []
    if analysis.exclusions:
        shown = analysis.exclusions[:ROWS_SHOWN]
        note = "" if len(shown) == len(analysis.exclusions) else f"The first {ROWS_SHOWN} of {len(analysis.exclusions):,}."
        excluded = [(exclusion.run_id, exclusion.reason) for exclusion in shown]
        tables.append(_table("Not used in any fit", _columns("|run", "|reason"), excluded, note))
    return tuple(tables)


def _metadata(analysis: Analysis) -> tuple[tuple[Table, ...], tuple[Listing, ...]]:
    """Short values in a table; commands and what has several lines letter by letter."""
    long = {key for key, value in analysis.metadata.items() if key == "command" or "\n" in value or len(value) > 100}
    listings = tuple(Listing(key, analysis.metadata[key].rstrip("\n")) for key in analysis.metadata if key in long)
    short = [(key, value) for key, value in analysis.metadata.items() if key not in long]
    return (_table("Versions and data", _columns("|what", "|value"), short),) if short else (), listings


def _table(title: str, columns: tuple[Column, ...], rows: Iterable[tuple[str, ...]], note: str = "") -> Table:
    """Columns that are empty in every row are left out."""
    rows = tuple(rows)
    kept = [i for i in range(len(columns)) if any(row[i] not in ("", words.NONE) for row in rows)]
    return Table(title, tuple(columns[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in rows), note)


def _columns(*names: str) -> tuple[Column, ...]:
    """Headings; a leading "|" marks a column of words."""
    return tuple(Column(name.removeprefix("|"), text=name.startswith("|")) for name in names)


def _exponent(estimate: Estimate) -> str:
    return f"{estimate.value:.3f}"


def _ends(estimate: Estimate | None) -> str:
    return words.NONE if estimate is None else words.interval(estimate.lo, estimate.hi)


def _counts(estimate: Estimate | None) -> str:
    return words.NONE if estimate is None else f"[{words.count(estimate.lo)}, {words.count(estimate.hi)}]"
