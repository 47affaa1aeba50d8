"""A law whose constants are known, fitted here or published, and what follows from it.

Everything is found from L(N, D) itself, by searching in log N and log D, so that any law that gives a
loss can be asked; a law that only says where the optimum lies is read off its points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

FLOPS_PER_PARAM = 6.0
"""Training FLOPs for each parameter and token: C = 6·N·D (Kaplan et al. 2020, arXiv 2001.08361, section
2.1). Attention scores and the head are left out."""

SERVING_FLOPS_PER_PARAM = 2.0
"""FLOPs for each parameter and served token, prompt or answer alike: 2·N (Sardana et al. 2024, arXiv
2401.00448, section 2)."""

LEAST, MOST = 1e3, 1e40
"""FLOPs between which budgets are looked for, and the largest N and D; assumption: far outside of anything
that could be run."""

Loss = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Range = tuple[float | None, float | None]


class NoAnswer(ValueError):
    """The law cannot answer; the message says why, and what can."""


@dataclass(frozen=True)
class Plan:
    """One run: N, D, C; the loss where the law gives one, nats a token."""

    params: float
    tokens: float
    flops: float
    loss: float | None


@dataclass(frozen=True)
class Optima:
    """Compute-optimal runs (C, N, D) by increasing C, joined by power laws; outside of them N goes
    with C^a and D with C^b. One point and its exponents are a plain power law."""

    points: tuple[tuple[float, float, float], ...]
    a: float
    b: float

    def params_at(self, flops: float) -> float:
        return self._along(flops, 0, 1, self.a)

    def tokens_at(self, flops: float) -> float:
        return self._along(flops, 0, 2, self.b)

    def flops_of_params(self, params: float) -> float:
        return self._along(params, 1, 0, 1 / self.a)

    def flops_of_tokens(self, tokens: float) -> float:
        return self._along(tokens, 2, 0, 1 / self.b)

    def _along(self, value: float, given: int, wanted: int, exponent: float) -> float:
        at = np.log(value)
        x, y = (np.log([point[column] for point in self.points]) for column in (given, wanted))
        inside = np.interp(at, x, y)
        return float(np.exp(inside + exponent * (at - np.clip(at, x[0], x[-1]))))


@dataclass(frozen=True)
class PowerLoss:
    """L = (scale / x)^exponent, nats a token."""

    scale: float
    exponent: float

    def at(self, x: float) -> float:
        return (self.scale / x) ** self.exponent


@dataclass(frozen=True)
class Repeats:
    """R*: how fast repeated tokens, and parameters beyond what the unique tokens feed, lose their worth.

    Muennighoff et al. 2023 (arXiv 2305.16264), equations 5 and 6.
    """

    tokens: float
    params: float


@dataclass(frozen=True)
class Surface:
    """L(N, D) = E + (A/N^a + B/D^b)^k, nats a token; with `repeats`, of D tokens of which U are distinct."""

    E: float
    A: float
    B: float
    a: float
    b: float
    k: float = 1.0
    repeats: Repeats | None = None

    def loss(self, params: np.ndarray, tokens: np.ndarray, unique: np.ndarray) -> np.ndarray:
        """Arrays that broadcast, float64. Without `repeats` every token counts as new."""
        if self.repeats:
            unique = np.minimum(unique, tokens)
            fed = np.minimum(params, (self.a * self.A / (self.b * self.B) * unique**self.b) ** (1 / self.a))
            params = fed * worth(params / fed, self.repeats.params)
            tokens = unique * worth(tokens / unique, self.repeats.tokens)
        size, data = np.log(self.A) - self.a * np.log(params), np.log(self.B) - self.b * np.log(tokens)
        return self.E + np.exp(self.k * np.logaddexp(size, data))


def worth(epochs: np.ndarray, star: float) -> np.ndarray:
    """What `epochs` passes are worth, in first passes: 1 + R*·(1 - exp(-(epochs - 1)/R*)).

    Muennighoff et al. 2023 (arXiv 2305.16264), equation 5, divided by U.
    """
    return 1 + star * -np.expm1(-(np.asarray(epochs, dtype=np.float64) - 1) / star)


@dataclass(frozen=True)
class Known:
    """A law with its constants.

    counts: what N counts. corpus: which tokens and losses it is about.
    loss: L(N, D, U), or None; `irreducible`: its E. optima: for laws that give no loss.
    one_pass: whether D tokens cost 6·N·D; else the loss is that of training on them until it stops
        falling, and no run can be priced.
    limits: L of one variable alone ("params", "tokens", "flops": the optimum's), others unbounded.
    fitted: the range of the runs behind it, by variable, where it is known.
    interval: what is known of its uncertainty, or why nothing is.
    caution: what a reader of any answer must know first ("" for nothing).
    frontier, predicted: what the analysis that fitted it expects of new runs, in rows (C, N, D, L, lo90,
        hi90): at its own optima, and where it made predictions (C is theirs).
    """

    name: str
    equation: str
    source: str
    counts: str
    corpus: str
    interval: str
    constants: Mapping[str, float]
    loss: Loss | None = None
    irreducible: float = 0.0
    optima: Optima | None = None
    one_pass: bool = True
    limits: Mapping[str, PowerLoss] | None = None
    fitted: Mapping[str, Range] | None = None
    repeats: Repeats | None = None
    notes: tuple[str, ...] = ()
    caution: str = ""
    frontier: tuple[tuple[float, ...], ...] = ()
    predicted: tuple[tuple[float, ...], ...] = ()

    def loss_at(self, params: float, tokens: float, unique: float | None = None) -> float:
        """Raises NoAnswer: the law gives no loss of N and D."""
        self.check_loss()
        U = tokens if unique is None else unique
        return float(self.loss(*(np.array(value, dtype=np.float64) for value in (params, tokens, U))))

    # --- the compute-optimal run ------------------------------------------------------------------

    def optimum(self, flops: float, cost: float, unique: float | None = None) -> Plan:
        """The best run of C FLOPs, of at most `unique` distinct tokens where given.

        Args:
            cost: training FLOPs for each parameter and token.
        Raises NoAnswer: the law has no optimum there, or prices no run.
        """
        if self.optima:
            if unique is not None:
                raise NoAnswer(f"law '{self.name}' does not say what repeated tokens are worth")
            return self._of_optima(flops)
        self._priced()

        def at(log_params: np.ndarray) -> np.ndarray:
            params = np.exp(log_params)
            tokens = flops / cost / params
            return self.loss(params, tokens, tokens if unique is None else np.full_like(tokens, unique))

        params = float(np.exp(_lowest(at, 0.0, np.log(flops / cost), f"N at {flops:.3g} FLOPs", self.name)))
        tokens = flops / cost / params
        return Plan(params, tokens, flops, self.loss_at(params, tokens, unique))

    def for_params(self, params: float, cost: float) -> Plan:
        """The compute-optimal run of a model of N parameters."""
        if self.optima:
            return self._of_optima(self.optima.flops_of_params(params))
        return self._crossing(lambda plan: plan.params / params, cost)

    def for_tokens(self, tokens: float, cost: float) -> Plan:
        """The compute-optimal run of D tokens."""
        if self.optima:
            return self._of_optima(self.optima.flops_of_tokens(tokens))
        return self._crossing(lambda plan: plan.tokens / tokens, cost)

    def _of_optima(self, flops: float) -> Plan:
        limit = (self.limits or {}).get("flops")
        return Plan(
            self.optima.params_at(flops),
            self.optima.tokens_at(flops),
            flops,
            limit.at(flops) if limit else None,
        )

    def _crossing(self, ratio: Callable[[Plan], float], cost: float) -> Plan:
        """The optimum at which ratio(plan), which rises with C, is 1."""

        def below(log_flops: np.ndarray) -> np.ndarray:
            return np.array(ratio(self.optimum(float(np.exp(log_flops)), cost)) < 1)

        plan = self.optimum(float(np.exp(_boundary(below, np.log(LEAST), np.log(MOST), 60))), cost)
        if abs(ratio(plan) - 1) > 1e-3:
            raise NoAnswer(
                f"law '{self.name}': no budget of {LEAST:.0e} to {MOST:.0e} FLOPs has that optimum"
            )
        return plan

    # --- runs of equal loss -----------------------------------------------------------------------

    def tokens_for_loss(self, params: np.ndarray, loss: float) -> np.ndarray:
        """D that brings a model of N parameters to L, shape of `params`; inf where no D does."""
        self._priced()
        params = np.asarray(params, dtype=np.float64)

        def above(log_tokens: np.ndarray) -> np.ndarray:
            tokens = np.exp(log_tokens)
            return self.loss(params, tokens, tokens) > loss

        low = np.zeros(params.shape)
        found = np.exp(_boundary(above, low, low + np.log(MOST), 80))
        return np.where(found > 0.5 * MOST, np.inf, found)

    def cheapest(self, loss: float, cost: float, served: float) -> Plan:
        """The run with the least cost·N·D + 2·N·served among those that reach L.

        Sardana et al. 2024 (arXiv 2401.00448), equation 2; `flops` is that of training alone.
        Raises NoAnswer: no run reaches L.
        """

        def total(log_params: np.ndarray) -> np.ndarray:
            params = np.exp(log_params)
            with np.errstate(over="ignore"):
                tokens = self.tokens_for_loss(params, loss)
                return np.log(params) + np.log(cost * tokens + SERVING_FLOPS_PER_PARAM * served)

        where = f"the cheapest N at L={loss:.4g}"
        params = np.exp(_lowest(total, 0.0, np.log(MOST) / 2, where, self.name))
        tokens = float(self.tokens_for_loss(params, loss))
        return Plan(float(params), tokens, cost * float(params) * tokens, loss)

    def check_loss(self) -> None:
        """Raises NoAnswer: the law gives no loss of N and D."""
        if self.loss is None:
            raise NoAnswer(f"law '{self.name}' says where the optimum lies, not what loss a run reaches")

    def _priced(self) -> None:
        self.check_loss()
        if not self.one_pass:
            raise NoAnswer(
                f"law '{self.name}' is about models trained on D tokens until the loss stops falling, not "
                "about one pass over them, so it cannot say what a run costs"
            )


def _lowest(value: Callable[[np.ndarray], np.ndarray], low: float, high: float, what: str, law: str) -> float:
    """Where value(x), x float64[point], is least: a grid over [low, high], then finer ones about its best."""
    left, right = low, high
    for _ in range(5):
        x = np.linspace(left, right, 401)
        best = int(np.argmin(value(x)))
        if not np.isfinite(value(x[best : best + 1])[0]):
            raise NoAnswer(f"law '{law}' reaches no such loss at any size")
        left, right = x[max(best - 1, 0)], x[min(best + 1, 400)]
    step = right - left
    if x[best] - low < step or high - x[best] < step:
        raise NoAnswer(f"law '{law}' has no optimum for {what}: it lies at the end of what was searched")
    return float(x[best])


def _boundary(
    holds: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray, halvings: int
) -> np.ndarray:
    """The largest x for which holds(x), true below it and false above; elementwise."""
    low, high = np.array(low, dtype=np.float64), np.array(high, dtype=np.float64)
    for _ in range(halvings):
        middle = (low + high) / 2
        below = holds(middle)
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2
