"""The figures that say how far to trust the laws: what they leave unexplained, and how they did before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from analysis.report import theme, words
from analysis.report.axes import (
    NARROW,
    RASTER,
    compute_x,
    dots,
    label_ends,
    legend,
    log_x,
    panels,
    percent_y,
    widen,
)
from analysis.report.drawing import TARGETS_LABELLED, Drawing, colour_key, scatter
from analysis.report.theme import INK, MUTED, PAPER, TARGET
from analysis.values import Analysis, BacktestRow, LawFit, Status, latest

MANY = 150
"""Backtests from which points are small and their intervals faint."""


def fit_residuals(analysis: Analysis) -> Drawing | None:
    """What each law leaves, in % of the loss, against compute."""
    fits = analysis.fits
    if not fits:
        return None
    columns = 2 if len(fits) in (2, 4) else min(3, len(fits))
    rows = -(-len(fits) // columns)
    figure, cells = panels(columns, height=2.7 * rows + 0.3, rows=rows, share_y=True)
    for axes, fit in zip(cells, fits, strict=False):
        percent_y(axes)
        scatter(axes, analysis, fit.run_ids, 100 * np.expm1(fit.log_residuals))
        axes.set_title(_fit_title(fit))
        compute_x(axes, between=NARROW)
    for axes in cells[len(fits) :]:
        axes.set_visible(False)
    for axes in cells[::columns]:
        axes.set_ylabel("measured over fitted loss")
    caption = (
        f"What each law leaves of every run{colour_key(analysis)}: a trend along compute, or a bend within a "
        "budget, is something that the law does not know and that an extrapolation would carry on."
    )
    return Drawing("residuals", "Residuals of the fits", caption, figure)


def _fit_title(fit: LawFit) -> str:
    status = "" if fit.status is Status.CONVERGED else f" ({fit.status.value})"
    return f"{fit.law}: {words.percent(fit.rms_pct)} RMS{status}"


# --- laws beside one another ------------------------------------------------------------------------


def law_comparison(analysis: Analysis) -> Drawing | None:
    """What each law says of the dearest target, give or take what it was off by in the backtests."""
    prediction = next(iter(latest(analysis.predictions)[-1:]), None)
    if prediction is None or len(prediction.by_law) < 2:
        return None
    records = {record.law: record for record in analysis.records}
    rows = [*reversed(prediction.by_law.items()), ("combined", prediction.loss)]
    figure, (axes,) = panels(1, height=1.2 + 0.32 * len(rows))
    for place, (law, loss) in enumerate(rows):
        record, last = records.get(law), law == "combined"
        colour = TARGET if last else INK
        if last:
            ends = [[loss - prediction.lo90], [prediction.hi90 - loss]]
            axes.errorbar(loss, place, xerr=ends, color=colour, lw=1.6, capsize=4, capthick=1.6)
        elif record:
            reach = loss * record.error_pct / 100
            axes.plot([loss - reach, loss + reach], [place, place], color=MUTED, lw=3.5, alpha=0.6)
        heavy = last or prediction.weights.get(law, 0.0) > 0
        dots(axes, [loss], [place], ms=6.5, mfc=colour if heavy else PAPER, mec=colour, mew=1.2, zorder=4)
        said = f"{words.loss(loss, 3)}; " + (
            f"backtests {words.percent(record.error_pct)} off" if record else "no backtest"
        )
        style = {"xycoords": axes.get_yaxis_transform(), "va": "center", "color": colour, "fontsize": 8.5}
        axes.annotate(said, (1.01, place), **style)
    if prediction.measured is not None:
        axes.axvline(prediction.measured.loss, color=TARGET, lw=1.0, ls=(0, (2, 2)))
        measured = prediction.measured.loss
        place = {"xytext": (5, 0), "textcoords": "offset points", "va": "top"}
        text, top = f"measured {words.loss(measured, 3)}", len(rows) - 0.4
        axes.annotate(text, (measured, top), **place, color=TARGET, fontsize=8.5)
    axes.set_yticks(range(len(rows)), [*(law for law, _ in rows[:-1]), "prediction"])
    axes.set_ylim(-0.6, len(rows) - 0.3)
    axes.set_xlabel("predicted loss of the target, nats a token")
    caption = (
        f"What each law says of the target of {words.flops(prediction.target.flops)} FLOPs, the grey bar as "
        "far to each side as it was off in backtests on average; filled dots predict, and the top "
        "row is the prediction with its 90% interval: laws far apart mean that the form of the law decides"
    )
    return Drawing("law-comparison", "What each law says of the target", f"{caption}.", figure)


# --- backtests ------------------------------------------------------------------------------------


def backtest_errors(analysis: Analysis) -> Drawing | None:
    """Signed error of every combined backtest against how far it extrapolated, with the measured targets;
    beside it each law's mean error, band by band of distance."""
    rows = [row for row in analysis.backtests if row.law == "combined"]
    if not rows:
        return None
    figure, (left, right) = panels(2, height=4.0, widths=(1.7, 1))
    percent_y(left)
    shift = _shifts(rows)
    inside = [row for row in rows if row.inside]
    outside = [row for row in rows if not row.inside]
    few = len(rows) <= MANY
    for own, face, label in ((inside, TARGET, "inside its interval"), (outside, PAPER, "outside")):
        if own:
            size, edge = (5, 1.1) if few else (3, 0.6)
            style = {"ms": size, "mfc": face, "mec": TARGET, "mew": edge, "zorder": 4}
            errors = [100 * np.expm1(row.log_error) for row in own]
            dots(left, _abreast(own, shift), errors, **style, label=label)
            _intervals(left, own, shift, alpha=0.45 if few else 0.15)
    scored = [p for p in latest(analysis.predictions) if p.measured and p.extrapolation]
    if scored:
        style = {"marker": "*", "ms": 11 if len(scored) <= TARGETS_LABELLED else 6, "mfc": INK, "mec": PAPER}
        at = [p.extrapolation for p in scored], [p.measured.error_pct for p in scored]
        dots(left, *at, **style, mew=0.5, zorder=5, label="target, measured")
    log_x(left, "C of the run over that of the dearest run fitted", words.factor)
    left.set_ylabel("predicted over measured loss")
    legend(left, columns=3)
    _errors_by_distance(right, analysis)
    held = sum(record.inside or 0 for record in analysis.records if record.law == "combined")
    caption = (
        "Left, runs predicted from cheaper runs alone, as targets are: the error to expect at a distance; "
        f"{held:,} of {len(rows):,} measured losses lay in the interval (bars that cross zero); right, the "
        "mean error of each law alone: one that stays low as the distance grows extrapolates well"
    )
    return Drawing("backtests", "Backtests", f"{caption}.", figure)


def _errors_by_distance(axes: Axes, analysis: Analysis) -> None:
    records, ends = analysis.records_by_distance, []
    by_law = {record.law: [r for r in records if r.law == record.law] for record in records}
    errors = {law: [record.error_pct for record in own] for law, own in by_law.items()}
    alone = next((law for law in errors if law != "combined" and errors[law] == errors.get("combined")), None)
    if alone:  # it predicts by itself: one line, in the colour of the prediction
        del by_law["combined"]
    for i, (law, own) in enumerate(by_law.items()):
        x = [np.sqrt(record.nearest * record.farthest) for record in own]
        y = errors[law]
        last = law in ("combined", alone)
        colour = TARGET if last else theme.LAWS[i % len(theme.LAWS)]
        marker = "o" if last else "sD^vPX"[i % 6]
        axes.plot(x, y, color=colour, marker=marker, ms=5 if last else 4, lw=2.0 if last else 1.2)
        ends.append((x[-1], y[-1], law, colour))
    log_x(axes, "C over that of the dearest run fitted", words.factor)
    axes.set_ylabel("mean error, % of the loss")
    axes.set_ylim(bottom=0)
    widen(axes, right=0.45)
    label_ends(axes, ends)


def _intervals(
    axes: Axes, rows: Sequence[BacktestRow], shift: dict[tuple[float, str], float], alpha: float
) -> None:
    lo, hi = ([100 * (getattr(row, end) / row.measured - 1) for row in rows] for end in ("lo90", "hi90"))
    axes.vlines(
        _abreast(rows, shift), lo, hi, color=TARGET, lw=0.8, alpha=alpha, rasterized=len(rows) > RASTER
    )


def _abreast(rows: Sequence[BacktestRow], shift: dict[tuple[float, str], float]) -> np.ndarray:
    return np.exp([row.distance + shift[row.cut_flops, row.run_id] for row in rows])


def _shifts(rows: Sequence[BacktestRow]) -> dict[tuple[float, str], float]:
    """For each (cut, run) a small shift of ln x, so that the runs at one distance stand side by side."""
    cells: dict[float, dict[tuple[float, str], None]] = {}
    for row in rows:
        cells.setdefault(round(row.distance, 1), {})[row.cut_flops, row.run_id] = None
    distances = [row.distance for row in rows]
    half_width = 0.03 * max(1.0, max(distances) - min(distances))
    return {
        key: half_width * place
        for cell in cells.values()
        for key, place in zip(cell, np.linspace(-1, 1, len(cell) + 2)[1:-1], strict=True)
    }
