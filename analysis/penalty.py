"""What a residual costs."""

from __future__ import annotations

import numpy as np


def huber(residual: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray]:
    """Huber's function and its derivative: r²/2 up to |r| = delta, then delta·(|r| - delta/2)."""
    clipped = np.clip(residual, -delta, delta)
    return clipped * (residual - clipped / 2), clipped


def sides(residual: np.ndarray, tau: float) -> np.ndarray | float:
    """What a residual log L_fit - log L is weighed by for its sign: 2·tau where the fit is too low,
    2·(1 - tau) where it is too high. With a soft knee the fit is the tau-expectile (Newey & Powell
    1987, Econometrica 55:819), with a hard one near the tau-quantile (Dabney et al. 2018, arXiv
    1710.10044, equation 10)."""
    return 1.0 if tau == 0.5 else np.where(residual < 0, 2 * tau, 2 * (1 - tau))


def penalty(residual: np.ndarray, delta: float, tau: float = 0.5) -> np.ndarray:
    """Huber's function of the residual, times its side's weight; same shape."""
    return sides(residual, tau) * huber(residual, delta)[0]
