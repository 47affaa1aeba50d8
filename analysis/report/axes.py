"""Axes with ticks that read as words, and labels beside what they name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from analysis.report import words
from analysis.report.theme import GROUND, MUTED

WIDTH = 8.8
"""Inches; the page's column, so that 9 points read as 12 pixels."""

RASTER = 500
"""Points of one kind from which they are drawn as pixels: as SVG each takes some 150 bytes."""

NARROW = 1.3
"""Decades below which an axis of a small panel has ticks at 2 and 5 times a power of ten too."""

Label = tuple[float, float, str, str]
"""x, y, text, colour."""


def panels(
    columns: int,
    height: float,
    rows: int = 1,
    share_y: bool = False,
    widths: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """A figure of the page's width and `height` inches, and its axes row by row; `widths` are relative."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    cells = figure.subplots(rows, columns, sharey=share_y, squeeze=False, width_ratios=widths)
    return figure, list(cells.ravel())


def dots(axes: Axes, x: Sequence[float], y: Sequence[float], **style: object) -> None:
    """Markers without a line between them."""
    axes.plot(x, y, **{"ls": "", "marker": "o", "rasterized": len(x) > RASTER, **style})


def log_x(axes: Axes, label: str, say: Callable[[float], str], between: float = 2.5) -> None:
    """A logarithmic x axis; below `between` decades it has ticks at 2 and 5 times a power of ten too."""
    axes.set_xscale("log")
    axes.set_xlabel(label)
    _log_ticks(axes.xaxis, axes.get_xlim(), say, between)


def compute_x(axes: Axes, between: float = 2.5) -> None:
    log_x(axes, "training compute C, FLOPs", words.power_of_ten, between)


def log_y(axes: Axes, label: str, say: Callable[[float], str]) -> None:
    axes.set_yscale("log")
    axes.set_ylabel(label)
    _log_ticks(axes.yaxis, axes.get_ylim(), say, between=2.5)


def loss_y(axes: Axes) -> None:
    """A logarithmic loss, with evenly spaced round losses for its ticks: it spans less than a decade."""
    axes.set_yscale("log")
    axes.set_ylabel("loss, nats a token")
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def percent_y(axes: Axes) -> None:
    """Signed per cent, and a line at zero."""
    axes.axhline(0, color=MUTED, lw=1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}%" if value else "0"))


def _log_ticks(axis: Axis, limits: tuple[float, float], say: Callable[[float], str], between: float) -> None:
    decades = np.log10(limits[1] / limits[0])
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < between else (1.0,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: say(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def legend(axes: Axes, columns: int) -> None:
    """Above the axes, where it covers no data; none where nothing has a name."""
    if not axes.get_legend_handles_labels()[0]:
        return
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        columnspacing=1.4,
        handletextpad=0.5,
        borderpad=0,
    )


def widen(axes: Axes, right: float) -> None:
    """Room for labels: `right` of the width, on a logarithmic x axis."""
    lo, hi = axes.get_xlim()
    axes.set_xlim(lo, hi * (hi / lo) ** right)


def note(axes: Axes, x: float, text: str, side: int) -> None:
    """A word at the foot of the axes, to the left (-1) or right (1) of x."""
    axes.annotate(
        text,
        (x, 0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(6 * side, 4),
        textcoords="offset points",
        ha="left" if side > 0 else "right",
        va="bottom",
        color=MUTED,
        fontsize=8,
    )


def label_ends(axes: Axes, labels: Sequence[Label]) -> None:
    """Write each label to the right of its point, pushed up where it would cover one below it."""
    axes.figure.draw_without_rendering()  # only now is it known where points lie on the page
    points_a_pixel = 72 / axes.figure.dpi
    taken: list[np.ndarray] = []
    for x, y, text, colour in sorted(labels, key=lambda label: label[1]):
        point = axes.transData.transform((x, y)) * points_a_pixel
        height = point[1]
        for other in taken:
            if abs(other[0] - point[0]) < 110 and abs(height - other[1]) < 11:
                height = other[1] + 11
        taken.append(np.array([point[0], height]))
        offset = (7, height - point[1])
        axes.annotate(
            text,
            (x, y),
            xytext=offset,
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=8.5,
            bbox={**GROUND, "pad": 0.0},
        )
