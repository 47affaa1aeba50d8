"""The figures: Analysis -> drawings, each with one sentence on what to see."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from analysis.laws import LAWS
from analysis.report import checks, theme, words
from analysis.report.axes import (
    NARROW,
    Label,
    compute_x,
    dots,
    label_ends,
    legend,
    log_x,
    log_y,
    loss_y,
    note,
    panels,
    widen,
)
from analysis.report.drawing import Drawing, budget_colours, colour_key, compute_span, scatter
from analysis.report.headline import latest_predictions
from analysis.report.theme import ACCENT, INK, MUTED, PAPER, TARGET
from analysis.values import Allocation, Analysis, Isoflop, Prediction

NAMES = ("loss-against-compute", "isoflop-curves", "optimal-allocation", "residuals", "backtests")

TALLEST = 1.15
"""Runs that no fit used are drawn up to this multiple of the largest fitted loss."""

TARGETS_LABELLED = 3
"""With more targets than this only the dearest one's losses are written beside it."""

BUDGETS_LABELLED = 14
"""With more budgets than this their labels would cover each other; every second or third has one."""

DOTTED, DASHED = (0, (1, 2)), (0, (3, 2))
OPTIMUM = {"marker": "D", "ms": 5.5, "mfc": PAPER, "mec": INK, "mew": 1.2, "zorder": 4}


def draw(analysis: Analysis) -> list[Drawing]:
    """Every figure that these data have something to show in, in reading order."""
    with matplotlib.rc_context(theme.RC):
        drawings = [
            loss_against_compute(analysis),
            isoflop_curves(analysis),
            optimal_allocation(analysis),
            checks.fit_residuals(analysis),
            checks.backtest_errors(analysis),
        ]
        drawn = [drawing for drawing in drawings if drawing is not None]
        for drawing in drawn:
            drawing.figure.draw_without_rendering()
            drawing.figure.set_layout_engine("none")  # the layout stands: not again for every file
    return drawn


# --- loss against compute -------------------------------------------------------------------------


def loss_against_compute(analysis: Analysis) -> Drawing | None:
    """All runs, their envelope, the law and its interval, the targets as predicted and as measured."""
    runs, envelope, predictions = analysis.runs, analysis.envelope, latest_predictions(analysis)
    if not len(runs):
        return None
    figure, (axes,) = panels(1, height=4.7)
    scatter(axes, analysis, runs.run_id, runs.loss)
    if len(envelope.flops):
        axes.plot(
            envelope.flops, envelope.loss, color=INK, lw=1.0, label="envelope: no cheaper run is better"
        )
    law = _law_curve(axes, analysis)
    for prediction in predictions:
        _target(
            axes, prediction, labelled=len(predictions) <= TARGETS_LABELLED or prediction is predictions[-1]
        )
    _unused(axes, analysis)
    compute_x(axes)
    loss_y(axes)
    if law or predictions:
        dearest = runs.flops.max()
        axes.axvline(dearest, color=MUTED, lw=0.7, ls=(0, (2, 3)))
        note(axes, dearest, "fitted", side=-1)
        note(axes, dearest, "extrapolated", side=1)
    legend(axes, columns=3)
    caption = f"Each dot is a run{colour_key(analysis)}; the line through the lowest is the envelope"
    if law:
        caption += f", and the blue line {law}"
    if predictions:
        caption += "; the bar is the prediction with its 90% interval"
    if any(p.measured for p in predictions):
        caption += ", the star what the target run then measured"
    return Drawing("loss-against-compute", "Loss against compute", f"{caption}.", figure)


def _law_curve(axes: Axes, analysis: Analysis) -> str:
    """Draw the frontier, for want of one the law of compute alone; what it is, in words ("" for none)."""
    frontier = analysis.frontier
    if frontier is not None:
        axes.fill_between(frontier.flops, frontier.lo90, frontier.hi90, color=ACCENT, alpha=0.16, lw=0)
        axes.plot(
            frontier.flops, frontier.loss, color=ACCENT, label="law at the optimal N and D, 90% interval"
        )
        return "the fitted law at the compute-optimal N and D, with the 90% interval of a new run"
    for fit in analysis.fits:
        if fit.variables == ("flops",):
            span = compute_span(analysis)
            axes.plot(span, LAWS[fit.law].loss_at(fit.values, flops=span), color=ACCENT, label=fit.equation)
            return f"the law {fit.equation}, which has no interval here"
    return ""


def _target(axes: Axes, prediction: Prediction, labelled: bool) -> None:
    x, loss = prediction.target.flops, prediction.loss
    ends = [[loss - prediction.lo90], [prediction.hi90 - loss]]
    width, cap, star = (1.6, 5, 13) if labelled else (0.9, 2, 7)
    bar = {"lw": width, "capthick": width, "capsize": cap, "ms": 2 * cap}
    axes.errorbar(x, loss, yerr=ends, color=TARGET, marker="_", zorder=5, **bar)
    text = f"predicted {words.loss(loss, 3)}"
    if prediction.measured is not None:
        look = {"marker": "*", "ms": star, "mfc": TARGET, "mec": PAPER, "mew": 0.8, "zorder": 6}
        dots(axes, [x], [prediction.measured.loss], **look)
        text += f"\nmeasured {words.loss(prediction.measured.loss, 3)}"
    if not labelled:
        return
    place = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "va": "bottom"}
    axes.annotate(text, (x, prediction.hi90), color=TARGET, fontweight="bold", **place)


def _unused(axes: Axes, analysis: Analysis) -> None:
    """Crosses for the runs left out; those far above the others are counted, not drawn, so that one
    broken run does not flatten the figure."""
    unused = {exclusion.run_id for exclusion in analysis.exclusions}
    rows = [row for row in analysis.rows if row.run_id in unused and row.role != "holdout"]
    points = np.array([(row.flops, row.loss) for row in rows if row.flops and row.loss], dtype=float).reshape(
        -1, 2
    )
    points = points[np.isfinite(points).all(axis=1)]
    shown = points[points[:, 1] <= TALLEST * analysis.runs.loss.max()]
    if len(points):
        beyond = f" ({len(points) - len(shown)} beyond the top)" if len(shown) < len(points) else ""
        label = f"not used in any fit{beyond}"
        dots(axes, shown[:, 0], shown[:, 1], marker="x", ms=4.5, mew=1.0, color=MUTED, label=label)


# --- IsoFLOP curves -------------------------------------------------------------------------------


def isoflop_curves(analysis: Analysis) -> Drawing | None:
    """Approach 2: loss against N within each budget, the fitted parabolas and their minima."""
    isoflops = analysis.isoflops
    if not isoflops:
        return None
    figure, (axes,) = panels(1, height=4.7)
    colours = budget_colours(analysis)
    for isoflop in isoflops:
        dots(axes, isoflop.params, isoflop.loss, ms=4.5, color=colours[isoflop.group], mec=PAPER, mew=0.5)
    axes.set(xscale="log", yscale="log")
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # by the runs: an interval may be without end
    for isoflop in isoflops:
        _parabola(axes, isoflop, colours[isoflop.group])
    log_x(axes, f"N, {words.parameters(analysis.params_kind)}", words.tick_count)
    loss_y(axes)
    widen(axes, right=0.16)
    shown = isoflops[:: -(-len(isoflops) // BUDGETS_LABELLED)]
    label_ends(axes, [_budget_label(isoflop, colours[isoflop.group]) for isoflop in shown])
    bracketed = sum(isoflop.bracketed for isoflop in isoflops)
    caption = (
        "Runs of one compute budget (FLOPs at the right end) share a colour; the diamond is the minimum of "
        f"their parabola, the bar across it its 90% interval, as far as the frame: {bracketed} of "
        f"{words.plural(len(isoflops), 'budget')} have their minimum between sizes that were run"
    )
    if bracketed < len(isoflops):
        caption += "; dashed, those that have not"
    return Drawing("isoflop-curves", "Loss against size within each budget", f"{caption}.", figure)


def _parabola(axes: Axes, isoflop: Isoflop, colour: str) -> None:
    optimum = isoflop.params_opt
    if np.isfinite(isoflop.coefficients).all():
        reach = [*isoflop.params, *([optimum.value] if optimum else [])]
        params = np.geomspace(min(reach), max(reach), 80)
        axes.plot(params, isoflop.loss_at(params), color=colour, ls="-" if isoflop.bracketed else DASHED)
    if optimum is not None:
        axes.plot([optimum.lo, optimum.hi], [isoflop.loss_min] * 2, color=colour, lw=1.0, alpha=0.7)
        dots(axes, [optimum.value], [isoflop.loss_min], **OPTIMUM)


def _budget_label(isoflop: Isoflop, colour: str) -> Label:
    text = words.flops(isoflop.flops) + ("" if isoflop.bracketed else ", not bracketed")
    return isoflop.params[-1], isoflop.loss[-1], text, colour


# --- optimal size and data ------------------------------------------------------------------------


def optimal_allocation(analysis: Analysis) -> Drawing | None:
    """Optimal N and D against C by each approach, with published slopes through their middle."""
    if not analysis.allocations:
        return None
    figure, (left, right) = panels(2, height=4.3)
    _allocation(left, analysis, "params", "a")
    _allocation(right, analysis, "tokens", "b")
    caption = "How size (left) and data (right) should grow with compute: solid lines are fitted here"
    if analysis.published:
        caption += ", dotted ones have the published slopes, drawn through the middle of ours"
    if analysis.predictions:
        caption += "; a star is the target"
    return Drawing("optimal-allocation", "Optimal size and data against compute", f"{caption}.", figure)


def _allocation(axes: Axes, analysis: Analysis, what: str, exponent: str) -> None:
    """One panel: `what` is "params" or "tokens", `exponent` the name of its exponent, "a" or "b"."""
    envelope, span = analysis.envelope, compute_span(analysis)
    if len(envelope.flops):
        dots(
            axes,
            envelope.flops,
            getattr(envelope, what),
            marker=".",
            ms=4,
            color=MUTED,
            label="envelope runs",
        )
    minima = [isoflop for isoflop in analysis.isoflops if isoflop.params_opt is not None]
    if minima:
        optima = [i.params_opt.value if what == "params" else i.tokens_opt for i in minima]
        dots(axes, [i.flops for i in minima], optima, **OPTIMUM, label="IsoFLOP minima")
    for allocation in analysis.allocations:
        name = f"approach {allocation.approach}: {exponent} = {getattr(allocation, exponent).value:.2f}"
        axes.plot(
            span,
            getattr(allocation, f"{what}_at")(span),
            color=theme.LAWS[allocation.approach - 1],
            lw=1.4,
            label=name,
        )
    ends = _published_slopes(axes, analysis, what, exponent, span)
    for prediction in latest_predictions(analysis):
        star = {"marker": "*", "ms": 11, "mfc": PAPER, "mec": TARGET, "zorder": 5}
        dots(axes, [prediction.target.flops], [getattr(prediction.target, what)], **star)
    compute_x(axes, between=NARROW)
    label = (
        f"optimal N, {words.parameters(analysis.params_kind)}"
        if what == "params"
        else "optimal D, training tokens"
    )
    log_y(axes, label, words.tick_count)
    widen(axes, right=0.3)
    label_ends(axes, ends)
    legend(axes, columns=2)


def _published_slopes(
    axes: Axes, analysis: Analysis, what: str, exponent: str, span: np.ndarray
) -> list[Label]:
    """One dotted line for each paper; where it ends, and its label."""
    reference = _reference(analysis.allocations)
    middle = float(np.sqrt(span[0] * analysis.runs.flops.max()))
    anchor = getattr(reference, f"{what}_at")(middle)
    ends = []
    for who in dict.fromkeys(row.who for row in analysis.published):
        rows = [row for row in analysis.published if row.who == who]
        row = next((row for row in rows if str(reference.approach) in row.approach), rows[0])
        slope = getattr(row, exponent)
        line = anchor * (span / middle) ** slope
        axes.plot(span, line, color=MUTED, lw=1.1, ls=DOTTED)
        ends.append((span[-1], line[-1], f"{who.split()[0]} {slope:.2f}", MUTED))
    return ends


def _reference(allocations: Sequence[Allocation]) -> Allocation:
    """The allocation that published slopes are drawn through: approach 2 where there is one."""
    return next((a for a in allocations if a.approach == 2), allocations[0])
