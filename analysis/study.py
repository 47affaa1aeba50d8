"""Table + model + predictions -> Analysis: the one value that the report renders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from analysis.allocate import envelope
from analysis.design import helpful_runs
from analysis.discrepancy import MOST_RUNS
from analysis.finding import Finding
from analysis.health import concerns
from analysis.prediction import Model, frontier, optimal_target, predict
from analysis.published import PUBLISHED
from analysis.rates import study_rates
from analysis.surfaces import loss_surface, records_by_distance, track_records
from analysis.table import Table, read_holdout_losses
from analysis.units import power
from analysis.values import (
    Analysis,
    EntropyCheck,
    Exclusion,
    HelpfulRun,
    Measured,
    Prediction,
    RateStudy,
    RunRow,
    Status,
    Target,
    Verdict,
    latest,
)
from analysis.windows import planned_budgets

SAME_RUN = 1e-6
"""Relative difference in N and D within which a holdout is the predicted run: counts printed to
seven digits still match."""

DEFAULT_EXTRAPOLATION = 10.0
"""Times the dearest run's FLOPs: how far the verdict looks where no target is named. Assumption."""

MISFIT_OF_COST = 0.05
"""Relative misfit of FLOPs a token as a function of N that is worth a warning. Assumption."""

OFFENDERS = 5
"""Outliers named among the problems; all are in the exclusions."""
BIASED = 0.05
"""Error of the optimal size, as a log ratio, from which approach 2's bias is worth a warning. Assumption."""

Losses = Mapping[str, tuple[float, float | None]]


def is_target(target: Target, params: float, tokens: float) -> bool:
    return bool(
        np.isclose(params, target.params, rtol=SAME_RUN) and np.isclose(tokens, target.tokens, rtol=SAME_RUN)
    )


def losses_of_predicted(
    table: Table, predictions: Sequence[Prediction]
) -> dict[str, tuple[float, float | None]]:
    """Losses of the finished holdouts that a prediction was made for, and of no others."""
    predicted = {
        holdout.run_id
        for holdout in table.holdouts
        if any(is_target(p.target, holdout.params, holdout.tokens) for p in predictions)
    }
    return read_holdout_losses(table, predicted) if predicted else {}


def measure(prediction: Prediction, table: Table, losses: Losses) -> Prediction:
    """`prediction` with what its target came to: the mean over the holdouts of its N and D.

    Args:
        losses: of finished holdouts, by run_id (table.read_holdout_losses).
    """
    found = [
        holdout.run_id
        for holdout in table.holdouts
        if holdout.run_id in losses and is_target(prediction.target, holdout.params, holdout.tokens)
    ]
    if not found:
        return prediction
    values = np.array([losses[run_id][0] for run_id in found])
    errors = [losses[run_id][1] for run_id in found]
    loss = float(values.mean())
    if len(values) > 1:
        error = float(values.std(ddof=1) / np.sqrt(len(values)))
    else:
        error = errors[0]
    measured = Measured(
        loss=loss,
        loss_se=error,
        error_pct=100 * (prediction.loss - loss) / loss,
        inside=bool(prediction.lo90 <= loss <= prediction.hi90),
        run_ids=tuple(found),
    )
    return replace(prediction, measured=measured)


def study(
    table: Table,
    known: Model,
    predictions: Sequence[Prediction],
    losses: Losses,
    *,
    title: str,
    metadata: Mapping[str, str] | None = None,
    entropy_rate: float | None = None,
    findings: Sequence[Finding] = (),
) -> Analysis:
    """Put everything together.

    The verdict is what the runs there are now say of the dearest target, or without predictions of the
    compute-optimal run at 10x the dearest one's FLOPs.
    `losses` are those of holdouts whose predictions are written, shown in the rows.
    """
    dearest = max(
        [DEFAULT_EXTRAPOLATION * float(known.runs.flops.max()), *(p.target.flops for p in predictions)]
    )
    last = latest(predictions)[-1].target if predictions else optimal_target(known, dearest)
    judged = predict(known, last, table.digest)
    reach = (*(p.target for p in predictions), last)
    entropy = _entropy(known, entropy_rate)
    return Analysis(
        title=title,
        params_kind=table.params_kind,
        flops_kind=table.flops_kind,
        runs=known.runs,
        rows=tuple(_as_shown(row, known) for row in with_losses(table, losses).rows),
        exclusions=(*table.exclusions, *known.outliers),
        fits=known.fits,
        isoflops=known.isoflops,
        envelope=known.envelope,
        allocations=known.allocations,
        published=PUBLISHED,
        frontier=frontier(known, dearest),
        backtests=known.backtests,
        predictions=tuple(predictions),
        verdict=judged.verdict,
        reasons=judged.reasons,
        skipped=known.skipped,
        problems=_problems(table, known, predictions, entropy),
        entropy=entropy,
        remedies=known.remedies,
        isoflop_bias=known.isoflop_bias(judged.target.flops),
        conventions=known.conventions.at(judged.target) if known.conventions else None,
        advice=_advice(known, judged),
        surface=loss_surface(
            known.allocating,
            np.array([*known.runs.params, *(target.params for target in reach)]),
            np.array([*known.runs.tokens, *(target.tokens for target in reach)]),
        ),
        records=track_records(known.backtests),
        records_by_distance=records_by_distance(known.backtests),
        rates=study_rates(table.rows),
        health=table.health,
        findings=tuple(findings),
        metadata=dict(metadata or {}),
    )


def unfitted(
    table: Table,
    reason: str,
    predictions: Sequence[Prediction] = (),
    *,
    title: str,
    metadata: Mapping[str, str] | None = None,
    findings: Sequence[Finding] = (),
) -> Analysis:
    """What a table shows to which no law can be fitted: its studies, its rate grids, its runs and their health.

    Args:
        reason: why there is no law of N and D.
        predictions: made without one (analysis/studies/ladder.py).
    Raises ValueError(reason): it has neither a study nor a rate grid, so there is nothing to show.
    """
    rates = study_rates(table.rows)
    if rates is None and not findings:
        raise ValueError(reason)
    return Analysis(
        title=title,
        params_kind=table.params_kind,
        flops_kind=table.flops_kind,
        runs=table.runs,
        rows=table.rows,
        exclusions=table.exclusions,
        fits=(),
        isoflops=(),
        envelope=envelope(table.runs),
        allocations=(),
        published=(),
        frontier=None,
        backtests=(),
        predictions=tuple(predictions),
        verdict=predictions[-1].verdict if predictions else Verdict.NOT_SUPPORTED,
        reasons=predictions[-1].reasons if predictions else (f"no law was fitted: {reason.split('. ')[0]}",),
        problems=(*(_rate_problems(rates) if rates else ()), *_excluded(table), *table.notes),
        rates=rates,
        health=table.health,
        findings=tuple(findings),
        metadata=dict(metadata or {}),
    )


def _advice(known: Model, judged: Prediction) -> tuple[HelpfulRun, ...]:
    if judged.verdict is Verdict.SUPPORTED:
        return ()
    separable = next((fit for fit in known.fits if fit.law == "separable"), None)
    return helpful_runs(known.runs, judged.target, separable)


def with_losses(table: Table, losses: Losses) -> Table:
    """`table` with the losses of its predicted holdouts in their rows."""
    rows = (
        replace(row, loss=losses[row.run_id][0], loss_se=losses[row.run_id][1]) if row.run_id in losses else row
        for row in table.rows
    )
    return replace(table, rows=tuple(rows))


def _as_shown(row: RunRow, known: Model) -> RunRow:
    """With the reason why an outlier is in no fit."""
    reason = next((outlier.reason for outlier in known.outliers if outlier.run_id == row.run_id), None)
    return replace(row, reason=reason) if reason else row


def _entropy(known: Model, entropy_rate: float | None) -> EntropyCheck | None:
    if entropy_rate is None:
        return None
    member, _ = max(known.predicting, key=lambda pair: pair[1])
    irreducible = next(parameter for parameter in member.fit.parameters if parameter.name == "E")
    return EntropyCheck(entropy_rate, irreducible, member.law.name)


def _problems(
    table: Table, known: Model, predictions: Sequence[Prediction], entropy: EntropyCheck | None
) -> tuple[str, ...]:
    problems = []
    scored = [p for p in predictions if p.measured]
    outside = [p for p in scored if not p.measured.inside]
    if len(outside) > 1:
        share = f"{len(outside)} of {len(scored)}"
        problems.append(f"{share} measured losses lie outside their predicted intervals.")
    elif outside:
        problems.append(
            f"The measured loss {outside[0].measured.loss:.4f} lies outside the predicted interval "
            f"{outside[0].lo90:.4f} to {outside[0].hi90:.4f}."
        )
    for fit in known.fits:
        if fit.status != Status.CONVERGED:
            problems.append(f"The {fit.law} law's fit is {fit.status.value}: {fit.reason}.")
    planned = known.isoflops if planned_budgets(known.runs) else ()
    for reason in dict.fromkeys(curve.reason for curve in planned if not curve.bracketed):
        groups = [curve.group for curve in planned if curve.reason == reason]
        which = groups[0] if len(groups) == 1 else f"{len(groups)} of {len(known.isoflops)} budgets"
        problems.append(f"IsoFLOP curve of {which}: {reason}.")
    unfinished = [row for row in table.rows if row.role == "holdout" and row.status in ("failed", "diverged")]
    problems += [f"Holdout {row.run_id} {row.status}." for row in unfinished]
    holdouts = {row.run_id for row in table.rows if row.role == "holdout"}
    problems += [f"Holdout {f.run_id}: {f.says}." for f in table.health if f.run_id in holdouts]
    if entropy and entropy.irreducible.interval:
        interval = entropy.irreducible.interval
        if not interval.lo <= entropy.entropy_rate <= interval.hi:
            problems.append(
                f"The corpus' entropy rate {entropy.entropy_rate:.4f} lies outside the fitted E's 90% "
                f"interval {interval.lo:.4f} to {interval.hi:.4f} ({entropy.law} law)."
            )
    if known.cost.worst > MISFIT_OF_COST:
        problems.append(
            f"FLOPs a token are no smooth function of N here (off by up to {100 * known.cost.worst:.0f}%), "
            "so compute-optimal sizes are rough."
        )
    problems += _biased(known, predictions) if planned else []
    rates = study_rates(table.rows)
    problems += _rate_problems(rates) if rates else ()
    fitted = set(known.runs.run_id)
    params = sorted({row.param for row in table.rows if row.run_id in fitted})
    if len(params) > 1:
        told = ", ".join(name or "none named" for name in params)
        problems.append(f"The fitted runs are of several parametrisations ({told}), and the law is none's.")
    problems += concerns([finding for finding in table.health if finding.run_id in fitted], len(fitted))
    problems += _excluded(table, known.outliers)
    if known.outliers:
        named = "; ".join(f"{outlier.run_id}: {outlier.reason}" for outlier in known.outliers[:OFFENDERS])
        more = f"; and {len(known.outliers) - OFFENDERS} more" if len(known.outliers) > OFFENDERS else ""
        problems.append(f"Outliers, left out as failed runs or runs on other data: {named}{more}.")
    if len(known.runs) > MOST_RUNS:
        problems.append(
            f"What the law leaves is learnt from {MOST_RUNS} of the {len(known.runs):,} runs: the dearest "
            "half of as many, and a draw of the others."
        )
    problems += [f"Not computed: {item.what}: {item.reason}." for item in known.skipped]
    problems += list(table.notes)
    return tuple(problems)


def _rate_problems(rates: RateStudy) -> tuple[str, ...]:
    """Of parametrisations whose optimal rate moves, or that nothing can be said of though it was asked."""
    return tuple(
        f"Rates under {drift.param}: {drift.says}." if drift.param else f"Rates: {drift.says}."
        for drift in rates.drifts
        if drift.asked and drift.transfers is not True
    )


def _excluded(table: Table, outliers: Sequence[Exclusion] = ()) -> tuple[str, ...]:
    exclusions = (*table.exclusions, *outliers)
    sick = {finding.says: finding.kind for finding in table.health if finding.kind != "too few steps"}
    kinds = Counter(sick.get(exclusion.reason) or _kind(exclusion.reason) for exclusion in exclusions)
    told = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    return (f"{len(exclusions)} of {len(table.rows)} rows are in no fit ({told}).",) if exclusions else ()


def _biased(known: Model, predictions: Sequence[Prediction]) -> list[str]:
    """Of the law that predicts with the most weight, or where it shows no bias, of the first that does."""
    flops = predictions[-1].target.flops if predictions else DEFAULT_EXTRAPOLATION * known.runs.flops.max()
    found = known.isoflop_bias(float(flops))
    heaviest = max(known.predicting, key=lambda pair: pair[1])[0].law.name if known.predicting else ""
    bias = next((b for b in found if b.law == heaviest), found[0] if found else None)
    if bias is None:
        return []
    parabola = bias.on("as run")
    if parabola.log_params is None or abs(parabola.log_params) < BIASED:
        return []
    cause = max(bias.causes, key=lambda name: abs(bias.causes[name])) if bias.causes else "unknown"
    return [
        f"On these budgets approach 2's parabolas misjudge the optimal size at {power(bias.flops)} FLOPs by "
        f"{parabola.params_pct:+.0f}% without any noise, were the {bias.law} law the truth (mostly: {cause}); "
        f"least off is the {bias.least.method} reading, by {bias.least.params_pct:+.1f}%."
    ]


def _kind(reason: str) -> str:
    """The sort of an exclusion, without its row's own numbers."""
    if "standard errors" in reason:
        return "far from what the others say"
    if reason.startswith("status is "):
        return reason.removeprefix("status is ")
    if "tokens a parameter" in reason:
        return "with too few tokens a parameter"
    if reason.endswith("steps") or " steps, " in reason:
        return "with too few steps"
    return "duplicated" if reason.startswith("an exact copy") else "without a finite loss"
