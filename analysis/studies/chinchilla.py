"""Hoffmann et al. 2022 (arXiv 2203.15556): N_opt ∝ C^a and D_opt ∝ C^b by three approaches.

Porian et al. 2024 (arXiv 2406.19146) take the distance from Kaplan et al. 2020 (2001.08361) apart: FLOPs of
the head, a warmup of one length, the rate's decay, one batch and rate for all sizes. Here each is undone
alone, and the exponent read again: by counting otherwise, or on runs made that way (role "arm"; a grid's
`arms`) at the same cells.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.allocate import (
    by_envelope,
    by_isoflops,
    by_surface,
    cost_rule,
    envelope,
    isoflops,
    optimal_log_params,
)
from analysis.conventions import by_count
from analysis.ensemble import Member, fit_members
from analysis.estimate import Estimate
from analysis.finding import Chart, Finding, Number, Panel, Series
from analysis.isoflop import SAME_LABEL
from analysis.joint import fit_joint
from analysis.laws import SEPARABLE
from analysis.published import PUBLISHED
from analysis.resample import estimate
from analysis.studies import Evidence
from analysis.table import as_runs
from analysis.values import Allocation, PublishedAllocation, RunRow, Runs, Skipped, Status
from analysis.windows import groups, windows_of

SOURCE = "Hoffmann et al. 2022 (arXiv 2203.15556); Porian et al. 2024 (arXiv 2406.19146)"

ARM = "arm"
"""Role of the runs that undo a correction; their group is the arm's name, ": " and the budget's."""

UNEVEN = 0.02
"""a + b - 1 from which a reader is told why. Assumption."""

FEWEST_BUDGETS = 3
"""For a slope with an interval: two points determine a line whatever they are."""

UNDOING = {
    "head": "no head in N and C, C = 6·N·D",
    "warmup": "one long warmup for all runs",
    "decay": "losses before the rate comes down",
    "tuning": "one batch and rate for all sizes",
}
"""What undoing each correction is, by the name of its arm. "head" is another count of the same runs; "decay"
needs no runs of its own, but trunks that were evaluated at their ends."""

_APART = "one of three factors that set Kaplan's a apart, Porian et al. 2024, abstract"
CLAIMED = {
    "head": _APART,
    "warmup": _APART,
    "decay": "not essential, Porian et al. 2024, abstract",
    "tuning": _APART,
}


def study(evidence: Evidence) -> Finding:
    """Raises ValueError: no approach can be had, with the reason of each."""
    runs = evidence.table.runs
    approaches = _approaches(runs)
    had = [item for item in approaches if isinstance(item, Allocation)]
    if not had:
        raise ValueError("; ".join(f"{item.what}: {item.reason}" for item in approaches))
    moved = {
        name: _without_head(evidence) if name == "head" else _undone(evidence, name)
        for name in _arms(evidence)
    }
    return Finding(
        study="chinchilla",
        title="Compute-optimal exponents by three approaches",
        source=SOURCE,
        found=_found(had),
        means=_means(had),
        numbers=(*_exponents(approaches), *_movements(moved)),
        chart=_chart(runs, had, moved),
        notes=_notes(had, moved, evidence),
    )


# --- the three approaches -----------------------------------------------------------------------------


def _approaches(runs: Runs) -> tuple[Allocation | Skipped, ...]:
    rule = cost_rule(runs)
    curves, draws, _ = isoflops(runs, rule)
    return _by_envelope(runs), by_isoflops(curves, draws, rule), _by_surface(runs)


def _by_envelope(runs: Runs) -> Allocation | Skipped:
    """Unless most of its points are the smallest or the largest size of their budget: then it follows the
    sizes that were chosen, not the best."""
    best = set(envelope(runs).run_ids)
    edges = inner = 0
    for _, index in groups(runs):
        sizes, flops = runs.params[index], runs.flops[index]
        if flops.max() > SAME_LABEL * flops.min():
            continue
        there = np.array([runs.run_id[i] in best for i in index])
        at_edge = (sizes == sizes.min()) | (sizes == sizes.max())
        edges, inner = edges + int((there & at_edge).sum()), inner + int((there & ~at_edge).sum())
    if edges > inner:
        share = f"{edges} of {edges + inner} points on the envelope are the smallest or the largest size"
        return Skipped("approach 1", f"{share} of their budget: it follows the sizes that were run")
    return by_envelope(runs)


def _by_surface(runs: Runs) -> Allocation | Skipped:
    member = _separable(runs)
    return member if isinstance(member, Skipped) else by_surface(member, cost_rule(runs), runs)


def _separable(runs: Runs) -> Member | Skipped:
    members, skipped = fit_members(runs, (), beside=(SEPARABLE,))
    if not members:
        return Skipped("approach 3", skipped[0].reason)
    fit = members[0].fit
    no_floor = fit.at_bound == ("E",) and fit.values["E"] == 0  # a limit of the law, which leaves an optimum
    if fit.status is not Status.CONVERGED and not no_floor:
        return Skipped("approach 3", f"the fit of {fit.equation} is {fit.status.value}: {fit.reason}")
    return members[0]


def _exponents(approaches: Sequence[Allocation | Skipped]) -> list[Number]:
    numbers = []
    for i, (item, theirs) in enumerate(zip(approaches, PUBLISHED[1:], strict=True)):
        for name in ("a", "b"):
            had = isinstance(item, Allocation)
            printed = f"{getattr(theirs, name):.2f}, Hoffmann et al. 2022, table 2; {_kaplan(name)}"
            what = f"{name}, approach {theirs.approach}"
            numbers.append(Number(what, getattr(item, name) if had else None, "", printed, item.reason))
    return numbers


def _kaplan(name: str) -> str:
    kaplan: PublishedAllocation = PUBLISHED[0]
    return f"{getattr(kaplan, name):.2f}, Kaplan et al. 2020, table 6"


# --- what moves the exponent --------------------------------------------------------------------------


@dataclass(frozen=True)
class Movement:
    """The exponent a with a correction undone, and as it is by the same reading of the same cells; `reason`
    says why there is neither."""

    undone: Estimate | None = None
    corrected: Estimate | None = None
    difference: Estimate | None = None
    how: str = ""
    reason: str = ""


def _movement(undone: np.ndarray | str, corrected: np.ndarray | str, how: str) -> Movement:
    """From estimate and draws of each, [1 + resample]: draw i of both is of the same resample, so that what
    they share drops out of the difference."""
    for side, which in ((undone, "undone"), (corrected, "as it is")):
        if isinstance(side, str):
            return Movement(how=how, reason=f"{which}: {side}")
    return Movement(*(estimate(x[0], x[1:]) for x in (undone, corrected, undone - corrected)), how)


def _without_head(evidence: Evidence) -> Movement:
    """N and C = 6·N·D counted as Kaplan et al. did, without embedding and head, against with the head;
    approach 3."""
    counts = by_count(evidence.table.runs, evidence.table.params_kind)
    if len(counts) < 2:
        return Movement(
            reason="the table does not count N both with and without embeddings, which tells the head's size"
        )
    runs = counts["non-embedding"]
    embedding = counts["total"].params - runs.params
    holds_no_head = _tied(evidence, runs) or not (runs.params > embedding).all()
    without = runs.params if holds_no_head else runs.params - embedding
    sides = (replace(runs, params=n, flops=6 * n * runs.tokens) for n in (without, without + embedding))
    return _movement(
        *map(_surface_slopes, sides), "approach 3; the head taken to be as large as the embedding"
    )


def _tied(evidence: Evidence, runs: Runs) -> bool:
    """Whether the head is the embedding; where no run's spec says so, it is not."""
    course = next(filter(None, map(evidence.courses.get, runs.run_id)), None)
    return course is not None and bool(course.made.get("shape", {}).get("tied"))


def _surface_slopes(runs: Runs) -> np.ndarray | str:
    member = _separable(runs)
    if isinstance(member, Skipped):
        return member.reason
    flops = np.geomspace(runs.flops.min(), runs.flops.max(), 9)
    thetas = np.vstack([member.theta, member.draws])
    return _slopes(np.log(flops), optimal_log_params(member, thetas, cost_rule(runs), flops))


def _isoflop_slopes(runs: Runs) -> np.ndarray | str:
    curves, draws, _ = isoflops(runs, cost_rule(runs))
    good = [i for i, curve in enumerate(curves) if curve.bracketed]
    if len(good) < FEWEST_BUDGETS:
        few = f"{len(good)} of {len(curves)} budgets have a minimum between their sizes"
        return f"{few}, and a slope takes {FEWEST_BUDGETS}"
    minima = np.log([curves[i].params_opt.value for i in good])
    return _slopes(np.log([curves[i].flops for i in good]), np.vstack([minima, draws[:, good]]))


def _shape_slopes(runs: Runs) -> np.ndarray | str:
    """By one asymmetric shape for all budgets, which needs no minimum between the sizes of each."""
    curves, _, _ = isoflops(runs, cost_rule(runs))
    fitted = fit_joint(windows_of(runs, curves))
    return fitted.reason if isinstance(fitted, Skipped) else np.append(fitted.theta[1], fitted.draws[:, 1])


def _slopes(log_flops: np.ndarray, log_params: np.ndarray) -> np.ndarray:
    """Of log N_opt [draw, budget] by log C; [draw]."""
    centred = log_flops - log_flops.mean()
    return log_params @ centred / (centred @ centred)


def _arms(evidence: Evidence) -> list[str]:
    """Those that there might be, in Porian et al.'s order, and further ones that there are."""
    there = [row.group.partition(": ")[0] for row in evidence.finished((ARM,))]
    return list(dict.fromkeys((*UNDOING, *there)))


def _undone(evidence: Evidence, arm: str) -> Movement:
    """The exponent of an arm's runs against that of the runs to fit at the same cells; approach 2."""
    fitted = set(evidence.table.runs.run_id)
    base = {(row.group, row.params): row for row in evidence.finished() if row.run_id in fitted}
    if arm == "decay":
        found = _undecayed(evidence, base)
        reason = "no trunk of these runs was evaluated at its end (schedule=trunk, executor.evaluations=1)"
    else:
        rows = [row for row in evidence.finished((ARM,)) if row.group.startswith(f"{arm}: ")]
        found = {(row.group.partition(": ")[2], row.params): row for row in rows}
        reason = f"no run was made so; +grid=chinchilla has the arm '{arm}'"
    cells = sorted(base.keys() & found.keys())
    if not cells:
        return Movement(reason=reason)
    undone, corrected = (_as_runs([rows[cell] for cell in cells], cells) for rows in (found, base))
    sides = [_isoflop_slopes(side) for side in (undone, corrected)]
    how = f"approach 2 at {len(cells)} cells"
    if any(isinstance(side, str) for side in sides):
        sides = [_shape_slopes(side) for side in (undone, corrected)]
        how = f"approach 2 with one shape for all budgets, since few are bracketed, at {len(cells)} cells"
    return _movement(*sides, how)


def _as_runs(rows: Sequence[RunRow], cells: Sequence[tuple[str, float]]) -> Runs:
    columns = (
        np.array([getattr(row, name) for row in rows]) for name in ("params", "tokens", "loss", "flops")
    )
    params, tokens, loss, flops = columns
    return as_runs(params, tokens, loss, flops=flops, group=[group for group, _ in cells])


def _undecayed(
    evidence: Evidence, base: Mapping[tuple[str, float], RunRow]
) -> dict[tuple[str, float], RunRow]:
    """Each run as it stood when its cooldown began: its trunk's last evaluation, with the tokens and FLOPs by
    then."""
    trunks = {}
    for row in evidence.table.rows:
        course = evidence.courses.get(row.run_id) if row.role == "trunk" else None
        evaluated = np.array([]) if course is None else course.step[np.isfinite(course.eval_loss)]
        if len(evaluated) and evaluated[-1] == course.made["steps"]:
            trunks[_chain(course.made), course.made["steps"]] = course
    found = {}
    for cell, row in base.items():
        spec = getattr(evidence.courses.get(row.run_id), "made", None)
        course = spec and trunks.get((_chain(spec), spec["steps"] - spec["schedule"]["decay_steps"]))
        if course:
            last = np.flatnonzero(np.isfinite(course.eval_loss))[-1]
            at = {name: float(getattr(course, name)[last]) for name in ("tokens", "flops")}
            found[cell] = replace(row, loss=float(course.eval_loss[last]), **at)
    return found


def _chain(spec: Mapping) -> str:
    """What a trunk and the runs that branch off it have in common."""
    shared = {key: value for key, value in spec.items() if key not in ("steps", "schedule")}
    return json.dumps([shared, spec["schedule"]["warmup_steps"]], sort_keys=True)


def _movements(moved: Mapping[str, Movement]) -> list[Number]:
    numbers = []
    for name, move in moved.items():
        note = move.reason or f"{move.how}: a = {_told(move.undone)} so, {_told(move.corrected)} corrected"
        claim = CLAIMED.get(name, "")
        what = f"change of a: {UNDOING.get(name, name)}"
        numbers.append(Number(what, move.difference, "", claim, note))
    return numbers


# --- what is said of them -----------------------------------------------------------------------------


def _told(value: Estimate) -> str:
    return f"{value.value:.2f} ({value.lo:.2f} to {value.hi:.2f})"


def _found(had: Sequence[Allocation]) -> str:
    said = ", ".join(f"{_told(item.a)} by approach {item.approach}" for item in had)
    sides = []
    for who, value in (("Kaplan et al.'s", PUBLISHED[0].a), ("Hoffmann et al.'s", PUBLISHED[1].a)):
        inside = sum(item.a.lo <= value <= item.a.hi for item in had)
        where = f"inside {inside} of the {len(had)} intervals" if inside else "outside all of them"
        sides.append(f"{who} {value:.2f} lies {where}")
    return f"N_opt ∝ C^a with a = {said}; {' and '.join(sides)}."


def _means(had: Sequence[Allocation]) -> str:
    low, high = (end(had, key=lambda item: item.a.value) for end in (min, max))
    kaplan = PUBLISHED[0]
    sizes = " to ".join(dict.fromkeys(f"{10**end.a.value:.1f}" for end in (low, high)))
    if max(item.a.lo for item in had) > min(item.a.hi for item in had):
        return (
            f"The approaches do not agree (ten times the compute on {sizes} times the parameters, and their "
            "intervals share no value): do not size a larger run from one of them before the report's bias "
            "of approach 2 on this very grid says which to trust."
        )
    untold = all(item.a.lo < end.a < item.a.hi for item in had for end in (kaplan, PUBLISHED[1]))
    return (
        f"Ten times the compute is best spent on {sizes} times the parameters here, the rest on tokens; "
        f"Kaplan's law would take {10**kaplan.a:.1f} times the parameters and {10**kaplan.b:.1f} times the "
        "tokens."
    ) + (" No interval here tells the two apart: add seeds (grid.seeds=3) or budgets before a bet." if untold else "")


def _notes(had: Sequence[Allocation], moved: Mapping[str, Movement], evidence: Evidence) -> tuple[str, ...]:
    known = {name: move for name, move in moved.items() if move.difference}
    clear = [name for name, move in known.items() if move.difference.lo * move.difference.hi > 0]
    notes = []
    if known:
        largest = max(known, key=lambda name: abs(known[name].difference.value))
        sure = f"beyond its interval: {', '.join(clear)}" if clear else "none by more than its interval"
        told = f"{largest} undone moves the exponent the most"
        if len(known) > 1:
            told = f"of {', '.join(known)}, each alone, {told}"
        notes.append(f"Corrections: {told} ({known[largest].difference.value:+.2f}); {sure}.")
    notes.append(
        "The papers' runs are of 70 million to 16 billion (Hoffmann et al.) and 768 to 1.5 billion "
        "parameters (Kaplan et al.) with vocabularies of 32,000 and 50,257; where the vocabulary is small or "
        "the models are, embedding, head and attention take other shares of N and C, and a moves with them."
    )
    sums = [item.a.value + item.b.value for item in had]
    if max(sums) - 1 > UNEVEN:
        notes.append(
            f"a and b sum to {max(sums):.2f}, not to 1, since C is not 6·N·D here: head and attention cost what "
            "does not grow with N."
        )
    notes.append(f"N: {evidence.table.params_kind} parameters; C: {evidence.table.flops_kind}.")
    return tuple(notes)


def _chart(runs: Runs, had: Sequence[Allocation], moved: Mapping[str, Movement]) -> Chart:
    ends = np.array([runs.flops.min(), runs.flops.max()])
    lines = [Series("", runs.flops, runs.params)]
    for item in had:
        lines.append(
            Series(f"approach {item.approach}: a = {item.a.value:.2f}", ends, item.params_at(ends), "line")
        )
    middle, size = (
        np.sqrt(ends[0] * ends[1]),
        np.exp(np.mean([np.log(i.params_at(np.sqrt(ends.prod()))) for i in had])),
    )
    for theirs in PUBLISHED[:2]:
        label = f"{theirs.who.split()[0]}'s slope, {theirs.a:.2f}"
        lines.append(Series(label, ends, size * (ends / middle) ** theirs.a, "dashed"))
    rows = {str(item.approach): item.a for item in had}
    rows |= {f"no {name}": move.undone for name, move in moved.items() if move.undone}
    place = np.arange(len(rows), dtype=np.float64)
    value, lo, hi = (np.array([getattr(row, end) for row in rows.values()]) for end in ("value", "lo", "hi"))
    dots = [Series("", place, value, "dots", lo, hi)]
    for theirs, line in zip(PUBLISHED[:2], lines[-2:], strict=True):
        dots.append(Series(line.label, place[[0, -1]], np.full(2, theirs.a), "dashed"))
    return Chart(
        "Left: the optimal size by each approach, all runs in grey, the papers' slopes dashed through the "
        "middle. Right: the exponent a by each approach and with each correction undone, with 90% "
        "intervals.",
        (
            Panel("Optimal size", "C, FLOPs", "N, parameters", tuple(lines), log_y=True),
            Panel("Exponent a", "approach, and what is undone", "a in N_opt ∝ C^a", tuple(dots), log_x=False,
                  x_names=tuple(name.replace(" ", "\n") for name in rows)),  # fmt: skip
        ),
    )
