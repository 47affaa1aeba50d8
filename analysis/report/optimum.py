"""The figures of where to spend: contours over N and D, and the optimal N and D against compute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text

from analysis.report import theme, words
from analysis.report.axes import (
    NARROW,
    Label,
    compute_x,
    dots,
    label_ends,
    legend,
    log_x,
    log_y,
    panels,
    widen,
)
from analysis.report.drawing import OPTIMUM, TARGETS_LABELLED, Drawing, colour_key, compute_span, scatter
from analysis.report.theme import ACCENT, GROUND, MUTED, PAPER, TARGET
from analysis.values import Allocation, Analysis, Prediction, latest

DOTTED = (0, (1, 2))

WIDEST = 10.0
"""A band whose ends differ by more than this factor somewhere says nothing, and would cover the others."""

NEAR = 0.05
"""Share of the axes' width and height within which a label and a star touch."""


def contours(analysis: Analysis) -> Drawing | None:
    """L(N, D) as the laws that predict have it, the efficient frontier, and where the runs lie."""
    surface, frontier = analysis.surface, analysis.frontier
    if surface is None:
        return None
    figure, (axes,) = panels(1, height=5.0)
    axes.set(xscale="log", yscale="log")
    levels = np.exp(np.linspace(np.log(surface.loss.min()), np.log(surface.loss.max()), 16)[1:-1])
    lines = axes.contour(
        surface.params, surface.tokens, surface.loss, levels=levels, colors=[MUTED], linewidths=0.7
    )
    digits = max(1, 2 - int(np.floor(np.log10(levels[0]))))
    axes.clabel(lines, levels[::2], fmt=lambda loss: f"{loss:.{digits}f}", fontsize=8, inline=False)
    scatter(axes, analysis, analysis.runs.run_id, analysis.runs.tokens, x=analysis.runs.params)
    if frontier is not None:
        axes.plot(frontier.params, frontier.tokens, color=ACCENT, lw=1.8, label="efficient frontier")
    _stars(axes, latest(analysis.predictions), "params", "tokens")
    axes.set(xlim=surface.params[[0, -1]], ylim=surface.tokens[[0, -1]])
    _tell_apart(axes, lines.labelTexts, latest(analysis.predictions)[-1:])
    log_x(axes, f"N, {words.parameters(analysis.params_kind)}", words.tick_count)
    log_y(axes, "D, training tokens", words.tick_count)
    legend(axes, columns=3)
    caption = f"Along a grey line the predicted loss is the same; each dot is a run{colour_key(analysis)}"
    if frontier is not None:
        caption += "; the blue line spends every budget best, and runs far off it could have done better"
    if analysis.predictions:
        caption += f"; {_key(analysis)}: how far it lies from the dots is how far the law must carry"
    return Drawing("contours", "Loss over size and data", f"{caption}.", figure)


def _tell_apart(axes: Axes, labels: Sequence[Text], stars: Sequence[Prediction]) -> None:
    """Lift the labels of lines off what they lie on, and drop those that would lie on a star."""
    for label in labels:
        label.set(bbox=GROUND, zorder=4)
        for target in (star.target for star in stars):
            points = [label.get_position(), (target.params, target.tokens)]
            at, of_star = axes.transAxes.inverted().transform(axes.transData.transform(points))
            if np.abs(at - of_star).max() < NEAR:
                label.set_visible(False)


def _key(analysis: Analysis) -> str:
    others = len(latest(analysis.predictions)) - TARGETS_LABELLED
    return "a star is " + ("the dearest target, rings the others" if others > 0 else "a target")


def _stars(axes: Axes, predictions: Sequence[Prediction], x: str, y: str) -> None:
    """The dearest target as a star, of few targets the others too, of many as small rings."""
    for prediction in predictions:
        star = len(predictions) <= TARGETS_LABELLED or prediction is predictions[-1]
        look = {"marker": "*", "ms": 12, "mew": 1.2, "zorder": 5} if star else {"ms": 3, "mew": 0.6}
        at = [getattr(prediction.target, x)], [getattr(prediction.target, y)]
        dots(axes, *at, mfc=PAPER if star else "none", mec=TARGET, **look)


# --- optimal size and data ------------------------------------------------------------------------


def allocation(analysis: Analysis) -> Drawing | None:
    """Optimal N and D against C by each approach, with published slopes through their middle."""
    if not analysis.allocations:
        return None
    figure, (left, right) = panels(2, height=4.3)
    _allocation(left, analysis, "params", "a")
    _allocation(right, analysis, "tokens", "b")
    caption = "How size (left) and data (right) should grow with compute: solid lines are fitted here"
    if any(found.band for found in analysis.allocations):
        caption += f", with those 90% bands that stay narrower than a factor of {WIDEST:g}"
    if analysis.published:
        caption += ", dotted ones have the published slopes, drawn through the middle of ours"
    if analysis.predictions:
        caption += f"; {_key(analysis)}"
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
    for found in analysis.allocations:
        name = f"approach {found.approach}: {exponent} = {getattr(found, exponent).value:.2f}"
        axes.plot(
            span,
            getattr(found, f"{what}_at")(span),
            color=theme.LAWS[found.approach - 1],
            lw=1.4,
            label=name,
        )
    ends = _published_slopes(axes, analysis, what, exponent, span)
    _stars(axes, latest(analysis.predictions), "flops", what)
    axes.set(xscale="log", yscale="log")
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # by lines and points: a band may be without end
    for found in analysis.allocations:
        _band(axes, found, what, span[-1])
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


def _band(axes: Axes, found: Allocation, what: str, dearest: float) -> None:
    band = found.band
    if band is None:
        return
    flops = np.geomspace(band.flops[0], min(dearest, band.flops[-1]), 60)
    ends = (getattr(band, f"{what}_{end}") for end in ("lo", "hi"))
    lo, hi = (np.exp(np.interp(np.log(flops), np.log(band.flops), np.log(end))) for end in ends)
    if (hi < WIDEST * lo).all():
        axes.fill_between(flops, lo, hi, color=theme.LAWS[found.approach - 1], alpha=0.13, lw=0)


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
