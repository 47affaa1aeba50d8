"""The stages of one sweep, in order: corpus, plan, cost, execution, prediction, target, report."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

from analysis import sweep as analysis
from analysis.finding import lines as found_lines
from analysis.rates import lines
from analysis.report import write_report
from analysis.studies import load
from analysis.values import Prediction, Target
from models.count import count_parameters
from sweep import provenance
from sweep.data.tokens import vocabulary_size
from sweep.execute.lock import CoordinatorLock
from sweep.execute.mirror import Mirror
from sweep.files import SweepFolder
from sweep.places import hardware_for
from sweep.plan.grids import Cell, cells, extensions, provisional_target_params, target_cell, tokens_needed
from sweep.plan.plan import notes, plan
from sweep.plan.schema import ConfigError, SweepConfig
from sweep.preparation import data_configs, planned_corpus, prepare_corpus
from sweep.pricing import show_cost
from sweep.refusals import check_corpus, check_folder, check_memory, check_optimizer
from sweep.state import Sweep, planned_runs
from sweep.tables import MOST_ROWS, console
from sweep.units import quantity


def run(config: SweepConfig) -> int:
    """Do the whole sweep, or as much as is not done yet. Returns the exit status.

    Raises Refused, ConfigError, ValueError or Locked before anything is launched, Interrupted after
    every worker has checkpointed.
    """
    out = console()
    for name in config.grid.studies:
        load(name)
    hardware = hardware_for(config)
    chosen = "chosen by hardware" if config.scale.asked == "auto" else "asked for"
    beside = f"{hardware.slots} runs side by side" if hardware.slots else "as many runs side by side as it has room for"
    out.print(f"scale={config.scale.name} ({chosen}); {hardware.why}; {beside}")
    out.print(f"sweep {config.sweep_name} in {config.folder}")
    folder = SweepFolder(Path(config.folder))
    source, tokenizer = data_configs(config)
    vocab_size = vocabulary_size(source, tokenizer)
    first = cells(config, vocab_size)
    provisional = target_cell(config, vocab_size, provisional_target_params(config))
    wanted = [*first, *([provisional] if provisional else [])]
    check_folder(folder, config)
    if changed := provenance.changed_versions(folder):
        out.print(
            "code or libraries have changed since this folder's last command; runs that are done are kept, since a "
            f"change of the recipe would have changed their ids: {'; '.join(changed)}",
            markup=False,
        )

    streamed = source.kind == "hf"
    facts = None if streamed else prepare_corpus(config, tokens_needed(wanted), out)
    sweep = Sweep(config, folder, hardware, planned_corpus(facts, vocab_size))
    sweep.add(first)
    targets = [provisional] if provisional else []
    target_runs = planned_runs(config, [*sweep.cells, *targets], sweep.corpus).runs[len(first) :]
    check_optimizer(sweep.runs)
    check_memory([*sweep.runs, *target_runs], hardware, config.executor)
    for note in notes(wanted):
        out.print(note, markup=False)
    show_cost(sweep, target_runs, out)
    if changed := provenance.changed_training(folder, sweep.runs):
        accepted = config.on_change == "accept"
        so = "and is accepted" if accepted else "so that nothing more of it is trained without on_change=accept"
        out.print(f"what this folder's runs were trained with has changed, {so}: {'; '.join(changed)}", markup=False)
    if config.plan_only:
        out.print("plan_only=true: nothing was launched.")
        return 0
    with CoordinatorLock(folder.lock):
        if streamed:
            facts = prepare_corpus(config, tokens_needed(wanted), out)
            sweep = Sweep(config, folder, hardware, planned_corpus(facts, vocab_size))
            sweep.add(first)
        check_corpus(folder, facts)
        sweep.data_folder, sweep.facts = facts.folder, dataclasses.asdict(facts)
        sweep.notes += notes(wanted)
        return train_and_analyse(sweep, out)


def train_and_analyse(sweep: Sweep, out) -> int:
    """Train what the ledger lacks, bracket the budgets, predict, train the target, score, report."""
    logger = sweep.config.logger
    with Mirror(sweep.folder, logger.kind, project=logger.project, say=lambda line: out.print(line, markup=False)) as mirror:
        train_grid(sweep, mirror, out)
        train_target(sweep, mirror, out)
        report = write_analysis(sweep, out)
    return show_outcome(sweep, report, out)


def write_analysis(sweep: Sweep, out) -> Path | None:
    """The fits and the report; None, with the reason printed, where the runs allow no fit."""
    sweep.write()
    try:
        found = analysis.analyse(sweep.folder.path)
    except ValueError as error:
        out.print(f"no fit, no report: {error}")
        return None
    if not found.fits:
        out.print("; ".join(found.reasons), markup=False)
    for line in (*(lines(found.rates) if found.rates else ()), *found_lines(found.findings)):
        out.print(line, markup=False)
    for prediction in found.predictions:
        measured = prediction.measured
        said = (
            f"measured {measured.loss:.4f} ± {measured.loss_se:.4f}, error {measured.error_pct:+.2f}%, "
            f"{'inside' if measured.inside else 'outside'} the interval"
            if measured
            else "not measured"
        )
        out.print(f"prediction {describe(prediction)}: {said}")
    return write_report(found, sweep.folder.report)


def describe(prediction: Prediction) -> str:
    target = prediction.target
    return (
        f"for N={quantity(target.params)} D={quantity(target.tokens)} C={target.flops:.3g}: {prediction.loss:.4f} nats a token, "
        f"90% {prediction.lo90:.4f} to {prediction.hi90:.4f} ({prediction.law}; {prediction.verdict.value})"
    )


def train_grid(sweep: Sweep, mirror: Mirror, out) -> None:
    """Bring every cell of the grid to a result, and those that bracketing a budget adds."""
    sweep.settle_from_ledger()
    while True:
        grown = extend(sweep, out)
        if not sweep.pending() and not grown:
            return
        sweep.execute(sweep.pending(), mirror)


def extend(sweep: Sweep, out) -> bool:
    """Add the cells that bracket the budgets whose runs have all ended; whether there were any."""
    cells_and_runs = zip(sweep.cells, sweep.planned.runs, strict=True)
    ended = [(cell, sweep.outcomes.get(run.run_id)) for cell, run in cells_and_runs]
    open_groups = {cell.group for cell, outcome in ended if outcome is None}
    settled = [(cell, outcome.result.get("loss")) for cell, outcome in ended if outcome and cell.group not in open_groups]
    new: list[Cell] = []
    for extension in extensions(sweep.config, sweep.corpus.vocab_size, settled):
        if extension.message not in sweep.notes:
            out.print(extension.message)
            sweep.notes.append(extension.message)
        try:
            plan(extension.cells, sweep.corpus)
        except ConfigError as error:
            sweep.notes.append(f"{extension.message}, which cannot be: {error}")
            out.print(sweep.notes[-1])
            continue
        new += extension.cells
    sweep.add(new)
    return bool(new)


def train_target(sweep: Sweep, mirror: Mirror, out) -> None:
    """Write the prediction, then train what it is of, then set the measurement beside it."""
    config, target = sweep.config, sweep.config.grid.target
    if target.flops is None:
        return
    try:
        chosen = target.params or optimal_size(sweep, target.flops, out)
        cell = target_cell(config, sweep.corpus.vocab_size, chosen)
        spec = plan([cell], sweep.corpus)[0].spec
        params = count_parameters(spec.shape).non_embedding
        wanted = Target(params=float(params), tokens=float(spec.tokens), flops=spec.flops)
        prediction = analysis.write_prediction(sweep.folder.path, wanted)
    except ValueError as error:
        sweep.notes.append(f"no target was predicted or trained: {error}")
        out.print(sweep.notes[-1])
        return
    out.print(f"predicted before training, {describe(prediction)}")
    sweep.add([cell])
    sweep.settle_from_ledger()
    if sweep.pending():
        sweep.execute(sweep.pending(), mirror)


def optimal_size(sweep: Sweep, flops: float, out) -> float:
    """The fitted compute-optimal N at `flops`. Raises ValueError where the runs name none."""
    choice = analysis.choose_target(sweep.folder.path, flops)
    if choice.params is None:
        raise ValueError(choice.reason)
    out.print(
        f"optimum at {flops:.3g} FLOPs: N={quantity(choice.params)} (90% {quantity(choice.lo)} to {quantity(choice.hi)})"
        + (f"; {choice.reason}" if choice.reason else "")
    )
    return choice.params


def show_outcome(sweep: Sweep, report: Path | None, out) -> int:
    """Print what failed and where the report is; return the exit status."""
    by_status = Counter(outcome.status for outcome in sweep.outcomes.values())
    trained = sum(outcome.attempts > 0 for outcome in sweep.outcomes.values())
    out.print(f"{', '.join(f'{count} {status}' for status, count in by_status.items())}; {trained} trained by this command")
    ended = ((run, sweep.outcomes.get(run.run_id)) for run in sweep.runs)
    unfinished = [(run, outcome) for run, outcome in ended if outcome is None or outcome.status != "finished"]
    for run, outcome in unfinished[:MOST_ROWS]:
        said = f"{outcome.status}: {outcome.reason}" if outcome else "not run"
        out.print(f"  {run.run_id} {run.group} N={quantity(count_parameters(run.spec.shape).non_embedding)} {said}")
    if len(unfinished) > MOST_ROWS:
        out.print(f"  and {len(unfinished) - MOST_ROWS:,} more (status in {sweep.folder.runs_csv})")
    if report is not None:
        out.print(f"report: {report}")
    not_run = len(sweep.outcomes) < len({run.run_id for run in sweep.runs})
    return 1 if by_status["failed"] or not_run or report is None else 0
