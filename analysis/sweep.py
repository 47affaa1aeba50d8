"""The analysis' steps inside a sweep, in the order its entry point takes them:

choose_target -> (plan the target run) -> write_prediction -> (train it) -> score -> analyse.

Each reads the sweep's folder anew, so that each can also be run alone. A holdout's loss is read by
`score` and `analyse` only, and only where its prediction is already on disk.
"""

from __future__ import annotations

import json
from pathlib import Path

from analysis import store
from analysis.health import of_predicted, with_health
from analysis.prediction import model, optimal_range, predict
from analysis.studies import Courses, Evidence, findings
from analysis.studies.ladder import predict_star
from analysis.study import is_target, losses_of_predicted, measure, study, unfitted, with_losses
from analysis.table import SWEEP_RULES, Rules, Table, TableError, read_table
from analysis.values import Analysis, Prediction, Target, TargetChoice

MOST_UNCERTAIN = 100.0
"""hi/lo of the optimal size beyond which it names nothing. Assumption."""


def runs_table(folder: Path, rules: Rules = SWEEP_RULES) -> Table:
    """runs.csv of a sweep, the runs that are not well trained excluded; N is non-embedding.

    Raises TableError."""
    table = read_table(Path(folder) / "runs.csv", {"params": "params_non_embedding"}, rules)
    return with_health(table, folder)


def choose_target(folder: Path, flops: float) -> TargetChoice:
    """The compute-optimal non-embedding N (and the D it leaves) at a budget of exact FLOPs.

    Returns a TargetChoice with status "refused" and the reason where the runs name none.
    Raises TableError: no readable runs.csv.
    """
    table = runs_table(folder)
    try:
        known = model(table.runs)
    except TableError:
        raise
    except ValueError as error:
        return TargetChoice(flops, None, None, None, None, "refused", str(error))
    params, lo, hi = optimal_range(known, flops)
    if hi / lo > MOST_UNCERTAIN:
        reason = (
            f"the optimal size at {flops:.2g} FLOPs could be anything from {lo:.2g} to {hi:.2g} parameters"
        )
        return TargetChoice(flops, None, None, None, None, "refused", reason)
    troubles = [f"{fit.law} law: {fit.reason}" for fit in known.fits if fit.reason]
    largest = known.runs.params.max()
    if params > largest:
        troubles.append(f"{params / largest:.2g}x the largest size that was run")
    tokens = float(known.cost.tokens(flops, params))
    return TargetChoice(flops, params, tokens, lo, hi, "ok", "; ".join(troubles))


def write_prediction(folder: Path, target: Target) -> Prediction:
    """Predict the target and add it to report/predictions.json, before it is trained.

    The same target with the same ledger digest is not predicted again: what is on disk is returned.
    So is the newest prediction of a target that has been measured since.

    Raises:
        ValueError: the target has been measured already and was never predicted, too few runs to
            fit, or a predictions.json that cannot be read. Nothing is written then.
    """
    table = runs_table(folder)
    path = _predictions_path(folder)
    written = store.read_predictions(path)
    earlier = [p for p in written if is_target(p.target, target.params, target.tokens)]
    measured = any(h.finished and is_target(target, h.params, h.tokens) for h in table.holdouts)
    if measured and not earlier:
        raise ValueError(
            f"{table.path}: the target (N={target.params:.6g}, D={target.tokens:.6g}) is already measured "
            "there and was never predicted, so a number written now would be no prediction. Choose another "
            "target. Nothing was written."
        )
    same = [p for p in earlier if measured or p.ledger_digest == table.digest]
    if same:
        return same[-1]
    prediction = _predicted(folder, table, target)
    store.write_predictions(path, (*written, prediction))
    return prediction


def _predicted(folder: Path, table: Table, target: Target) -> Prediction:
    """By a law of N and D; of a ladder with too few rungs for one by the ladder's own law."""
    try:
        return predict(model(table.runs), target, table.digest)
    except ValueError:
        if "ladder" not in planned_studies(folder):
            raise
        return predict_star(table.runs, target, table.digest)


def score(folder: Path) -> tuple[Prediction, ...]:
    """Fill in what each predicted target came to; nothing else of a prediction changes.

    Returns all predictions, scored where their run has finished. Raises as `write_prediction`.
    """
    path = _predictions_path(folder)
    written = store.read_predictions(path)
    if not written:
        return ()
    table = runs_table(folder)
    losses = losses_of_predicted(table, written)
    scored = tuple(measure(prediction, table, losses) for prediction in written)
    if scored != written:
        store.write_predictions(path, scored)
    return scored


def analyse(folder: Path) -> Analysis:
    """Everything the report shows of a sweep; also writes report/fits.json and the tables beside it.

    Where too few runs are there to fit anything, what its studies and rate grids show.
    Raises ValueError (TableError for the table): neither a fit nor a study nor a rate grid.
    """
    folder = Path(folder)
    table = runs_table(folder)
    predictions = score(folder)
    losses = losses_of_predicted(table, predictions)
    table = of_predicted(table, folder, set(losses))
    metadata, entropy_rate = plan_facts(folder)
    evidence = Evidence(with_losses(table, losses), Courses(folder))
    told = {
        "title": folder.resolve().name,
        "metadata": metadata,
        "findings": findings(planned_studies(folder), evidence),
    }
    try:
        known = model(table.runs)
    except ValueError as error:
        analysis = unfitted(with_losses(table, losses), str(error), predictions, **told)
    else:
        analysis = study(table, known, predictions, losses, entropy_rate=entropy_rate, **told)
    store.write_results(folder / "report", analysis)
    return analysis


def _predictions_path(folder: Path) -> Path:
    return Path(folder) / "report" / "predictions.json"


def plan_facts(folder: Path) -> tuple[dict[str, str], float | None]:
    """What plan.json tells a reader: how to do it again, as text (its list of runs left out), and the
    corpus' true entropy rate in nats a token where it is known. Empty where there is no plan.json.

    Raises ValueError: not JSON.
    """
    plan = _plan(folder)
    told = {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for name, value in plan.items()
        if name != "runs"
    }
    return told, (plan.get("corpus") or {}).get("entropy_rate")


def planned_studies(folder: Path) -> tuple[str, ...]:
    """The studies that a sweep's grid names; none where there is no plan.json. Raises ValueError: not JSON."""
    return tuple(_plan(folder).get("config", {}).get("grid", {}).get("studies", ()))


def _plan(folder: Path) -> dict:
    path = folder / "plan.json"
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
