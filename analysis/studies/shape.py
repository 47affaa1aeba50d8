"""Depth, heads and feed-forward width at one non-embedding N: what a shape costs in loss.

Kaplan et al. 2020 (arXiv 2001.08361), section 3.1 and figure 5: one quantity is varied at a time while N stays,
and small differences in N are compensated by the fit to L(N). Section 3.2 and figure 6: with embeddings counted,
models of different depth lie on different curves; without them on one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from scipy.stats import t as student

from analysis.finding import Chart, Finding, Number, Panel, Series
from analysis.replicates import TAIL, Pooled, cells, pooled
from analysis.studies import Evidence
from analysis.units import count
from analysis.values import Estimate, RunRow

TITLE = "Shape at fixed size"
FIXED = 1.25
"""Ratio of N up to which a shape is compared with the base by way of L(N). Assumption: beyond it the slope, not
the shape, would be what is seen."""

BASE = "base shape, and its L(N)"
CLEARLY = 1.25
"""Ratio of deviations from which one count is called better. Assumption."""

PUBLISHED = {
    "depth": "a few per cent; width/depth may vary 40-fold: Kaplan et al. 2020, figure 5",
    "feed-forward": "a few per cent over a wide range of ratios, figure 5",
    "heads": "a few per cent over a wide range of head sizes, figure 5",
}
COUNTS = "non-embedding counts bring depths onto one curve, total counts do not: section 3.2, figure 6"


@dataclass(frozen=True)
class Axis:
    """What is varied: its name, the ratio that is shown, and what makes a run one of the base's."""

    name: str
    label: str
    ratio: Callable[[RunRow], float]
    key: Callable[[RunRow], object]


AXES = (
    Axis("depth", "width / depth", lambda row: row.d_model / row.n_layer, lambda row: row.n_layer),
    Axis(
        "feed-forward",
        "d_ff / d_model",
        lambda row: row.d_ff / row.d_model,
        lambda row: round(2 * math.log2(row.d_ff / row.d_model)),
    ),
    Axis("heads", "width of a head", lambda row: row.d_model / row.n_head, lambda row: row.n_head),
)


Points = list[tuple[float, Estimate]]
"""(ratio, loss increase in %) of the shapes that differ from the base's in one axis, by increasing ratio."""


@dataclass(frozen=True, eq=False)
class Baseline:
    """log L = intercept - alpha · (log N - centre) through the base shape's sizes [cell]."""

    intercept: float
    alpha: float
    centre: float
    spread: float
    cells: int

    def log_loss(self, params: float) -> float:
        return self.intercept - self.alpha * (math.log(params) - self.centre)

    def variance_of(self, params: float) -> float:
        """Of the line at this N, over the variance of one cell's mean."""
        return 1 / self.cells + (math.log(params) - self.centre) ** 2 / self.spread


def study(evidence: Evidence) -> Finding:
    """Raises ValueError: shapes that the table does not tell, no sizes of the base shape, or nothing varied at
    one N."""
    rows = [row for row in evidence.finished() if not row.reason]
    untold = [row.run_id for row in rows if None in (row.n_layer, row.d_model, row.n_head, row.d_ff)]
    if untold or not rows:
        raise ValueError(
            f"{len(untold)} of {len(rows)} runs do not tell n_layer, d_model, n_head and d_ff, which are their shape"
        )
    tokens = Counter(float(f"{row.tokens:.2g}") for row in rows).most_common(1)[0][0]
    every = cells([row for row in rows if 0.9 < row.tokens / tokens < 1.1])
    common = {axis.name: Counter(axis.key(cell[0]) for cell in every).most_common(1)[0][0] for axis in AXES}
    base = [cell for cell in every if _differs(cell[0], common) == []]
    sizes = len({cell[0].params for cell in base})
    if sizes < 3:
        raise ValueError(
            f"the base shape (n_layer={common['depth']:g}, {common['heads']:g} heads) was trained at {sizes} sizes on one "
            "token count; L(N), which small differences in N are compensated by, takes 3"
        )
    line = _baseline(base, lambda row: row.params)
    noise = _noise(every, base, line)
    N = _fixed_size(every, common)
    found: dict[str, Points] = {}
    for axis in AXES:
        varied = [
            cell for cell in every if _differs(cell[0], common) == [axis.name] and _near(cell[0].params, N)
        ]
        if varied:
            points = [(axis.ratio(cell[0]), _increase(cell, line, noise)) for cell in varied]
            found[axis.name] = sorted(points, key=lambda point: point[0])
    if not found:
        raise ValueError(
            f"no run differs from the base shape in its depth, feed-forward ratio or heads alone, at N within "
            f"{FIXED:g}x of one size. Train +grid=shape."
        )
    numbers = [number for axis in AXES if axis.name in found for number in _of_axis(axis, found[axis.name])]
    numbers.append(
        Number(
            "loss for 1% more N, at the base shape",
            _plain(-line.alpha),
            "%",
            "-0.076, Kaplan et al. 2020, section 1.2",
        )
    )
    counts, counted = _counts(every, base, common, line, N)
    most, worst = max(
        (point.value, f"{axis.label} = {ratio:.3g}")
        for axis in AXES
        for ratio, point in found.get(axis.name, ())
    )
    spared = (
        100 * math.expm1(math.log1p(most / 100) / line.alpha) if line.alpha > 0 and most > 0 else math.nan
    )
    return Finding(
        study="shape",
        title=TITLE,
        source="Kaplan et al. 2020 (arXiv 2001.08361), section 3.1, figures 5 and 6",
        found=f"At N about {count(N)} the worst shape tried ({worst}) loses {most:.1f}% against the base shape's "
        "L(N)"
        + (f", what {spared:.0f}% more parameters would make up for. " if math.isfinite(spared) else ". ")
        + counted,
        means=f"Within the ratios tried {_verdict(most, found)}.",
        numbers=(*numbers, *counts),
        chart=_chart(found, every, base, common, line, N),
        notes=_notes(noise),
    )


FLAT = 3.0
"""% of the loss up to which shapes count as alike: Kaplan et al. 2020, figure 5, their own shapes' spread."""


def _verdict(most: float, found: dict[str, Points]) -> str:
    if most <= FLAT:
        return "choose a shape by what runs fast: size decides, shape hardly"
    free = [_free(axis, found[axis.name]) for axis in AXES if axis.name in found]
    return f"shape is not free; less than {FLAT:g}% is lost with {', '.join(filter(None, free))}"


def _free(axis: Axis, points: Points) -> str:
    """The widest range of ratios next to one another that lose no more than FLAT."""
    runs = [list(own) for flat, own in groupby(points, key=lambda point: point[1].value <= FLAT) if flat]
    if not runs:
        return ""
    longest = max(runs, key=len)
    return f"{axis.label} of {longest[0][0]:.3g} to {longest[-1][0]:.3g}"


def _near(params: float, N: float) -> bool:
    return 1 / FIXED < params / N < FIXED


def _differs(row: RunRow, common: dict[str, object]) -> list[str]:
    """The axes in which this shape is not the base's."""
    return [axis.name for axis in AXES if axis.key(row) != common[axis.name]]


def _fixed_size(every: Sequence[Sequence[RunRow]], common: dict[str, object]) -> float:
    """Where most other shapes are: the geometric mean of their N."""
    others = [math.log(cell[0].params) for cell in every if len(_differs(cell[0], common)) == 1]
    return math.exp(float(np.median(others))) if others else math.nan


def _mean(cell: Sequence[RunRow]) -> float:
    return float(np.mean(np.log([row.loss for row in cell])))


def _baseline(base: Sequence[Sequence[RunRow]], count: Callable[[RunRow], float]) -> Baseline:
    x, y = np.log([count(cell[0]) for cell in base]), np.array([_mean(cell) for cell in base])
    centre = float(x.mean())
    slope, intercept = np.polyfit(x - centre, y, 1)
    return Baseline(float(intercept), -float(slope), centre, float(np.sum((x - centre) ** 2)), len(base))


def _noise(every: Sequence[Sequence[RunRow]], base: Sequence[Sequence[RunRow]], line: Baseline) -> Pooled:
    """Of one run's log loss: by seeds where there are some, else by what the line leaves of the base's sizes."""
    seeds = pooled(every)
    if seeds.freedom:
        return seeds
    left = np.array([_mean(cell) - line.log_loss(cell[0].params) for cell in base])
    return Pooled(float(left @ left), len(base) - 2)


def _increase(cell: Sequence[RunRow], line: Baseline, noise: Pooled) -> Estimate:
    """Of the loss over L(N) of the base shape, %."""
    params = cell[0].params
    value = _mean(cell) - line.log_loss(params)
    error = math.sqrt(noise.variance * (1 / len(cell) + line.variance_of(params)))
    half = float(student.ppf(1 - TAIL, noise.freedom)) * error
    return Estimate(*(100 * math.expm1(end) for end in (value, value - half, value + half)), 100 * error)


def _of_axis(axis: Axis, points: Points) -> list[Number]:
    ratio, worst = max(points, key=lambda point: point[1].value)
    span = f"{points[0][0]:.3g} to {points[-1][0]:.3g}"
    what = f"{axis.name}: largest loss increase over {axis.label} {span}"
    return [Number(what, worst, "%", PUBLISHED[axis.name], f"at {axis.label} = {ratio:.3g}")]


def _plain(value: float) -> Estimate:
    return Estimate(value, math.nan, math.nan, math.nan)


def _counts(
    every: Sequence[Sequence[RunRow]],
    base: Sequence[Sequence[RunRow]],
    common: dict[str, object],
    line: Baseline,
    N: float,
) -> tuple[list[Number], str]:
    """How far the depths lie from the base's curve when N counts embeddings and when it does not."""
    depths = [cell for cell in every if _differs(cell[0], common) == ["depth"] and _near(cell[0].params, N)]
    if len(depths) < 2 or any(not row.params_total for cell in (*depths, *base) for row in cell):
        return [], ""
    total = _baseline(base, lambda row: row.params_total)
    off = {
        "non-embedding": [_mean(cell) - line.log_loss(cell[0].params) for cell in depths],
        "total": [_mean(cell) - total.log_loss(cell[0].params_total) for cell in depths],
    }
    rms = {name: 100 * float(np.sqrt(np.mean(np.square(values)))) for name, values in off.items()}
    numbers = [
        Number(f"depths off the base's curve, N {name}, rms", _plain(value), "%", COUNTS)
        for name, value in rms.items()
    ]
    better, worse = sorted(rms, key=rms.get)
    told = (
        f"so {better} counts bring them closer"
        if rms[worse] > CLEARLY * rms[better]
        else "so neither count is clearly better"
    )
    return numbers, (
        f"Depths lie {rms['non-embedding']:.1f}% (rms) off the base's curve where N leaves embeddings out and "
        f"{rms['total']:.1f}% where it counts them, {told}."
    )


def _chart(
    found: dict[str, Points],
    every: Sequence[Sequence[RunRow]],
    base: Sequence[Sequence[RunRow]],
    common: dict[str, object],
    line: Baseline,
    N: float,
) -> Chart:
    panels = []
    for axis in AXES:
        if axis.name in found:
            x = np.array([ratio for ratio, _ in found[axis.name]])
            y, lo, hi = (
                np.array([getattr(e, end) for _, e in found[axis.name]]) for end in ("value", "lo", "hi")
            )
            own = np.array([axis.ratio(cell[0]) for cell in base if _near(cell[0].params, N)])
            zero = np.array([min(x.min(), own.min(initial=x.min())), max(x.max(), own.max(initial=x.max()))])
            shapes = Series("other shapes", x, y, lo=lo, hi=hi)
            series = (Series(BASE, zero, np.zeros(2), "line"), shapes)
            series += (Series(BASE, own, np.zeros(len(own)), "star"),)
            panels.append(Panel(axis.name.capitalize(), axis.label, "loss over L(N), %", series))
    sizes = np.array(sorted(cell[0].params for cell in base))
    depths = [cell for cell in every if _differs(cell[0], common) == ["depth"] and _near(cell[0].params, N)]
    series = [
        Series(BASE, sizes, np.exp([line.log_loss(size) for size in sizes]), "line")
    ]
    for name, count in (("non-embedding", lambda row: row.params), ("total", lambda row: row.params_total)):
        of = [(count(cell[0]), math.exp(_mean(cell))) for cell in (*base, *depths) if count(cell[0])]
        if of:
            series.append(Series(f"N {name}", *np.array(sorted(of)).T))
    panels.append(Panel("Which N", "N, parameters", "loss, nats a token", tuple(series), log_y=True))
    return Chart(
        "Each dot is a shape of about the same N, with its 90% interval; zero is the base shape's own curve L(N). "
        "Which N: the base shape's sizes and the other depths, by either count; the right one brings them onto "
        "one line",
        tuple(panels[:4]),
    )


def _notes(noise: Pooled) -> tuple[str, ...]:
    sd = noise.sd_pct
    return (
        f"Intervals take one run's loss to vary by {sd.value:.2g}% ({noise.freedom:g} degrees of freedom).",
        "N is held by changing the width; all runs have one token count, so that compute differs with the attention "
        "products of deep, narrow shapes. An untied output head is in N: the grid ties it, as the paper did.",
    )
