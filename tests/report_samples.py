"""Analyses for the report to render: a scored sweep in full, and what may be missing from one."""

from __future__ import annotations

import dataclasses

import numpy as np

from analysis.bands import line_band
from analysis.surfaces import records_by_distance, track_records
from analysis.values import (
    Allocation,
    Analysis,
    BacktestRow,
    Basin,
    ByConvention,
    Convention,
    Envelope,
    Estimate,
    Exclusion,
    Frontier,
    HelpfulRun,
    Isoflop,
    IsoflopBias,
    LawFit,
    Measured,
    Parameter,
    Prediction,
    PublishedAllocation,
    ReadingBias,
    RunRow,
    Runs,
    Skipped,
    Status,
    Surface,
    Target,
    Verdict,
)

E, A, B, ALPHA, BETA = 0.9, 38.0, 95.0, 0.36, 0.38
BUDGETS = (1e11, 1.8e11, 3.2e11, 5.6e11, 1e12)
TARGET = Target(params=4.97e5, tokens=3.35e6, flops=1e13)


def true_loss(params, tokens):
    return E + A * params**-ALPHA + B * tokens**-BETA


def best_params(flops):
    """Hoffmann et al. 2022 (arXiv 2203.15556), equation 4."""
    ratio = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    return ratio * (np.asarray(flops) / 6) ** (BETA / (ALPHA + BETA))


def estimate(value: float, relative: float) -> Estimate:
    return Estimate(
        value, value - abs(value) * relative, value + abs(value) * relative, abs(value) * relative / 1.645
    )


def sample_runs(sizes: int = 7) -> Runs:
    rng = np.random.default_rng(0)
    flops = np.repeat(BUDGETS, sizes)
    params = best_params(flops) * np.tile(np.geomspace(0.25, 4, sizes), len(BUDGETS))
    tokens = flops / (6 * params)
    loss = true_loss(params, tokens) * np.exp(0.004 * rng.standard_normal(len(flops)))
    return Runs(
        run_id=tuple(f"{i:012x}" for i in range(len(flops))),
        group=tuple(f"C={value:.1e}" for value in flops),
        cluster=tuple(f"{value:.0f}" for value in params),
        params=params,
        tokens=tokens,
        flops=flops,
        loss=loss,
        loss_se=np.full(len(flops), 0.0021),
    )


def sample_rows(runs: Runs) -> tuple[RunRow, ...]:
    fitted = tuple(
        RunRow(run_id, group, "fit", "finished", N, D, C, loss, loss_se, lr=5e-3, wall_seconds=C / 4e9)
        for run_id, group, N, D, C, loss, loss_se in zip(
            runs.run_id,
            runs.group,
            runs.params,
            runs.tokens,
            runs.flops,
            runs.loss,
            runs.loss_se,
            strict=True,
        )
    )
    return (
        *fitted,
        RunRow(
            "badbadbadbad",
            "C=1.0e+12",
            "fit",
            "diverged",
            1e4,
            1.6e7,
            1e12,
            None,
            None,
            5e-3,
            12.0,
            "loss not finite",
        ),
        RunRow(
            "deadbeefdead",
            "C=1.0e+12",
            "fit",
            "failed",
            4e4,
            4e6,
            1e12,
            None,
            None,
            5e-3,
            None,
            "MemoryError",
        ),
        RunRow("fewtokens000", "C=1.0e+11", "fit", "finished", 4e5, 4e4, 1e11, 3.9, 0.003, 5e-3, 31.0),
        RunRow(
            "holdout00000", "target", "holdout", "finished", 4.97e5, 3.35e6, 1e13, 1.56, 0.002, 5e-3, 4100.0
        ),
    )


def sample_isoflops(runs: Runs) -> tuple[Isoflop, ...]:
    found = []
    for flops in BUDGETS:
        own = runs.take(runs.flops == flops)
        centre = float(np.exp(np.log(own.params).mean()))
        c2, c1, c0 = np.polyfit(np.log(own.params / centre), np.log(own.loss), 2)
        optimum = centre * float(np.exp(-c1 / (2 * c2)))
        found.append(
            Isoflop(
                own.group[0],
                flops,
                own.run_id,
                own.params,
                own.loss,
                centre,
                (c0, c1, c2),
                True,
                estimate(optimum, 0.15),
                flops / (6 * optimum),
                float(np.exp(c0 - c1**2 / (4 * c2))),
                "",
            )
        )
    return tuple(found)


def sample_fit(law: str, runs: Runs, values: dict[str, float], status=Status.CONVERGED, reason="") -> LawFit:
    variables = ("flops",) if law == "compute" else ("params", "tokens")
    parameters = tuple(
        Parameter(name, value, estimate(value, 0.1), status is Status.AT_BOUND and name == "E")
        for name, value in values.items()
    )
    residuals = np.log(runs.loss / true_loss(runs.params, runs.tokens))
    return LawFit(
        law,
        f"the {law} law",
        "a paper (arXiv 0000.00000)",
        variables,
        parameters,
        status,
        reason,
        1.25e-4,
        1e-3,
        len(runs),
        12,
        11,
        residuals,
        runs.run_id,
        condition=7316.4,
        basins=(Basin(1.25e-4, values, 11), Basin(1.26e-4, values, 1)),
    )


def fit_of_minima(isoflops: tuple[Isoflop, ...]) -> LawFit:
    """L(C) through the budgets' minima: its points are budgets, not runs."""
    fit = sample_fit(
        "compute", sample_runs(), {"E": 0.8, "a": 60.0, "b": -0.16}, Status.AT_BOUND, "E sits on 0"
    )
    groups = tuple(isoflop.group for isoflop in isoflops)
    return dataclasses.replace(
        fit, n=len(groups), run_ids=groups, log_residuals=fit.log_residuals[: len(groups)]
    )


def sample_frontier() -> Frontier:
    flops = np.geomspace(1e11, 1e13, 30)
    params = best_params(flops)
    loss = true_loss(params, flops / (6 * params))
    width = 0.008 + 0.004 * np.log10(flops / 1e11)
    return Frontier(flops, params, flops / (6 * params), loss, loss * (1 - width), loss * (1 + width))


def sample_backtests(runs: Runs) -> tuple[BacktestRow, ...]:
    rng = np.random.default_rng(1)
    rows = []
    for cut in BUDGETS[1:-1]:
        for i in np.flatnonzero(runs.flops > cut):
            for law, noise in (
                ("separable", 0.012),
                ("coupled", 0.009),
                ("compute", 0.02),
                ("combined", 0.012),
            ):
                predicted = runs.loss[i] * float(np.exp(noise * rng.standard_normal()))
                lo, hi = (predicted * 0.98, predicted * 1.02) if law == "combined" else (None, None)
                inside = lo <= runs.loss[i] <= hi if law == "combined" else None
                rows.append(
                    BacktestRow(
                        runs.run_id[i],
                        law,
                        cut,
                        14,
                        runs.flops[i],
                        float(np.log(runs.flops[i] / cut)),
                        predicted,
                        runs.loss[i],
                        lo,
                        hi,
                        inside,
                    )
                )
    return tuple(rows)


def sample_prediction(
    measured: float | None = None, target: Target = TARGET, created="2026-11-23T10:00:00+00:00"
) -> Prediction:
    outcome = None
    if measured is not None:
        outcome = Measured(
            measured,
            0.002,
            100 * (1.548 - measured) / measured,
            1.513 <= measured <= 1.584,
            ("holdout00000",),
        )
    return Prediction(
        target,
        "Mean of separable and coupled, weighted by their backtests.",
        1.548,
        1.513,
        1.584,
        {"separable": 1.551, "coupled": 1.545},
        {"separable": 0.4, "coupled": 0.6},
        {"parameters": 0.006, "discrepancy": 0.005, "laws": 0.003, "noise": 0.004, "rollouts": 0.01},
        "ab" * 32,
        created,
        Verdict.WEAK,
        ("it extrapolates 10×", "one of 5 budgets is not bracketed."),
        outcome,
        extrapolation=target.flops / BUDGETS[-1],
    )


PUBLISHED = (
    PublishedAllocation("Kaplan et al. 2020", "fits of L(N) and L(C)", 0.73, 0.27, "arXiv 2001.08361"),
    PublishedAllocation("Hoffmann et al. 2022", "approach 1", 0.50, 0.50, "arXiv 2203.15556, table 2"),
    PublishedAllocation("Hoffmann et al. 2022", "approach 2", 0.49, 0.51, "arXiv 2203.15556, table 2"),
)


def sample_allocations() -> tuple[Allocation, ...]:
    found = []
    for approach, a in ((1, 0.47), (2, 0.515), (3, BETA / (ALPHA + BETA))):
        factor = float(best_params(3e11)) / 3e11**a
        flops, slopes = np.array(BUDGETS), np.linspace(0.95, 1.05, 21)[:, None] * a
        log_n = np.log(best_params(3e11)) + slopes * np.log(flops / 3e11)
        band = line_band(flops, log_n, np.log(flops / 6) - log_n)
        ends = estimate(a, 0.05), estimate(1 - a, 0.05)
        method = "parabola" if approach == 2 else ""
        found.append(Allocation(approach, *ends, factor, 1 / (6 * factor), 5, "", method, band=band))
    return tuple(found)


def sample_remedies() -> tuple[Allocation, ...]:
    a, b = estimate(0.507, 0.05), estimate(0.493, 0.05)
    return tuple(Allocation(2, a, b, 0.1, 1.6, 5, "", method) for method in ("cubic", "joint"))


def sample_bias(law: str = "coupled") -> IsoflopBias:
    """The cubic has no minimum to read; log(N_opt read / true) of the parabola falls from 0.12 to 0.01."""

    def reading(method: str, grid: str, log_params: float | None) -> ReadingBias:
        a = None if log_params is None else log_params / 10
        return ReadingBias(method, grid, a, None if a is None else -a, log_params, (log_params,) * 5)

    methods = (("parabola", 0.12), ("cubic", None), ("joint", -0.03))
    grids = (("equal cost", 0.09), ("centred", 0.04), ("narrow", 0.01), ("symmetric", 0.02))
    return IsoflopBias(
        law=law,
        flops=TARGET.flops,
        params=2.5e5,
        a=0.513,
        b=0.487,
        groups=tuple(f"C={flops:.1e}" for flops in BUDGETS),
        methods=tuple(reading(method, "as run", value) for method, value in methods),
        grids=tuple(reading("parabola", grid, value) for grid, value in grids),
    )


def sample_conventions() -> ByConvention:
    ways = (
        Convention("params_non_embedding", "flops", True, 4.97e5, "as given", 1.545, 0.513),
        Convention("params_non_embedding", "6·N·D", False, 4.97e5, "as given", 1.545, 0.498),
        Convention("params_total", "flops", False, 6.1e5, "extrapolated beyond the runs", 1.561, 0.471),
    )
    return ByConvention("coupled", TARGET, ways, (Skipped("N counted by N", "2 of 35 runs have none"),))


def sample_advice() -> tuple[HelpfulRun, ...]:
    return HelpfulRun(4e5, 4.2e5, 1e12, 0.81), HelpfulRun(8e3, 2.1e7, 1e12, 0.637)


def sample_surface() -> Surface:
    params, tokens = np.geomspace(5e3, 1e6, 30), np.geomspace(1e5, 1e7, 25)
    return Surface(params, tokens, true_loss(params[None, :], tokens[:, None]))


def sample_analysis(**changes) -> Analysis:
    """A scored sweep in which everything that the report can show is there."""
    runs = sample_runs()
    isoflops = changes.get("isoflops", sample_isoflops(runs))
    lowest = [int(np.flatnonzero(runs.flops == c)[runs.loss[runs.flops == c].argmin()]) for c in BUDGETS]
    backtests = changes.get("backtests", sample_backtests(runs))
    values = {"E": E, "A": A, "B": B, "alpha": ALPHA, "beta": BETA}
    sample = Analysis(
        title="isoflop-demo",
        params_kind="non-embedding",
        flops_kind="exact",
        runs=runs,
        rows=sample_rows(runs),
        exclusions=(
            Exclusion("badbadbadbad", "diverged"),
            Exclusion("deadbeefdead", "failed: MemoryError"),
            Exclusion("fewtokens000", "0.10 tokens a parameter, fewer than 1"),
        ),
        fits=(
            sample_fit("separable", runs, values),
            sample_fit("coupled", runs, {**values, "k": 1.1}),
            *([fit_of_minima(isoflops)] if isoflops else []),
        ),
        isoflops=isoflops,
        envelope=Envelope(
            tuple(runs.run_id[i] for i in lowest),
            *(c[lowest] for c in (runs.flops, runs.params, runs.tokens, runs.loss)),
        ),
        allocations=sample_allocations(),
        remedies=sample_remedies(),
        isoflop_bias=(sample_bias("separable"), sample_bias()),
        conventions=sample_conventions(),
        advice=sample_advice(),
        published=PUBLISHED,
        frontier=sample_frontier(),
        backtests=backtests,
        surface=sample_surface(),
        records=track_records(backtests),
        records_by_distance=records_by_distance(backtests),
        predictions=(sample_prediction(measured=1.56),),
        verdict=Verdict.WEAK,
        reasons=("it extrapolates 10×",),
        problems=("The fit of compute is at bound: E sits on 0.", "2 of 39 runs did not finish."),
        metadata={
            "command": "python -m sweep +grid=isoflop",
            "code": "0.1.0 (abc1234)",
            "corpus fingerprint": "f0" * 16,
            "recipe": '{"grid": {"budgets": [1e11, 1e12], "name": "isoflop"}, "notes": ["a cell was added"]}',
        },
    )
    return dataclasses.replace(sample, **changes)


def without_results(**changes) -> Analysis:
    """A sweep in which every run failed."""
    nothing = np.array([])
    rows = tuple(
        RunRow(f"run{i}", "", "fit", "failed", 1e4, 1e6, 6e10, None, None, None, None, "no GPU")
        for i in range(3)
    )
    empty = sample_analysis(
        runs=Runs((), (), (), *(nothing,) * 5),
        rows=rows,
        exclusions=tuple(Exclusion(r.run_id, "failed") for r in rows),
        fits=(),
        isoflops=(),
        envelope=Envelope((), *(nothing,) * 4),
        allocations=(),
        remedies=(),
        isoflop_bias=(),
        conventions=None,
        advice=(),
        frontier=None,
        backtests=(),
        surface=None,
        predictions=(),
        verdict=Verdict.NOT_SUPPORTED,
        reasons=("no run finished",),
        problems=("Every run failed.",),
    )
    return dataclasses.replace(empty, **changes)


CASES = {
    "scored": sample_analysis,
    "outside": lambda: sample_analysis(predictions=(sample_prediction(measured=1.70),)),
    "unscored": lambda: sample_analysis(predictions=(sample_prediction(),)),
    "no target": lambda: sample_analysis(predictions=(), frontier=None, backtests=()),
    "no groups": lambda: sample_analysis(isoflops=(), allocations=sample_allocations()[:1], remedies=()),
    "all failed": without_results,
    "empty table": lambda: without_results(rows=(), exclusions=(), metadata={}),
}
