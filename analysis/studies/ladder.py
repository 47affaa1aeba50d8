"""Baichuan 2's and MindLLM's way: models of growing size on one token count, L(C) = a·C^b + E, and a star.

Baichuan 2 (Yang et al. 2023, arXiv 2309.10305, section 2.7): 7 models of 10M to 3B parameters on up to 1T tokens
each, predicting 7B and 13B on 2.6T. MindLLM (Yang et al. 2023, arXiv 2310.15777): 5 models of 10M to 500M on 10B,
predicting 3B on 500B.
"""

from __future__ import annotations

import math
from datetime import datetime, timezone

import numpy as np

from analysis.compute_law import ComputeLaw, fit_compute, half_width
from analysis.finding import Chart, Finding, Number, Panel, Series
from analysis.studies import Evidence
from analysis.units import count
from analysis.values import Estimate, Prediction, RunRow, Runs, Target, Verdict
from analysis.verdict import TOO_FAR, TOO_WIDE, UNTESTED, WIDE

TITLE = "Ladder: L(C) through models of one token count"
ALIKE = 1.05
"""Ratio of token counts within which runs are of one ladder: whole batches round them. Assumption."""

UNPRINTED = "drawn, not printed: Baichuan 2, section 2.7, figure 4"


def study(evidence: Evidence) -> Finding:
    """Raises ValueError: fewer than four sizes on one token count, or no law of theirs."""
    runs, tokens = _ladder(evidence.table.runs)
    law = fit_compute(runs)
    stars = [row for row in evidence.table.rows if row.role == "holdout"]
    parameters = [
        Number("b, exponent of compute", law.parameter("b"), published=UNPRINTED),
        Number("E, irreducible", law.parameter("E"), "nats a token", UNPRINTED),
        Number("a·C^b at the dearest rung", law.reducible(float(runs.flops.max())), "nats a token"),
    ]
    numbers, notes = parameters, [f"The law's fit: {law.fit.reason}."] if law.fit.reason else []
    for row in stars:
        numbers += _star(law, row)
    measured = [row for row in stars if row.loss]
    beyond = [row for row in stars if not 1 / ALIKE < row.tokens / tokens < ALIKE]
    if beyond:
        notes.append(
            f"The ladder holds D at {count(tokens)} and the star has {beyond[0].tokens / tokens:.3g} times that. A law of "
            "C alone, through runs of which only N grows, takes more data for more size: where the rungs were short of "
            "data it predicts too high a loss, where they were short of size too low a one. A grid that varies both "
            "(+grid=isoflop) tells the two apart."
        )
    notes.append(
        "Baichuan 2 draws its fit and stars; coefficients to compare with were found in print for neither ladder."
    )
    return Finding(
        study="ladder",
        title=TITLE,
        source="Baichuan 2 (arXiv 2309.10305), section 2.7; MindLLM (arXiv 2310.15777)",
        found=_found(law, runs, stars),
        means=_means(law, measured),
        numbers=tuple(numbers),
        chart=_chart(law, runs, stars),
        notes=tuple(notes),
    )


def predict_star(runs: Runs, target: Target, digest: str) -> Prediction:
    """What the ladder's own law says of `target`, nats a token, where its rungs are too few for a law of N and D.

    By L(C) = E + a·C^b at target.flops (module's sources); `digest` is the table's. Never better than weakly supported: rungs of one token count do not tell size from data.
    Raises ValueError as `study`.
    """
    rungs, tokens = _ladder(runs)
    law = fit_compute(rungs)
    said, reach = law.interval(target.flops), float(target.flops / rungs.flops.max())
    half = half_width(said)
    reasons = [f"L(C) = E + a·C^b through {len(rungs)} rungs of one token count does not tell size from data"]
    if reach > TOO_FAR:
        reasons.insert(0, f"the target costs {reach:,.0f}x the dearest rung; beyond 100x nothing was tested")
    if half > WIDE:
        bet = ": nothing to bet on" if half > TOO_WIDE else ""
        reasons.insert(0, f"the 90% interval is ±{100 * half:.0f}% of the loss{bet}")
    if not 1 / ALIKE < target.tokens / tokens < ALIKE:
        reasons.append(f"the target has {target.tokens / tokens:.3g} times the rungs' tokens")
    parameters = np.log(law.losses_drawn(target.flops))
    return Prediction(
        target=target,
        law="compute",
        loss=said.value,
        lo90=said.lo,
        hi90=said.hi,
        by_law={"compute": said.value},
        weights={"compute": 1.0},
        spread={"parameters": float(parameters.std()), "noise": law.scatter},
        ledger_digest=digest,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        verdict=Verdict.NOT_SUPPORTED if reach > TOO_FAR or half > TOO_WIDE else Verdict.WEAK,
        reasons=(*reasons, f"no rung is foretold from the others, so {UNTESTED}"),
        extrapolation=reach,
    )


def _ladder(runs: Runs) -> tuple[Runs, float]:
    """The runs of the token count at which most sizes are, and that count."""
    rungs = {D: runs.take((runs.tokens > D / ALIKE) & (runs.tokens < D * ALIKE)) for D in set(runs.tokens)}
    tokens = max(sorted(rungs), key=lambda D: len(set(rungs[D].params)), default=0.0)
    sizes = len(set(rungs[tokens].params)) if rungs else 0
    if sizes < 4:
        raise ValueError(
            f"{sizes} sizes share one token count, and L(C) = a·C^b + E through a ladder takes 4. Train +grid=ladder, "
            "or give more grid.sizes."
        )
    return rungs[tokens], float(tokens)


def _star(law: ComputeLaw, row: RunRow) -> list[Number]:
    predicted = law.interval(row.flops)
    name = f"star, N={count(row.params)} D={count(row.tokens)}"
    numbers = [Number(f"{name}: loss predicted", predicted, "nats a token")]
    if row.loss:
        ends = [100 * (end / row.loss - 1) for end in (predicted.value, predicted.lo, predicted.hi)]
        said = "“precisely predicted” the 7B and 13B, Baichuan 2, figure 4"
        numbers.append(Number(f"{name}: error of the prediction", Estimate(*ends, math.nan), "%", said))
    return numbers


def _found(law: ComputeLaw, runs: Runs, stars: list[RunRow]) -> str:
    b, E = law.parameter("b"), law.parameter("E")
    text = (
        f"{len(set(runs.params))} sizes on {count(runs.tokens.mean())} tokens follow L = E + a·C^b with b = {b.value:.3f} "
        f"(90% {b.lo:.3f} to {b.hi:.3f}) and E = {E.value:.2f}"
    )
    for row in stars[-1:]:
        predicted, reach = float(law.loss(row.flops)), row.flops / runs.flops.max()
        text += f"; the star of {reach:.3g} times the dearest rung's compute is predicted at {predicted:.3f}"
        text += (
            f" and measured {row.loss:.3f} ({100 * (predicted / row.loss - 1):+.1f}%)"
            if row.loss
            else ""
        )
    return f"{text}."


def _means(law: ComputeLaw, measured: list[RunRow]) -> str:
    if not measured:
        return "Nothing has tested the star yet; until a run has, take its interval and not its middle."
    said = [law.interval(row.flops) for row in measured]
    if any(half_width(one) > TOO_WIDE for one in said):
        return (
            "The interval is too wide to bet on: the rungs bend too little to show where the loss ends. Add dearer rungs, "
            "or vary the tokens too (+grid=isoflop)."
        )
    if all(one.lo <= row.loss <= one.hi for one, row in zip(said, measured, strict=True)):
        return "A ladder of one token count was enough to bet on this run, within the interval given."
    return "A ladder of one token count would have misled a bet on this run: vary the tokens too (+grid=isoflop)."


def _chart(law: ComputeLaw, runs: Runs, stars: list[RunRow]) -> Chart:
    axis = np.geomspace(runs.flops.min(), max([float(runs.flops.max()), *(row.flops for row in stars)]), 80)
    series = [
        Series("rungs", runs.flops, runs.loss),
        Series("L(C) = a·C^b + E", axis, law.loss(axis), "line"),
    ]
    if stars:
        predicted = [law.interval(row.flops) for row in stars]
        x = np.array([row.flops for row in stars])
        y, lo, hi = (np.array([getattr(one, end) for one in predicted]) for end in ("value", "lo", "hi"))
        series.append(Series("star, predicted", x, y, lo=lo, hi=hi))
    if measured := [row for row in stars if row.loss]:
        x, y = (np.array([getattr(row, name) for row in measured]) for name in ("flops", "loss"))
        series.append(Series("star, measured", x, y, "star"))
    panel = Panel(
        "Loss against compute", "training compute C, FLOPs", "loss, nats a token", tuple(series), log_y=True
    )
    return Chart(
        "The law saw the rungs alone; the star's interval and its measurement stand at the right", (panel,)
    )
