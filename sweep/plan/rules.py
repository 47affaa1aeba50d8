"""Batch, peak rate and what goes with them, from a run's parameters N and tokens D, by a stated rule.

`power`, `constant` and `sqrt` start from the configuration's own rate and batch and leave the width to
the parametrisation (models/transfer.py). `olmo`, `porian` and `steplaw` are published fits with
constants of their own: their rate is the one of every tensor at the run's own size, which is what
param=sp means by a rate, and they say nothing at sizes far from those they were fitted on (`outside`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sweep.plan.schema import ConfigError, OptimConfig


@dataclass(frozen=True)
class Recipe:
    """One run's hyper-parameters. `lr` is the peak rate as models/transfer.py takes it; `batch_tokens`
    is not rounded to sequences. None leaves warmup to schedule.warmup_fraction, and decay to
    optim.weight_decay_timescale."""

    lr: float
    batch_tokens: float
    beta1: float
    beta2: float
    warmup_tokens: float | None
    weight_decay: float | None


@dataclass(frozen=True)
class Range:
    """The sizes that a published rule was made for; None: it does not look at this one."""

    params: tuple[float, float] | None
    tokens: tuple[float, float] | None
    source: str


def recipe(optim: OptimConfig, params: float, tokens: float) -> Recipe:
    """The hyper-parameters of a run of `params` parameters (non-embedding) on `tokens` tokens.

    With optim.follows=size the rule sees optim.tokens_per_param · N in the place of D.
    """
    return RULES[optim.rule](optim, params, followed_tokens(optim, params, tokens))


def followed_tokens(optim: OptimConfig, params: float, tokens: float) -> float:
    """The D that batch, rate, warmup and decay follow. What shares a trunk must share these, and a budget
    that is added later must not change them: there it is optim.tokens_per_param · N, whatever the run's
    own D; elsewhere the run's own."""
    return optim.tokens_per_param * params if optim.follows == "size" else tokens


def grows(optim: OptimConfig) -> bool:
    """Whether a run's batch grows with the tokens that it has seen (sweep/plan/batch.py).

    Raises ConfigError where it is asked to, and the rule's batch does not go with the square root of D.
    """
    can_grow = optim.rule == "sqrt" or optim.rule == "power" and optim.batch_exponent == 0.5
    if optim.batch_follows == "seen" and not can_grow:
        raise ConfigError(
            f"optim.batch_follows: seen wants a batch that goes with the square root of D (optim.rule=sqrt, or power with "
            f"optim.batch_exponent=0.5), and optim.rule={optim.rule} with optim.batch_exponent={optim.batch_exponent:g} has "
            "none; say optim.batch_follows=run. Nothing was launched."
        )
    return can_grow and (optim.batch_follows == "seen" or optim.batch_follows is None and optim.follows == "size")


def power(optim: OptimConfig, params: float, tokens: float) -> Recipe:
    """batch = batch_tokens · (D / batch_at_tokens)^batch_exponent and
    rate = lr · (D / lr_at_tokens)^lr_exponent: powers of D that were measured where they are used."""
    lr = optim.lr * (tokens / optim.lr_at_tokens) ** optim.lr_exponent
    batch = optim.batch_tokens * (tokens / optim.batch_at_tokens) ** optim.batch_exponent
    return _as_configured(optim, lr, batch)


def constant(optim: OptimConfig, params: float, tokens: float) -> Recipe:
    """One rate and one batch for every run, as Baichuan 2 did from 10M to 3B parameters ("consistent
    hyper-parameters": Yang et al. 2023, arXiv 2309.10305, section 2.7)."""
    return _as_configured(optim, optim.lr, float(optim.batch_tokens))


def sqrt(optim: OptimConfig, params: float, tokens: float) -> Recipe:
    """batch = batch_tokens · sqrt(D / batch_at_tokens) and rate = lr · sqrt(batch / batch_tokens).

    The critical batch grows about as the square root of D and not with N (Zhang et al. 2024, arXiv
    2410.21676); Adam's rate goes with the square root of the batch (Malladi et al. 2022, 2205.10287,
    who scale 1 - beta and eps as well: here the betas stay, as they do in nanochat, since at large
    batches they would fall too low).
    """
    ratio = (tokens / optim.batch_at_tokens) ** 0.5
    return _as_configured(optim, optim.lr * ratio**0.5, optim.batch_tokens * ratio)


def _as_configured(optim: OptimConfig, lr: float, batch_tokens: float) -> Recipe:
    return Recipe(lr, batch_tokens, optim.beta1, optim.beta2, None, optim.weight_decay)


PORIAN_PARAMS, PORIAN_BATCH, PORIAN_LR = 108e6, 160 * 2048, 0.0047
"""Porian et al. 2024 (arXiv 2406.19146): 160 sequences of 2,048 tokens and a rate of 0.0047 at 108M
parameters; the powers of N are OLMo-core's, whose model ladder cites them, and agree with the values
in their repository from 5M to 902M parameters (tests/test_rules.py)."""
LARGE_BATCH = 256 * 2048
"""Tokens from which OLMo-core's ladder uses beta2 = 0.95, and 0.99 below: Porian et al. found that small
batches want the larger one. That theirs changes at this very batch is an assumption."""


def porian(optim: OptimConfig, params: float, tokens: float) -> Recipe:
    """batch = 327,680 · (N / 108M)^(2/3) tokens, rate = 0.0047 · (N / 108M)^(-1/3), beta2 after the
    batch, a warmup of N tokens (Porian et al. 2024, arXiv 2406.19146). Decay as configured: theirs
    does not go with the rate."""
    batch = PORIAN_BATCH * (params / PORIAN_PARAMS) ** (2 / 3)
    lr = PORIAN_LR * (params / PORIAN_PARAMS) ** (-1 / 3)
    return Recipe(lr, batch, 0.9, 0.95 if batch >= LARGE_BATCH else 0.99, params, optim.weight_decay)


def olmo(optim: OptimConfig, params: float, tokens: float) -> Recipe:
    """Porian et al.'s with half of the rate, for a constant rate with cooldown, and a decay of 0.1 a
    step times the rate: OLMo-core's model ladder, `WSDSChinchillaRunConfigurator`."""
    theirs = porian(optim, params, tokens)
    return Recipe(theirs.lr / 2, theirs.batch_tokens, 0.9, theirs.beta2, params, 0.1)


def steplaw(optim: OptimConfig, params: float, tokens: float) -> Recipe:
    """rate = 1.79 · N^-0.713 · D^0.307, batch = 0.58 · D^0.571 tokens (Li et al. 2025, arXiv
    2503.04715; N non-embedding). Found with a schedule that ends at a fixed rate of 1e-5;
    its constants are disputed. Betas, warmup and decay as configured."""
    return _as_configured(optim, 1.79 * params**-0.713 * tokens**0.307, 0.58 * tokens**0.571)


Rule = Callable[[OptimConfig, float, float], Recipe]
RULES: dict[str, Rule] = {rule.__name__: rule for rule in (power, constant, sqrt, olmo, porian, steplaw)}

PORIAN_RANGE = (5e6, 9.01e8)  # the models trained for it: Porian et al. 2024, their code's table
RANGES = {
    "porian": Range(PORIAN_RANGE, None, "Porian et al. 2024 trained 5M to 901M parameters"),
    "olmo": Range((6e7, 1.3e10), None, "OLMo-core's ladder has sizes from 60M to 13B parameters"),
    "steplaw": Range(
        # assumption: the ends of the grid that the step law's figures show; the paper has no table of them
        (6e7, 1.1e9),
        (2e9, 1e11),
        "the step law was fitted on about 60M to 1.1B parameters and 2B to 100B tokens",
    ),
}

_RATE = {"optim.lr", "optim.lr_at_tokens", "optim.lr_exponent"}
_BATCH = {"optim.batch_tokens", "optim.batch_at_tokens", "optim.batch_exponent"}
_EXPONENTS = {"optim.lr_at_tokens", "optim.lr_exponent", "optim.batch_exponent"}
_PORIAN = _RATE | _BATCH | {"optim.beta1", "optim.beta2", "schedule.warmup_fraction", "schedule.warmup_tokens"}
UNUSED: dict[str, set[str]] = {
    "power": set(),
    "constant": _EXPONENTS | {"optim.batch_at_tokens"},
    "sqrt": _EXPONENTS,
    "porian": _PORIAN,
    "olmo": _PORIAN | {"optim.weight_decay", "optim.weight_decay_timescale"},
    "steplaw": _RATE | _BATCH,
}
"""Keys of the configuration that a rule does not use, or puts a value of its own in the place of."""


def outside(rule: str, params: float, tokens: float) -> str | None:
    """Why (N, D) is no size that the rule was made for; None where it is, or the rule has no range."""
    known = RANGES.get(rule)
    if known is None:
        return None
    beyond = []
    for name, value, limits in (("N", params, known.params), ("D", tokens, known.tokens)):
        if limits is not None and not limits[0] <= value <= limits[1]:
            below = value < limits[0]
            factor = limits[0] / value if below else value / limits[1]
            beyond.append(f"{name}={value:.3g} is {factor:.3g} times {'below' if below else 'above'} its range")
    if not beyond:
        return None
    return f"optim.rule={rule}: {' and '.join(beyond)} ({known.source}); rate and batch are extrapolated"
