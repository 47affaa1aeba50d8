"""A drawing and what several of them share: runs as dots, coloured by their budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.report import theme
from analysis.report.axes import RASTER, dots
from analysis.report.theme import INK, MUTED, PAPER
from analysis.values import Analysis

TARGETS_LABELLED = 3
"""With more targets than this only the dearest one is marked large and has its losses beside it."""

OPTIMUM = {"marker": "D", "ms": 5.5, "mfc": PAPER, "mec": INK, "mew": 1.2, "zorder": 4}


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure with the name of its files, its title and the sentence that says what to see."""

    name: str
    title: str
    caption: str
    figure: Figure


def scatter(
    axes: Axes, analysis: Analysis, names: Sequence[str], y: np.ndarray, x: np.ndarray | None = None
) -> None:
    """Dots at (C or x [name], y [name]) in the colour of their budget, grey where they belong to none.
    A name is a run's id, or a budget's group where a law is fitted to the budgets' minima."""
    colours = budget_colours(analysis)
    colour_of = {isoflop.group: colours[isoflop.group] for isoflop in analysis.isoflops}
    colour_of |= {
        run_id: colours[isoflop.group] for isoflop in analysis.isoflops for run_id in isoflop.run_ids
    }
    flops_of = {isoflop.group: isoflop.flops for isoflop in analysis.isoflops}
    flops_of |= dict(zip(analysis.runs.run_id, analysis.runs.flops, strict=True))
    x = np.array([flops_of[name] for name in names]) if x is None else x
    colour = np.array([colour_of.get(name, MUTED) for name in names])
    size = 4.5 if len(analysis.runs) < 200 else 2.5
    for shade in dict.fromkeys((MUTED, *colours.values())):
        own = colour == shade
        if own.any():
            dots(axes, x[own], y[own], ms=size, color=shade, alpha=0.85, mew=0, rasterized=len(x) > RASTER)


def budget_colours(analysis: Analysis) -> dict[str, str]:
    """Budgets from the cheapest to the dearest along the sequential scale."""
    groups = [isoflop.group for isoflop in sorted(analysis.isoflops, key=lambda isoflop: isoflop.flops)]
    shades = theme.sequential(len(groups), in_pixels=len(analysis.runs) > RASTER)
    return dict(zip(groups, shades, strict=True))


def colour_key(analysis: Analysis) -> str:
    return ", coloured by the compute budget it belongs to" if analysis.isoflops else ""


def compute_span(analysis: Analysis) -> np.ndarray:
    """FLOPs from the cheapest run to the dearest run or target."""
    ends = [*analysis.runs.flops, *(p.target.flops for p in analysis.predictions)]
    return np.geomspace(min(ends), max(ends), 80)
