"""The section on learning rates: loss against rate for each width, the optima, and how far they drift."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from analysis.rates import several_batches
from analysis.report import tables, theme, words
from analysis.report.axes import Label, dots, label_ends, log_x, loss_y, panels, widen
from analysis.report.drawing import OPTIMUM, Drawing
from analysis.report.theme import INK, PAPER
from analysis.values import Analysis, Estimate, RateCurve, RateDrift

NAME = "loss-against-rate"

PANELS_DRAWN, CURVES_DRAWN = 4, 8
"""Panels, and curves in one; more would cover each other. The table has all."""

TALLEST = 1.12
"""Losses are drawn up to this multiple of the worst width's best. Assumption: what lies higher, at rates
close to divergence, would flatten every minimum."""


def loss_against_rate(analysis: Analysis) -> Drawing | None:
    """One panel for each parametrisation, batch and token count, one curve for each width."""
    if analysis.rates is None:
        return None
    sets: dict[tuple, list[RateCurve]] = {}
    for curve in analysis.rates.curves:
        sets.setdefault(curve.alike, []).append(curve)
    drawn = sorted(sets.values(), key=len, reverse=True)[:PANELS_DRAWN]
    rows = -(-len(drawn) // 2)
    comparable = len({curve.alike[1:] for curves in drawn for curve in curves}) == 1
    figure, axes = panels(min(2, len(drawn)), height=4.3 * rows, rows=rows, share_y=comparable)
    for panel, curves in zip(axes, drawn, strict=False):
        _panel(panel, curves)
        if several_batches(analysis.rates):
            batch, tokens = words.count(curves[0].batch_tokens), words.count(curves[0].tokens)
            panel.set_title(f"batch of {batch}, D = {tokens}")
    for empty in axes[len(drawn) :]:
        empty.set_visible(False)
    caption = (
        "Each curve is one width on the same tokens, batch and data order; diamonds are the minima of the "
        "parabolas through the rates around the best, bars their 90% intervals: where widths share an "
        "optimal rate, they stand above one another"
    )
    if len(drawn) < len(sets) or any(len(curves) > CURVES_DRAWN for curves in drawn):
        caption += "; not every curve is drawn, the table below has all"
    return Drawing(NAME, "Loss against peak learning rate", f"{caption}.", figure)


def _panel(axes: Axes, curves: Sequence[RateCurve]) -> None:
    picked = sorted({round(i) for i in np.linspace(0, len(curves) - 1, min(len(curves), CURVES_DRAWN))})
    curves = [curves[i] for i in picked]
    shades = theme.sequential(len(curves))
    top = TALLEST * max(curve.loss.min() for curve in curves)
    ends: list[Label] = []
    for curve, shade in zip(curves, shades, strict=True):
        shown = curve.loss <= top
        axes.plot(
            curve.rates[shown], curve.loss[shown], color=shade, lw=1.2, marker="o", ms=4.5, mec=PAPER, mew=0.5
        )
        last = np.flatnonzero(shown)[-1]
        ends.append((curve.rates[last], curve.loss[last], _name(curve), shade))
    axes.set_xscale("log")
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # by the runs: an interval may be without end
    for curve in curves:
        if curve.optimum is not None:
            _optimum(axes, curve)
    log_x(axes, f"peak learning rate{f' under {curves[0].param}' if curves[0].param else ''}", words.number)
    loss_y(axes)
    widen(axes, right=0.25)
    label_ends(axes, ends)


def _optimum(axes: Axes, curve: RateCurve) -> None:
    optimum = curve.optimum
    at = 2.0**optimum.value
    lowest = float(curve.loss_at(at))
    if math.isfinite(optimum.lo) and math.isfinite(optimum.hi):
        axes.plot([2.0**optimum.lo, 2.0**optimum.hi], [lowest] * 2, color=INK, lw=0.9, alpha=0.6)
    dots(axes, [at], [lowest], **OPTIMUM)


def _name(curve: RateCurve) -> str:
    name = f"width {curve.width:g}" if curve.width else f"N={words.count(curve.params)}"
    return name if curve.bracketed else f"{name}, not bracketed"


def optima(analysis: Analysis) -> tables.Table | None:
    """The optimal rate of each shape."""
    if analysis.rates is None:
        return None
    headings = ("|parametrisation", "width", "layers", "N", "D", "batch", "rates", "best rate")
    headings = (*headings, "optimal rate", "90% interval", "± octaves", "loss there", "an octave off", "|remark")
    study = analysis.rates
    told = several_batches(study)
    known = "unknown" if study.noise_pct is None else words.percent(study.noise_pct)
    note = (
        f"Optimal rate: minimum of a parabola in log2 of the rate. One run's loss by chance: {known}, read "
        f"from {study.noise_from}. An octave off: what a rate twice or half the optimum adds to the loss."
    )
    shown = study.curves[: tables.ROWS_SHOWN]
    if len(shown) < len(study.curves):
        note = (
            f"The first {len(shown)} of {len(study.curves):,}; fits.json beside this report has all. {note}"
        )
    rows = (_row(curve, told) for curve in shown)
    return tables.table("Optimal rate of each width", headings, rows, note)


def _row(curve: RateCurve, told: bool) -> tuple[str, ...]:
    optimum, found = curve.optimum, (words.NONE,) * 5
    if optimum is not None:
        interval = f"[{_rate(optimum.lo)}, {_rate(optimum.hi)}]" if math.isfinite(optimum.se) else words.NONE
        lowest = float(curve.loss_at(2.0**optimum.value))
        found = (
            _rate(optimum.value),
            interval,
            _octaves(optimum.se),
            words.loss(lowest),
            words.percent(curve.penalty_pct),
        )
    width = words.NONE if curve.width is None else f"{curve.width:g}"
    layers = words.NONE if curve.layers is None else f"{curve.layers:g}"
    where = (curve.param, width, layers, words.count(curve.params), words.count(curve.tokens))
    return (*where, _batch(curve, told), str(len(curve.rates)), words.number(curve.best), *found, curve.reason)


def _batch(of: RateCurve | RateDrift, told: bool) -> str:
    """Where all have one batch the column is left out."""
    return words.count(of.batch_tokens) if told else words.NONE


def _rate(log2_rate: float) -> str:
    return f"{2.0**log2_rate:.3g}" if math.isfinite(log2_rate) else "none"


def _octaves(value: float, signed: bool = False) -> str:
    return f"{value:{'+' if signed else ''}.2f}" if math.isfinite(value) else words.NONE


def drifts(analysis: Analysis) -> tables.Table | None:
    """Whether the optimal rate transfers, for each parametrisation."""
    found = analysis.rates.drifts if analysis.rates else ()
    headings = (
        "|parametrisation",
        "D",
        "batch",
        "widths",
        "optima",
        "octaves a doubling",
        "over these widths",
        "over 8×",
    )
    headings = (*headings, "cost at the widest", "|verdict")
    if not found:
        return None
    note = (
        "Drift of the optimal rate, in octaves (log2), by a line through the optima of all widths, with "
        f"its 90% interval; at most {words.number(found[0].allowed)} over 8x width counts as none. "
        "Cost: what the widest loses at the narrowest's optimal rate. "
        "Yang et al. 2022 (arXiv 2203.03466), figure 1, find none under μP."
    )
    rows = (_drift(drift, several_batches(analysis.rates)) for drift in found)
    return tables.table("Drift of the optimal rate with the width", headings, rows, note)


def _drift(drift: RateDrift, told: bool) -> tuple[str, ...]:
    return (
        drift.param,
        words.count(drift.tokens),
        _batch(drift, told),
        f"{drift.widths[0]:g} to {drift.widths[1]:g}",
        str(drift.curves),
        *map(_with_ends, (drift.per_octave, drift.over_range, drift.over_8x)),
        words.percent(drift.cost_pct),
        drift.says,
    )


def _with_ends(value: Estimate) -> str:
    said = _octaves(value.value, signed=True)
    ends = f" [{_octaves(value.lo, True)}, {_octaves(value.hi, True)}]" if math.isfinite(value.se) else ""
    return said + ends
