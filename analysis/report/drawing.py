"""A drawing and what several of them share: runs as dots, coloured by their budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.report import theme
from analysis.report.axes import RASTER, dots
from analysis.report.theme import MUTED
from analysis.values import Analysis


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure with the name of its files, its title and the sentence that says what to see."""

    name: str
    title: str
    caption: str
    figure: Figure


def scatter(axes: Axes, analysis: Analysis, x: np.ndarray, y: np.ndarray, groups: Sequence[str]) -> None:
    """Runs coloured by their budget, grey where they have none."""
    colours = budget_colours(analysis)
    by_run = np.array([colours.get(group, MUTED) for group in groups])
    size = 4.5 if len(x) < 200 else 2.5
    for colour in dict.fromkeys((MUTED, *colours.values())):
        own = by_run == colour
        if own.any():
            dots(axes, x[own], y[own], ms=size, color=colour, alpha=0.85, mew=0, rasterized=len(x) > RASTER)


def budget_colours(analysis: Analysis) -> dict[str, str]:
    """Budgets from the cheapest to the dearest along the sequential scale."""
    groups = [isoflop.group for isoflop in sorted(analysis.isoflops, key=lambda isoflop: isoflop.flops)]
    return dict(zip(groups, theme.sequential(len(groups)), strict=True))


def colour_key(analysis: Analysis) -> str:
    return ", coloured by its compute budget" if analysis.isoflops else ""


def compute_span(analysis: Analysis) -> np.ndarray:
    """FLOPs from the cheapest run to the dearest run or target."""
    ends = [*analysis.runs.flops, *(p.target.flops for p in analysis.predictions)]
    return np.geomspace(min(ends), max(ends), 80)
