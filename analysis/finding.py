"""What a classical experiment found, as values that one renderer shows: a sentence, its numbers, one figure.

A study computes them (analysis/studies/), analysis/report/findings.py draws them. Arrays are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.estimate import Estimate

KINDS = ("dots", "star", "line", "dashed", "band")


@dataclass(frozen=True, eq=False)
class Series:
    """x, y: float64[point]. lo, hi: ends of 90% intervals, bars on dots and stars; a band is filled between them."""

    label: str
    x: np.ndarray
    y: np.ndarray
    kind: str = "dots"
    lo: np.ndarray | None = None
    hi: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Panel:
    """Axes; the labels say the quantity and its unit. x_names: what stands at 0, 1, … where x is no quantity."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = True
    log_y: bool = False
    x_names: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Chart:
    """At most four panels, and the sentence that says what to see in them."""

    caption: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Number:
    """One line of a study's table.

    estimate: with its 90% interval, None where the data give none; `note` then says why.
    published: the paper's number as it stands there, with where ("0.076, Kaplan et al. 2020, section 1.2"); "" where
        there is none. note: what a reader must know of this number, such as why the two do not compare.
    """

    what: str
    estimate: Estimate | None
    unit: str = ""
    published: str = ""
    note: str = ""


@dataclass(frozen=True, eq=False)
class Finding:
    """A section of the report.

    study: the module's name; source: the paper. found: one sentence, what came out. means: one sentence, what it
        means for a decision. notes: where an assumption fails, and what cannot be shown at this scale.
    refused: why there is no number at all; "" where there is.
    """

    study: str
    title: str
    source: str
    found: str
    means: str
    numbers: tuple[Number, ...] = ()
    chart: Chart | None = None
    notes: tuple[str, ...] = ()
    refused: str = ""


def lines(findings: Sequence[Finding]) -> tuple[str, ...]:
    """What a terminal says of each: what was found and what it means, or why nothing."""
    return tuple(
        f"{f.title}: no number: {f.refused}" if f.refused else f"{f.title}: {f.found} {f.means}" for f in findings
    )
