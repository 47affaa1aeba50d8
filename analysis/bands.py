"""How far an allocation's line may be off: its 90% band along C, from resampled lines."""

from __future__ import annotations

import numpy as np

from analysis.values import LEVEL, Band

REACH = 100.0
"""The band goes on to this multiple of the dearest budget: two decades, as far as a verdict goes."""

POINTS = 33


def line_band(flops: np.ndarray, log_params: np.ndarray, log_tokens: np.ndarray) -> Band:
    """The percentile band of the lines through each draw's log N_opt and log D_opt against log C.

    Args:
        flops: C, float64[budget], two different ones at least.
        log_params, log_tokens: float64[draw, budget].
    """
    along = np.geomspace(flops.min(), REACH * flops.max(), POINTS)
    bounds = []
    for rows in (log_params, log_tokens):
        slope, middle = np.polyfit(np.log(flops) - np.log(flops).mean(), rows.T, 1)
        lines = middle[:, None] + slope[:, None] * (np.log(along) - np.log(flops).mean())
        lo, hi = np.quantile(lines, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        bounds += [np.exp(np.clip(end, -600.0, 600.0)) for end in (lo, hi)]  # within float64's range
    return Band(along, *bounds)
