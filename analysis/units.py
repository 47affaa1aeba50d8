"""Numbers as people write them: 10B, 1.4T, 5.76e23, 40%."""

from __future__ import annotations

import math
import re

_SUFFIXES = {"": 1.0, "%": 0.01, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_NUMBER = re.compile(r"(?P<digits>\d[\d_]*\.?\d*|\.\d+)(?P<power>e[+-]?\d+)?(?P<suffix>[kmbgt%]?)", re.I)


def parse(text: str) -> float:
    """A positive number; k, M, B (or G) and T are 1e3, 1e6, 1e9 and 1e12 in either case.

    Raises ValueError: anything else, zero and negative numbers among it.
    """
    match = _NUMBER.fullmatch(text.strip())
    value = 0.0
    if match:
        value = float(match["digits"].replace("_", "") + (match["power"] or ""))
        value *= _SUFFIXES[match["suffix"].lower()]
    if not (0 < value < math.inf):
        raise ValueError(f"'{text}' is not a positive number such as 10B, 1.4T, 5.76e23 or 70e9")
    return value


def count(value: float) -> str:
    """Three digits: 999, 1.2k, 67B, 1.5T; 1.43e15 and 1.2e-05 outside of those."""
    rounded = float(f"{value:.3g}")
    for suffix, unit in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0)):
        if unit <= rounded < 1e15:
            return f"{rounded / unit:.4g}{suffix}"
    return power(value)


def power(value: float) -> str:
    """Three digits, as FLOPs are written: 5.76e23."""
    return re.sub(r"e\+?(-?)0*(\d)", r"e\1\2", f"{value:.3g}")


def days(value: float) -> str:
    """A duration in days, in words."""
    if value < 1 / 24:
        return f"{value * 24 * 60:.3g} minutes"
    if value < 2:
        return f"{value * 24:.3g} hours"
    return f"{value:,.0f} days" if value >= 100 else f"{value:.3g} days"
