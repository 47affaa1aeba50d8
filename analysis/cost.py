"""What a token costs to train on, as a function of N: what turns a budget and a size into D."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from analysis.values import Runs


@dataclass(frozen=True)
class CostRule:
    """Training FLOPs a token as a function of N: c0 + c1·sqrt(N) + c2·N, fitted to the runs.

    For decoders of one depth the matrices cost 6·N and attention goes with the width, so with
    sqrt(N); a table with C = 6·N·D gives (0, 0, 6). `worst` is the largest relative misfit.
    """

    c0: float
    c1: float
    c2: float
    worst: float

    def log(self, log_params: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log of FLOPs a token and its derivative by log N, shapes of `log_params`."""
        N = np.exp(np.clip(log_params, -300.0, 300.0))  # absurd draws stay finite, and absurd
        total = self.c0 + self.c1 * np.sqrt(N) + self.c2 * N
        return np.log(total), (self.c1 * np.sqrt(N) / 2 + self.c2 * N) / total

    def flops(self, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """C of a run of N and D."""
        return tokens * np.exp(self.log(np.log(params))[0])

    def tokens(self, flops: np.ndarray, params: np.ndarray) -> np.ndarray:
        """D that a budget buys at N."""
        return flops / np.exp(self.log(np.log(params))[0])


def cost_rule(runs: Runs) -> CostRule:
    """Non-negative least squares on relative residuals."""
    per_token = runs.flops / runs.tokens
    unit = np.exp(np.mean(np.log(runs.params)))
    basis = np.column_stack([np.ones(len(runs)), np.sqrt(runs.params / unit), runs.params / unit])
    coefficients, _ = nnls(basis / per_token[:, None], np.ones(len(runs)))
    worst = float(np.abs(basis @ coefficients / per_token - 1).max())
    c0, c1, c2 = coefficients / np.array([1.0, np.sqrt(unit), unit])
    return CostRule(float(c0), float(c1), float(c2), worst)
