"""How far seeds alone move a loss: by initialisation, by the order of the data, and at which sizes.

Each source's sets are runs that differ in it alone; their log losses' variances are pooled over cells, with
chi-square intervals. Every prediction's interval has such a noise in it, and where a table has replicates
analysis/discrepancy.py learns it from them: its smooth part is one number for all runs of one N and D.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import digamma, polygamma
from scipy.stats import chi2, f

from analysis.finding import Chart, Finding, Number, Panel, Series
from analysis.replicates import TAIL, Pooled, cells, order_of, pooled
from analysis.studies import Evidence
from analysis.values import Estimate, RunRow

TITLE = "How far seeds and data order move a loss"
Z = 1.6449
"""Standard errors to each end of a 90% interval."""

SURE = 2.576
"""Standard errors from which a trend is told in words: 99%, since two are looked at. Assumption."""

UNEQUAL = 0.01
"""Bartlett's p from which cells are said to differ in their noise. Assumption."""

EXACT = 1e-12
"""Standard deviation of log losses below which runs are copies of one another. Assumption."""


def study(evidence: Evidence) -> Finding:
    """Raises ValueError: no replicates, or replicates that are copies."""
    groups = [rows for rows in cells([row for row in evidence.finished() if not row.reason]) if len(rows) > 1]
    by_seed = [rows for cell in groups for rows in _sets(cell, order_of, lambda row: row.seed)]
    by_order = [rows for cell in groups for rows in _sets(cell, lambda row: row.seed, order_of)]
    both = [rows for cell in groups if len(rows := _unrelated(cell)) > 1]
    seed, order, whole = pooled(by_seed), pooled(by_order), pooled(both)
    if not seed.freedom + order.freedom + whole.freedom:
        raise ValueError(
            "no two runs of one size, token count and recipe differ by their seed or data order. Add seeds "
            "(grid.seeds=3), or train +grid=noise."
        )
    total = seed.plus(order) if seed.freedom and order.freedom else whole
    if not total.freedom:
        raise ValueError(
            "the runs differ in one kind of seed alone, so that the noise of a new run, which draws both, is not "
            "known. Vary seed and order_seed."
        )
    if math.sqrt(total.variance) < EXACT:
        raise ValueError(
            "replicates agree to the last digit: they are copies of one run, not runs of other seeds"
        )
    numbers = [
        Number(f"one run's loss by {what}, one sd", source.sd_pct, "%", note=f"{source.freedom:g} {DF}")
        for what, source in (
            ("initialisation alone", seed), ("data order alone", order), ("both at once", whole)
        )
        if source.freedom
    ]  # fmt: skip
    if seed.freedom and order.freedom:
        numbers.append(Number("both, as the sum of the two", total.sd_pct, "%", note="were they independent"))
        numbers.append(Number("initialisation's variance over data order's", _ratio(seed, order)))
    trend, trend_notes = _trend(groups)
    numbers += trend
    numbers += _evaluation(groups)
    sd = total.sd_pct
    moves = [number.what for number in trend if abs(number.estimate.value) > SURE * number.estimate.se]
    depends = (
        f"it changes with {' and with '.join(moves)}"
        if moves
        else "no dependence on N or D is seen"
        if trend
        else ""
    )
    least = 2 * Z * sd.value / math.sqrt(2)
    return Finding(
        study="noise",
        title=TITLE,
        source="",
        found=f"Chance moves one run's loss by {sd.value:.2g}% (one sd, 90% {sd.lo:.2g} to {sd.hi:.2g}%)"
        + (f"; {depends}." if depends else "."),
        means=f"Two single runs whose losses differ by less than about {least:.2g}% are not told apart; "
        "k seeds of each bring that down by the square root of k.",
        numbers=tuple(numbers),
        chart=_chart(groups),
        notes=(*trend_notes, USED, *((ADDED,) if total is not whole else ())),
    )


DF = "degrees of freedom"
USED = (
    "A prediction's interval has one such noise for all runs of a table in it, learnt from the table's own "
    "replicates where there are some and else from what the law leaves; other sweeps' runs are not looked at."
)
ADDED = "The sum takes initialisation and data order to act independently; runs that change both would test that."


def _sets(
    cell: Sequence[RunRow], same: Callable[[RunRow], str], varied: Callable[[RunRow], str]
) -> list[list[RunRow]]:
    """Runs of a cell that share `same` and differ in `varied`, two or more."""
    found: dict[str, dict[str, RunRow]] = {}
    for row in cell:
        found.setdefault(same(row), {}).setdefault(varied(row), row)
    return [list(rows.values()) for rows in found.values() if len(rows) > 1]


def _unrelated(cell: Sequence[RunRow]) -> list[RunRow]:
    """Runs no two of which share a seed or a data order."""
    seeds, orders, kept = set(), set(), []
    for row in cell:
        if row.seed not in seeds and order_of(row) not in orders:
            kept.append(row)
        seeds.add(row.seed)
        orders.add(order_of(row))
    return kept


def _ratio(one: Pooled, other: Pooled) -> Estimate:
    """Of two variances, by Fisher's F."""
    value = one.variance / other.variance
    ends = [value / f.ppf(tail, one.freedom, other.freedom) for tail in (1 - TAIL, TAIL)]
    return Estimate(value, *ends, math.nan)


def _of_cell(cell: Sequence[RunRow]) -> Pooled:
    """All that moves its runs, each source about its own mean."""
    sets = [*_sets(cell, order_of, lambda row: row.seed), *_sets(cell, lambda row: row.seed, order_of)]
    return pooled(sets or [_unrelated(cell)])


def _trend(groups: Sequence[Sequence[RunRow]]) -> tuple[list[Number], list[str]]:
    """Exponents of sd ∝ N^p D^q: log variances are regressed on log N and log D, each with the known variance
    of the log of a chi-square (trigamma of half its degrees of freedom)."""
    found = [(cell[0], _of_cell(cell)) for cell in groups]
    found = [(row, spread) for row, spread in found if spread.freedom and spread.squares > 0]
    half = np.array([spread.freedom / 2 for _, spread in found])
    logs = np.log([spread.variance for _, spread in found]) - digamma(half) + np.log(half)
    weights = 1 / polygamma(1, half)
    columns = {"N": [row.params for row, _ in found], "D": [row.tokens for row, _ in found]}
    columns = {name: np.log(values) for name, values in columns.items() if len(set(values)) > 1}
    design = np.column_stack([np.ones(len(found)), *columns.values()])
    if not columns or np.linalg.matrix_rank(design) < design.shape[1]:
        return [], [
            "Whether the noise depends on N or D cannot be told: the replicates are of one size and token count."
        ]
    covariance = np.linalg.inv(design.T @ (weights[:, None] * design))
    slope = covariance @ (design.T @ (weights * logs))
    numbers = []
    for i, name in enumerate(columns, 1):
        value, error = slope[i] / 2, math.sqrt(covariance[i, i]) / 2
        estimate = Estimate(value, value - Z * error, value + Z * error, error)
        numbers.append(
            Number(f"{name} (exponent of the standard deviation)", estimate, note=f"over {len(found)} cells")
        )
    notes = []
    if _bartlett([spread for _, spread in found]) < UNEQUAL:
        notes.append(
            "The cells differ in their noise by more than chance (Bartlett's test), so that the one number above is "
            "an average of cells and too small for some: see the figure."
        )
    return numbers, notes


def _bartlett(spreads: Sequence[Pooled]) -> float:
    """p of equal variances (Bartlett 1937)."""
    freedom = np.array([spread.freedom for spread in spreads])
    variance = np.array([spread.variance for spread in spreads])
    whole = freedom.sum()
    statistic = whole * math.log(freedom @ variance / whole) - freedom @ np.log(variance)
    correction = 1 + (np.sum(1 / freedom) - 1 / whole) / (3 * max(len(spreads) - 1, 1))
    return float(chi2.sf(statistic / correction, max(len(spreads) - 1, 1)))


def _evaluation(groups: Sequence[Sequence[RunRow]]) -> list[Number]:
    shares = [100 * row.loss_se / row.loss for cell in groups for row in cell if row.loss_se]
    if not shares:
        return []
    value = float(np.median(shares))
    note = "all runs are measured on the same tokens, so that it moves them together and is not in the above"
    return [
        Number(
            "sampling of the held-out tokens", Estimate(value, math.nan, math.nan, math.nan), "%", note=note
        )
    ]


def _chart(groups: Sequence[Sequence[RunRow]]) -> Chart:
    sources = {
        "initialisation alone": lambda cell: _sets(cell, order_of, lambda row: row.seed),
        "data order alone": lambda cell: _sets(cell, lambda row: row.seed, order_of),
        "both at once": lambda cell: [_unrelated(cell)],
    }
    panels = []
    for title, label, of in (
        ("By size", "N, parameters", lambda row: row.params), ("By tokens", "D, tokens", lambda row: row.tokens)
    ):  # fmt: skip
        series = []
        for shift, (name, sets) in enumerate(sources.items()):
            spreads = [(of(cell[0]), pooled(sets(cell))) for cell in groups]
            known = [(x, spread.sd_pct) for x, spread in spreads if spread.freedom and spread.squares > 0]
            if known:
                x = np.array([x for x, _ in known]) * 1.05 ** (
                    shift - 1
                )  # side by side, not over one another
                y, lo, hi = (np.array([getattr(sd, end) for _, sd in known]) for end in ("value", "lo", "hi"))
                series.append(Series(name, x, y, lo=lo, hi=hi))
        panels.append(Panel(title, label, "sd of one run's loss, %", tuple(series), log_y=True))
    caption = "Each dot is a cell of runs that differ by seeds alone, with its 90% interval: a level cloud is one noise"
    return Chart(caption, tuple(panels))
