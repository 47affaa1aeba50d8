"""Rate grids: the optimal peak rate of each shape, how sure it is, and whether it moves with the width.

Yang et al. 2022 (arXiv 2203.03466), figure 1: under μP curves of loss against rate have their minimum at
one rate for all widths, under the standard parametrisation it moves. Rates are compared in octaves
(log2), and only between runs of one token count and one batch: with either, the best rate moves too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from analysis.resample import SEED
from analysis.units import count
from analysis.values import LEVEL, Estimate, RateCurve, RateDrift, RateStudy, RunRow

FEWEST_RATES = 3
"""Rates of one shape that make a grid: what a parabola takes."""

WINDOW, FOCUS = 2.5, 1.0
"""Octaves around the best rate that the parabola is fitted to, and the standard deviation, in octaves, of the
normal weights by which nearer rates count more. Further out curves of loss against rate rise faster than any
parabola, most on the side of high rates; with 0.3 and 0.6% noise on such a curve of rates an octave apart
these weights missed the optimum by 0.09 and 0.12 octaves, the three nearest rates alone by 0.13 and 0.23."""

ALLOWED = 0.5
"""Octaves over 8x width within which an optimal rate counts as one. Assumption: half of the octave that rate
grids are usually spaced by (Yang et al. 2022, figure 1)."""

RANGE = 8.0
"""Ratio of widths that the verdict is about, and that the bracketed widths must span."""
_ENOUGH = RANGE * (1 - 1e-9)

DRAWS = 2000
"""Assumption: enough for the 5% and 95% quantiles to move by less than a tenth of the interval."""

TRIED = ("finished", "diverged", "failed")

Cells = dict[float, list[RunRow]]
"""The rows of one shape, token count and batch, by rate."""


def study_rates(rows: Sequence[RunRow]) -> RateStudy | None:
    """Every shape that was run at several rates; None where there is none.

    Args:
        rows: of a table; holdouts are not looked at. Diverged and failed ones count as tried.
    """
    grids = rate_grids(rows)
    if not grids:
        return None
    sd, freedom, told = noise(grids)
    generator = np.random.default_rng(SEED)
    # how badly the noise itself is known is one draw for all curves (Student's t)
    scale = np.sqrt(freedom / generator.chisquare(freedom, DRAWS)) if freedom else np.ones(DRAWS)
    found = [_curve(cells, None if sd is None else sd * scale, generator) for cells in grids]
    found.sort(key=lambda pair: _order(pair[0]))
    return RateStudy(
        curves=tuple(curve for curve, _ in found),
        drifts=_drifts(found, sd),
        noise_pct=None if sd is None else 100 * sd,
        noise_from=told,
    )


def _order(curve: RateCurve) -> tuple:
    return curve.param, curve.batch_tokens or 0.0, curve.tokens, curve.width or 0.0, curve.params


def rate_grids(rows: Sequence[RunRow]) -> list[Cells]:
    """Rows that share everything a table tells of a run but its rate and seed, where those that finished
    have at least three rates."""
    sets: dict[tuple, Cells] = {}
    for row in rows:
        copied = row.reason.startswith("an exact copy")
        if row.role == "fit" and not copied and row.lr and row.lr > 0 and row.status in TRIED:
            tokens = _planned_tokens(row, rows)
            key = (row.param, row.d_model, row.n_layer, row.params, row.batch_tokens, tokens)
            sets.setdefault(key, {}).setdefault(row.lr, []).append(row)
    return [cells for cells in sets.values() if len(_finished(cells)) >= FEWEST_RATES]


def _planned_tokens(row: RunRow, rows: Sequence[RunRow]) -> float:
    """To six digits. A run that came to nothing says how far it got, not how far it should have: it is put to
    the shortest run of its shape that got further."""
    own = float(f"{row.tokens:.6g}")
    if row.status == "finished":
        return own
    same = [
        float(f"{other.tokens:.6g}")
        for other in rows
        if other.status == "finished"
        and (other.param, other.d_model, other.params, other.batch_tokens)
        == (row.param, row.d_model, row.params, row.batch_tokens)
        and other.tokens >= row.tokens
    ]
    return min(same, default=own)


def _finished(cells: Cells) -> dict[float, np.ndarray]:
    """{rate: log losses of its seeds} by increasing rate, of the rates that finished."""
    losses = {
        rate: np.log([row.loss for row in rows if _is_measured(row)]) for rate, rows in sorted(cells.items())
    }
    return {rate: values for rate, values in losses.items() if len(values)}


def _is_measured(row: RunRow) -> bool:
    return row.status == "finished" and row.loss is not None and math.isfinite(row.loss) and row.loss > 0


# --- noise ----------------------------------------------------------------------------------------


def noise(grids: Sequence[Cells]) -> tuple[float | None, int, str]:
    """The standard deviation of one run's log loss by chance, its degrees of freedom, and what it was read
    from.

    Seeds where any cell has several; else what a cubic through each curve leaves near its minimum, all
    curves together; else None.
    """
    cells = [losses for grid in grids for losses in _finished(grid).values()]
    freedom = sum(len(losses) - 1 for losses in cells)
    if freedom:
        squares = sum(float(np.sum((losses - losses.mean()) ** 2)) for losses in cells)
        return math.sqrt(squares / freedom), freedom, f"seeds of one rate, {freedom} degrees of freedom"
    squares, freedom = 0.0, 0
    for grid in grids:
        x, y = _points(_finished(grid))
        near = np.abs(x - x[np.argmin(y)]) <= WINDOW
        if near.sum() > 4:
            fitted = np.polynomial.Polynomial.fit(x[near], y[near], 3)
            squares += float(np.sum((fitted(x[near]) - y[near]) ** 2))
            freedom += int(near.sum()) - 4
    if not freedom:
        return None, 0, "neither seeds nor five rates near an optimum: no interval"
    told = f"what a cubic leaves of each curve within {WINDOW:g} octaves of its best rate"
    return math.sqrt(squares / freedom), freedom, f"{told}, {freedom} degrees of freedom"


def _points(losses: dict[float, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """log2 of the rates and the mean log loss of each; float64[rate]."""
    return np.log2(list(losses)), np.array([values.mean() for values in losses.values()])


# --- one curve ------------------------------------------------------------------------------------


def _curve(
    cells: Cells, sd: np.ndarray | None, generator: np.random.Generator
) -> tuple[RateCurve, np.ndarray]:
    """The curve, and its optimum (log2 of the rate) in the draws of the noise; float64[draw], infinite
    where a draw has none. sd: of one run's log loss, in each draw; float64[draw]."""
    losses = _finished(cells)
    x, y = _points(losses)
    seeds = np.array([len(values) for values in losses.values()])
    best = int(np.argmin(y))
    near = _window(x, best)
    shifted = x[near] - x[best]
    root = np.exp(-((shifted / FOCUS) ** 2) / 4)  # of the weights
    solve = (
        np.linalg.pinv(root[:, None] * np.vander(shifted, 3, increasing=True)) * root
    )  # [coefficient, point]
    c0, c1, c2 = solve @ y[near]
    failed = tuple(sorted(rate for rate in cells if rate not in losses))
    reason = _unbracketed(x, best, failed, c1, c2)
    optimum, penalty, draws = None, None, np.full(DRAWS, np.nan)
    if not reason:
        vertex = float(x[best] - c1 / (2 * c2))
        penalty = 100 * math.expm1(c2)
        lo = hi = se = math.nan
        if sd is not None:
            normal = generator.standard_normal((DRAWS, len(shifted)))
            shaken = y[near] + sd[:, None] / np.sqrt(seeds[near]) * normal
            draws = x[best] + _vertex(*(shaken @ solve.T).T[1:])
            lo, hi, se = _spread(draws)
        optimum = Estimate(vertex, lo, hi, se)
    first = next(row for rows in cells.values() for row in rows if _is_measured(row))
    curve = RateCurve(
        param=first.param,
        width=first.d_model,
        params=first.params,
        tokens=first.tokens,
        batch_tokens=first.batch_tokens,
        layers=first.n_layer,
        run_ids=tuple(row.run_id for rate in losses for row in cells[rate] if _is_measured(row)),
        rates=np.array(list(losses)),
        loss=np.exp(y),
        seeds=seeds,
        failed=failed,
        centre=float(list(losses)[best]),
        coefficients=(float(c0), float(c1), float(c2)),
        bracketed=not reason,
        optimum=optimum,
        penalty_pct=penalty,
        reason=reason,
    )
    return curve, draws


def _window(x: np.ndarray, best: int) -> np.ndarray:
    """Indices of the points that the parabola goes through: within WINDOW of the best, its neighbours, and
    three at least."""
    distance = np.abs(x - x[best])
    near = (distance <= WINDOW + 1e-9) | (np.abs(np.arange(len(x)) - best) <= 1)
    if near.sum() < 3:
        near[np.argsort(distance, kind="stable")[:3]] = True
    return np.flatnonzero(near)


def _unbracketed(x: np.ndarray, best: int, failed: Sequence[float], c1: float, c2: float) -> str:
    """Why the optimum is not between rates that finished; "" where it is."""
    if 0 < best < len(x) - 1:
        if c2 <= 0:
            return "the losses around the best rate bend downwards: they are noise"
        inside = x[0] < x[best] - c1 / (2 * c2) < x[-1]
        return (
            "" if inside else "the parabola has its minimum beyond the rates tried: the best is by chance"
        )
    side, sign = ("lowest", -1) if best == 0 else ("highest", 1)
    beyond = [rate for rate in failed if sign * (math.log2(rate) - x[best]) > 0]
    if beyond:
        return f"the best rate is the {side} that finished: {_rates(beyond)} came to no result"
    return f"the best rate is the {side} tried"


def _rates(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:.3g}" for rate in rates)


def _vertex(c1: np.ndarray, c2: np.ndarray) -> np.ndarray:
    """Where c1·x + c2·x² is lowest: infinite, on the side that it falls to, where it opens downwards."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(c2 > 0, -c1 / (2 * c2), np.copysign(np.inf, -c1))


def _spread(draws: np.ndarray) -> tuple[float, float, float]:
    """Ends of the 90% interval, and the standard deviation of a normal with that interval: infinite draws
    have no other."""
    lo, hi = (float(np.quantile(draws, q, method="inverted_cdf")) for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return lo, hi, (hi - lo) / (2 * NORMAL)


NORMAL = 1.6449
"""Standard deviations from a normal's middle to the end of its 90% interval."""


# --- drift ----------------------------------------------------------------------------------------


def _drifts(found: Sequence[tuple[RateCurve, np.ndarray]], sd: float | None) -> tuple[RateDrift, ...]:
    """One for each parametrisation, batch and token count with optima at two widths or more."""
    sets: dict[tuple, list[tuple[RateCurve, np.ndarray]]] = {}
    for curve, draws in found:
        if curve.width:
            sets.setdefault(curve.alike, []).append((curve, draws))
    drifts = []
    for curves in sets.values():
        usable = [(curve, draws) for curve, draws in curves if curve.bracketed]
        if len({curve.width for curve, _ in usable}) >= 2:
            drifts.append(_drift(usable, [curve.width for curve, _ in curves], sd))
    return tuple(drifts)


def _drift(
    usable: Sequence[tuple[RateCurve, np.ndarray]], tried: Sequence[float], sd: float | None
) -> RateDrift:
    curves = [curve for curve, _ in usable]
    width = np.log2([curve.width for curve in curves])
    span = float(width.max() - width.min())
    weights = _weights(curves, sd)
    centred = width - weights @ width
    slope_of = weights * centred / (weights @ centred**2)  # [curve]: slope = slope_of @ optima
    slope = float(slope_of @ [curve.optimum.value for curve in curves])
    if sd is None:
        lo = hi = se = math.nan
    else:
        draws = np.column_stack([draws for _, draws in usable])
        ends = np.where(np.isfinite(draws), draws, np.copysign(FAR, draws))
        lo, hi, se = _spread(ends @ slope_of)
    narrowest, widest = (min(curves, key=lambda c: c.width), max(curves, key=lambda c: c.width))
    off = widest.optimum.value - narrowest.optimum.value
    per_octave, over_range, over_8x = (
        Estimate(factor * slope, factor * lo, factor * hi, factor * se)
        for factor in (1.0, span, math.log2(RANGE))
    )
    transfers, says = _verdict(over_8x, 2.0**span, len(curves), len(tried))
    return RateDrift(
        param=curves[0].param,
        tokens=curves[0].tokens,
        batch_tokens=curves[0].batch_tokens,
        widths=(narrowest.width, widest.width),
        curves=len(curves),
        asked=max(tried) / min(tried) >= _ENOUGH,
        per_octave=per_octave,
        over_range=over_range,
        over_8x=over_8x,
        cost_pct=100 * math.expm1(widest.coefficients[2] * off**2),
        allowed=ALLOWED,
        transfers=transfers,
        says=says,
    )


FAR = 100.0
"""Octaves that stand for an optimum without end. Assumption: no two rates of one grid are as far apart."""


def _weights(curves: Sequence[RateCurve], sd: float | None) -> np.ndarray:
    """Of each optimum in the line, summing to 1: by its standard error where it has one."""
    errors = np.array([curve.optimum.se for curve in curves])
    if sd is None or not (np.isfinite(errors).all() and (errors > 0).all()):
        return np.full(len(curves), 1 / len(curves))
    return errors**-2 / np.sum(errors**-2)


def _verdict(over_8x: Estimate, ratio: float, curves: int, tried: int) -> tuple[bool | None, str]:
    drift = f"{over_8x.value:+.2f} octaves over 8x width"
    if math.isfinite(over_8x.lo) and math.isfinite(over_8x.hi):
        drift += f" (90% {over_8x.lo:+.2f} to {over_8x.hi:+.2f})"
    if ratio < _ENOUGH:
        few = f"; {tried - curves} of {tried} widths have none" if curves < tried else ""
        return None, f"cannot tell: bracketed optima span {ratio:.3g}x of width, 8x is wanted{few}; {drift}"
    if math.isnan(over_8x.lo):
        return None, f"cannot tell: nothing says how far chance moves an optimum (add seeds); {drift}"
    if -ALLOWED <= over_8x.lo and over_8x.hi <= ALLOWED:
        return True, f"transfers: {drift}, at most {ALLOWED:g}"
    if over_8x.lo > ALLOWED or over_8x.hi < -ALLOWED:
        return False, f"does not transfer: {drift}, beyond {ALLOWED:g}"
    side = "within" if abs(over_8x.value) <= ALLOWED else "beyond"
    return (
        None,
        f"cannot tell: {drift} is {side} the {ALLOWED:g} allowed, its interval is not; add seeds or rates",
    )


def lines(study: RateStudy) -> tuple[str, ...]:
    """What was found, a line for each shape and one for each drift."""
    told = several_batches(study)
    of_shapes = [
        f"{_shape(curve)}{_batch(curve, told)}: best rate {curve.best:.3g} of {len(curve.rates)} "
        f"(loss {curve.loss.min():.4f}), "
        + (
            f"optimum {_optimum(curve.optimum)}, an octave off costs {curve.penalty_pct:.2g}%"
            if curve.optimum
            else curve.reason
        )
        for curve in study.curves
    ]
    of_drifts = [
        f"{drift.param or 'rates'}, widths {drift.widths[0]:g} to {drift.widths[1]:g}{_batch(drift, told)}: "
        f"{drift.says}; the widest loses {drift.cost_pct:.2g}% at the narrowest's optimal rate"
        for drift in study.drifts
    ]
    return (*of_shapes, *of_drifts)


def several_batches(study: RateStudy) -> bool:
    """Whether the batch is worth telling: its curves are of more than one."""
    return len({curve.batch_tokens for curve in study.curves}) > 1


def _shape(curve: RateCurve) -> str:
    where = f"width {curve.width:g}" if curve.width else f"N={count(curve.params)}"
    return f"{curve.param} {where}, D={count(curve.tokens)}".strip()


def _batch(of: RateCurve | RateDrift, told: bool) -> str:
    return f", batch {count(of.batch_tokens)}" if told and of.batch_tokens else ""


def _optimum(optimum: Estimate) -> str:
    value = f"{2**optimum.value:.3g}"
    return value if math.isnan(optimum.se) else f"{value} ± {optimum.se:.2f} octaves"
