"""What a report shows of the laws beside their fits: the surface that predicts, and their track records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.ensemble import Member
from analysis.values import BacktestRow, Surface, TrackRecord

POINTS = 56
"""Grid points a side: contours through them look smooth at the width of a page."""

MARGIN = 1.4
"""Factor by which the grid reaches beyond the runs and targets on each side."""

DISTANCES = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, np.inf)
"""Edges between which backtests are told apart by C/C_cut. Assumption: a few steps a decade."""


def loss_surface(
    laws: Sequence[tuple[Member, float]], params: np.ndarray, tokens: np.ndarray
) -> Surface:
    """The weighted mean of log L by laws of N and D over a grid that spans all `params` and `tokens`.

    Args:
        laws: with their weights, which sum to 1.
        params, tokens: N and D of the runs and targets, float64[run].
    """
    n, d = (np.geomspace(side.min() / MARGIN, side.max() * MARGIN, POINTS) for side in (params, tokens))
    X = np.log(np.stack(np.meshgrid(n, d), axis=-1).reshape(-1, 2))
    log_loss = np.zeros(len(X))
    for member, weight in laws:
        said, _ = member.law.evaluate(member.theta[None], X - member.problem.centre)
        log_loss += weight * said[0]
    return Surface(n, d, np.exp(log_loss).reshape(POINTS, POINTS))


def track_records(rows: Sequence[BacktestRow]) -> tuple[TrackRecord, ...]:
    """One for each law, in the order of their first rows."""
    laws = dict.fromkeys(row.law for row in rows)
    return tuple(_record(law, [row for row in rows if row.law == law]) for law in laws)


def records_by_distance(rows: Sequence[BacktestRow]) -> tuple[TrackRecord, ...]:
    """One for each law between each two of DISTANCES that have rows between them."""
    found = []
    for lo, hi in zip(DISTANCES[:-1], DISTANCES[1:], strict=True):
        found += track_records([row for row in rows if np.log(lo) <= row.distance < np.log(hi)])
    return tuple(found)


def _record(law: str, rows: Sequence[BacktestRow]) -> TrackRecord:
    errors = 100 * np.expm1([row.log_error for row in rows])
    ratios = np.exp([row.distance for row in rows])
    known = [row.inside for row in rows if row.inside is not None]
    return TrackRecord(
        law=law,
        nearest=float(ratios.min()),
        farthest=float(ratios.max()),
        n=len(rows),
        error_pct=float(np.abs(errors).mean()),
        bias_pct=float(errors.mean()),
        inside=sum(known) if known else None,
    )
