"""How the report says numbers: short, with their units, the same in text, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime

NONE = "–"
_SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_DURATIONS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def count(value: float | None) -> str:
    """A count (parameters, tokens) to three digits: 3120000 is "3.12M"; "1.2e15" from there on."""
    if not _finite(value):
        return NONE
    rounded = float(f"{value:.3g}")
    if rounded >= 1e15 or 0 < rounded < 0.01:
        return flops(value)
    for unit, suffix in _SUFFIXES:
        if rounded >= unit:
            scaled = rounded / unit
            return f"{scaled:.{_decimals(scaled)}f}{suffix}"
    return f"{rounded:g}"


def parameters(kind: str) -> str:
    """What N counts: "non-embedding parameters"; a kind in the user's words follows in brackets."""
    return f"{kind} parameters" if kind in ("non-embedding", "total") else f"parameters ({kind})"


def tick_count(value: float) -> str:
    """`count` without the zeros that only a column of numbers needs: "10k", "2.5M"."""
    said = count(value)
    number, suffix = (said[:-1], said[-1]) if said[-1].isalpha() else (said, "")
    return (number.rstrip("0").rstrip(".") if "." in number else number) + suffix


def flops(value: float | None) -> str:
    """FLOPs to two digits, without the exponent's padding: "1.2e12"."""
    if not _finite(value):
        return NONE
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def loss(value: float | None, decimals: int = 4) -> str:
    """Nats a token."""
    return f"{value:.{decimals}f}" if _finite(value) else NONE


def loss_with_error(value: float | None, error: float | None) -> str:
    """ "2.1034 ± 0.0012", both to the error's second digit; without an error four decimals."""
    if not _finite(value) or not _finite(error) or error <= 0:
        return loss(value)
    decimals = min(6, max(3, 1 - math.floor(math.log10(error))))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def number(value: float | None) -> str:
    """A law's parameter or an exponent to four digits; scientific below 1e-3 and from 1e5 on."""
    if not _finite(value):
        return NONE
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    if abs(value) >= 1e4:
        return f"{value:.0f}"
    return f"{value:.4g}"


def interval(lo: float | None, hi: float | None, say: Callable[[float], str] = number) -> str:
    """ "[0.46, 0.53]", or a dash where an end is missing. An end that only rounding keeps from zero is zero."""
    if not _finite(lo) or not _finite(hi):
        return NONE
    lo, hi = (0.0 if abs(end) < 1e-12 * max(abs(lo), abs(hi)) else end for end in (lo, hi))
    return f"[{say(lo)}, {say(hi)}]"


def percent(value: float | None, signed: bool = False) -> str:
    """Per cent, already multiplied by 100: one decimal from 1 on, two below."""
    if not _finite(value):
        return NONE
    decimals = 1 if abs(value) >= 0.995 else 2
    rounded = round(value, decimals) + 0.0  # no "-0.00%"
    return f"{rounded:{'+' if signed else ''}.{decimals}f}%"


def factor(value: float) -> str:
    """A ratio: "10×", "2.5×"."""
    return f"{value:.0f}×" if value >= 9.95 else f"{value:.1f}×".replace(".0×", "×")


def duration(seconds: float | None) -> str:
    """Wall time in its two largest units: "41 s", "3 min 20 s", "2 h 5 min", "4 d 3 h"."""
    if not _finite(seconds):
        return NONE
    whole = round(seconds)
    for unit, name, below, name_below in _DURATIONS:
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // below} {name_below}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"


def power_of_ten(value: float) -> str:
    """An axis tick: "10¹²", "2·10¹²"."""
    mantissa, exponent = f"{value:.0e}".split("e")
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    return power if mantissa == "1" else f"{mantissa}·{power}"


def plural(n: int, noun: str) -> str:
    """ "1 run", "1,234 runs"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def moment(iso: str) -> str:
    """A time in ISO 8601 to the minute, "2026-11-23 10:00"."""
    return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M")


def listing(items: Sequence[str], separator: str = "; ") -> str:
    """Reasons joined into one clause, without the full stops that they may bring."""
    return separator.join(item.strip().rstrip(".") for item in items)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _decimals(scaled: float) -> int:
    return 0 if scaled >= 100 else 1 if scaled >= 10 else 2
