"""Numbers as people read them."""

from __future__ import annotations


def quantity(value: float) -> str:
    """A count for people, to three digits: 980, 35.6k, 3.1M, 2.4B; 999,936 is 1M."""
    rounded = float(f"{value:.3g}")
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if rounded >= size:
            return f"{rounded / size:.4g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """42 s, 3 min 05 s, 2 h 10 min, 3 d 04 h; "?" for None."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02} h"


def memory(count: float) -> str:
    """Bytes as MB or GB, powers of ten."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
