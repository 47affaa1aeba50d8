"""A user's own law: from its name to a Law whose mathematics has been checked.

A file my_laws.py beside the table, named as law=my_laws:LOG_LAW:

    import numpy as np
    from analysis.laws import Law, as_slope

    def evaluate(theta, X):  # L = E + a - b·log C, theta = (a about the centre, b)
        a, b = theta[:, :1], theta[:, 1:]
        loss = a - b * X[:, 0]
        return np.log(loss), as_slope(1 / loss, -X[:, 0] / loss)

    LOG_LAW = Law(
        name="log", equation="L(C) = a - b·log C", source="a guess",
        variables=("flops",), unknowns=("a", "b"), evaluate=evaluate,
        start=lambda X, loss, weights: np.array([[loss.mean(), 0.1 * loss.mean() / np.ptp(X)]]),
        natural=lambda theta, centre: np.stack([theta[:, 0] + theta[:, 1] * centre[0], theta[:, 1]], -1),
        bounds=lambda loss: (np.array([0.0, 0.0]), np.array([10.0, 1.0]) * loss.max()),
        loss=lambda v, C: v["a"] - v["b"] * np.log(C))
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import numpy as np

from analysis.laws.law import Law

KNOWN_VARIABLES = {
    "params": (1e6, 1e9),
    "tokens": (1e8, 1e11),
    "unique_tokens": (5e7, 2e10),
    "flops": (1e15, 1e20),
}
"""What a law may be a function of, and the range over which it is checked; assumption: a small sweep's."""

GRADIENT_TOLERANCE = 1e-4
"""Relative error of a gradient against central differences that is let pass: their own is 1e-8 or so."""


def load(name: str, known: Mapping[str, Law]) -> Law:
    """See `analysis.laws.load_law`."""
    if name in known:
        return known[name]
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise ValueError(
            f"no law '{name}'; wanted one of {', '.join(known)}, or a law of your own as module:ATTRIBUTE. "
            "Nothing was fitted."
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"law '{name}': module '{module_name}' cannot be imported ({error}). Run from its folder, or "
            "add that to PYTHONPATH. Nothing was fitted."
        ) from error
    if not hasattr(module, attribute):
        laws = [key for key, value in vars(module).items() if isinstance(value, Law)]
        raise ValueError(
            f"law '{name}': module '{module_name}' has no '{attribute}'; its laws are: "
            f"{', '.join(laws) or 'none'}. Nothing was fitted."
        )
    return check_law(getattr(module, attribute), name)


def check_law(law: object, name: str = "") -> Law:
    """`law`, having tried it on made-up runs.

    Raises ValueError: it is no Law, a variable is unknown, a function returns the wrong shape or no
    finite number, the gradient is not that of the value, or the natural parameters say another loss
    than the solver's.
    """
    if not isinstance(law, Law):
        raise ValueError(f"law '{name}' is a {type(law).__name__}; wanted an analysis.laws.Law")
    where = f"law '{name or law.name}'"
    strange = [variable for variable in law.variables if variable not in KNOWN_VARIABLES]
    if strange or not law.variables:
        raise ValueError(f"{where}: variables {law.variables}; wanted some of {', '.join(KNOWN_VARIABLES)}")
    axes = [np.geomspace(*KNOWN_VARIABLES[variable], 5) for variable in law.variables]
    columns = [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")]
    log_variables = np.log(np.column_stack(columns))
    centre = law.centre(log_variables)
    X = log_variables - centre
    loss = 2.0 + 0.3 * np.exp(-0.2 * (log_variables - log_variables.mean(axis=0))).sum(axis=1)
    unknowns = len(law.unknowns)
    lower, upper = (_shaped(where, "bounds", bound, (unknowns,)) for bound in law.bounds(loss))
    theta = np.asarray(law.start(X, loss, np.ones(len(loss))), dtype=np.float64)
    _shaped(where, "start", theta, (len(theta), unknowns))
    theta = np.clip(theta, lower, upper)
    value, slope = law.evaluate(theta, X)
    _shaped(where, "evaluate's value", value, (len(theta), len(loss)))
    _shaped(where, "evaluate's gradient", slope, (len(theta), len(loss), unknowns))
    for j, unknown in enumerate(law.unknowns):
        nudge = np.zeros(unknowns)
        nudge[j] = 1e-6 * max(1.0, float(np.abs(theta[:, j]).max()))
        rise = (law.evaluate(theta + nudge, X)[0] - law.evaluate(theta - nudge, X)[0]) / (2 * nudge[j])
        off = np.abs(slope[..., j] - rise).max() / (np.abs(rise).max() + 1e-6)
        if not off < GRADIENT_TOLERANCE:
            raise ValueError(
                f"{where}: the gradient by theta's entry {j} (that of {unknown}) is off by {off:.1g} of its "
                f"size against differences of the value; wanted {GRADIENT_TOLERANCE:g}. Nothing was fitted."
            )
    natural = _shaped(where, "natural", law.natural(theta, centre), theta.shape)
    for i in range(len(theta)):
        said = law.loss(dict(zip(law.unknowns, natural[i], strict=True)), *columns)
        if not np.allclose(said, np.exp(value[i]), rtol=1e-6):
            raise ValueError(
                f"{where}: `loss` of the natural parameters {dict(zip(law.unknowns, natural[i], strict=True))} "
                "is not what `evaluate` says of their theta. Nothing was fitted."
            )
    return law


def _shaped(where: str, what: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(array, dtype=np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        finite = "" if np.isfinite(array).all() else ", not all finite"
        raise ValueError(f"{where}: {what} has shape {array.shape}{finite}; wanted {shape}, all finite")
    return array
