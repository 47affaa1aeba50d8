"""Questions that a law answers: each a function of the law and numbers, returning an Answer.

Units: N and D are counts, C is FLOPs, losses are nats a token, durations days.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from analysis.hardware import Machine
from analysis.known import Known, NoAnswer, Plan, Repeats, worth
from analysis.published import LAWS
from analysis.units import count, days, power

DURATIONS = (1.0, 7.0, 30.0, 90.0, 365.0)
"""Days that are tabled where none is given."""

WHOLE_PASSES = "whole passes over the same tokens, shuffled"

MISPRICED = 0.05
"""Relative difference between two counts of FLOPs that is worth a word. Assumption."""

SAME_RUN = 1e-3
"""Relative difference in N and D up to which a prediction is for the run asked about: three digits."""

ROUNDING = 1.005
"""Factor beyond a fitted range that its three printed digits leave open."""

Table = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Answer:
    """says: the answer in sentences. table: the head, then rows. assumes: what it rests on.

    law: whose answer it is (None: nobody's). runs: the N, D or C that it asked the law about, by
    variable, to be held against what the law was fitted to. interval: where it differs from the law's.
    compare: what another law would answer, where the question can be put to it.
    """

    says: tuple[str, ...]
    law: Known | None = None
    table: Table = ()
    assumes: tuple[str, ...] = ()
    runs: tuple[tuple[str, float], ...] = ()
    interval: str | None = None
    compare: Callable[[Known], Plan] | None = None


def tokens(law: Known, *, params: float, cost: float) -> Answer:
    """How many tokens does a model of N parameters need at least: those of its compute-optimal run."""
    plan = law.for_params(params, cost)
    return Answer(
        (
            f"A model of {count(params)} parameters needs at least {count(plan.tokens)} tokens "
            f"({ratio(plan)}, C = {power(plan.flops)} FLOPs{_loss(plan)}).",
            "With fewer, a smaller model reaches a lower loss for the same compute; more tokens still help.",
        ),
        law,
        assumes=(cost_rule(law, cost), *_priced_otherwise(law, plan.flops, cost)),
        runs=runs_of(plan),
        interval=_at_frontier(law, plan.flops),
        compare=lambda other: other.for_params(params, cost),
    )


def params(law: Known, *, tokens: float, cost: float) -> Answer:
    """Which model can D tokens feed: the one that is compute-optimal on them, each seen once."""
    plan = law.for_tokens(tokens, cost)
    return Answer(
        (
            f"{count(tokens)} tokens feed a model of {count(plan.params)} parameters "
            f"({ratio(plan)}, C = {power(plan.flops)} FLOPs{_loss(plan)}).",
            "A larger one would want more tokens, a smaller one reaches a higher loss.",
        ),
        law,
        assumes=(
            cost_rule(law, cost),
            *_priced_otherwise(law, plan.flops, cost),
            "each token is seen once (question 'repeat' asks about more passes)",
        ),
        runs=runs_of(plan),
        interval=_at_frontier(law, plan.flops),
        compare=lambda other: other.for_tokens(tokens, cost),
    )


def budget(
    law: Known,
    *,
    cost: float,
    flops: float | None = None,
    machine: Machine | None = None,
    duration: float | None = None,
    unique: float | None = None,
) -> Answer:
    """Which N and D, and what loss, C FLOPs or a machine for some days buy; of the machine alone, a table
    of durations. With `unique`, tokens beyond those are repeats.

    Raises NoAnswer: neither flops nor a machine, or flops and a duration; or a law without a word on
        repeats and `unique`.
    """
    if (flops is None and machine is None) or (duration and (flops or machine is None)):
        raise NoAnswer(
            "a budget is flops=, or gpus= and gpu= with or without days=; flops= and days= do not go together"
        )
    if unique is not None and law.repeats is None:
        raise NoAnswer(
            f"law '{law.name}' does not say what repeated tokens and parameters in excess of them are worth, "
            "on which the best split rests; law=muennighoff does"
        )
    assumes = (cost_rule(law, cost),) + (() if unique is None else (WHOLE_PASSES,))
    assumes += _machine(machine)
    if flops is None and duration is None:
        return _durations(law, machine, cost, unique, assumes)
    plan = law.optimum(flops or machine.flops(duration), cost, unique)
    assumes += _priced_otherwise(law, plan.flops, cost)
    says = [
        f"{_spending(plan, machine)} trains best a model of {count(plan.params)} parameters on "
        f"{count(plan.tokens)} tokens ({ratio(plan)}{_loss(plan)})."
    ]
    if unique is not None and plan.tokens > unique:
        says.append(f"That is {plan.tokens / unique:.3g} passes over the {count(unique)} unique tokens.")
    if machine:
        says.append(_taking(machine, plan.flops))
    a, b = (law.optima.a, law.optima.b) if law.optima else _growth(law, plan, cost, unique)
    says.append(f"Ten times the compute: {10**a:.1f}x the parameters, {10**b:.1f}x the tokens.")
    return Answer(
        tuple(says),
        law,
        assumes=assumes,
        runs=runs_of(plan),
        interval=_at_frontier(law, plan.flops) if unique is None else None,
        compare=(lambda other: other.optimum(plan.flops, cost)) if unique is None else None,
    )


def _durations(
    law: Known, machine: Machine, cost: float, unique: float | None, assumes: tuple[str, ...]
) -> Answer:
    plans = [law.optimum(machine.flops(duration), cost, unique) for duration in DURATIONS]
    head = ("time", "C", "N", "D", "D/N", "loss") + (("cost",) if machine.price else ())
    rows = [
        (days(duration), power(plan.flops), count(plan.params), count(plan.tokens))
        + (count(plan.tokens / plan.params), f"{plan.loss:.4f}" if plan.loss else "-")
        + ((_money(machine, plan.flops),) if machine.price else ())
        for duration, plan in zip(DURATIONS, plans, strict=True)
    ]
    says = (f"What {_named(machine)} can train at best, by how long they run (days= asks about one):",)
    return Answer(says, law, (head, *rows), assumes, tuple(run for plan in plans for run in runs_of(plan)))


def time(*, machine: Machine, params: float, tokens: float, cost: float) -> Answer:
    """How long N parameters on D tokens take on a machine."""
    flops = cost * params * tokens
    return Answer(
        (
            f"{count(params)} parameters on {count(tokens)} tokens cost {power(flops)} FLOPs and take "
            f"{days(machine.days(flops))} on {_named(machine)}.",
            _taking(machine, flops),
        ),
        assumes=(
            f"C = {cost:g}·N·D" + ("; attention, left out, adds a few per cent" if cost == 6 else ""),
            *_machine(machine),
            "no restarts, no evaluation, no waiting for the machine",
        ),
    )


def loss(
    law: Known,
    *,
    cost: float,
    params: float | None = None,
    tokens: float | None = None,
    flops: float | None = None,
    unique: float | None = None,
) -> Answer:
    """What loss a run reaches: N and D; or C alone, spent at the optimum; or N or D alone, where the law
    knows that limit. With `unique`, tokens of D beyond those are repeats.

    Raises NoAnswer: any other set of these.
    """
    given = {"params": params, "tokens": tokens, "flops": flops}
    given = {name: value for name, value in given.items() if value is not None}
    if set(given) == {"params", "tokens"}:
        asked, assumes = (law, ()) if unique is None else repeating(law)
        value = asked.loss_at(params, tokens, unique)
        what = f"{count(params)} parameters on {count(tokens)} tokens" + (
            "" if unique is None else f", {count(unique)} of them distinct"
        )
    elif unique is not None:
        raise NoAnswer("unique= goes with params= and tokens=")
    elif set(given) == {"flops"}:
        plan = law.optimum(flops, cost)
        if plan.loss is None:
            law.check_loss()
        value, assumes = plan.loss, (cost_rule(law, cost),)
        what = f"{power(flops)} FLOPs at the optimum ({count(plan.params)} on {count(plan.tokens)} tokens)"
    elif len(given) == 1 and next(iter(given)) in (law.limits or {}):
        (name, number), assumes = next(iter(given.items())), ()
        value = law.limits[name].at(number)
        what = f"{count(number)} {'parameters' if name == 'params' else name} with everything else unbounded"
    else:
        raise NoAnswer("give params= and tokens=, or flops= alone" + _limits(law))
    interval = _at_frontier(law, flops) if flops else None
    if params and tokens:
        interval = _as_predicted(law, params, tokens, unique)
    says = (f"{what[0].upper()}{what[1:]}: loss {value:.4f} nats a token (perplexity {np.exp(value):.4g}).",)
    return Answer(says, law, assumes=assumes, runs=tuple(given.items()), interval=interval)


def others(answer: Answer) -> Table:
    """What the other published laws say to the same question."""
    plans = {
        other.name: answer.compare(other)
        for other in LAWS.values()
        if other.name != answer.law.name and other.one_pass
    }
    rows = (
        (name, count(plan.params), count(plan.tokens), count(plan.tokens / plan.params), power(plan.flops))
        for name, plan in plans.items()
    )
    return (("law", "N", "D", "D/N", "C"), *rows)


def outside(law: Known, runs: Iterable[tuple[str, float]]) -> tuple[str, ...]:
    """How far the runs go beyond those that the law was fitted to: in words, the worst of each variable."""
    worst: dict[str, tuple[float, str]] = {}
    for variable, value in runs:
        low, high = (law.fitted or {}).get(variable, (None, None))
        beyond = [(value / high, "times the largest", high)] if high else []
        beyond += [(low / value, "times below the smallest", low)] if low else []
        symbol, shown = {"params": ("N", count), "tokens": ("D", count), "flops": ("C", power)}[variable]
        for factor, how, bound in beyond:
            if factor > max(ROUNDING, worst.get(variable, (0.0, ""))[0]):
                text = f"{symbol} = {shown(value)} is {power(factor)} {how} fitted ({shown(bound)})"
                worst[variable] = (factor, text)
    return tuple(text for _, text in worst.values())


def repeating(law: Known) -> tuple[Known, tuple[str, ...]]:
    """The law with repeated tokens discounted, by its own constants or else by Muennighoff et al.'s."""
    assumed = (WHOLE_PASSES,)
    if law.repeats:
        return law, assumed
    if law.loss is None or not law.one_pass:
        raise NoAnswer(f"law '{law.name}' does not say what repeated tokens are worth; law=muennighoff does")
    star = LAWS["muennighoff"].repeats.tokens

    def discounted(params: np.ndarray, tokens: np.ndarray, unique: np.ndarray) -> np.ndarray:
        unique = np.minimum(unique, tokens)
        effective = unique * worth(tokens / unique, star)
        return law.loss(params, effective, effective)

    assumed += (
        f"D counts as U + U·R*·(1 - exp(-(D/U - 1)/R*)) with R* = {star:.4g} from Muennighoff et al. 2023 "
        "(arXiv 2305.16264): another corpus may have another R*; parameters count in full",
    )
    return replace(law, loss=discounted, repeats=Repeats(star, np.inf)), assumed


def _growth(law: Known, plan: Plan, cost: float, unique: float | None) -> tuple[float, float]:
    """log10 of what ten times the compute multiply N and D by."""
    more = law.optimum(10 * plan.flops, cost, unique)
    return float(np.log10(more.params / plan.params)), float(np.log10(more.tokens / plan.tokens))


def _at_frontier(law: Known, flops: float) -> str | None:
    """The interval that the analysis behind the law gives at its own optimum of C, where it looked."""
    if not law.frontier:
        return None
    x = np.log([row[0] for row in law.frontier])
    if not x[0] <= np.log(flops) <= x[-1]:
        return (
            f"for the loss none: {power(flops)} FLOPs are beyond what the analysis looked at; {law.interval}"
        )
    loss, lo, hi = (_between(law, flops, column) for column in (3, 4, 5))
    return (
        f"loss {lo:.4f} to {hi:.4f} for 90% of new runs at the optimum of {power(flops)} FLOPs, around the "
        f"analysis' own prediction of {loss:.4f}; {law.interval}"
    )


def _between(law: Known, flops: float, column: int) -> float:
    """A column of the frontier at C, by a power law between its rows."""
    rows = np.log(law.frontier)
    return float(np.exp(np.interp(np.log(flops), rows[:, 0], rows[:, column])))


def _as_predicted(law: Known, params: float, tokens: float, unique: float | None) -> str | None:
    """The interval of a prediction that the analysis behind the law made for this very run."""
    for _, N, D, loss, lo, hi in law.predicted:
        if unique is None and np.allclose([params / N, tokens / D], 1, rtol=SAME_RUN):
            return (
                f"{lo:.4f} to {hi:.4f} for 90% of new runs, around the analysis' own prediction of "
                f"{loss:.4f}; {law.interval}"
            )
    return None


def _priced_otherwise(law: Known, flops: float, cost: float) -> tuple[str, ...]:
    """Where the analysed runs' own FLOPs are not cost·N·D."""
    if not law.frontier or law.optima:
        return ()
    seen = _between(law, flops, 0) / _between(law, flops, 1) / _between(law, flops, 2)
    if abs(seen / cost - 1) < MISPRICED:
        return ()
    return (
        f"the analysed runs' FLOPs are {seen:.3g}·N·D at such a budget: cost={seen:.3g} counts as they do",
    )


def _limits(law: Known) -> str:
    alone = [name for name in (law.limits or {}) if name != "flops"]
    return f"; law '{law.name}' also takes {' or '.join(f'{name}=' for name in alone)} alone" if alone else ""


def cost_rule(law: Known, cost: float) -> str:
    """Laws that only know optima have their own C."""
    return f"C = {cost:g}·N·D" if law.optima is None else "C as the law's authors count it, about 6·N·D"


def _machine(machine: Machine | None) -> tuple[str, ...]:
    if machine is None:
        return ()
    chip = machine.accelerator
    return (
        f"{chip.name}: {chip.peak / 1e12:g} TFLOP/s at most, dense, 16 bits ({chip.source}); "
        f"{100 * machine.mfu:g}% of it reached (mfu=), which a new code base has to earn",
    )


def _named(machine: Machine) -> str:
    return f"{machine.gpus:g} x {machine.accelerator.name} at {100 * machine.mfu:g}% of peak"


def _spending(plan: Plan, machine: Machine | None) -> str:
    if machine is None:
        return f"A budget of {power(plan.flops)} FLOPs"
    return f"{_named(machine)} for {days(machine.days(plan.flops))} ({power(plan.flops)} FLOPs)"


def _taking(machine: Machine, flops: float) -> str:
    hours = f"{machine.gpu_hours(flops):,.0f} accelerator hours"
    if machine.price is None:
        return f"That is {hours} over {days(machine.days(flops))} (price= an hour gives the cost)."
    cost = f"at {machine.price:g} an hour: {_money(machine, flops)}"
    return f"That is {hours} over {days(machine.days(flops))}, {cost}."


def _money(machine: Machine, flops: float) -> str:
    return f"{machine.price * machine.gpu_hours(flops):,.0f}"


def ratio(plan: Plan) -> str:
    return f"{count(plan.tokens / plan.params)} a parameter"


def _loss(plan: Plan) -> str:
    return f", loss {plan.loss:.4f}" if plan.loss else ""


def runs_of(plan: Plan) -> tuple[tuple[str, float], ...]:
    return (("params", plan.params), ("tokens", plan.tokens), ("flops", plan.flops))
