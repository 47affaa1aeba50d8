"""The figures: Analysis -> drawings, each with one sentence on what to see."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from analysis.laws import LAWS
from analysis.report import checks, findings, optimum, rates, theme, words
from analysis.report.axes import (
    Label,
    compute_x,
    dots,
    label_ends,
    legend,
    log_x,
    loss_y,
    note,
    panels,
    widen,
)
from analysis.report.drawing import (
    OPTIMUM,
    TARGETS_LABELLED,
    Drawing,
    budget_colours,
    colour_key,
    compute_span,
    scatter,
)
from analysis.report.theme import ACCENT, GROUND, INK, MUTED, PAPER, TARGET
from analysis.values import Analysis, Isoflop, Prediction, latest

NAMES = (
    "loss-against-compute",
    "law-comparison",
    "isoflop-curves",
    "contours",
    "optimal-allocation",
    "residuals",
    "backtests",
    rates.NAME,
)

TALLEST = 1.15
"""Runs that no fit used are drawn up to this multiple of the largest fitted loss."""

BARS_DRAWN = 60
"""With more targets or backtests than this their intervals would run together: only points are drawn."""

BUDGETS_DRAWN = 12
"""With more budgets than this their curves would cover each other; these many, spread evenly, are drawn."""

DASHED = (0, (3, 2))


def draw(analysis: Analysis) -> list[Drawing]:
    """Every figure that these data have something to show in, in reading order."""
    with matplotlib.rc_context(theme.RC):
        drawings = [
            loss_against_compute(analysis),
            checks.law_comparison(analysis),
            isoflop_curves(analysis),
            optimum.contours(analysis),
            optimum.allocation(analysis),
            checks.fit_residuals(analysis),
            checks.backtest_errors(analysis),
            rates.loss_against_rate(analysis),
            *findings.drawings(analysis),
        ]
        drawn = [drawing for drawing in drawings if drawing is not None]
        for drawing in drawn:
            drawing.figure.draw_without_rendering()
            drawing.figure.set_layout_engine("none")  # the layout stands: not again for every file
    return drawn


# --- loss against compute -------------------------------------------------------------------------


def loss_against_compute(analysis: Analysis) -> Drawing | None:
    """All runs, their envelope, the law and its interval, the targets as predicted and as measured."""
    runs, envelope, predictions = analysis.runs, analysis.envelope, latest(analysis.predictions)
    if not len(runs):
        return None
    figure, (axes,) = panels(1, height=4.7)
    scatter(axes, analysis, runs.run_id, runs.loss)
    if len(envelope.flops):
        axes.plot(envelope.flops, envelope.loss, color=INK, lw=1.0, label="envelope of the runs")
    law = _law_curve(axes, analysis)
    _backtests(axes, analysis)
    for prediction in predictions:
        labelled = len(predictions) <= TARGETS_LABELLED or prediction is predictions[-1]
        _target(axes, prediction, labelled, barred=labelled or len(predictions) <= BARS_DRAWN)
    _unused(axes, analysis)
    compute_x(axes)
    loss_y(axes)
    if law or predictions:
        dearest = runs.flops.max()
        axes.axvline(dearest, color=MUTED, lw=0.7, ls=(0, (2, 3)))
        note(axes, dearest, "fitted", side=-1)
        note(axes, dearest, "extrapolated", side=1)
    legend(axes, columns=3)
    caption = f"Each dot is a run{colour_key(analysis)}; the thin line joins those that no cheaper run beats"
    if law:
        caption += f", and the blue line {law}"
    if any(row.law == "combined" for row in analysis.backtests):
        caption += "; rings are what cheaper runs alone foretold of a run (its farthest backtest)"
    if predictions:
        caption += "; the bar is the prediction with its 90% interval"
    if any(p.measured for p in predictions):
        caption += ", the star what the target run then measured"
    if len(predictions) > TARGETS_LABELLED:
        caption += f" (the dearest of {len(predictions):,} targets; small marks are the others)"
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
        if fit.variables == ("flops",) and fit.law in LAWS:
            span = compute_span(analysis)
            axes.plot(span, LAWS[fit.law].loss_at(fit.values, flops=span), color=ACCENT, label=fit.equation)
            return f"the law {fit.equation}, which has no interval here"
    return ""


def _backtests(axes: Axes, analysis: Analysis) -> None:
    """Each run as the cheapest cut that foretold it had it, with that interval."""
    farthest = {}
    for row in analysis.backtests:
        if row.law == "combined" and row.distance > getattr(farthest.get(row.run_id), "distance", -1.0):
            farthest[row.run_id] = row
    rows = list(farthest.values())
    if not rows:
        return
    x, y = [row.flops for row in rows], [row.predicted for row in rows]
    few = len(rows) <= BARS_DRAWN
    ring = {"ms": 5 if few else 3, "mfc": "none", "mec": TARGET, "mew": 0.9 if few else 0.6, "zorder": 3}
    dots(axes, x, y, **ring, alpha=1.0 if few else 0.8, label="backtests")
    if few:
        lo, hi = [row.lo90 for row in rows], [row.hi90 for row in rows]
        axes.vlines(x, lo, hi, color=TARGET, lw=0.8, alpha=0.35)


def _target(axes: Axes, prediction: Prediction, labelled: bool, barred: bool) -> None:
    """The prediction and what was measured: large and in words where `labelled`, with its interval
    where `barred`."""
    x, loss = prediction.target.flops, prediction.loss
    text = f"predicted {words.loss(loss, 3)}"
    if barred:
        width, cap = (1.6, 5) if labelled else (0.8, 2)
        bar = {"lw": width, "capthick": width, "capsize": cap, "ms": 2 * cap}
        ends = [[loss - prediction.lo90], [prediction.hi90 - loss]]
        axes.errorbar(x, loss, yerr=ends, color=TARGET, marker="_", zorder=5 if labelled else 3, **bar)
    elif prediction.measured is None:
        dots(axes, [x], [loss], marker="_", ms=4, color=TARGET)
    if prediction.measured is not None:
        look = {"marker": "*", "ms": 13, "mfc": TARGET, "mec": PAPER, "mew": 0.8, "zorder": 6}
        small = {"marker": ".", "ms": 4, "color": TARGET, "mew": 0}
        dots(axes, [x], [prediction.measured.loss], **(look if labelled else small))
        text += f"\nmeasured {words.loss(prediction.measured.loss, 3)}"
    if labelled:
        place = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "va": "bottom"}
        look = {"color": TARGET, "fontweight": "bold", "bbox": GROUND, "zorder": 7}
        axes.annotate(text, (x, prediction.hi90), **look, **place)


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
    every = sorted(analysis.isoflops, key=lambda isoflop: isoflop.flops)
    if not every:
        return None
    drawn = sorted({round(i) for i in np.linspace(0, len(every) - 1, min(len(every), BUDGETS_DRAWN))})
    isoflops = [every[i] for i in drawn]
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
    label_ends(axes, [_budget_label(isoflop) for isoflop in isoflops])
    bracketed = sum(isoflop.bracketed for isoflop in every)
    caption = (
        "Runs of one compute budget (FLOPs at the right end) share a colour; the diamond is the minimum of "
        f"their parabola, the bar across it its 90% interval as far as sizes were run: {bracketed} of "
        f"{words.plural(len(every), 'budget')} have their minimum between sizes that were run"
    )
    if bracketed < len(every):
        caption += "; dashed, those that have not"
    if len(isoflops) < len(every):
        caption += f"; {len(isoflops)} budgets are drawn, the table below has all"
    return Drawing("isoflop-curves", "Loss against size within each budget", f"{caption}.", figure)


def _parabola(axes: Axes, isoflop: Isoflop, colour: str) -> None:
    optimum = isoflop.params_opt
    if np.isfinite(isoflop.coefficients).all():
        reach = [*isoflop.params, *([optimum.value] if optimum else [])]
        params = np.geomspace(min(reach), max(reach), 80)
        axes.plot(params, isoflop.loss_at(params), color=colour, ls="-" if isoflop.bracketed else DASHED)
    if optimum is not None:
        lo, hi = max(optimum.lo, isoflop.params[0]), min(optimum.hi, isoflop.params[-1])
        ends = [[optimum.value - lo], [hi - optimum.value]]
        axes.errorbar(optimum.value, isoflop.loss_min, xerr=ends, color=INK, lw=0.9, capsize=2.5, zorder=3)
        dots(axes, [optimum.value], [isoflop.loss_min], **OPTIMUM)


def _budget_label(isoflop: Isoflop) -> Label:
    text = words.flops(isoflop.flops) + ("" if isoflop.bracketed else ", not bracketed")
    return isoflop.params[-1], isoflop.loss[-1], text, INK
