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

Table = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Answer:
    """says: the answer in sentences. table: the head, then rows. assumes: what it rests on.

    law: whose answer it is (None: nobody's). runs: the N, D or C that it asked the law about, by
    variable, to be held against what the law was fitted to. interval: where it differs from the law's.
    """

    says: tuple[str, ...]
    law: Known | None = None
    table: Table = ()
    assumes: tuple[str, ...] = ()
    runs: tuple[tuple[str, float], ...] = ()
    interval: str | None = None


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
        assumes=(cost_rule(law, cost),),
        runs=runs_of(plan),
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
        assumes=(cost_rule(law, cost), "each token is seen once (question 'repeat' asks about more passes)"),
        runs=runs_of(plan),
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
    of durations. With `unique`, tokens beyond those are repeats."""
    asked, assumes = (law, (cost_rule(law, cost),)) if unique is None else repeating(law, cost)
    spent = [flops or machine.flops(time) for time in ((duration,) if flops or duration else DURATIONS)]
    plans = [asked.optimum(C, cost, unique) for C in spent]
    assumes += _machine(machine)
    if len(plans) > 1:
        head = ("time", "C", "N", "D", "D/N", "loss") + (("cost",) if machine.price else ())
        rows = [
            (days(time), power(plan.flops), count(plan.params), count(plan.tokens))
            + (f"{plan.tokens / plan.params:.3g}", f"{plan.loss:.4f}" if plan.loss else "-")
            + ((_money(machine, plan.flops),) if machine.price else ())
            for time, plan in zip(DURATIONS, plans, strict=True)
        ]
        says = (f"What {_named(machine)} can train at best, by how long they run (days=... for one):",)
        return Answer(says, law, (head, *rows), assumes, tuple(run for plan in plans for run in runs_of(plan)))
    plan = plans[0]
    says = [
        f"{_spending(plan, machine)} trains best a model of {count(plan.params)} parameters on "
        f"{count(plan.tokens)} tokens ({ratio(plan)}{_loss(plan)})."
    ]
    if unique is not None and plan.tokens > unique:
        says.append(f"That is {plan.tokens / unique:.3g} passes over the {count(unique)} unique tokens.")
    if machine:
        says.append(_taking(machine, plan.flops))
    grown = (asked.optima.a, asked.optima.b) if asked.optima else _growth(asked, plan, cost, unique)
    says.append(f"Ten times the compute: {10 ** grown[0]:.1f}x the parameters, {10 ** grown[1]:.1f}x the tokens.")
    return Answer(tuple(says), law, assumes=assumes, runs=runs_of(plan), interval=_at_frontier(law, plan.flops))


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
    knows that limit."""
    given = {"params": params, "tokens": tokens, "flops": flops}
    given = {name: value for name, value in given.items() if value is not None}
    if set(given) == {"params", "tokens"}:
        asked, assumes = (law, ()) if unique is None else repeating(law, cost)
        value = asked.loss_at(params, tokens, unique)
        what = f"{count(params)} parameters on {count(tokens)} tokens" + (
            "" if unique is None else f", {count(unique)} of them distinct,"
        )
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
    says = (f"{what[0].upper()}{what[1:]}: loss {value:.4f} nats a token (perplexity {np.exp(value):.4g}).",)
    return Answer(says, law, assumes=assumes, runs=tuple(given.items()), interval=interval)


def others(law: Known, plan_of: Callable[[Known], Plan]) -> Table:
    """What the other published laws say to the same question."""
    rows = []
    for other in LAWS.values():
        if other.name != law.name and other.one_pass:
            plan = plan_of(other)
            rows.append((other.name, count(plan.params), count(plan.tokens), f"{plan.tokens / plan.params:.3g}"))
    return (("law", "N", "D", "D/N"), *rows)


def outside(law: Known, runs: Iterable[tuple[str, float]]) -> tuple[str, ...]:
    """Where the question goes beyond the runs that the law was fitted to: one warning a variable, the worst."""
    names = {"params": "N", "tokens": "D", "flops": "C"}
    worst: dict[str, tuple[float, str]] = {}
    for variable, value in runs:
        low, high = (law.fitted or {}).get(variable, (None, None))
        for factor, bound, side in ((high and value / high, high, "largest"), (low and low / value, low, "smallest")):
            if factor and factor > max(1.005, worst.get(variable, (0.0, ""))[0]):
                shown = power if variable == "flops" else count
                text = f"{names[variable]} = {shown(value)} is {_times(factor)} the {side} fitted ({shown(bound)})"
                worst[variable] = (factor, text if side == "largest" else text.replace("is ", "is 1/", 1))
    return tuple(text for _, text in worst.values())


def _times(factor: float) -> str:
    return f"{factor:.3g} times" if factor < 1e4 else f"{power(factor)} times"


def repeating(law: Known, cost: float) -> tuple[Known, tuple[str, ...]]:
    """The law with repeated tokens discounted, by its own constants or else by Muennighoff et al.'s."""
    assumed = (cost_rule(law, cost), "whole passes over the same tokens, shuffled")
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
        f"D counts as U + U·R*·(1 - exp(-(D/U - 1)/R*)) with R* = {star:.4g} from Muennighoff et al. 2023 (arXiv "
        "2305.16264): another corpus may have another R*",
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
    x, *rows = np.log(np.array(law.frontier)).T
    if not x[0] <= np.log(flops) <= x[-1]:
        return f"{law.interval}; for the loss none at {power(flops)} FLOPs, beyond what the analysis looked at"
    loss, lo, hi = (float(np.exp(np.interp(np.log(flops), x, row))) for row in rows)
    return (
        f"loss {lo:.4f} to {hi:.4f} for 90% of new runs at the optimum of {power(flops)} FLOPs, around the "
        f"analysis' own prediction of {loss:.4f}; {law.interval}"
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
        f"{chip.name}: {chip.peak / 1e12:g} TFLOP/s at most, dense bf16 ({chip.source}); {100 * machine.mfu:g}% of "
        "it reached (mfu=), which a new code base has to earn",
    )


def _named(machine: Machine) -> str:
    return f"{machine.gpus:g} {machine.accelerator.name} at {100 * machine.mfu:g}% of peak"


def _spending(plan: Plan, machine: Machine | None) -> str:
    if machine is None:
        return f"A budget of {power(plan.flops)} FLOPs"
    return f"{_named(machine)} for {days(machine.days(plan.flops))} ({power(plan.flops)} FLOPs)"


def _taking(machine: Machine, flops: float) -> str:
    hours = f"{machine.gpu_hours(flops):,.0f} accelerator hours"
    if machine.price is None:
        return f"That is {hours} over {days(machine.days(flops))} (price= an hour gives the cost)."
    return f"That is {hours} over {days(machine.days(flops))}, at {machine.price:g} an hour: {_money(machine, flops)}."


def _money(machine: Machine, flops: float) -> str:
    return f"{machine.price * machine.gpu_hours(flops):,.0f}"


def ratio(plan: Plan) -> str:
    return f"{plan.tokens / plan.params:.3g} a parameter"


def _loss(plan: Plan) -> str:
    return f", loss {plan.loss:.4f}" if plan.loss else ""


def runs_of(plan: Plan) -> tuple[tuple[str, float], ...]:
    return (("params", plan.params), ("tokens", plan.tokens), ("flops", plan.flops))
