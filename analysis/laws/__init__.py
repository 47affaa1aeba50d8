"""Scaling laws: each a value that says its equation, its limits, its gradient and where to begin.

A law is a function of log-variables X, float64[run, variable], centred on the runs they were fitted
to (`centre`, the mean logarithms), which keeps the solver's parameters nearly independent. The
solver's parameters `theta` are float64[batch, unknown], so that one call serves a thousand
resamples; the natural parameters (A, alpha, ...) are what a reader sees. To add a law, write its
`evaluate`, `start` and `natural` in a file of this folder and list it in LAWS; or keep it in a file of
your own and name that (see `load_law`).
"""

from analysis.laws import load
from analysis.laws.coupled import COUPLED, SHRUNK
from analysis.laws.farseer import FARSEER
from analysis.laws.kaplan import KAPLAN, KAPLAN_PARAMS, KAPLAN_STEPS, KAPLAN_TOKENS
from analysis.laws.law import EXPONENT_RANGE, SMALLEST_TERM, Law, Prior, as_slope, nonnegative_least_squares
from analysis.laws.load import check_law
from analysis.laws.power import BROKEN, COMPUTE, POWER
from analysis.laws.repeated import REPEATED
from analysis.laws.rosenfeld import ROSENFELD
from analysis.laws.separable import SEPARABLE

LAWS = {
    law.name: law
    for law in (
        SEPARABLE,
        COUPLED,
        SHRUNK,
        KAPLAN,
        ROSENFELD,
        FARSEER,
        REPEATED,
        KAPLAN_PARAMS,
        KAPLAN_TOKENS,
        POWER,
        COMPUTE,
        BROKEN,
    )
}


def load_law(name: str) -> Law:
    """A law by its name in LAWS, or a user's own by "module:ATTRIBUTE", imported and checked.

    Raises ValueError: no such law, module or attribute, or one that `check_law` refuses.
    """
    return load.load(name, LAWS)


__all__ = [
    "BROKEN",
    "COMPUTE",
    "COUPLED",
    "EXPONENT_RANGE",
    "FARSEER",
    "KAPLAN",
    "KAPLAN_PARAMS",
    "KAPLAN_STEPS",
    "KAPLAN_TOKENS",
    "LAWS",
    "POWER",
    "REPEATED",
    "ROSENFELD",
    "SEPARABLE",
    "SHRUNK",
    "SMALLEST_TERM",
    "Law",
    "Prior",
    "as_slope",
    "check_law",
    "load",
    "load_law",
    "nonnegative_least_squares",
]
