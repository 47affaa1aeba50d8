"""From runs to the loss of a run that nobody has made yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np

from analysis.allocate import (
    CostRule,
    by_envelope,
    by_isoflops,
    by_surface,
    cost_rule,
    envelope,
    isoflops,
    optimal_log_params,
)
from analysis.bias import isoflop_bias
from analysis.conventions import Conventions, fit_conventions
from analysis.design import advice
from analysis.ensemble import AUTOMATIC, SURFACES, Member, automatic, fit_members, forecast
from analysis.fitting import fit_law
from analysis.isoflop import remedies
from analysis.laws import COMPUTE, Law
from analysis.outliers import screen
from analysis.resample import RESAMPLES, cluster_weights, refit, with_intervals
from analysis.rollout import Calibration, calibrate, roll
from analysis.table import size_cluster
from analysis.values import (
    LEVEL,
    Allocation,
    BacktestRow,
    Envelope,
    Exclusion,
    Frontier,
    Isoflop,
    IsoflopBias,
    LawFit,
    Prediction,
    Runs,
    Skipped,
    Status,
    Target,
)
from analysis.verdict import Evidence, judge

FEWEST_BUDGETS = 4
"""Points that L(C) is fitted to: its three unknowns and one over."""

NEAR_OPTIMUM = 2.0
"""L(C) speaks of compute-optimal runs: it is asked of targets within this factor of the optimal N,
where the loss is within about 1% of the least. Assumption, from published isoFLOP curves."""


@dataclass(frozen=True, eq=False)
class Model:
    """All that a prediction is made of: `runs` are those that were fitted, `outliers` those that
    contradict them. `compute` is L(C) along the compute-optimal points."""

    runs: Runs
    outliers: tuple[Exclusion, ...]
    members: tuple[Member, ...]
    calibration: Calibration
    backtests: tuple[BacktestRow, ...]
    cost: CostRule
    isoflops: tuple[Isoflop, ...]
    envelope: Envelope
    allocations: tuple[Allocation, ...]
    compute: LawFit | None
    skipped: tuple[Skipped, ...]
    remedies: tuple[Allocation, ...] = ()
    conventions: Conventions | None = None

    def isoflop_bias(self, flops: float) -> tuple[IsoflopBias, ...]:
        """Approach 2's bias on these runs' budgets, extrapolated to `flops`, with each law as the truth."""
        members = [m for m in surfaces(self.members) if m.fit.status != Status.NOT_CONVERGED]
        found = [isoflop_bias(self.runs, self.isoflops, self.cost, m, flops) for m in members]
        return tuple(item for item in found if isinstance(item, IsoflopBias))

    @property
    def predicting(self) -> tuple[tuple[Member, float], ...]:
        """The laws that predict, with their weights."""
        weights = self.calibration.weights
        return tuple(
            (member, weights[member.law.name]) for member in self.members if member.law.name in weights
        )

    @property
    def allocating(self) -> tuple[tuple[Member, float], ...]:
        """Those that say where to spend a budget, with their weights: the laws of N and D that predict,
        or where none does, the automatic choice among those that are shown."""
        names = {member.law.name for member in surfaces(self.members)}
        able = [(m, weight) for m, weight in self.predicting if m.law.name in names]
        names = {law.name for law in AUTOMATIC}
        able = able or [(m, 1.0) for m in self.members if m.law.name in names]
        total = sum(weight for _, weight in able)
        return tuple((member, weight / total) for member, weight in able)

    @property
    def fits(self) -> tuple[LawFit, ...]:
        return (*(member.fit for member in self.members), *((self.compute,) if self.compute else ()))


def surfaces(members: Sequence[Member]) -> list[Member]:
    """Those of them that are laws of N and D alone."""
    return [member for member in members if member.law.variables == ("params", "tokens")]


def model(
    runs: Runs,
    predicting: Sequence[Law] | None = None,
    *,
    rolled: Sequence[Law] = SURFACES,
    resamples: int = RESAMPLES,
) -> Model:
    """Leave out what contradicts the rest; fit, resample, roll out, and find the optima.

    `predicting` is the automatic choice for these runs where not given. `rolled` are the laws whose
    backtests are shown beside those of the laws that predict; they take half of the time and change no
    prediction.

    Raises ValueError: too few distinct runs for the laws that predict, saying how many are needed.
    """
    if not len(runs):
        raise ValueError(
            "no run is left to fit: every row was excluded (see the exclusions). Nothing was fitted."
        )
    predicting = automatic(runs) if predicting is None else predicting
    runs, outliers = screen(runs, predicting)
    members, skipped = fit_members(runs, predicting, resamples=resamples)
    missing = {law.name for law in predicting} - {member.law.name for member in members}
    if missing:
        raise ValueError(
            next(item.reason for item in skipped if any(f"'{name}'" in item.what for name in missing))
            + f" {advice(runs)}"
        )
    calibration, backtests = calibrate(roll(runs, predicting, rolled), predicting)
    cost = cost_rule(runs)
    curves, draws, no_curves = isoflops(runs, cost)
    better, no_better = remedies(runs, curves, cost)
    compute = _along_optimum(runs, curves)
    found = (
        by_envelope(runs, resamples),
        by_isoflops(curves, draws, cost),
        next((by_surface(m, cost, runs) for m in members if m.law.name == "separable"), None),
    )
    lacking = tuple(item for item in (*found, compute) if isinstance(item, Skipped))
    return Model(
        runs=runs,
        outliers=outliers,
        members=members,
        calibration=calibration,
        backtests=backtests,
        cost=cost,
        isoflops=curves,
        envelope=envelope(runs),
        allocations=tuple(item for item in found if isinstance(item, Allocation)),
        compute=compute if isinstance(compute, LawFit) else None,
        skipped=(*skipped, *no_curves, *lacking, *(no_better if curves else ())),
        remedies=better,
        conventions=_conventions(runs, members, calibration.weights),
    )


def predict(
    known: Model, target: Target, digest: str, created: str | None = None, cluster: str = ""
) -> Prediction:
    """The loss of a new run at `target`, its 90% interval, and whether the data carry it that far.

    `cluster` names the runs that it is not independent of (a trunk that it continues); without one
    those of its size.
    """
    said = forecast(known.members, known.calibration.weights, spots([target], [cluster]))
    log_loss, half = float(said.log_loss[0]), float(known.calibration.half_width(said)[0])
    by_law = {name: float(np.exp(value[0])) for name, value in said.by_law.items()}
    costs = np.array([target.flops, known.runs.flops.max(), *(curve.flops for curve in known.isoflops)])
    optimum, of_dearest, *of_curves = (float(params) for params in np.exp(optimal_draws(known, costs)[0]))
    if known.compute and 1 / NEAR_OPTIMUM < target.params / optimum < NEAR_OPTIMUM:
        by_law["compute"] = float(COMPUTE.loss_at(known.compute.values, flops=target.flops))
    weights = {member.law.name: weight for member, weight in known.predicting}
    evidence = Evidence(
        runs=known.runs,
        fits={fit.law: fit for fit in known.fits},
        weights=weights,
        by_law=by_law,
        loss=float(np.exp(log_loss)),
        half_width=half,
        scale=known.calibration.scale,
        backtests=known.backtests,
        isoflops=known.isoflops,
        target=target,
        slopes={m.law.name: m.law.evaluate(m.theta[None], m.problem.X)[1][0] for m in known.members},
        conventions=known.conventions.at(target) if known.conventions else None,
        optima=of_curves,
        optimal_ratio=float(known.cost.tokens(costs[1], np.array(of_dearest))) / of_dearest,
    )
    verdict, reasons = judge(evidence)
    scale = known.calibration.scale
    return Prediction(
        target=target,
        law=next(iter(weights))
        if len(weights) == 1
        else " + ".join(f"{w:.2f} {law}" for law, w in weights.items()),
        loss=float(np.exp(log_loss)),
        lo90=float(np.exp(log_loss - half)),
        hi90=float(np.exp(log_loss + half)),
        by_law=by_law,
        weights=weights,
        spread={
            "parameters": float(np.sqrt(said.parameters[0])),
            "discrepancy": float(np.sqrt(said.discrepancy[0])),
            "laws": float(np.sqrt(said.laws[0])),
            "noise": float(np.sqrt(said.noise[0])),
            "rollouts": float(np.sqrt(max(scale - 1, 0.0) * said.variance[0])),
        },
        ledger_digest=digest,
        created=created or datetime.now(timezone.utc).isoformat(timespec="seconds"),
        verdict=verdict,
        reasons=reasons,
        extrapolation=float(target.flops / known.runs.flops.max()),
    )


def spots(targets: Sequence[Target], clusters: Sequence[str] | None = None) -> Runs:
    """Targets as runs that nobody has made yet: their loss is NaN, and all their tokens are distinct.
    "" is the cluster of its size."""
    columns = np.array([[t.params, t.tokens, t.flops] for t in targets], dtype=np.float64).T
    unknown = np.full(len(targets), np.nan)
    named = clusters or ("",) * len(targets)
    labels = tuple(name or size_cluster(t.params) for name, t in zip(named, targets, strict=True))
    nameless = ("",) * len(targets)
    return Runs(nameless, nameless, labels, *columns, unknown, unknown, unique_tokens=columns[1])


def _conventions(
    runs: Runs, members: Sequence[Member], weights: Mapping[str, float]
) -> Conventions | None:
    """By the law of N and D that predicts with the most weight."""
    able = surfaces(members)
    if not able:
        return None
    return fit_conventions(runs, max(able, key=lambda member: weights.get(member.law.name, 0.0)))


def optimal_draws(known: Model, flops: np.ndarray) -> np.ndarray:
    """log of the compute-optimal N at each budget: row 0 the estimate, the others resamples;
    float64[1 + resample, budget]. Laws are averaged in log N."""
    return sum(
        weight * optimal_log_params(member, np.vstack([member.theta, member.draws]), known.cost, flops)
        for member, weight in known.allocating
    )


def optimal_range(known: Model, flops: float) -> tuple[float, float, float]:
    """(N_opt, lo, hi): the 90% range over resamples, widened to hold what each law says alone."""
    at = np.array([flops])
    draws = optimal_draws(known, at)[:, 0]
    alone = [optimal_log_params(m, m.theta[None], known.cost, at)[0, 0] for m in surfaces(known.members)]
    lo, hi = np.quantile(draws[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(np.exp(draws[0])), float(np.exp(min(lo, *alone))), float(np.exp(max(hi, *alone)))


def optimal_target(known: Model, flops: float) -> Target:
    """The compute-optimal run at a budget."""
    params = float(np.exp(optimal_draws(known, np.array([flops]))[0, 0]))
    return Target(params, float(known.cost.tokens(np.array(flops), np.array(params))), flops)


def frontier(known: Model, dearest: float, points: int = 60) -> Frontier:
    """The loss at the optimal N and D from the cheapest run's cost to `dearest` FLOPs."""
    flops = np.geomspace(known.runs.flops.min(), dearest, points)
    params = np.exp(optimal_draws(known, flops)[0])
    tokens = known.cost.tokens(flops, params)
    along = [Target(*spot) for spot in zip(params, tokens, flops, strict=True)]
    said = forecast(known.members, known.calibration.weights, spots(along))
    half = known.calibration.half_width(said)
    loss, lo, hi = (np.exp(said.log_loss + shift) for shift in (0.0, -half, half))
    return Frontier(flops, params, tokens, loss, lo, hi)


def _along_optimum(runs: Runs, curves: Sequence[Isoflop]) -> LawFit | Skipped:
    """L(C) through the best run of each bracketed budget, or where the runs form no budgets, through
    the envelope."""
    good = [curve for curve in curves if curve.bracketed]
    if curves and len(good) < FEWEST_BUDGETS:
        return Skipped(
            "law 'compute'", f"it needs {FEWEST_BUDGETS} bracketed isoFLOP curves; there are {len(good)}"
        )
    best = [curve.run_ids[int(np.argmin(curve.loss))] for curve in good] or envelope(runs).run_ids
    place = {run_id: i for i, run_id in enumerate(runs.run_id)}
    points = runs.take(np.array([place[run_id] for run_id in best]))
    try:
        fit, theta, problem = fit_law(COMPUTE, points)
    except ValueError as error:
        return Skipped("law 'compute'", str(error))
    draws = refit(problem, theta, cluster_weights(points, len(COMPUTE.unknowns)))
    return with_intervals(fit, COMPUTE, problem, draws)
