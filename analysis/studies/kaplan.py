"""Kaplan et al. 2020 (arXiv 2001.08361): the loss as a power of N, of D and of C alone, and of two at once.

Each law has an assumption (ample data, ample size, no floor, data repeated until the loss stops falling);
where the runs do not meet it, there is no number but the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from analysis.allocate import envelope
from analysis.conventions import by_count
from analysis.ensemble import REPEATS, Member, fit_members
from analysis.estimate import LEVEL, Estimate
from analysis.finding import Chart, Finding, Number, Panel, Series
from analysis.fitting import fit_law
from analysis.laws import COUPLED, KAPLAN, KAPLAN_PARAMS, KAPLAN_STEPS, KAPLAN_TOKENS, POWER, SEPARABLE, Law
from analysis.resample import cluster_weights, estimate, refit
from analysis.rollout import SAME_BUDGET
from analysis.steps import least_steps
from analysis.studies import Evidence
from analysis.units import count
from analysis.values import Runs, Status

SOURCE = "Kaplan et al. 2020 (arXiv 2001.08361)"

AMPLE = 0.5
"""Data are ample where doubling D lowers the loss by less than this share of what doubling N does, and size
the other way around. Assumption."""

BENT = 0.5
"""Share of itself by which an exponent may change over the runs and still be one exponent. Assumption."""

MISFIT, NOISE_PCT = 2.0, 0.1
"""A law without an irreducible loss fails where it leaves this many times the rms residual of the same form
with one, and more than NOISE_PCT % of the loss. Assumption; seeds alone move a loss by 0.1% and more."""

FEWEST = 4
"""Levels of N, D or C for a line in logarithms: one more than shows a bend. Assumption."""


@dataclass(frozen=True, eq=False)
class Part:
    """One law of the paper on the runs that meet its assumption; `refused` says why it has no fit."""

    runs: Runs | None = None
    member: Member | None = None
    refused: str = ""
    note: str = ""

    def value(self, of: Callable[[Mapping[str, np.ndarray]], np.ndarray]) -> Estimate | None:
        """Of the natural parameters by name, with its interval from the fit's resamples."""
        if self.member is None:
            return None
        law, centre = self.member.law, self.member.problem.centre
        natural = law.natural(np.vstack([self.member.theta, self.member.draws]), centre)
        values = of(dict(zip(law.unknowns, natural.T, strict=True)))
        return estimate(values[0], values[1:])

    def number(
        self, what: str, of: Callable[[Mapping[str, np.ndarray]], np.ndarray], published: str, note: str = ""
    ) -> Number:
        said = "; ".join(filter(None, (self.refused or self.note, note)))
        return Number(what, self.value(of), published=f"{published}, {SOURCE}", note=said)

    def pair(
        self, law: str, kind: str, published: tuple[str, str, str], second: str
    ) -> tuple[Number, Number]:
        """Its alpha_N and its other exponent; what is to be said of both stands at the first."""
        size, other, where = published
        one = self.number(f"alpha_N of {law}, N {kind}", _named("alpha_N"), f"{size}, {where}")
        two = self.number(f"{second} of {law}, N {kind}", _named(second), f"{other}, {where}")
        return one, replace(two, note="as alpha_N" if one.note else "")


def study(evidence: Evidence) -> Finding:
    """Raises ValueError: too few runs for any surface of N and D."""
    table = evidence.table
    repeated = table.runs.tokens > REPEATS * table.runs.unique_tokens
    once = table.runs.take(~repeated)
    counts = by_count(once, table.params_kind)
    surfaces = {kind: _surface(runs) for kind, runs in counts.items()}
    of_params = {kind: _at_ample_data(runs, surfaces[kind]) for kind, runs in counts.items()}
    joint = {kind: _joint(runs, surfaces[kind]) for kind, runs in counts.items()}
    steps = {kind: _steps(evidence, runs) for kind, runs in counts.items()}
    first = next(iter(counts))
    of_tokens = _at_ample_size(counts[first], surfaces[first])
    of_flops = _on_the_envelope(once)
    overfitting = _overfitting(by_count(table.runs, table.params_kind)[first])
    numbers = [
        part.number(f"alpha_N of L(N) at ample data, N {kind}", _named("alpha_N"), "0.076, equation 1.1")
        for kind, part in of_params.items()
    ]
    numbers.append(
        of_tokens.number("alpha_D of L(D) at ample size", _named("alpha_D"), "0.095, equation 1.2")
    )
    numbers.append(
        of_flops.number(
            "alpha_C of L(C) on the envelope",
            lambda v: -v["b"],
            "0.050 at the best batch, equation 1.3",
            f"C: {table.flops_kind}, at the runs' own batch",
        )
    )
    for kind, part in joint.items():
        numbers += part.pair("L(N, D)", kind, ("0.076", "0.103", "table 2"), "alpha_D")
    numbers.append(
        overfitting.number(
            "x of D ∝ N^x against overfitting", lambda v: v["alpha_N"] / v["alpha_D"], "0.74, equation 4.4"
        )
    )
    for kind, part in steps.items():
        numbers += part.pair("L(N, S_min)", kind, ("0.077", "0.76", "table 3"), "alpha_S")
    return Finding(
        study="kaplan",
        title="The loss as a power of N, of D and of C",
        source=SOURCE,
        found=_found(of_params[first], of_tokens, of_flops, first),
        means=_means(of_params[first], of_tokens, of_flops),
        numbers=tuple(numbers),
        chart=_chart(counts[first], first, of_params[first], of_tokens, of_flops, joint[first]),
        notes=_notes(of_params, surfaces),
    )


def _named(name: str) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    return lambda values: values[name]


# --- the laws of one variable -------------------------------------------------------------------------


def _surface(runs: Runs) -> Member:
    """E + (A/N^a + B/D^b)^k, equation 1.5 with a floor: it tells where data or size are ample. Raises
    ValueError."""
    members, skipped = fit_members(runs, (), beside=(COUPLED,), resamples=0)
    if not members:
        raise ValueError(skipped[0].reason)
    return members[0]


def _gains(surface: Member, runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """By how much doubling N, and doubling D, lowers log L by the surface; float64[run] each."""
    here = surface.log_loss(runs)[0]
    larger, longer = replace(runs, params=2 * runs.params), replace(runs, tokens=2 * runs.tokens)
    return here - surface.log_loss(larger)[0], here - surface.log_loss(longer)[0]


def _at_ample_data(runs: Runs, surface: Member) -> Part:
    by_size, by_data = _gains(surface, runs)
    plenty = by_data < AMPLE * by_size
    chosen = _most(runs.params, runs.tokens, plenty)
    lacking = (
        f"data are ample at {{}} sizes of the {len(np.unique(runs.params))}, and a line takes {FEWEST}: "
        f"elsewhere the longest run would still gain more than {AMPLE:g} times as much from twice the tokens "
        "as from twice the size"
    )
    return _line(KAPLAN_PARAMS, runs, chosen, runs.params, lacking, by_data, "twice the tokens")


def _at_ample_size(runs: Runs, surface: Member) -> Part:
    by_size, by_data = _gains(surface, runs)
    plenty = by_size < AMPLE * by_data
    chosen = _most(runs.tokens, runs.params, plenty)
    lacking = (
        f"size is ample at {{}} token counts, and a line takes {FEWEST}: elsewhere the largest run would "
        f"still gain more than {AMPLE:g} times as much from twice the size as from twice the tokens"
    )
    return _line(KAPLAN_TOKENS, runs, chosen, runs.tokens, lacking, by_size, "twice the size")


def _on_the_envelope(runs: Runs) -> Part:
    """Runs of the smallest and of the largest size are no optimum: none lies beyond them."""
    place = {run_id: i for i, run_id in enumerate(runs.run_id)}
    index = np.array([place[run_id] for run_id in envelope(runs).run_ids], dtype=int)
    inner = (runs.params[index] > runs.params.min()) & (runs.params[index] < runs.params.max())
    lacking = f"the envelope holds {{}} levels of C between the sizes at both ends; a line takes {FEWEST}"
    return _line(POWER, runs, index[inner], runs.flops, lacking)


def _levels(values: np.ndarray) -> np.ndarray:
    """Which level each value is of, int64: those of one differ by less than SAME_BUDGET."""
    return np.round(np.log(values) / np.log(SAME_BUDGET)).astype(np.int64)


def _most(of: np.ndarray, other: np.ndarray, plenty: np.ndarray) -> np.ndarray:
    """The runs with plenty of `other`, indices: all at one level of it where one has FEWEST levels of `of`,
    the level with the most of them; else at each level of `of` those with the most of `other`."""
    which, shared = _levels(of), _levels(other)
    held = {level: len(np.unique(which[plenty & (shared == level)])) for level in np.unique(shared)}
    widest = max(held, key=lambda level: (held[level], level))
    if held[widest] >= FEWEST:
        return np.flatnonzero(plenty & (shared == widest))
    chosen: list[int] = []
    for level in np.unique(which):
        there = np.flatnonzero((which == level) & plenty)
        chosen += [int(i) for i in there if other[i] * SAME_BUDGET > other[there].max()]
    return np.array(chosen, dtype=int)


def _line(
    law: Law,
    runs: Runs,
    chosen: np.ndarray,
    of: np.ndarray,
    lacking: str,
    gain: np.ndarray | None = None,
    more: str = "",
) -> Part:
    """`law` through the chosen runs, unless they are too few or do not lie on one line in logarithms."""
    levels = len(np.unique(_levels(of[chosen])))
    if levels < FEWEST:
        return Part(refused=lacking.format(levels))
    taken = runs.take(chosen)
    bend = _bend(np.log(of[chosen]), np.log(taken.loss))
    if min(abs(bend.lo), abs(bend.hi)) > BENT and bend.lo * bend.hi > 0:
        return Part(
            taken,
            refused=(
                f"no power law: over these runs the exponent changes by {bend.value:+.0%} of itself (90%: "
                f"{bend.lo:+.0%} to {bend.hi:+.0%}), and what it is depends on where one looks"
            ),
        )
    note = ""
    if gain is not None:
        least, most = 100 * gain[chosen].min(), 100 * gain[chosen].max()
        note = f"{more} would still lower these losses by {least:.1f} to {most:.1f}%"
    if bend.lo * bend.hi > 0:
        note += "; " if note else ""
        note += f"a local exponent: it changes by {bend.value:+.0%} of itself over these runs"
    return _fitted(
        law, taken, note, loss="least_squares"
    )  # of so few points a knee would fit two and leave the rest


def _bend(x: np.ndarray, y: np.ndarray) -> Estimate:
    """By how much the slope of y changes over x, as a share of the line's own; from a parabola, with
    Student's t."""
    span, middle = np.ptp(x), (x.max() + x.min()) / 2
    design = np.vander((x - middle) / span, 3)
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    freedom = max(len(x) - 3, 1)
    variance = np.sum((y - design @ coefficients) ** 2) / freedom
    change = 2 * coefficients[0] / coefficients[1]
    se = 2 * np.sqrt(variance * np.linalg.inv(design.T @ design)[0, 0]) / abs(coefficients[1])
    half = stats.t.ppf((1 + LEVEL) / 2, freedom) * se
    return Estimate(float(change), float(change - half), float(change + half), float(se))


def _fitted(law: Law, runs: Runs, note: str = "", loss: str = "huber") -> Part:
    try:
        fit, theta, problem = fit_law(law, runs, loss=loss)
        weights = cluster_weights(runs, len(law.unknowns))
    except ValueError as error:
        return Part(runs, refused=str(error))
    if fit.status is not Status.CONVERGED:
        return Part(runs, refused=f"the fit is {fit.status.value}: {fit.reason}")
    return Part(runs, Member(law, fit, problem, theta, refit(problem, theta, weights)), note=note)


# --- the laws of two ----------------------------------------------------------------------------------


def _against(floored: Member | None, part: Part) -> Part:
    """The part, unless the same form with an irreducible loss, `floored`, fits so much better that its zero
    is none."""
    if part.member is None:
        return part
    if floored is None:
        return replace(
            part, note="; ".join(filter(None, (part.note, "too few runs to tell whether there is a floor")))
        )
    own, other = part.member.fit.rms_pct, floored.fit.rms_pct
    if own > max(MISFIT * other, NOISE_PCT):
        floor = floored.fit.values["E"]
        return Part(
            part.runs,
            refused=(
                f"the law has no irreducible loss and misses these runs by {own:.2g}% rms, where the same "
                f"form with one (E = {floor:.3g} nats) misses by {other:.2g}%"
            ),
        )
    return part


def _floored(law: Law, runs: Runs) -> Member | None:
    return next(iter(fit_members(runs, (), beside=(law,), resamples=0)[0]), None)


def _joint(runs: Runs, surface: Member) -> Part:
    """Equation 1.5, with D of runs that see each token once."""
    seen = "D: tokens seen once, where the paper's is a data set trained on until the loss stops falling"
    return _against(surface, _fitted(KAPLAN, runs, seen))


def _overfitting(runs: Runs) -> Part:
    """Equation 1.5 as the paper means it, D a data set that is repeated until the loss stops falling: U
    here."""
    unique = runs.unique_tokens
    repeated = runs.tokens > REPEATS * unique
    if not repeated.any():
        known = np.isfinite(unique).any()
        why = (
            "each run saw its tokens once, so that nothing overfits"
            if known
            else "no run is known to repeat its tokens"
        )
        return Part(refused=f"{why}: there is no law to fit of when it does")
    stopped = []
    for size, data in {(n, u) for n, u in zip(runs.params, unique, strict=True) if np.isfinite(u)}:
        there = np.flatnonzero((runs.params == size) & (unique == data))
        best = there[np.argmin(runs.loss[there])]
        if runs.tokens[best] < runs.tokens[there].max():
            stopped.append(best)
    if len(stopped) <= len(KAPLAN.unknowns):
        return Part(
            refused=(
                f"the loss stopped falling, with a longer run to show it, at {len(stopped)} pairs of size "
                f"and data set; the law takes {len(KAPLAN.unknowns) + 1}"
            )
        )
    chosen = runs.take(np.array(sorted(stopped)))
    chosen = replace(chosen, tokens=chosen.unique_tokens)
    return _against(_floored(COUPLED, chosen), _fitted(KAPLAN, chosen))


def _steps(evidence: Evidence, runs: Runs) -> Part:
    """Equation 1.6."""
    try:
        taken, what = least_steps(evidence, runs)
    except ValueError as error:
        return Part(refused=str(error))
    return _against(_floored(SEPARABLE, taken), _fitted(KAPLAN_STEPS, taken, what))


# --- what is said of them -----------------------------------------------------------------------------


def _found(of_params: Part, of_tokens: Part, of_flops: Part, kind: str) -> str:
    said, silent = [], []
    for name, part, of, theirs in (
        (f"L(N) ∝ N^-{{}} with N {kind}", of_params, _named("alpha_N"), "0.076"),
        ("L(D) ∝ D^-{}", of_tokens, _named("alpha_D"), "0.095"),
        ("L(C) ∝ C^-{} on the envelope", of_flops, lambda v: -v["b"], "0.050"),
    ):
        value = part.value(of)
        if value is None:
            silent.append(name[:4])
        else:
            ends = f"90% {value.lo:.3f} to {value.hi:.3f}; the paper's {theirs}"
            said.append(name.format(f"{value.value:.3f} ({ends})"))
    none = f"the runs carry no {', '.join(silent)}" if silent else ""
    text = "; ".join(filter(None, (", ".join(said), none)))
    return text[0].upper() + text[1:] + "."


def _means(of_params: Part, of_tokens: Part, of_flops: Part) -> str:
    by_size, by_data = of_params.value(_named("alpha_N")), of_tokens.value(_named("alpha_D"))
    by_compute = of_flops.value(lambda v: -v["b"])
    said = []
    if by_size and by_data:
        said.append(
            f"where the other is ample, twice the parameters lower the loss by {_lowered(2, by_size):.1f}% "
            f"and twice the tokens by {_lowered(2, by_data):.1f}%"
        )
    if by_compute:
        said.append(
            f"ten times the compute, well spent, lowers it by {_lowered(10, by_compute):.1f}%, the price of "
            "the next step down"
        )
    if not said:
        return "Do not plan with a single power law on this corpus: use the surface that the report fits."
    text = "; ".join(said)
    return text[0].upper() + text[1:] + "."


def _lowered(factor: float, exponent: Estimate) -> float:
    return 100 * (1 - factor**-exponent.value)


def _notes(of_params: Mapping[str, Part], surfaces: Mapping[str, Member]) -> tuple[str, ...]:
    notes = [
        "The paper's exponents are for WebText2 and models of 768 to 1.5 billion parameters without "
        "embedding and head; an exponent of a law without an irreducible loss shrinks as the loss nears that "
        "floor, so exponents of other corpora, tokenizers and sizes do not compare number by number."
    ]
    floor = next(iter(surfaces.values())).fit.values["E"]
    notes.append(f"A surface with a floor puts it at E = {floor:.3g} nats a token on these runs.")
    values = {kind: part.value(_named("alpha_N")) for kind, part in of_params.items()}
    if len(values) == 2 and all(values.values()):
        (one, first), (other, second) = values.items()
        notes.append(
            f"alpha_N is {first.value:.3f} with N {one} and {second.value:.3f} with N {other}: the embedding "
            "is a larger share of a smaller model (section 3.2)."
        )
    return tuple(notes)


def _chart(runs: Runs, kind: str, of_params: Part, of_tokens: Part, of_flops: Part, joint: Part) -> Chart:
    panels = [
        _panel("L(N), data ample", f"N, {kind} parameters", "params", runs, of_params),
        _panel("L(D), size ample", "D, tokens", "tokens", runs, of_tokens),
        _panel("L(C), envelope", "C, FLOPs", "flops", runs, of_flops),
        _surface_panel(runs, joint),
    ]
    return Chart(
        "Coloured: the runs that meet a law's assumption, with its fit; grey: all runs.", tuple(panels)
    )


def _panel(title: str, label: str, name: str, runs: Runs, part: Part) -> Panel:
    series = [Series("", getattr(runs, name), runs.loss)]
    if part.runs is not None:
        x = getattr(part.runs, name)
        series.append(Series("meets the assumption", x, part.runs.loss))
        if part.member is not None:
            along = np.geomspace(x.min(), x.max(), 40)
            law = part.member.law
            series.append(Series("fit", along, law.loss_at(part.member.fit.values, **{name: along}), "line"))
    return Panel(title, label, "loss, nats a token", tuple(series), log_y=True)


def _surface_panel(runs: Runs, joint: Part) -> Panel:
    sizes = np.unique(runs.params)
    series = []
    for size in sizes[np.unique(np.linspace(0, len(sizes) - 1, 5).round().astype(int))]:
        there = runs.params == size
        series.append(Series(f"N = {count(size)}", runs.tokens[there], runs.loss[there]))
        if joint.member is not None:
            along = np.geomspace(runs.tokens.min(), runs.tokens.max(), 40)
            fit = KAPLAN.loss_at(joint.member.fit.values, params=np.full(40, size), tokens=along)
            series.append(Series(f"N = {count(size)}", along, fit, "line"))
    return Panel("L(N, D), equation 1.5", "D, tokens", "loss, nats a token", tuple(series), log_y=True)
