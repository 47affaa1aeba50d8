"""A section for each study: what it found and what that means, its figure, its numbers beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from analysis.finding import Chart, Finding, Number, Panel, Series
from analysis.report import tables, theme, words
from analysis.report.axes import dots, log_x, log_y, panels
from analysis.report.drawing import Drawing
from analysis.report.theme import INK, MUTED, PAPER
from analysis.values import Analysis

PREFIX = "study-"
"""Of the names of their figures."""

SHADES = (*theme.LAWS, INK)
"""Colours of a panel's series; with more names than these in a figure, each panel has a legend of its own."""


def name(finding: Finding) -> str:
    return PREFIX + finding.study.replace(".", "-")


def drawings(analysis: Analysis) -> list[Drawing]:
    return [_drawing(finding, finding.chart) for finding in analysis.findings if finding.chart]


def opening(finding: Finding) -> tuple[str, ...]:
    """The sentences that stand above the figure."""
    source = f"After {finding.source}." if finding.source else ""
    said = (f"No number is given: {finding.refused}",) if finding.refused else (finding.found, finding.means)
    return tuple(sentence for sentence in (*said, source) if sentence)


def numbers(finding: Finding) -> tables.Table | None:
    headings = ("|what", "value", "90% interval", "|unit", "|published", "|remark")
    return tables.table(f"{finding.title}: the numbers", headings, map(_row, finding.numbers))


def _row(number: Number) -> tuple[str, ...]:
    found, say = number.estimate, words.count if number.unit == "tokens" else words.number
    value, interval = (
        (say(found.value), words.interval(found.lo, found.hi, say)) if found else (words.NONE,) * 2
    )
    return (number.what, value, interval, number.unit, number.published, number.note)


# --- the figure -----------------------------------------------------------------------------------


def _drawing(finding: Finding, chart: Chart) -> Drawing:
    columns = min(2, len(chart.panels))
    rows = -(-len(chart.panels) // columns)
    figure, cells = panels(columns, height=3.6 * rows, rows=rows)
    labels = [dict.fromkeys(s.label for s in panel.series if s.label) for panel in chart.panels]
    together = dict.fromkeys(label for own in labels for label in own)
    apart = len(together) > len(SHADES)
    cut = False
    for axes, panel, own in zip(cells, chart.panels, labels, strict=False):
        named = own if apart else together
        shades = SHADES if len(named) <= len(SHADES) else theme.sequential(len(named))
        cut |= _panel(axes, panel, dict(zip(named, shades, strict=False)))
        if apart:
            _legend_of(axes, panel)
    for empty in cells[len(chart.panels) :]:
        empty.set_visible(False)
    handles = {} if apart else _handles(cells)
    if handles:
        figure.legend(handles.values(), handles, loc="outside upper left", ncols=min(3, len(handles)))
    caption = chart.caption.rstrip(".") + "." + (" Bars that leave a panel go on beyond it." if cut else "")
    title = chart.panels[0].title if len(chart.panels) == 1 else finding.title
    return Drawing(name(finding), title, caption, figure)


def _handles(cells: Sequence[Axes]) -> dict[str, Artist]:
    """By label; of dots and their line the line, which tells its dashes."""
    found: dict[str, Artist] = {}
    for axes in cells:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label not in found or handle.get_linestyle() != "None":
                found[label] = handle
    return found


FAR = 3.0
"""Times the distance of the values over which an interval is not drawn further. Assumption."""


def _legend_of(axes: Axes, panel: Panel) -> None:
    """Between the panel and its title, where it covers no data."""
    handles = _handles([axes])
    columns = 2 if len(handles) > 1 else 1
    axes.legend(
        handles.values(), handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderpad=0.2
    )
    axes.set_title(panel.title, pad=8 + 13 * -(-len(handles) // columns))


def _panel(axes: Axes, panel: Panel, colours: dict[str, str]) -> bool:
    """Whether an interval was too long for it."""
    for series in panel.series:
        _series(axes, series, colours.get(series.label, MUTED))
    axes.set_title(panel.title)
    if panel.log_x:
        log_x(axes, panel.x_label, _tick)
        lo, hi = axes.get_xlim()
        if hi / lo < 10:
            _round_ticks(axes.xaxis)
    else:
        axes.set_xlabel(panel.x_label)
    if panel.x_names:
        axes.set_xticks(range(len(panel.x_names)), panel.x_names)
    axes.set_ylabel(panel.y_label)
    if panel.log_y:
        axes.set_yscale("log")
    cut = _cut(axes, panel)
    if panel.log_y:
        _log_loss(axes, panel.y_label)
    return cut


def _cut(axes: Axes, panel: Panel) -> bool:
    """Keep intervals that are FAR longer than the values lie apart from flattening them."""
    scale = axes.yaxis.get_transform()
    values = [series.y for series in panel.series if series.kind != "band"]
    y = scale.transform(np.concatenate(values or [[]]))
    y, limits = y[np.isfinite(y)], scale.transform(np.array(axes.get_ylim()))
    span = float(np.ptp(y)) if len(y) else 0.0
    if span == 0 or not (limits[0] < y.min() - FAR * span or limits[1] > y.max() + FAR * span):
        return False
    ends = np.clip(limits, y.min() - FAR * span, y.max() + FAR * span)
    axes.set_ylim(scale.inverted().transform(ends))
    return True


def _series(axes: Axes, series: Series, colour: str) -> None:
    x, y = np.asarray(series.x, dtype=np.float64), np.asarray(series.y, dtype=np.float64)
    label = series.label or None
    if series.kind == "band":
        axes.fill_between(x, series.lo, series.hi, color=colour, alpha=0.15, lw=0)
        return
    if series.kind in ("line", "dashed"):
        axes.plot(x, y, color=colour, ls="--" if series.kind == "dashed" else "-", label=label)
        return
    if series.lo is not None and series.hi is not None:
        known = np.isfinite(series.lo) & np.isfinite(series.hi)
        axes.vlines(
            x[known],
            np.asarray(series.lo)[known],
            np.asarray(series.hi)[known],
            color=colour,
            lw=0.9,
            alpha=0.6,
        )
    style = {"marker": "*", "ms": 12, "zorder": 4} if series.kind == "star" else {"ms": 4.5}
    dots(axes, x, y, color=colour, mec=PAPER, mew=0.5, label=label, **style)


def _log_loss(axes: Axes, label: str) -> None:
    """Powers of ten, or evenly spaced round values where less than a decade is spanned."""
    log_y(axes, label, _tick)
    lo, hi = axes.get_ylim()
    if hi / lo < 10:
        _round_ticks(axes.yaxis)


def _round_ticks(axis: Axis) -> None:
    axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axis.set_minor_locator(NullLocator())


def _tick(value: float) -> str:
    if 1e3 <= value < 1e10:
        return words.tick_count(value)
    return words.power_of_ten(value) if value >= 1e10 or 0 < value < 1e-3 else f"{value:g}"


def leading(findings: Sequence[Finding]) -> str:
    """What stands in the report's first lines where no law was fitted: the first study's result."""
    return next((f.found for f in findings if f.found and not f.refused), "")
