"""`python -m analysis runs=TABLE|FOLDER out=DIR`: fit, backtest, predict and report anybody's runs."""

from __future__ import annotations

import math
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import scipy
from omegaconf import DictConfig, OmegaConf

from analysis import store
from analysis.api import laws_named
from analysis.finding import lines as found_lines
from analysis.health import of_predicted, with_health
from analysis.prediction import Model, model, optimal_target, predict
from analysis.rates import lines
from analysis.studies import Courses, Evidence, findings, load
from analysis.study import (
    DEFAULT_EXTRAPOLATION,
    is_target,
    losses_of_predicted,
    measure,
    study,
    unfitted,
    with_losses,
)
from analysis.sweep import plan_facts, planned_studies
from analysis.table import SWEEP_RULES, Rules, Spot, Table, read_table, read_targets
from analysis.values import Analysis, Prediction, Target

CONF = Path(__file__).resolve().parent.parent / "conf"

INCONSISTENT = 2.0
"""Factor between target.flops and what its N and D cost at which one of the three is a slip. Assumption."""


class UsageError(ValueError):
    """What was asked cannot be done; the message says what to ask instead."""


@dataclass(frozen=True)
class Request:
    """What the user asked for. `columns` holds only those that were named; None: not given."""

    runs: Path
    is_sweep: bool
    out: Path
    columns: Mapping[str, str]
    law: str | tuple[str, ...]
    targets: Path | None
    params: float | None
    tokens: float | None
    flops: float | None
    rules: Rules
    studies: tuple[str, ...] = ()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="analysis")
def main(composed: DictConfig) -> None:
    """Exit status: 0 done, 2 what was asked cannot be done."""
    try:
        run(as_request(OmegaConf.to_container(composed, resolve=True)))
    except (ValueError, OSError) as error:
        print(f"analysis: {error}", file=sys.stderr)
        sys.exit(2)


def as_request(config: Mapping[str, Any]) -> Request:
    """Raises UsageError: no runs, no place for the result, or a number that is none."""
    if not config["runs"]:
        raise UsageError(
            "give runs=PATH, a table of runs (.csv, .tsv, .jsonl, .parquet) or the folder of a sweep"
        )
    runs = Path(str(config["runs"])).expanduser()
    is_sweep = runs.is_dir()
    if not is_sweep and not config["out"]:
        raise UsageError("give out=DIR, a folder for the report")
    usual = SWEEP_RULES if is_sweep else Rules()
    columns = {meaning: str(column) for meaning, column in config["columns"].items() if column is not None}
    return Request(
        runs=runs / "runs.csv" if is_sweep else runs,
        is_sweep=is_sweep,
        out=Path(str(config["out"])).expanduser() if config["out"] else runs / "report",
        columns={"params": "params_non_embedding", **columns} if is_sweep else columns,
        law=_law(config["law"]),
        targets=Path(str(config["targets"])).expanduser() if config["targets"] else None,
        **{
            name: _number(f"target.{name}", config["target"][name], None, 0.0)
            for name in ("params", "tokens", "flops")
        },
        rules=Rules(
            **{
                name: _number(name, config[name], getattr(usual, name), -math.inf)
                for name in ("min_tokens_per_param", "min_steps")
            }
        ),
        studies=_studies(config["studies"]),
    )


def run(request: Request) -> None:
    """Read, fit, predict, write, say where. Raises ValueError (the table, the target) or OSError."""
    folder = request.runs.parent if request.is_sweep else None
    studies = tuple(dict.fromkeys((*(planned_studies(folder) if folder else ()), *request.studies)))
    for name in studies:
        load(name)
    table = with_health(read_table(request.runs, request.columns, request.rules), folder)
    laws = laws_named(request.law, table.runs)
    targets = read_targets(request.targets, request.columns) if request.targets else ()
    say_plan(request, table)
    title = request.runs.resolve().parent.name if request.is_sweep else request.runs.name
    planned, entropy_rate = plan_facts(request.runs.parent) if request.is_sweep else ({}, None)
    told = {**planned, **metadata(request)}
    courses = Courses(folder) if folder else {}
    try:
        known = model(table.runs, laws)
    except ValueError as error:
        written = read_written(request)
        losses = losses_of_predicted(table, written)
        table = with_losses(table, losses)
        found = findings(studies, Evidence(table, courses))
        written = tuple(measure(prediction, table, losses) for prediction in written)
        analysis = unfitted(table, str(error), written, title=title, metadata=told, findings=found)
        say_result(analysis, write(analysis, request.out))
        return
    predictions = make_predictions(request, table, known, targets, studies)
    losses = losses_of_predicted(table, predictions)
    predictions = tuple(measure(prediction, table, losses) for prediction in predictions)
    table = of_predicted(table, folder, set(losses))
    analysis = study(
        table,
        known,
        predictions,
        losses,
        title=title,
        metadata=told,
        entropy_rate=entropy_rate,
        findings=findings(studies, Evidence(with_losses(table, losses), courses)),
    )
    page = write(analysis, request.out)
    say_result(analysis, page)


def read_written(request: Request) -> tuple[Prediction, ...]:
    """The predictions that a sweep wrote before their runs were trained; none of another table."""
    if not request.is_sweep:
        return ()
    return store.read_predictions(request.runs.parent / "report" / "predictions.json")


def make_predictions(
    request: Request, table: Table, known: Model, targets: Sequence[Spot], studies: Sequence[str] = ()
) -> tuple[Prediction, ...]:
    """A sweep's own predictions, made before their runs; of other tables those of its holdouts, whose
    losses nothing has read yet; then those of the targets asked for, or where there is nothing else to
    predict and no study to show, of the compute-optimal run at 10x the dearest.

    Raises UsageError: a target of a sweep that is measured already.
    """
    asked = asked_target(request, known)
    if request.is_sweep:
        made = list(read_written(request))
    else:
        spots = {(h.params, h.tokens): h for h in table.holdouts}
        made = [
            predict(known, Target(h.params, h.tokens, h.flops), table.digest, cluster=h.cluster)
            for h in spots.values()
        ]
    wanted = [(_in_full(spot, known), spot.cluster) for spot in targets]
    if asked is None and not made and not wanted and not studies:
        asked = optimal_target(known, DEFAULT_EXTRAPOLATION * float(known.runs.flops.max()))
        print(
            "No target given: predicting the compute-optimal run "
            f"at {DEFAULT_EXTRAPOLATION:g}x the dearest one"
        )
    if asked is not None:
        wanted.append((asked, ""))
    for target, cluster in wanted:
        if any(
            is_target(p.target, target.params, target.tokens) and p.ledger_digest == table.digest
            for p in made
        ):
            continue
        if any(h.finished and is_target(target, h.params, h.tokens) for h in table.holdouts):
            raise UsageError(
                f"{request.runs}: the target (N={target.params:.6g}, D={target.tokens:.6g}) is already "
                "measured there, so a number written now would be no prediction. Nothing was written."
            )
        made.append(predict(known, target, table.digest, cluster=cluster))
    return tuple(made)


def _in_full(spot: Spot, known: Model) -> Target:
    flops = spot.flops or float(known.cost.flops(spot.params, spot.tokens))
    tokens = spot.tokens or float(known.cost.tokens(np.array(spot.flops), np.array(spot.params)))
    return Target(spot.params, tokens, flops)


def asked_target(request: Request, known: Model) -> Target | None:
    """The target in full: N, D and C determine one another through what a token costs in these runs.

    Raises UsageError: one of params and tokens alone, tokens with flops alone, or three that disagree.
    """
    params, tokens, flops = request.params, request.tokens, request.flops
    if params and tokens:
        cost = float(known.cost.flops(params, tokens))
        if flops and not 1 / INCONSISTENT < flops / cost < INCONSISTENT:
            raise UsageError(
                f"target.params={params:g} and target.tokens={tokens:g} cost about {cost:.3g} FLOPs by these "
                f"runs, not target.flops={flops:g}. Leave one of the three out."
            )
        return Target(params, tokens, flops or cost)
    if params and flops:
        return Target(params, float(known.cost.tokens(np.array(flops), np.array(params))), flops)
    if flops and not tokens:
        return optimal_target(known, flops)
    if params or tokens:
        raise UsageError(
            "a target is target.params with target.tokens or target.flops, or target.flops alone"
        )
    return None


def write(analysis: Analysis, out: Path) -> Path:
    """All files of a result; returns the page."""
    from analysis.report import write_report  # matplotlib takes a second: errors above don't wait for it

    store.write_predictions(out / "predictions.json", analysis.predictions)
    store.write_results(out, analysis)
    return write_report(analysis, out)


def say_plan(request: Request, table: Table) -> None:
    columns = ", ".join(f"{meaning}={column}" for meaning, column in table.columns.items())
    print(
        f"{request.runs}: {len(table.rows)} rows, {len(table.runs)} to fit, {len(table.exclusions)} "
        f"excluded, {len(table.holdouts)} held out ({columns})"
    )
    for note in table.notes:
        print(note)
    print(f"Now fitting, backtesting and predicting; the report goes to {request.out}", flush=True)


def say_result(analysis: Analysis, page: Path) -> None:
    for fit in analysis.fits:
        values = ", ".join(f"{name} {value:.5g}" for name, value in fit.values.items())
        print(f"{fit.law}: {fit.equation}: {values}; {fit.status.value}, residuals {fit.rms_pct:.2g}%")
    for allocation in (*analysis.allocations, *analysis.remedies):
        a = allocation.a
        method = f" ({allocation.method})" if allocation.method else ""
        print(
            f"approach {allocation.approach}{method}: N_opt ∝ C^{a.value:.3f} (90% {a.lo:.3f} to {a.hi:.3f})"
        )
    for line in (*(lines(analysis.rates)[-20:] if analysis.rates else ()), *found_lines(analysis.findings)):
        print(line)
    for prediction in analysis.predictions[-5:]:
        print(_described(prediction))
    scored = [p.measured for p in analysis.predictions if p.measured]
    if len(scored) > 1:
        error = np.mean([abs(measured.error_pct) for measured in scored])
        print(
            f"{len(scored)} held-out runs: mean error {error:.2f}%, "
            f"{sum(m.inside for m in scored)} inside their interval"
        )
    far = "" if analysis.predictions else f" to {DEFAULT_EXTRAPOLATION:g}x the dearest run"
    print(f"Extrapolation{far} {analysis.verdict.value}: {'; '.join(analysis.reasons)}")
    for problem in analysis.problems:
        print(f"Note: {problem}")
    print(f"Report: {page}")


def _described(prediction: Prediction) -> str:
    target = prediction.target
    text = (
        f"N={target.params:.4g}, D={target.tokens:.4g}, C={target.flops:.3g}: loss {prediction.loss:.4f}, "
        f"90% {prediction.lo90:.4f} to {prediction.hi90:.4f} ({prediction.verdict.value})"
    )
    if prediction.measured:
        text += f"; measured {prediction.measured.loss:.4f}, error {prediction.measured.error_pct:+.2f}%"
    return text


def metadata(request: Request) -> dict[str, str]:
    return {
        "command": "python -m analysis " + shlex.join(sys.argv[1:]),
        "table": str(request.runs),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


def _law(value: Any) -> str | tuple[str, ...]:
    """Raises UsageError: neither a name nor a list of names."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise UsageError(f"law={value}: wanted auto, a law's name, or a list of names")


def _studies(value: Any) -> tuple[str, ...]:
    """Raises UsageError: no list of names."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise UsageError(f"studies={value}: wanted a list of names, [noise,shape] say")


def _number(name: str, value: Any, default: float | None, above: float) -> float | None:
    """Raises UsageError: not a finite number, or not above `above`."""
    if value is None:
        return default
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value <= above
    ):
        raise UsageError(f"{name}={value}: wanted a finite number" + (" above 0" if above == 0 else ""))
    return float(value)


if __name__ == "__main__":
    main()
