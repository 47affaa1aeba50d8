"""The analysis on arrays, for notebooks and other programs: fit, predict, backtest.

    from analysis import fit, predict, backtest

Everywhere: params N and tokens D are counts, flops C are FLOPs (6·N·D where not given), loss is nats a
token, all float64[run]; `cluster` [run] labels runs that are not independent (one size where not given);
`unique_tokens` [run] says how many of D were distinct. `law` is "auto", a name of `analysis.laws.LAWS`,
"module:ATTRIBUTE", or a list of these.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.ensemble import automatic
from analysis.fitting import fit_law
from analysis.laws import Law, load_law
from analysis.outliers import screen
from analysis.prediction import model
from analysis.prediction import predict as predict_one
from analysis.resample import RESAMPLES, cluster_weights, refit, with_intervals
from analysis.rollout import calibrate, roll
from analysis.table import as_runs
from analysis.values import BacktestRow, LawFit, Prediction, Runs, Target


def fit(
    *,
    loss: np.ndarray,
    params: np.ndarray,
    tokens: np.ndarray | None = None,
    flops: np.ndarray | None = None,
    loss_se: np.ndarray | None = None,
    cluster: Sequence[str] | None = None,
    unique_tokens: np.ndarray | None = None,
    law: str = "separable",
    penalty: str = "huber",
    delta: float | None = None,
    tau: float | None = None,
    weights: np.ndarray | None = None,
    resamples: int = RESAMPLES,
) -> LawFit:
    """One law, with the 90% interval of each parameter by resampling clusters (none if resamples = 0).

    `penalty` ("huber", "least_squares" or "asymmetric"), its knee `delta` and asymmetry `tau`, and
    `weights` [run] are those of `analysis.fitting.fit_law`.

    Raises ValueError: unequal lengths, a value that is not finite and above 0, no such law, or fewer
    distinct runs than its unknowns and one.
    """
    runs = _runs(params, tokens, flops, loss, loss_se, cluster, unique_tokens)
    chosen = load_law(law)
    found, theta, problem = fit_law(chosen, runs, loss=penalty, delta=delta, tau=tau, weights=weights)
    if not resamples:
        return found
    draws = refit(problem, theta, cluster_weights(runs, len(chosen.unknowns), resamples))
    return with_intervals(found, chosen, problem, draws)


def predict(
    *,
    loss: np.ndarray,
    params: np.ndarray,
    targets: Sequence[tuple[float, float]],
    tokens: np.ndarray | None = None,
    flops: np.ndarray | None = None,
    loss_se: np.ndarray | None = None,
    cluster: Sequence[str] | None = None,
    unique_tokens: np.ndarray | None = None,
    law: str | Sequence[str] = "auto",
    target_clusters: Sequence[str] | None = None,
) -> tuple[Prediction, ...]:
    """The loss of a new run at each target (N, D), its 90% interval and its verdict.

    `target_clusters` [target] names the runs that each target continues, "" for none. Raises as `fit`.
    """
    runs = _runs(params, tokens, flops, loss, loss_se, cluster, unique_tokens)
    known = model(runs, laws_named(law, runs), rolled=())
    named = target_clusters or ("",) * len(targets)
    return tuple(
        predict_one(known, Target(N, D, float(known.cost.flops(N, D))), "", cluster=name)
        for (N, D), name in zip(targets, named, strict=True)
    )


def backtest(
    *,
    loss: np.ndarray,
    params: np.ndarray,
    tokens: np.ndarray | None = None,
    flops: np.ndarray | None = None,
    loss_se: np.ndarray | None = None,
    cluster: Sequence[str] | None = None,
    unique_tokens: np.ndarray | None = None,
    law: str | Sequence[str] = "auto",
) -> tuple[BacktestRow, ...]:
    """Every dearer run predicted from the cheaper ones, at several cuts; outliers left out first.
    Raises as `fit`."""
    runs = _runs(params, tokens, flops, loss, loss_se, cluster, unique_tokens)
    laws = laws_named(law, runs)
    runs, _ = screen(runs, laws)
    return calibrate(roll(runs, laws), laws)[1]


def laws_named(law: str | Sequence[str], runs: Runs) -> tuple[Law, ...]:
    """The laws that are to predict; "auto" is the automatic choice for these runs.

    Raises ValueError: no such law, or the same twice.
    """
    names = [law] if isinstance(law, str) else list(law)
    if names == ["auto"]:
        return automatic(runs)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"law={law}: wanted 'auto', a law, or a list of different ones. Nothing was fitted.")
    return tuple(load_law(name) for name in names)


def _runs(
    params: np.ndarray,
    tokens: np.ndarray | None,
    flops: np.ndarray | None,
    loss: np.ndarray,
    loss_se: np.ndarray | None,
    cluster: Sequence[str] | None,
    unique_tokens: np.ndarray | None,
) -> Runs:
    if tokens is None:
        if flops is None:
            raise ValueError("give tokens or flops: neither is there. Nothing was fitted.")
        tokens = np.asarray(flops, dtype=np.float64) / (6 * np.asarray(params, dtype=np.float64))
    return as_runs(
        params,
        tokens,
        loss,
        flops=flops,
        cluster=cluster,
        loss_se=loss_se,
        unique_tokens=unique_tokens,
    )
