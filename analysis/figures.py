"""The figures: Analysis -> drawings, each with one sentence on what to see. Only drawing happens here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from analysis import theme, words
from analysis.laws import LAWS
from analysis.theme import ACCENT, INK, MUTED, PAPER, TARGET
from analysis.values import Allocation, Analysis, Isoflop, LawFit, Prediction

WIDTH = 8.8
"""Inches; the page's column, so that 9 points read as 12 pixels."""
RASTER = 1500
"""Points in one figure from which they are drawn as pixels: as SVG each takes some 100 bytes."""
MARKERS = ("o", "s", "D", "^")


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure with the name of its files, its title and the sentence that says what to see."""

    name: str
    title: str
    caption: str
    figure: Figure


def draw(analysis: Analysis) -> list[Drawing]:
    """Every figure that these data have something to show in, in reading order."""
    with matplotlib.rc_context(theme.RC):
        drawings = [
            loss_against_compute(analysis),
            isoflop_curves(analysis),
            optimal_allocation(analysis),
            fit_residuals(analysis),
            backtest_errors(analysis),
        ]
    return [drawing for drawing in drawings if drawing is not None]


def loss_against_compute(analysis: Analysis) -> Drawing | None:
    """All runs, their envelope, the law along the optimum and its interval, predicted and measured targets."""
    runs, envelope, predictions = analysis.runs, analysis.envelope, latest_predictions(analysis)
    if not len(runs):
        return None
    figure, (axes,) = _figure(1, height=4.7)
    _scatter_runs(axes, analysis, runs.flops, runs.loss)
    _excluded(axes, analysis)
    if len(envelope.flops):
        axes.plot(envelope.flops, envelope.loss, color=INK, lw=1.0, label="envelope: no cheaper run is better")
    law = _law_curve(axes, analysis)
    for prediction in predictions:
        _target(axes, prediction)
    _log_axes(axes, "training compute C, FLOPs", "held-out loss, nats a token")
    if law or predictions:
        axes.axvline(runs.flops.max(), color=MUTED, lw=0.7, ls=(0, (2, 3)))
        _note(axes, runs.flops.max(), 0.015, " extrapolated", ha="left")
        _note(axes, runs.flops.max(), 0.015, "fitted ", ha="right")
    axes.legend(loc="upper right")
    caption = f"Each dot is a run{_colour_key(analysis)}; the line through the lowest of them is the envelope"
    if law:
        caption += f", and the blue line {law}"
    if predictions:
        caption += "; the bar is the prediction with its 90% interval"
    if any(p.measured for p in predictions):
        caption += ", the star what the target run then measured"
    return Drawing("loss-against-compute", "Loss against compute", caption + ".", figure)


def isoflop_curves(analysis: Analysis) -> Drawing | None:
    """Approach 2: loss against N within each budget, the fitted parabolas and their minima."""
    if not analysis.isoflops:
        return None
    figure, (axes,) = _figure(1, height=4.7)
    labels = []
    colours = _budget_colours(analysis)
    for isoflop in analysis.isoflops:
        colour = colours[isoflop.group]
        axes.plot(isoflop.params, isoflop.loss, ls="", marker="o", ms=4.5, color=colour, mec=PAPER, mew=0.5)
        if np.isfinite(isoflop.coefficients).all():
            params = np.geomspace(*_parabola_range(isoflop), 80)
            axes.plot(params, isoflop.loss_at(params), color=colour, ls="-" if isoflop.bracketed else (0, (3, 2)))
        if isoflop.params_opt is not None and isoflop.loss_min is not None:
            optimum = isoflop.params_opt
            if _finite(optimum.lo, optimum.hi):
                axes.plot([optimum.lo, optimum.hi], [isoflop.loss_min] * 2, color=INK, lw=0.9)
            axes.plot(optimum.value, isoflop.loss_min, marker="D", ms=5.5, mfc=PAPER, mec=INK, mew=1.2, zorder=4)
        mark = "" if isoflop.bracketed else ", not bracketed"
        labels.append((isoflop.params[-1], isoflop.loss[-1], words.flops(isoflop.flops) + mark, colour))
    _log_axes(axes, f"parameters N, {analysis.params_kind}", "held-out loss, nats a token", x_words=words.count)
    _widen(axes, right=0.16)
    _label_ends(axes, [*labels])
    bracketed = sum(isoflop.bracketed for isoflop in analysis.isoflops)
    caption = (
        "Runs of one compute budget (FLOPs at the right end) share a colour; the diamond is the minimum of their "
        "parabola, the bar across it its 90% interval: "
        f"{bracketed} of {words.plural(len(analysis.isoflops), 'budget')} have their minimum between sizes that were run"
    )
    if bracketed < len(analysis.isoflops):
        caption += "; dashed, those that have not"
    return Drawing("isoflop-curves", "Loss against size within each budget", caption + ".", figure)


def optimal_allocation(analysis: Analysis) -> Drawing | None:
    """Optimal N and D against C by each approach, with published slopes through their middle."""
    if not analysis.allocations:
        return None
    figure, panels = _figure(2, height=4.3)
    minima = [i for i in analysis.isoflops if i.params_opt is not None and i.bracketed]
    reference = _reference(analysis.allocations)
    span = _compute_span(analysis)
    targets = latest_predictions(analysis)
    for axes, what, exponent in zip(panels, ("params", "tokens"), ("a", "b"), strict=True):
        envelope = analysis.envelope
        if len(envelope.flops):
            axes.plot(envelope.flops, getattr(envelope, what), ls="", marker=".", ms=4, color=MUTED, label="envelope runs")
        if minima:
            optima = [i.params_opt.value if what == "params" else i.tokens_opt for i in minima]
            axes.plot([i.flops for i in minima], optima, ls="", marker="D", ms=5.5, mfc=PAPER, mec=INK, zorder=4,
                      label="IsoFLOP minima")  # fmt: skip
        for allocation, colour in zip(analysis.allocations, theme.LAWS, strict=False):
            estimate = getattr(allocation, exponent)
            name = f"approach {allocation.approach}: {exponent} = {estimate.value:.2f}"
            axes.plot(span, getattr(allocation, f"{what}_at")(span), color=colour, lw=1.4, label=name)
        ends = _published_slopes(axes, analysis, reference, what, exponent, span)
        for prediction in targets:
            axes.plot(prediction.target.flops, getattr(prediction.target, what), marker="*", ms=11, ls="",
                      mfc=PAPER, mec=TARGET, zorder=5)  # fmt: skip
        unit = f"optimal N, {analysis.params_kind} parameters" if what == "params" else "optimal D, training tokens"
        _log_axes(axes, "training compute C, FLOPs", unit, y_words=words.count)
        _widen(axes, right=0.2)
        _label_ends(axes, ends)
        axes.legend(loc="upper left")
    caption = "How size (left) and data (right) should grow with compute: solid lines are fitted here"
    if analysis.published:
        caption += ", dotted ones have the published slopes, drawn through the middle of ours"
    if targets:
        caption += "; a star is the target"
    return Drawing("optimal-allocation", "Optimal size and data against compute", caption + ".", figure)


def fit_residuals(analysis: Analysis) -> Drawing | None:
    """What each law leaves, in % of the loss, against compute."""
    fits = [fit for fit in analysis.fits if len(fit.run_ids)]
    if not fits:
        return None
    columns = min(3, len(fits))
    rows = -(-len(fits) // columns)
    figure, panels = _figure(columns, height=2.7 * rows + 0.3, rows=rows, share_y=True)
    place = {run_id: i for i, run_id in enumerate(analysis.runs.run_id)}
    for axes, fit in zip(panels, fits, strict=False):
        runs = analysis.runs.take(np.array([place[run_id] for run_id in fit.run_ids]))
        axes.axhline(0, color=INK, lw=0.8)
        _scatter_runs(axes, analysis, runs.flops, 100 * np.expm1(fit.log_residuals), groups=runs.group)
        axes.set_title(f"{fit.law}: {words.percent(fit.rms_pct)} RMS{_status_mark(fit)}")
        _log_axes(axes, "training compute C, FLOPs", "", y_log=False)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}%" if value else "0"))
    for axes in panels[len(fits) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("measured over fitted loss")
    caption = (
        f"What each law leaves unexplained{_colour_key(analysis)}: a trend along compute, or a bend within a budget, "
        "is something that the law does not know and that an extrapolation would carry on."
    )
    return Drawing("residuals", "Residuals of the fits", caption, figure)


def backtest_errors(analysis: Analysis) -> Drawing | None:
    """Signed error of every backtest against how far it extrapolated."""
    rows = analysis.backtests
    if not rows:
        return None
    figure, (axes,) = _figure(1, height=4.0)
    axes.axhline(0, color=INK, lw=0.8)
    laws = [law for law in dict.fromkeys(row.law for row in rows) if law != "combined"]
    raster = len(rows) > RASTER
    for law, colour, marker in zip(laws, theme.LAWS * 4, MARKERS * 4, strict=False):
        own = [row for row in rows if row.law == law]
        axes.plot([np.exp(row.distance) for row in own], [100 * np.expm1(row.log_error) for row in own], ls="",
                  marker=marker, ms=3.2, color=colour, alpha=0.55, label=f"{law} alone", rasterized=raster)  # fmt: skip
    combined = [row for row in rows if row.law == "combined"]
    for inside, face, label in ((True, TARGET, "combined, inside its interval"), (False, PAPER, "combined, outside")):
        own = [row for row in combined if bool(row.inside) is inside]
        if not own:
            continue
        x, measured = np.exp([row.distance for row in own]), np.array([row.measured for row in own])
        lo, hi = (100 * (np.array([getattr(row, end) for row in own], dtype=float) / measured - 1) for end in ("lo90", "hi90"))
        axes.vlines(x, lo, hi, color=TARGET, lw=0.8, alpha=0.45, rasterized=raster)
        axes.plot(x, [100 * np.expm1(row.log_error) for row in own], ls="", marker="o", ms=5, mfc=face, mec=TARGET,
                  mew=1.1, label=label, zorder=4, rasterized=raster)  # fmt: skip
    _log_axes(axes, "extrapolation: compute of the run over that of the dearest run fitted", "", y_log=False,
              x_words=words.factor)  # fmt: skip
    axes.set_ylabel("predicted over measured loss")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}%" if value else "0"))
    axes.legend(loc="best")
    caption = "Runs that were predicted from cheaper runs alone: the error to expect at a distance"
    if combined:
        inside = sum(bool(row.inside) for row in combined)
        caption += f"; {inside} of {len(combined)} combined predictions hold the measured loss in their 90% interval (bars that cross zero)"
    return Drawing("backtests", "Backtests: how wrong earlier predictions would have been", caption + ".", figure)


def latest_predictions(analysis: Analysis) -> list[Prediction]:
    """The last prediction made for each target, cheapest target first."""
    by_target = {}
    for prediction in sorted(analysis.predictions, key=lambda p: p.created):
        by_target[prediction.target] = prediction
    return sorted(by_target.values(), key=lambda p: p.target.flops)


def _figure(columns: int, height: float, rows: int = 1, share_y: bool = False) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, sharey=share_y, squeeze=False).ravel())


def _budget_colours(analysis: Analysis) -> dict[str, str]:
    """Budgets from the cheapest to the dearest along the sequential scale."""
    groups = [isoflop.group for isoflop in sorted(analysis.isoflops, key=lambda i: i.flops)]
    return dict(zip(groups, theme.sequential(len(groups)), strict=True)) if groups else {}


def _colour_key(analysis: Analysis) -> str:
    return ", coloured by its compute budget" if analysis.isoflops else ""


def _scatter_runs(axes: Axes, analysis: Analysis, x: np.ndarray, y: np.ndarray, groups: Sequence[str] = ()) -> None:
    colours = _budget_colours(analysis)
    by_run = np.array([colours.get(group, MUTED) for group in (groups or analysis.runs.group)])
    for colour in (MUTED, *colours.values()):
        own = by_run == colour
        if own.any():
            axes.plot(x[own], y[own], ls="", marker="o", ms=4 if len(x) < 200 else 2.5, color=colour, alpha=0.85,
                      mew=0, rasterized=len(x) > RASTER)  # fmt: skip


def _excluded(axes: Axes, analysis: Analysis) -> None:
    excluded = {exclusion.run_id for exclusion in analysis.exclusions}
    rows = [r for r in analysis.rows if r.run_id in excluded and r.role != "holdout" and r.flops and r.loss]
    rows = [row for row in rows if _finite(row.flops, row.loss)]
    if rows:
        axes.plot([row.flops for row in rows], [row.loss for row in rows], ls="", marker="x", ms=4.5, mew=1.0, color=MUTED,
                  label="not used in any fit", rasterized=len(rows) > RASTER)  # fmt: skip


def _law_curve(axes: Axes, analysis: Analysis) -> str:
    """Draw the frontier, or for want of one the law of compute alone; what it is, in words ("" for none)."""
    frontier = analysis.frontier
    if frontier is not None:
        axes.fill_between(frontier.flops, frontier.lo90, frontier.hi90, color=ACCENT, alpha=0.16, lw=0)
        axes.plot(frontier.flops, frontier.loss, color=ACCENT, label="law at the optimal N and D, 90% interval")
        return "the fitted law at the compute-optimal N and D, with the 90% interval of a new run"
    for fit in analysis.fits:
        if fit.variables == ("flops",):
            span = _compute_span(analysis)
            axes.plot(span, LAWS[fit.law].loss_at(fit.values, flops=span), color=ACCENT, label=fit.equation)
            return f"the law {fit.equation}, without an interval"
    return ""


def _target(axes: Axes, prediction: Prediction) -> None:
    x, loss = prediction.target.flops, prediction.loss
    axes.errorbar(x, loss, yerr=[[loss - prediction.lo90], [prediction.hi90 - loss]], color=TARGET, capsize=5, lw=1.6,
                  capthick=1.6, marker="_", ms=9, mew=1.6, zorder=5)  # fmt: skip
    text = f"predicted {words.loss(loss, 3)}"
    if prediction.measured is not None:
        axes.plot(x, prediction.measured.loss, marker="*", ms=13, mfc=TARGET, mec=PAPER, mew=0.8, ls="", zorder=6)
        text += f"\nmeasured {words.loss(prediction.measured.loss, 3)}"
    axes.annotate(text, (x, prediction.hi90), xytext=(0, 6), textcoords="offset points", ha="center", va="bottom",
                  color=TARGET, fontweight="bold")  # fmt: skip


def _parabola_range(isoflop: Isoflop) -> tuple[float, float]:
    ends = [isoflop.params.min(), isoflop.params.max()]
    if isoflop.params_opt is not None:
        ends.append(isoflop.params_opt.value)
    return min(ends), max(ends)


def _compute_span(analysis: Analysis) -> np.ndarray:
    """FLOPs from the cheapest run to the dearest run or target."""
    ends = [*analysis.runs.flops, *(p.target.flops for p in analysis.predictions)]
    return np.geomspace(min(ends), max(ends), 80)


def _reference(allocations: Sequence[Allocation]) -> Allocation:
    """The allocation that published slopes are drawn through: approach 2 where there is one."""
    return next((a for a in allocations if a.approach == 2), allocations[0])


def _published_slopes(
    axes: Axes, analysis: Analysis, reference: Allocation, what: str, exponent: str, span: np.ndarray
) -> list[tuple[float, float, str, str]]:
    """One dotted line for each paper; where it ends, and its label."""
    middle = float(np.sqrt(span[0] * analysis.runs.flops.max()))
    anchor = getattr(reference, f"{what}_at")(middle)
    ends = []
    for who in dict.fromkeys(row.who for row in analysis.published):
        rows = [row for row in analysis.published if row.who == who]
        row = next((row for row in rows if str(reference.approach) in row.approach), rows[0])
        slope = getattr(row, exponent)
        line = anchor * (span / middle) ** slope
        axes.plot(span, line, color=MUTED, lw=1.1, ls=(0, (1, 2)))
        ends.append((span[-1], line[-1], f"{who.split()[0]} {slope:.2f}", MUTED))
    return ends


def _status_mark(fit: LawFit) -> str:
    return "" if fit.status.value == "converged" else f" ({fit.status.value})"


def _finite(*values: float) -> bool:
    return bool(np.isfinite(values).all())


def _log_axes(axes: Axes, x: str, y: str, *, x_words=words.power_of_ten, y_words=None, y_log: bool = True) -> None:
    """Logarithmic axes with ticks at round numbers and none between; `y_words` None is a loss."""
    axes.set_xlabel(x)
    if y:
        axes.set_ylabel(y)
    axes.set_xscale("log")
    _log_ticks(axes.xaxis, axes.get_xlim(), x_words)
    if y_log:
        axes.set_yscale("log")
        if y_words is not None:
            _log_ticks(axes.yaxis, axes.get_ylim(), y_words)
        else:
            axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())


def _log_ticks(axis, limits: tuple[float, float], say) -> None:
    decades = np.log10(limits[1] / limits[0])
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: say(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _widen(axes: Axes, right: float) -> None:
    """Room for labels: `right` of the width, on the logarithmic x axis."""
    lo, hi = axes.get_xlim()
    axes.set_xlim(lo, hi * (hi / lo) ** right)


def _note(axes: Axes, x: float, y: float, text: str, ha: str) -> None:
    axes.text(x, y, text, transform=axes.get_xaxis_transform(), ha=ha, va="bottom", color=MUTED, fontsize=8)


def _label_ends(axes: Axes, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Write (x, y, text, colour) to the right of its point, pushed up where two would overlap."""
    axes.figure.draw_without_rendering()
    to_pixels = axes.transData.transform
    taken: list[tuple[float, float]] = []
    line = axes.figure.dpi * 11 / 72
    for x, y, text, colour in sorted(labels, key=lambda label: label[1]):
        here_x, here_y = to_pixels((x, y))
        wanted = here_y
        for other_x, other_y in taken:
            if abs(other_x - here_x) < 10 * line and abs(wanted - other_y) < line:
                wanted = other_y + line
        taken.append((here_x, wanted))
        points = (wanted - here_y) * 72 / axes.figure.dpi
        axes.annotate(text, (x, y), xytext=(7, points), textcoords="offset points", va="center", color=colour, fontsize=8.5)
