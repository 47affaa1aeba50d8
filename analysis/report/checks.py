"""The figures that say how far to trust the laws: what they leave unexplained, and how they did before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from analysis.report import theme, words
from analysis.report.axes import NARROW, RASTER, compute_x, dots, legend, log_x, panels, percent_y
from analysis.report.drawing import Drawing, colour_key, scatter
from analysis.report.theme import PAPER, TARGET
from analysis.values import Analysis, BacktestRow, LawFit, Status


def fit_residuals(analysis: Analysis) -> Drawing | None:
    """What each law leaves, in % of the loss, against compute."""
    fits = analysis.fits
    if not fits:
        return None
    columns = min(3, len(fits))
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


# --- backtests ------------------------------------------------------------------------------------


def backtest_errors(analysis: Analysis) -> Drawing | None:
    """Signed error of every backtest against how far it extrapolated."""
    rows = analysis.backtests
    if not rows:
        return None
    figure, (axes,) = panels(1, height=4.0)
    percent_y(axes)
    shift = _shifts(rows)
    laws = [law for law in dict.fromkeys(row.law for row in rows) if law != "combined"]
    for i, law in enumerate(laws):
        own = [row for row in rows if row.law == law]
        style = {"marker": "osD^"[i % 4], "ms": 3.2, "color": theme.LAWS[i % len(theme.LAWS)], "alpha": 0.55}
        _errors(axes, own, shift, **style, label=f"{law} alone")
    combined = [row for row in rows if row.law == "combined"]
    inside = [row for row in combined if row.inside]
    outside = [row for row in combined if not row.inside]
    for own, face, label in ((inside, TARGET, "inside its interval"), (outside, PAPER, "outside")):
        if own:
            style = {"ms": 5, "mfc": face, "mec": TARGET, "mew": 1.1, "zorder": 4}
            _errors(axes, own, shift, **style, label=f"combined, {label}")
            _intervals(axes, own, shift)
    log_x(axes, "extrapolation: compute of the run over that of the dearest run fitted", words.factor)
    axes.set_ylabel("predicted over measured loss")
    legend(axes, columns=5)
    caption = "Runs that were predicted from cheaper runs alone: the error to expect at a distance"
    if combined:
        caption += (
            f"; {len(inside)} of {len(combined)} combined predictions hold the measured loss in their "
            "90% interval (bars that cross zero)"
        )
    return Drawing("backtests", "Backtests", f"{caption}.", figure)


def _errors(
    axes: Axes, rows: Sequence[BacktestRow], shift: dict[tuple[float, str], float], **style: object
) -> None:
    dots(axes, _abreast(rows, shift), [100 * np.expm1(row.log_error) for row in rows], **style)


def _intervals(axes: Axes, rows: Sequence[BacktestRow], shift: dict[tuple[float, str], float]) -> None:
    lo, hi = ([100 * (getattr(row, end) / row.measured - 1) for row in rows] for end in ("lo90", "hi90"))
    axes.vlines(
        _abreast(rows, shift), lo, hi, color=TARGET, lw=0.8, alpha=0.45, rasterized=len(rows) > RASTER
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
