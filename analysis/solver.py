"""One robust solver for every law: many starts or resamples at once, second order, within bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.laws import Law, Prior
from analysis.penalty import penalty, sides

KNEES = (64.0, 16.0, 4.0, 1.0)
"""Multiples of the knee that are solved in turn. A soft knee is nearly least squares, smooth and
with one valley; each solution starts the next. Assumption: factors of 4 follow the path."""

ITERATIONS, ITERATIONS_SOFT = 200, 8
"""At most at the last knee, and at each softer one. Assumption: the 240 Chinchilla points take 30."""

EXACT, CLOSE = 1e-13, 1e-8
"""Gain that the next step promises, as a share of the objective, below which a solve ends: a few
digits above rounding; and for resamples and soft knees. Measured on 4,000 resamples of the Chinchilla
points: 99% of them end within 5e-4 of a standard error, all within 0.015."""

STALLED = 8
"""Steps without gain in a row, or refused although damped by HOPELESS, that end a solve. Assumption."""

RISE, FALL = 4.0, 0.5
"""What a refused step, and one that kept its promise, do to the damping. Measured: rises of 2 to 10
and falls of 0.5 to 0.7 took about as many steps on eight public tables, a fall of 0.1 half as many again."""

KEPT, BROKEN = 0.5, 0.1
"""Shares of the promised gain above which a promise counts as kept, below which as broken. Assumption."""

UNDAMPED, HOPELESS = 1e-3, 1e3
"""Damping above which a step's promise says nothing of how near the optimum is; and at which a refused
step is one for rounding's sake. Assumption."""

STRAIGHT = 3
"""Steps of a resample that are taken whole, before its line searches begin: most are done by then."""

LONGEST, BISECTIONS = 2.0, 8
"""Of a line search: how far beyond the whole step it looks, and how finely. Assumption."""

BATCH_ELEMENTS = 50_000
"""Rows x runs in work at once: temporaries that stay in the cache. Assumption: measured best of 20,000
to 250,000 on one machine."""

LINEAR_STEPS, LINEAR_BLEND, WARM_BLEND = 3, 0.03, 1e-3
"""Of a resample's start on the law's linearisation: how many, their least blend of curvatures, and that
of the law's own first steps. Assumption: more steps saved no time on the Chinchilla points."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What is fitted: centred log-variables X [run, variable], log-loss [run], and the limits.

    delta: the knee, inf for least squares. tau: the share of the penalty that runs above the fit
        carry, 0.5 where both sides weigh alike (see `penalty`).
    precision: [unknown], what (theta - anchor)²/2 weighs in the objective; 0 without a prior.
    prior: the law's, in the units of these losses.
    weights: [run], by which each run's penalty is multiplied beside any resample's own weight.
    """

    law: Law
    X: np.ndarray
    log_loss: np.ndarray
    centre: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    delta: float
    precision: np.ndarray
    prior: Prior | None = None
    tau: float = 0.5
    weights: np.ndarray | float = 1.0

    def at(self, **variables: np.ndarray) -> np.ndarray:
        """X [point, variable] of other points, by variable name (params=, tokens=, ...), each [point]."""
        return np.log(np.column_stack([variables[name] for name in self.law.variables])) - self.centre


@dataclass(frozen=True, eq=False)
class Solution:
    """theta [batch, unknown] with its objective and scaled gradient, each [batch]."""

    theta: np.ndarray
    objective: np.ndarray
    gradient: np.ndarray


def solve(
    problem: Problem,
    theta: np.ndarray,
    weights: np.ndarray,
    anchors: np.ndarray | None = None,
    knees: tuple[float, ...] = KNEES,
) -> Solution:
    """Minimise sum_i w_i penalty(log L_fit(i) - log L_i) from each start, from soft knee to hard, where
    w_i is the run's weight in `problem` times the one given here.

    With a prior, sum_j precision_j·(theta_j - anchor_j)²/2 is added.

    Args:
        theta: float64[batch, unknown], starts; weights: float64[batch, run] or [run], 0 or more.
        anchors: float64[batch, unknown], the prior's mean where None.
        knees: multiples of the knee to solve in turn, ending in 1.
    Returns:
        Solution, in the order of the starts.
    """
    theta = np.clip(theta, problem.lower, problem.upper)
    weights = np.broadcast_to(weights * problem.weights, (len(theta), len(problem.log_loss)))
    anchors = anchors_of(problem, anchors, theta.shape)
    if np.isinf(problem.delta):
        knees = knees[-1:]
    for knee in knees:
        iterations = ITERATIONS if knee == knees[-1] else ITERATIONS_SOFT
        tolerance = EXACT if knee == knees[-1] else CLOSE
        theta = _descend(problem, theta, weights, anchors, knee * problem.delta, iterations, tolerance)
    return solution_at(problem, theta, weights, anchors)


def solve_near(
    problem: Problem, theta: np.ndarray, weights: np.ndarray, anchors: np.ndarray | None = None
) -> np.ndarray:
    """Minimise under each row of weights [batch, run] from one theta [unknown], the fit to all runs.

    The law linearised there is solved first, which costs matrix products alone; what it finds
    starts the law's own iterations, unless it is worse than theta.

    Returns theta, float64[batch, unknown].
    """
    weights = weights * problem.weights
    anchors = anchors_of(problem, anchors, (len(weights), len(theta)))
    value, slope = problem.law.evaluate(theta[None], problem.X)
    residual = value[0] - problem.log_loss
    most = max(1, BATCH_ELEMENTS // len(residual))
    parts = [slice(first, first + most) for first in range(0, len(weights), most)]
    proposal = np.concatenate(
        [
            _solve_linearised(problem, theta, residual, slope[0], weights[part], anchors[part])
            for part in parts
        ]
    )
    return _descend(
        problem,
        np.broadcast_to(theta, anchors.shape),
        weights,
        anchors,
        problem.delta,
        ITERATIONS,
        CLOSE,
        proposal,
    )


def solution_at(problem: Problem, theta: np.ndarray, weights: np.ndarray, anchors: np.ndarray) -> Solution:
    """theta [batch, unknown] as it stands, under effective weights [batch, run]."""
    state = look(problem, theta, weights, anchors, problem.delta)
    gradient, curvature = derivatives(problem, state, theta, anchors, np.zeros(len(theta)))
    scaled = _scaled_gradient(problem, theta, state.objective, gradient, curvature)
    objective = np.where(np.isfinite(state.objective), state.objective, np.inf)
    return Solution(theta, objective, scaled)


def anchors_of(problem: Problem, anchors: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray:
    """[batch, unknown]: the prior's mean where None are given, 0 without a prior."""
    if anchors is None:
        anchors = np.array(problem.prior.mean) if problem.prior else np.zeros(shape[1])
    return np.broadcast_to(anchors, shape)


@dataclass(frozen=True, eq=False)
class State:
    """A batch at one theta: residual log L_fit - log L [batch, run] and its slope [batch, run, unknown];
    the penalty's derivative w·psi by the residual (`pull`), its ratio w·psi/r to the residual (`chord`)
    and whether that lies inside the knee, each [batch, run]; objective [batch]."""

    residual: np.ndarray
    slope: np.ndarray
    pull: np.ndarray
    chord: np.ndarray
    inside: np.ndarray
    objective: np.ndarray


def look(
    problem: Problem, theta: np.ndarray, weights: np.ndarray, anchors: np.ndarray, delta: float
) -> State:
    with np.errstate(over="ignore", invalid="ignore"):  # a wild trial overflows, and is then refused
        value, slope = problem.law.evaluate(theta, problem.X)
        residual = value - problem.log_loss
        pull, chord, inside, cost = _penalise(problem, residual, weights, delta)
    slope = np.require(slope, requirements="W")  # a law's own broadcast view is not
    return State(residual, slope, pull, chord, inside, cost + _prior_cost(problem, theta, anchors))


def _penalise(
    problem: Problem, residual: np.ndarray, weights: np.ndarray, delta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """pull, chord and inside [batch, run] as in `State`, and the penalty's sum [batch]."""
    if problem.tau != 0.5:
        weights = weights * sides(residual, problem.tau)
    if np.isinf(delta):
        share = np.ones_like(residual)
    else:
        share = np.abs(residual)
        np.maximum(share, delta, out=share)
        np.divide(delta, share, out=share)  # psi(r)/r
    inside = share == 1.0
    chord = weights * share
    pull = chord * residual
    share *= -0.5
    share += 1.0
    share *= residual
    return pull, chord, inside, np.einsum("bn,bn->b", pull, share)


def _bend(chord: np.ndarray, inside: np.ndarray, blend: np.ndarray) -> np.ndarray:
    """The weights of the curvature, [batch, run]. Inside the knee the objective curves by w; outside
    by nothing, where reweighted least squares, which never overshoots, puts w·delta/|r|. `blend`
    [batch] is the share of the latter."""
    return chord * np.where(inside, 1.0, blend[:, None])


def _prior_cost(problem: Problem, theta: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    return ((theta - anchors) ** 2 @ problem.precision) / 2


def derivatives(
    problem: Problem, state: State, theta: np.ndarray, anchors: np.ndarray, blend: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient [batch, unknown] and Gauss-Newton curvature [batch, unknown, unknown]."""
    across = state.slope.transpose(0, 2, 1)
    gradient = (across @ state.pull[..., None])[..., 0] + problem.precision * (theta - anchors)
    bend = _bend(state.chord, state.inside, blend)
    curvature = (across * bend[:, None, :]) @ state.slope
    np.einsum("bpp->bp", curvature)[...] += problem.precision
    return gradient, curvature


def _descend(
    problem: Problem,
    theta: np.ndarray,
    weights: np.ndarray,
    anchors: np.ndarray,
    delta: float,
    iterations: int,
    tolerance: float,
    proposal: np.ndarray | None = None,
) -> np.ndarray:
    """Newton steps within the bounds for a whole batch; theta [batch, unknown].

    A step goes by the blend of two curvatures (see `_bend`). Kinks, where residuals cross the knee,
    are the line search's business, on the linearised law; what the law's own non-linearity breaks of
    its promise, damping mends (Levenberg 1944, Marquardt 1963). A row is done once its next step
    promises less than `tolerance`, and the next one takes its place, so that stragglers share their
    iterations' overhead. With a `proposal` for each row, that is tried first.
    """
    kept, here = theta.copy(), theta.copy() if proposal is None else proposal
    reached = np.full(len(kept), np.inf)
    damping, blend = np.full(len(kept), UNDAMPED), np.ones(len(kept))
    straight = 0
    if proposal is not None:
        value, _ = problem.law.evaluate(kept[:1], problem.X)  # one theta for all rows
        cost = penalty(value[0] - problem.log_loss, delta, problem.tau)
        reached = weights @ cost + _prior_cost(problem, kept, anchors)
        damping, blend, straight = damping * 1e-3, blend * WARM_BLEND, STRAIGHT
    promised = np.zeros(len(kept))
    stalled, spent = np.zeros((2, len(kept)), dtype=int)
    pending = np.arange(len(kept))
    most = max(1, BATCH_ELEMENTS // len(problem.log_loss))
    while len(pending):
        active = pending[:most]
        now, w, anchor = here[active], weights[active], anchors[active]
        state = look(problem, now, w, anchor, delta)
        gain = reached[active] - state.objective
        worse = ~(gain > 0)  # not a number, too
        damping[active] = _damp(damping[active], gain, promised[active])
        idle = np.where(worse, damping[active] > HOPELESS, gain <= EXACT * reached[active])
        stalled[active] = np.where(gain > EXACT * reached[active], 0, stalled[active] + idle)
        spent[active] += 1
        better = active[~worse]
        kept[better], reached[better] = now[~worse], state.objective[~worse]
        if worse.any():
            now[worse] = kept[active[worse]]
            again = look(problem, now[worse], w[worse], anchor[worse], delta)
            for name in ("slope", "pull", "chord", "inside", "residual"):
                getattr(state, name)[worse] = getattr(again, name)
        gradient, curvature = derivatives(problem, state, now, anchor, blend[active])
        step, promise = newton_step(held(problem, now, gradient), gradient, curvature, damping[active])
        done = (promise <= tolerance * reached[active]) & (damping[active] <= UNDAMPED)
        searched = np.flatnonzero(~done & (spent[active] > straight))
        if len(searched):
            share, promise[searched] = _search(
                problem, state, searched, now[searched], w[searched], anchor[searched], step[searched], delta
            )
            step[searched] *= share[:, None]
            change = np.where(share < 0.4, 4.0, np.where(share > 0.8, 0.2, 1.0))
            rows = active[searched]
            blend[rows] = np.clip(blend[rows] * change, 1e-6, 1.0)
        promised[active] = promise
        here[active] = np.clip(now + step, problem.lower, problem.upper)
        kept[active[done]] = here[active[done]]
        stay = ~done & (stalled[active] < STALLED) & (spent[active] < iterations)
        pending = np.concatenate([active[stay], pending[most:]])
    return kept


def _damp(damping: np.ndarray, gain: np.ndarray, promised: np.ndarray) -> np.ndarray:
    """The next step's damping, [batch], from the last one's gain and what it had promised."""
    factor = np.where(gain > KEPT * promised, FALL, np.where(gain < BROKEN * promised, RISE / 2, 1.0))
    return np.clip(damping * np.where(gain > 0, factor, RISE), 1e-12, 1e9)


def _search(
    problem: Problem,
    state: State,
    rows: np.ndarray,
    theta: np.ndarray,
    weights: np.ndarray,
    anchors: np.ndarray,
    step: np.ndarray,
    delta: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The share of each row's step that minimises the objective of the law linearised there, where it
    is convex, by bisecting its slope; and the gain that this promises, each [row]."""
    residual = state.residual[rows]
    ahead = (state.slope[rows] @ step[..., None])[..., 0]
    weighted = weights * ahead
    straight = ((theta - anchors) * step) @ problem.precision
    bent = step**2 @ problem.precision
    low, high = np.zeros(len(step)), np.full(len(step), LONGEST)
    share = np.ones(len(step))
    for _ in range(BISECTIONS):
        there = residual + share[:, None] * ahead
        psi = np.clip(there, -delta, delta)
        if problem.tau != 0.5:
            psi *= sides(there, problem.tau)
        rising = np.einsum("bn,bn->b", weighted, psi) + straight + share * bent > 0
        low, high = np.where(rising, low, share), np.where(rising, share, high)
        share = (low + high) / 2
    share[np.abs(share - 1) < LONGEST / 2**BISECTIONS] = 1.0  # where the whole step is best
    there = residual + share[:, None] * ahead
    cost = np.einsum("bn,bn->b", weights, penalty(there, delta, problem.tau))
    prior = _prior_cost(problem, theta + share[:, None] * step, anchors)
    before = np.einsum("bn,bn->b", weights, penalty(residual, delta, problem.tau))
    return share, before + _prior_cost(problem, theta, anchors) - cost - prior


def held(problem: Problem, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """bool[batch, unknown]: on a bound that descent would cross (projected Newton, Bertsekas 1982)."""
    return ((theta <= problem.lower) & (gradient > 0)) | ((theta >= problem.upper) & (gradient < 0))


def newton_step(
    held: np.ndarray, gradient: np.ndarray, curvature: np.ndarray, damping: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """-(H + damping·diag H)⁻¹ g on the parameters that are not held, float64[batch, unknown], and the
    decrease it promises, [batch]."""
    diagonal = np.einsum("bpp->bp", curvature)
    diagonal = np.sqrt(np.maximum(diagonal, 1e-300 + 1e-14 * diagonal.max(axis=1, keepdims=True)))
    push = gradient / diagonal
    scaled = curvature / diagonal[:, :, None]
    scaled /= diagonal[:, None, :]
    if held.any():
        scaled = np.where(held[:, :, None] | held[:, None, :], 0.0, scaled)
        push = np.where(held, 0.0, push)
    np.einsum("bpp->bp", scaled)[...] += np.reshape(damping, (-1, 1)) + held + 1e-13
    step = np.linalg.solve(scaled, push[..., None])[..., 0]
    return -step / diagonal, np.einsum("bp,bp->b", step, push) / 2


def _solve_linearised(
    problem: Problem,
    theta: np.ndarray,
    residual: np.ndarray,
    slope: np.ndarray,
    weights: np.ndarray,
    anchors: np.ndarray,
) -> np.ndarray:
    """Newton steps on sum_i w_i Huber(r_i + J_i·d) for every row of weights, the first reweighted
    least squares; r [run] and J [run, unknown] are shared, so that each is a matrix product."""
    unknowns = len(theta)
    left, right = np.triu_indices(unknowns)
    products = slope[:, left] * slope[:, right]
    move = np.zeros((len(weights), unknowns))
    curvature = np.empty((len(weights), unknowns, unknowns))
    blend = np.ones(len(weights))
    for _ in range(LINEAR_STEPS):
        here = theta + move
        off = move @ slope.T
        off += residual
        pull, chord, inside, _ = _penalise(problem, off, weights, problem.delta)
        gradient = pull @ slope + problem.precision * (here - anchors)
        curvature[:, left, right] = curvature[:, right, left] = _bend(chord, inside, blend) @ products
        np.einsum("bpp->bp", curvature)[...] += problem.precision
        step, _ = newton_step(held(problem, here, gradient), gradient, curvature, 1e-9)
        move = np.clip(here + step, problem.lower, problem.upper) - theta
        blend = np.maximum(blend * 0.3, LINEAR_BLEND)
    return theta + move


def _scaled_gradient(
    problem: Problem, theta: np.ndarray, objective: np.ndarray, gradient: np.ndarray, curvature: np.ndarray
) -> np.ndarray:
    """max_j |g_j| / sqrt(2·objective·H_jj) over free parameters, [batch]: dimensionless, 0 at an
    optimum, about 1 where a step along one parameter alone would remove the objective."""
    scale = np.sqrt(2 * objective[:, None] * np.einsum("bpp->bp", curvature)) + 1e-300
    return np.where(held(problem, theta, gradient), 0.0, np.abs(gradient) / scale).max(axis=1)
