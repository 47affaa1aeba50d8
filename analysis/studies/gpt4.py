"""The final loss of one run, predicted from runs of at most a thousandth and a ten-thousandth of its compute.

GPT-4 report (OpenAI 2023, arXiv 2303.08774, section 3.1 and figure 1): L(C) = a·C^b + c through models trained
with the same methodology and at most 10,000 times less compute, in bits, on an axis on which the run itself is 1.
"""

from __future__ import annotations

import math

import numpy as np

from analysis.compute_law import ComputeLaw, fit_compute, half_width
from analysis.finding import Chart, Finding, Number, Panel, Series
from analysis.studies import Evidence
from analysis.units import count, power
from analysis.values import Estimate, RunRow, Runs
from analysis.verdict import TOO_WIDE

TITLE = "The final loss from a thousandth of its compute"
NEAR, SHARES = 1e-1, (1e-3, 1e-4)
"""The report's shares, and one that is not in it: where cheap runs mislead, it shows whether dearer ones would."""

SAME_BUDGET = 0.05
"""Relative difference in C within which runs are of one budget: whole batches round a run's own. Assumption."""

PUBLISHED = "“with high accuracy” from 1/10,000, GPT-4 report, section 3.1; no coefficients are printed"


def study(evidence: Evidence) -> Finding:
    """Raises ValueError: no dearer run to predict, or too few budgets that are cheap enough for either share."""
    runs = evidence.table.runs
    if not len(runs):
        raise ValueError("no run of the table can be fitted")
    target = _target(evidence)
    bits = _bits(evidence, target)
    laws: dict[float, ComputeLaw] = {}
    numbers, notes = [], []
    for share in ((NEAR,) if _reaches_beyond(runs, target) else ()) + SHARES:
        name = f"1/{1 / share:,.0f}"
        try:
            cheap = along_frontier(runs.take(runs.flops <= share * target.flops * (1 + SAME_BUDGET)))
            laws[share] = fit_compute(cheap)
        except ValueError as error:
            numbers.append(
                Number(f"loss predicted from {name} of the compute", None, bits.unit, PUBLISHED, str(error))
            )
            continue
        numbers += _numbers(laws[share], name, "" if share == NEAR else PUBLISHED, target, bits)
        if len(np.unique(cheap.params)) == 1:
            notes.append(
                f"The runs up to {name} are all of one size, {count(cheap.params[0])} parameters: their line "
                "says what more tokens do, not what more parameters would."
            )
        if laws[share].fit.at_bound:
            notes.append(f"From {name}: {laws[share].fit.reason}.")
    if not laws.keys() & set(SHARES):
        raise ValueError(f"{numbers[-1].note} The run to predict has {power(target.flops)} FLOPs; runs up to "
                         f"{power(SHARES[0] * target.flops)} are wanted.")  # fmt: skip
    if target.loss:
        numbers.append(
            Number("loss measured", Estimate(target.loss * bits.factor, *(math.nan,) * 3), bits.unit)
        )
    smallest = float(runs.params.min())
    if smallest < SMALL:
        notes.append(
            f"The smallest runs here have {count(smallest)} parameters. A miss may say that they are too small "
            "for the law that dearer ones follow, not that the method fails."
        )
    return Finding(
        study="gpt4",
        title=TITLE,
        source="GPT-4 report, OpenAI 2023 (arXiv 2303.08774), section 3.1",
        found=" ".join(_said(law, share, target, bits) for share, law in laws.items()),
        means=_means(laws, target),
        numbers=tuple(numbers),
        chart=_chart(laws, along_frontier(runs), target, bits),
        notes=tuple(notes),
    )


SMALL = 1e6
"""Parameters below which a run is called small for a law of dearer ones. Assumption."""


class _Bits:
    """From nats a token to bits a byte where the table tells how many bytes a token has, else bits a token."""

    def __init__(self, factor: float, unit: str) -> None:
        self.factor, self.unit = factor, unit


def _bits(evidence: Evidence, target: RunRow) -> _Bits:
    known = [row.bits_per_byte / row.loss for row in evidence.finished() if row.bits_per_byte and row.loss]
    return _Bits(float(np.median(known)), "bits a byte") if known else _Bits(1 / math.log(2), "bits a token")


def _target(evidence: Evidence) -> RunRow:
    """The dearest holdout; without one the dearest run, which no fit here sees."""
    rows = [row for row in evidence.table.rows if row.role == "holdout"] or evidence.finished()
    return max(rows, key=lambda row: row.flops)


def along_frontier(runs: Runs) -> Runs:
    """Of each budget the runs of the size whose mean log loss is the lowest: all its seeds, so that none is
    picked for its luck."""
    order = np.argsort(runs.flops, kind="stable")
    kept: list[int] = []
    for budget in np.split(order, np.flatnonzero(np.diff(np.log(runs.flops[order])) > SAME_BUDGET) + 1):
        sizes = {size: budget[runs.params[budget] == size] for size in runs.params[budget]}
        if sizes:
            kept += list(min(sizes.values(), key=lambda own: float(np.log(runs.loss[own]).mean())))
    return runs.take(np.array(kept, dtype=np.int64))


def _reaches_beyond(runs: Runs, target: RunRow) -> bool:
    """Whether runs lie between the report's dearest share and NEAR."""
    share = runs.flops / target.flops
    return bool(np.any((share > SHARES[0] * (1 + SAME_BUDGET)) & (share <= NEAR * (1 + SAME_BUDGET))))


def _numbers(law: ComputeLaw, name: str, published: str, target: RunRow, bits: _Bits) -> list[Number]:
    predicted = _scaled(law.interval(target.flops), bits.factor)
    reducible = _scaled(law.reducible(target.flops), bits.factor)
    numbers = [
        Number(f"loss predicted from {name} of the compute", predicted, bits.unit, published),
        Number(f"a of L = a·C^b + c, C of the run = 1, from {name}", reducible, bits.unit),
        Number(f"b, from {name}", law.parameter("b")),
        Number(f"c, from {name}", _scaled(law.parameter("E"), bits.factor), bits.unit),
    ]  # fmt: skip
    if target.loss:
        error = [
            100 * (end / (target.loss * bits.factor) - 1)
            for end in (predicted.value, predicted.lo, predicted.hi)
        ]
        numbers.insert(1, Number(f"error of that prediction, from {name}", Estimate(*error, math.nan), "%"))
    return numbers


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(*(factor * value for value in (estimate.value, estimate.lo, estimate.hi, estimate.se)))


def _said(law: ComputeLaw, share: float, target: RunRow, bits: _Bits) -> str:
    predicted = _scaled(law.interval(target.flops), bits.factor)
    text = (
        f"From runs of at most 1/{1 / share:,.0f} of the compute {predicted.value:.3f} {bits.unit} are predicted "
        f"(90% {predicted.lo:.3f} to {predicted.hi:.3f})"
    )
    if not target.loss:
        return f"{text}; the run has not been measured."
    loss = target.loss * bits.factor
    side = "inside" if predicted.lo <= loss <= predicted.hi else "outside"
    error = 100 * (predicted.value / loss - 1)
    return f"{text}; measured were {loss:.3f}, {side} the interval: an error of {error:+.1f}%."


def _means(laws: dict[float, ComputeLaw], target: RunRow) -> str:
    if not target.loss:
        return "Train the run, or put it off: its interval says how much of its gain is certain."
    right = [share for share, law in laws.items() if _inside(law, target)]
    if right:
        return (
            f"Here a {1 / min(right):,.0f}th of the compute was enough to know the final loss to within the interval "
            "given; bet on the interval, not on the line."
        )
    return (
        "Here such cheap runs do not foretell the final loss: spend more on the largest of them before a bet."
    )


def _inside(law: ComputeLaw, target: RunRow) -> bool:
    """Inside an interval that is worth something."""
    interval = law.interval(target.flops)
    return interval.lo <= target.loss <= interval.hi and half_width(interval) <= TOO_WIDE


def _chart(laws: dict[float, ComputeLaw], runs: Runs, target: RunRow, bits: _Bits) -> Chart:
    axis = np.geomspace(runs.flops.min() / target.flops, 1.0, 80)
    series = [Series("runs along the frontier", runs.flops / target.flops, runs.loss * bits.factor)]
    for place, (share, law) in enumerate(laws.items()):
        predicted = _scaled(law.interval(target.flops), bits.factor)
        label = f"from at most 1/{1 / share:,.0f} of the compute"
        kind = "dashed" if share == SHARES[-1] else "line"
        series.append(Series(label, axis, law.loss(axis * target.flops) * bits.factor, kind))
        at = np.array([1.15**place])
        series.append(
            Series(
                label,
                at,
                np.array([predicted.value]),
                "dots",
                np.array([predicted.lo]),
                np.array([predicted.hi]),
            )
        )
    if target.loss:
        series.append(Series("measured", np.array([1.0]), np.array([target.loss * bits.factor]), "star"))
    panel = Panel(
        "Loss against normalised compute", "C / C of the run predicted", bits.unit, tuple(series), log_y=True
    )
    return Chart(
        "Lines saw only the runs left of their share; at 1 stand their predictions with 90% intervals",
        (panel,),
    )
