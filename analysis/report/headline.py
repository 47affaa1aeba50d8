"""What a decision maker reads first: the prediction, what came of it, the verdict, and the problems."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from analysis.rates import RANGE
from analysis.report import findings, words
from analysis.study import DEFAULT_EXTRAPOLATION
from analysis.values import Analysis, Prediction, RunRow, Verdict, latest
from analysis.verdict import ADVICE, IN_BACKTESTS, UNTESTED

VERDICTS = {
    Verdict.SUPPORTED: "The data support {}",
    Verdict.WEAK: "The data support {} only weakly",
    Verdict.NOT_SUPPORTED: "The data do not support {}",
}
BADGES = {
    Verdict.SUPPORTED: "supported",
    Verdict.WEAK: "weakly supported",
    Verdict.NOT_SUPPORTED: "not supported",
}
REASONS_TOLD = 3
"""Reasons in the verdict's sentence, worst first; all of them stand in their own section."""

FATES = ("fitted", "held out", "failed", "diverged", "excluded", "not finished", "trunk segments", "in an arm")


def lede(analysis: Analysis) -> tuple[str, ...]:
    """What is predicted, what was measured, and whether the data carry it: a sentence each. Without a prediction
    what the first study found; where none was asked for, nothing of what the data carry."""
    predictions = latest(analysis.predictions)
    if not predictions:
        found = findings.leading(analysis.findings) or _transfer(analysis) or "No target run was predicted."
        verdict = _verdict("an extrapolation", analysis.verdict, analysis.reasons)
        return found, _measured_range(analysis), *(() if unasked(analysis) else (verdict,))
    prediction = predictions[-1]
    verdict = _verdict("this extrapolation", prediction.verdict, prediction.reasons)
    return _predicted(prediction, analysis), _outcome(prediction, predictions[:-1]), verdict


def unasked(analysis: Analysis) -> str:
    """The verdict on a prediction that was not asked for, where a study has found something; else ""."""
    if analysis.predictions or _names_target(analysis) or not findings.leading(analysis.findings):
        return ""
    far = f"a prediction at {DEFAULT_EXTRAPOLATION:g}× the dearest run's compute"
    return f"None was asked for. {_verdict(far, analysis.verdict, ())}"


def _names_target(analysis: Analysis) -> bool:
    """Does the sweep's grid name one, or has the table one?"""
    grid = json.loads(analysis.metadata.get("config") or "{}").get("grid", {})
    return any((grid.get("target") or {}).values()) or any(row.role == "holdout" for row in analysis.rows)


def badge(analysis: Analysis) -> str:
    """"" where nobody asked for a prediction."""
    if unasked(analysis):
        return ""
    return BADGES[analysis.verdict] if analysis.fits else "no law fitted"


def _transfer(analysis: Analysis) -> str:
    """What rate grids say, where no law was fitted; "" where there are none."""
    if analysis.fits or analysis.rates is None:
        return ""
    drifts = [drift for drift in analysis.rates.drifts if drift.asked]
    said = [f"under {drift.param}: {drift.says}" if drift.param else drift.says for drift in drifts]
    if not said:
        return (
            f"The runs are a grid of learning rates without widths {RANGE:g}x apart whose optima could be compared."
        )
    return f"The optimal rate across widths, {words.listing(said)}."


def problems(analysis: Analysis) -> tuple[str, ...]:
    """The analysis' own problems, after a verdict that has changed since the prediction was made."""
    predictions = latest(analysis.predictions)
    if not predictions or predictions[-1].verdict is analysis.verdict:
        return analysis.problems
    changed = (
        f"The prediction was made when its data were judged “{predictions[-1].verdict.value}”; the runs "
        f"there are now are judged “{analysis.verdict.value}”{_because(analysis.reasons)}."
    )
    return (changed, *analysis.problems)


def tally(analysis: Analysis) -> str:
    """ "36 runs in the table: 32 fitted, 1 held out, 2 failed, 1 excluded"."""
    fitted = set(analysis.runs.run_id)
    fates = Counter(_fate(row, fitted) for row in analysis.rows)
    parts = ", ".join(f"{fates[fate]:,} {fate}" for fate in FATES if fates[fate])
    return f"{words.plural(len(analysis.rows), 'run')} in the table" + (f": {parts}" if parts else "")


def units(analysis: Analysis) -> str:
    return (
        f"N counts {words.parameters(analysis.params_kind)}, D training tokens (repeats included), C "
        f"training FLOPs ({analysis.flops_kind}). A loss is the table's cross-entropy, in nats a token. "
        "Intervals are 90% intervals."
    )


def _fate(row: RunRow, fitted: set[str]) -> str:
    if row.run_id in fitted:
        return "fitted"
    if row.status in ("failed", "diverged"):
        return row.status
    if row.role == "holdout":
        return "held out"
    if row.role == "trunk":
        return "trunk segments"
    if row.role == "arm" and row.status == "finished":
        return "in an arm"
    return "excluded" if row.status == "finished" else "not finished"


def _predicted(prediction: Prediction, analysis: Analysis) -> str:
    target = prediction.target
    return (
        f"A run of {words.count(target.params)} {words.parameters(analysis.params_kind)} on "
        f"{words.count(target.tokens)} tokens ({words.flops(target.flops)} "
        f"FLOPs{_distance(prediction)}) is predicted to reach a loss of "
        f"{words.loss(prediction.loss, 3)} nats a token, with a 90% interval of "
        f"{words.loss(prediction.lo90, 3)} to {words.loss(prediction.hi90, 3)} "
        f"(±{words.percent(prediction.half_width_pct)}{_coverage(prediction, analysis)})."
    )


def _coverage(prediction: Prediction, analysis: Analysis) -> str:
    """How often such intervals held, for the sentence that gives one; "" where the verdict's says it."""
    told = " ".join(prediction.reasons[:REASONS_TOLD])
    if IN_BACKTESTS in told or UNTESTED in told:
        return ""
    record = next((record for record in analysis.records if record.inside is not None), None)
    if record is None:
        return f"; no backtest was possible, so {UNTESTED}"
    return f"; in backtests on dearer runs such intervals held {record.inside:,} of {record.n:,} times"


def _distance(prediction: Prediction) -> str:
    ratio = prediction.extrapolation
    if ratio is None:
        return ""
    if ratio <= 1:
        return ", no dearer than the runs fitted"
    return f", {words.factor(ratio)} the dearest run fitted"


def _outcome(prediction: Prediction, others: Sequence[Prediction]) -> str:
    measured = prediction.measured
    if measured is None:
        return f"No measurement of this run is known yet, so the prediction is not scored{_others(others)}."
    loss = words.loss_with_error(measured.loss, measured.loss_se)
    runs = "" if len(measured.run_ids) < 2 else f" (mean of {words.plural(len(measured.run_ids), 'run')})"
    side = "high" if measured.error_pct > 0 else "low"
    where = "inside" if measured.inside else "outside"
    return (
        f"The run measured {loss}{runs}, which was read afterwards: the prediction was "
        f"{words.percent(abs(measured.error_pct))} too {side}, and the measurement lies {where} the interval"
        f"{_others(others)}."
    )


def _others(predictions: Sequence[Prediction]) -> str:
    measured = [prediction.measured for prediction in predictions if prediction.measured is not None]
    if not measured:
        return ""
    inside = sum(outcome.inside for outcome in measured)
    return (
        f"; of {words.plural(len(measured), 'other target')} measured, {inside} came out inside the interval"
    )


def _verdict(which: str, verdict: Verdict, reasons: Iterable[str]) -> str:
    return f"{VERDICTS[verdict].format(which)}{_because(reasons)}."


def _because(reasons: Iterable[str]) -> str:
    reasons = tuple(reason for reason in reasons if not reason.startswith(ADVICE))  # a table has it
    more = f"; {len(reasons) - REASONS_TOLD} more below" if len(reasons) > REASONS_TOLD else ""
    return f": {words.listing(reasons[:REASONS_TOLD])}{more}" if reasons else ""


def _measured_range(analysis: Analysis) -> str:
    runs = analysis.runs
    if not len(runs):
        rows = words.plural(len(analysis.rows), "run")
        return f"None of the {rows} in the table can be fitted, so there is no law."
    cheapest, dearest = words.flops(runs.flops.min()), words.flops(runs.flops.max())
    highest, lowest = words.loss(runs.loss.max(), 3), words.loss(runs.loss.min(), 3)
    return (
        f"{words.plural(len(runs), 'run')} from {cheapest} to {dearest} FLOPs measured losses from {highest} "
        f"down to {lowest} nats a token."
    )
