"""Questions of what to give up for what: another size, a model that serves, tokens seen twice.

Units: N and D are counts, C is FLOPs, losses are nats a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.answers import Answer, cost_rule, ratio, repeating, runs_of
from analysis.known import SERVING_FLOPS_PER_PARAM, Known, NoAnswer, Plan, worth
from analysis.units import count, power

EPOCHS = (1.0, 2.0, 4.0, 8.0, 16.0, 40.0)
"""Passes that are tabled. Muennighoff et al. 2023 (arXiv 2305.16264), section 6: up to about four cost next
to nothing against new tokens, beyond about sixteen little is gained."""

SMALLER = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3)
"""Sizes tabled at equal loss, over the training-optimal one's."""

SAME = 0.005
"""Relative difference of two sizes that a table shows as one."""


def transfer(
    law: Known,
    *,
    params: float,
    tokens: float,
    loss: float,
    to: float,
    cost: float,
    wanted: float | None = None,
) -> Answer:
    """A run of N on D reached `loss`; what will another size reach, and on how many tokens.

    The law is anchored to the measured loss by scaling all of it: what a change of tokenizer does exactly,
    since nats a token scale with the bytes in a token. Beside it: only E shifted (another corpus of the
    same difficulty), only the reducible part scaled (another recipe on the same corpus).
    """
    said = law.loss_at(params, tokens)
    anchors = [lambda value: value * loss / said, lambda value: value + loss - said]
    if loss > law.irreducible:
        kept = law.irreducible
        anchors.append(lambda value: kept + (value - kept) * (loss - kept) / (said - kept))
    before, after = (law.for_params(size, cost) for size in (params, to))
    fed = after.tokens * tokens / before.tokens
    targets = [("the same tokens", tokens), ("as well fed", fed), ("compute-optimal", after.tokens)]
    equal = float(law.tokens_for_loss(np.array(to), said))
    if np.isfinite(equal):
        targets.append(("the same loss", equal))
    if wanted is not None:
        targets.append((f"loss {wanted:g}", float(law.tokens_for_loss(np.array(to), wanted * said / loss))))
    names = ("scaled", "E shifted", "reducible scaled")
    head = (f"{count(to)} on", "D", "D/N", "C", *names[: len(anchors)])
    rows = [_transferred(law, what, to, D, cost, anchors) for what, D in targets if np.isfinite(D)]
    value = anchors[0](law.loss_at(to, fed))
    says = [
        f"{count(to)} parameters, as well fed as yours ({tokens / before.tokens:.3g}x the compute-optimal "
        f"tokens of their size): {count(fed)} tokens, loss {value:.4f} instead of {loss:.4f}.",
        f"Compute-optimal for {count(to)} would be {count(after.tokens)} tokens, for {count(params)} it is "
        f"{count(before.tokens)}.",
    ]
    if wanted is not None and not np.isfinite(targets[-1][1]):
        says.append(f"No number of tokens brings {count(to)} parameters to {wanted:g} by this law.")
    assumes = [
        cost_rule(law, cost),
        f"the law says {said:.4f} for your run; scaled by {loss / said:.4f} it says your {loss:g} (as "
        "another tokenizer would); the other columns anchor it otherwise, and show how much that matters",
        "the same corpus, tokenizer and recipe for both sizes",
    ]
    if len(anchors) < 3:
        assumes.append(
            f"your loss is below the law's E = {law.irreducible:.4g}: its reducible part cannot be scaled"
        )
    runs = (("params", params), ("tokens", tokens), ("params", to), ("tokens", fed))
    return Answer(tuple(says), law, (head, *rows), tuple(assumes), runs)


def serve(
    law: Known,
    *,
    served: float,
    cost: float,
    params: float | None = None,
    tokens: float | None = None,
    loss: float | None = None,
) -> Answer:
    """The N and D of least training and serving FLOPs at the loss of a given run (compute-optimal where D
    is not given), and others of that loss. Sardana et al. 2024 (arXiv 2401.00448), section 2.

    Raises NoAnswer: not exactly one of params and loss, or no run reaches the loss.
    """
    if (loss is None) == (params is None) or (tokens and params is None):
        raise NoAnswer(
            "the quality to keep is params= (with tokens=, if it is not compute-optimal), or loss= alone"
        )
    if loss is None:
        loss = law.loss_at(params, tokens) if tokens else law.for_params(params, cost).loss
    trained, best = (law.cheapest(loss, cost, amount) for amount in (0.0, served))
    total = _lifetime(trained, served)
    marks = {trained.params: "least training", best.params: "least in all"}
    if params and all(abs(params / size - 1) > SAME for size in marks):
        marks[params] = "yours"
    sizes = np.array(sorted({*marks, *(trained.params * share for share in SMALLER)}, reverse=True))
    rows = []
    for size, D in zip(sizes.tolist(), law.tokens_for_loss(sizes, loss).tolist(), strict=True):
        plan = Plan(size, D, cost * size * D, loss)
        if np.isfinite(D):
            rows.append(
                (count(size), count(D), count(D / size), power(plan.flops), power(_lifetime(plan, served)))
                + (f"{100 * (_lifetime(plan, served) / total - 1):+.1f}%", marks.get(size, ""))
            )
    saved = 100 * (1 - _lifetime(best, served) / total)
    says = (
        f"To serve {count(served)} tokens at a loss of {loss:.4f}, train {count(best.params)} parameters on "
        f"{count(best.tokens)} tokens ({ratio(best)}): {saved:.1f}% fewer FLOPs in all than the "
        f"training-optimal {count(trained.params)} on {count(trained.tokens)}.",
        f"It takes {best.tokens / trained.tokens:.2f}x the tokens and {best.flops / trained.flops:.2f}x the "
        "training FLOPs of that one.",
    )
    head = ("N", "D", "D/N", "training", "with serving", "in all", "")
    assumes = (
        cost_rule(law, cost),
        f"a served token costs {SERVING_FLOPS_PER_PARAM:g}·N FLOPs, prompt or answer; FLOPs are not money: "
        "serving reaches a smaller share of the peak than training, which favours even smaller models",
        "the law holds at many tokens a parameter (Sardana et al. 2024, arXiv 2401.00448, find that laws "
        "fitted at usual ratios promise too much there)",
    )
    return Answer(says, law, (head, *rows), assumes, runs_of(best))


def repeat(law: Known, *, unique: float, epochs: float, cost: float, params: float | None = None) -> Answer:
    """What passes over U unique tokens are worth, and over ten times as many."""
    asked, assumes = repeating(law)
    size = params or law.for_tokens(unique, cost).params
    star = asked.repeats.tokens
    value = float(worth(np.array(epochs), star))
    decade = 10 * unique

    def reached(U: float, passes: float) -> float:
        return asked.loss_at(size, U * passes, U)

    rows = [
        (f"{passes:g}", f"{worth(passes, star):.3g}", f"{100 * worth(passes, star) / passes:.0f}%")
        + (f"{reached(unique, passes):.4f}", f"{reached(decade, passes):.4f}")
        for passes in sorted({*EPOCHS, epochs})
    ]
    head = ("passes", "worth", "each", f"loss, {count(unique)}", f"loss, {count(decade)}")
    once, now = reached(unique, 1), reached(unique, epochs)
    says = (
        f"{epochs:g} passes over {count(unique)} unique tokens ({count(epochs * unique)} seen) are worth "
        f"{count(value * unique)} unique ones, {100 * value / epochs:.0f}% of as many new ones.",
        f"At {count(size)} parameters they bring the loss from {once:.4f} (one pass) to {now:.4f}; one more "
        f"decade of unique tokens, {count(decade)}, to {reached(decade, 1):.4f} in one pass and to "
        f"{reached(decade, epochs):.4f} in {epochs:g}.",
        f"However many passes: at most {count((1 + star) * unique)} tokens' worth.",
    )
    if params is None:
        assumes += (f"N = {count(size)}, compute-optimal for {count(unique)} tokens (params= for another)",)
    return Answer(says, law, (head, *rows), assumes, (("params", size), ("tokens", epochs * unique)))


def _transferred(
    law: Known, what: str, to: float, D: float, cost: float, anchors: Sequence
) -> tuple[str, ...]:
    value = law.loss_at(to, D)
    return (
        what,
        count(D),
        count(D / to),
        power(cost * to * D),
        *(f"{anchor(value):.4f}" for anchor in anchors),
    )


def _lifetime(plan: Plan, served: float) -> float:
    return plan.flops + SERVING_FLOPS_PER_PARAM * plan.params * served
