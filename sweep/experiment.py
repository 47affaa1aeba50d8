"""The stages of one sweep, in order: corpus, plan, cost, execution, prediction, target, report."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from analysis import sweep as analysis
from analysis.finding import lines as found_lines
from analysis.rates import lines
from analysis.report import write_report
from analysis.studies import load
from analysis.values import Prediction, Target
from models.count import count_parameters
from sweep import provenance
from sweep.data.corpus import SourceConfig
from sweep.data.tokens import CorpusFacts, TokenizerConfig, default_cache, prepare, vocabulary_size
from sweep.execute.coordinator import Outcome, execute
from sweep.execute.estimate import MeasurementFailed, measure
from sweep.execute.executor import Executor
from sweep.execute.ledger import FINAL, Ledger
from sweep.execute.lock import CoordinatorLock
from sweep.execute.mirror import Mirror
from sweep.execute.progress import progress_for
from sweep.execute.reuse import reusable, take_over
from sweep.files import RunFolder, SweepFolder
from sweep.hardware import Hardware, has_muon
from sweep.places import THREADS, executor_for, hardware_for, is_remote, lone_gain, ranks_of
from sweep.plan.cost import Cost, least_bytes, run_cost, shapes_to_measure, shards
from sweep.plan.grids import Cell, cells, extensions, provisional_target_params, target_cell, tokens_needed
from sweep.plan.order import makespan, parent_id
from sweep.plan.plan import Corpus, micro_batch_sequences, notes, plan
from sweep.plan.schema import ConfigError, ExecutorConfig, SweepConfig
from sweep.plan.spec import PlannedRun
from sweep.plan.trunks import Shared, own_flops, share, whole_flops
from sweep.tables import MOST_ROWS, console, plan_table
from sweep.units import duration, memory, quantity

UNPREPARED = "not-prepared"
"""Stands for the fingerprint of a corpus that is streamed only once its cost is known."""


class Refused(Exception):
    """The sweep cannot be done as asked; nothing was launched. The message says what to do."""


@dataclass
class Sweep:
    """One sweep as it grows: its configuration, where it lies, and the cells so far with their runs, in
    `planned.runs` in the same order, and the trunks of those."""

    config: SweepConfig
    folder: SweepFolder
    hardware: Hardware
    corpus: Corpus
    data_folder: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    cells: tuple[Cell, ...] = ()
    planned: Shared = Shared((), ())
    notes: list[str] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    place: Executor | None = None

    def add(self, new: Sequence[Cell]) -> None:
        """Plan further cells. Raises ConfigError, with nothing changed, where one can't be."""
        cells = (*self.cells, *new)
        self.planned = planned_runs(self.config, cells, self.corpus)
        self.cells = cells

    @property
    def runs(self) -> list[PlannedRun]:
        return [*self.planned.trunks, *self.planned.runs]

    def write(self) -> None:
        provenance.write_plan(self.folder, self.config, self.facts, self.runs, self.notes)

    def settle_from_ledger(self) -> None:
        """Take over what an earlier command, or another sweep, brought to an end that no repetition would
        change."""
        self.notes += take_over(self.folder, self.reusable(self.runs))
        self.write()
        ledger = Ledger(self.folder, self.runs)
        ledger.write()
        for run in self.runs:
            result = ledger.result(run.run_id)
            if result is not None and result["status"] in FINAL:
                settled = Outcome(run.run_id, result["status"], result.get("reason"), 0, result)
                self.outcomes.setdefault(run.run_id, settled)

    def reusable(self, runs: Sequence[PlannedRun]) -> dict[str, RunFolder]:
        return reusable(self.folder, runs, self.execution) if self.config.reuse else {}

    def pending(self) -> list[PlannedRun]:
        return [run for run in self.runs if run.run_id not in self.outcomes]

    def execute(self, runs: Sequence[PlannedRun], mirror: Mirror) -> None:
        """Bring these runs to a result. Raises Interrupted after a checkpoint of each; Refused where earlier
        ones were trained by other code, and on_change=accept is not given."""
        self.write()
        if changed := provenance.changed_training(self.folder, self.runs):
            raise Refused(
                f"out={self.folder.path}: what its runs were trained with has changed, and the losses of those that are "
                "left may not be comparable with theirs:\n  " + "\n  ".join(changed) + "\nGo back to what is there, "
                "give another name= or out=, or say on_change=accept. Nothing was launched."
            )
        executor = self.config.executor
        self.place = self.place or executor_for(self.config, self.hardware, self.folder)
        outcomes = execute(
            self.folder,
            runs,
            self.place,
            partial(self.execution, alone=len(runs) == 1 and runs[0].role == "holdout"),
            plan=self.runs,
            retries=executor.retries,
            hang_seconds=None if executor.hang_minutes is None else 60 * executor.hang_minutes,
            progress=progress_for(),
            mirror=mirror,
        )
        self.outcomes |= {outcome.run_id: outcome for outcome in outcomes}

    def execution(self, planned: PlannedRun, alone: bool = False) -> dict[str, Any]:
        """How this run runs: the Execution of sweep/train/train.py. A target that runs `alone` may be shared by
        several processes; what laws are fitted to may not, whatever runs beside it, and is the same to the last bit."""
        executor = self.config.executor
        return {
            "device": self.hardware.device,
            "threads": THREADS,
            "data_folder": self.data_folder,
            "micro_batch_sequences": micro_batch_sequences(self.config, planned.spec.most_sequences),
            "log_every": executor.log_every,
            "evaluations": executor.evaluations,
            "noise_scales": executor.noise_scales,
            "checkpoint_seconds": executor.checkpoint_seconds,
            "compile": executor.compile,
            "compile_mode": executor.compile_mode,
            "parent": parent_id(planned),
            "ranks": ranks_of(self.config, self.hardware, planned.spec, alone),
            "shard": executor.shard,
        }


def planned_runs(config: SweepConfig, cells: Sequence[Cell], corpus: Corpus) -> Shared:
    """The cells' runs, with the trunks that they share where schedule.trunk says so."""
    runs = plan(cells, corpus)
    return share(runs) if config.schedule.trunk else Shared((), tuple(runs))


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
    sweep = Sweep(config, folder, hardware, _corpus(facts, vocab_size))
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
            sweep = Sweep(config, folder, hardware, _corpus(facts, vocab_size))
            sweep.add(first)
        check_corpus(folder, facts)
        sweep.data_folder, sweep.facts = facts.folder, dataclasses.asdict(facts)
        sweep.notes += notes(wanted)
        return train_and_analyse(sweep, out)


def data_configs(config: SweepConfig) -> tuple[SourceConfig, TokenizerConfig]:
    """The data and tokenizer groups as sweep/data takes them."""
    data, tokenizer = config.data, config.tokenizer
    if data.kind == "text":
        paths = [data.path] if isinstance(data.path, str) else list(data.path)
        source = SourceConfig(kind="text", path=tuple(paths), field=data.field)
    elif data.kind == "hf":
        source = SourceConfig(
            kind="hf", name=data.path, config=data.config, split=data.split, field=data.field, revision=data.revision
        )
    elif data.kind == "synthetic":
        source = SourceConfig(kind="synthetic", vocab_size=data.vocab_size, seed=data.source_seed)
    else:
        source = SourceConfig(kind="stdlib")
    return source, TokenizerConfig(tokenizer.kind, tokenizer.vocab_size, tokenizer.path, tokenizer.end_of_document)


def prepare_corpus(config: SweepConfig, tokens: float, out) -> CorpusFacts:
    """The corpus in shards, prepared now or before; enough held-out tokens are made sure of."""
    source, tokenizer = data_configs(config)
    facts = prepare(
        source,
        tokenizer,
        heldout_fraction=config.data.heldout_fraction,
        tokens_wanted=2 ** max(0, math.ceil(math.log2(tokens / config.data.max_epochs * STREAM_MARGIN))),
        cache=Path(config.data.cache) if config.data.cache else default_cache(),
        say=lambda line: out.print(line, markup=False),
    )
    if facts.heldout_tokens < config.data.eval_tokens + 1:
        raise Refused(
            f"data.eval_tokens={config.data.eval_tokens:,}: the held-out split has {facts.heldout_tokens:,} tokens. "
            "Lower data.eval_tokens, raise data.heldout_fraction, or add data. Nothing was launched."
        )
    return facts


STREAM_MARGIN = 1.6
"""Tokens streamed beyond the longest planned run: one extension to a smaller size at the same budget
needs about grid.size_ratio times its tokens. Rounded up to a power of two, so that a sweep that grows
keeps its corpus."""


def _corpus(facts: CorpusFacts | None, vocab_size: int) -> Corpus:
    if facts is None:
        return Corpus(UNPREPARED, vocab_size, sys.maxsize)
    return Corpus(facts.fingerprint, facts.vocab_size, facts.train_tokens)


def check_folder(folder: SweepFolder, config: SweepConfig) -> None:
    """Raise Refused unless this sweep may write here: a new or empty folder, or its own."""
    path = folder.path
    if path.exists() and not path.is_dir():
        raise Refused(f"out={path}: exists and is no folder. Give another out=. Nothing was launched.")
    parent = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise Refused(f"out={path}: {parent} is not writable. Give another out=. Nothing was launched.")
    if not path.exists() or not any(path.iterdir()):
        return
    difference = provenance.recipe_difference(folder, config.recipe)
    if difference is None:
        raise Refused(f"out={path}: holds files but no sweep (no plan.json). Give another out=. Nothing was launched.")
    if difference:
        listed = "\n  ".join(difference)
        raise Refused(
            f"out={path} belongs to another sweep, whose runs cannot be compared with these:\n  {listed}\n"
            "Give another name= or out=. Nothing was launched."
        )


def check_corpus(folder: SweepFolder, facts: CorpusFacts) -> None:
    """Raise Refused where the folder's runs were trained on other tokens."""
    before = provenance.corpus_fingerprint(folder)
    if before not in (None, facts.fingerprint):
        raise Refused(
            f"out={folder.path}: its runs were trained on corpus {before[:12]}, and the data now have fingerprint "
            f"{facts.fingerprint[:12]} (other files, another Python's library, or another tokenizer). "
            "Give another name= or out=, or restore the data. Nothing was launched."
        )


def check_optimizer(runs: Sequence[PlannedRun]) -> None:
    """Raise Refused for runs that want Muon where the installed torch has none."""
    if any(run.spec.optim.kind == "muon" for run in runs) and not has_muon():
        raise Refused(
            f"optim=muon wants torch 2.9 or later; installed is {metadata.version('torch')}. Upgrade torch, or say "
            "optim=adamw. Nothing was launched."
        )


def shared_by(planned: PlannedRun, hardware: Hardware, executor: ExecutorConfig) -> int:
    """Over how many GPUs weights, gradients and moments of the run are spread."""
    return shards(planned.spec, executor.ranks, executor.shard, hardware.memory_per_run)


def check_memory(runs: Sequence[PlannedRun], hardware: Hardware, executor: ExecutorConfig) -> None:
    """Raise Refused for a run whose weights, gradients and moments alone do not fit."""
    for planned in runs:
        need = least_bytes(planned.spec) / shared_by(planned, hardware, executor)
        if need > hardware.memory_per_run:
            raise Refused(
                f"{planned.group}, N={count_parameters(planned.spec.shape).non_embedding:,}: weights, gradients and "
                f"optimizer need {memory(need)}; a run has {memory(hardware.memory_per_run)} here "
                f"({hardware.slots} side by side). Choose smaller sizes, or lower executor.slots or "
                "executor.per_device. Nothing was launched."
            )


UNMEASURED = (
    "seconds and memory are not known, since the runs go to machines that were not measured: "
    "max_hours and the memory of a run are not checked"
)
KEPT_OF_A_TRUNK = 3 / 4  # of BYTES_PER_PARAMETER: gradients are not kept


def show_cost(sweep: Sweep, target: Sequence[PlannedRun], out) -> None:
    """Measure, print the plan with its cost, and refuse what exceeds max_hours or the memory."""
    config, hardware = sweep.config, sweep.hardware
    ledger = Ledger(sweep.folder, sweep.runs)
    elsewhere = sweep.reusable(sweep.runs)
    done = frozenset(
        run.run_id for run in sweep.runs if (result := ledger.result(run.run_id)) and result["status"] in FINAL
    ).union(elsewhere)
    costs: dict[str, Cost] = {}
    left = [planned for planned in (*sweep.runs, *target) if planned.run_id not in done]
    if left and not is_remote(config):
        shapes = shapes_to_measure(left)
        out.print(f"measuring {len(shapes)} of the plan's shapes on this hardware")
        largest = max(left, key=lambda planned: micro_batch_sequences(config, planned.spec.most_sequences))
        try:
            measured = measure(shapes, sweep.execution(largest))
        except MeasurementFailed as error:
            raise Refused(f"{error}\nNothing was launched.") from error
        executor = config.executor
        costs = {
            run.run_id: run_cost(run, measured, executor.evaluations, shared_by(run, hardware, executor)) for run in left
        }
        if len(target) == 1 and (cost := costs.get(target[0].run_id)):
            gain = lone_gain(config, hardware, target[0].spec)
            costs[target[0].run_id] = dataclasses.replace(cost, seconds=cost.seconds / gain)
    out.print(plan_table([*sweep.runs, *target], costs, done))
    each = {run_id: cost.seconds for run_id, cost in costs.items()}
    seconds = makespan(sweep.runs, each, hardware.slots) + makespan(target, each, 1)
    bound = "at least" if any(cost.is_bound for cost in costs.values()) else "about"
    said = f"{bound} {duration(seconds)} from here" if costs or not left else UNMEASURED
    trunks = f" on {len(sweep.planned.trunks)} trunk segments" if sweep.planned.trunks else ""
    out.print(
        f"{len(sweep.planned.runs)} runs to fit{trunks} ({len(done)} done), {len(target)} to predict and check; "
        f"{own_flops([*sweep.runs, *target]):.2e} FLOPs; {said}"
    )
    if elsewhere:
        out.print(f"{len(elsewhere)} of those done are taken over from sweeps beside this one (reuse=false trains them)")
    if trunks:
        own, whole = own_flops(sweep.runs), whole_flops(sweep.runs)
        kept = sum(least_bytes(run.spec) * KEPT_OF_A_TRUNK for run in sweep.planned.trunks)
        out.print(
            f"branching off trunks: {own:.2e} FLOPs instead of {whole:.2e} for independent runs ({own / whole:.0%}); "
            f"the trunks' checkpoints take {memory(kept)} of disk"
        )
    if target and config.grid.target.params is None:
        out.print("the target's size is provisional: the fit will choose it")
    if seconds > config.max_hours * 3600:
        raise Refused(
            f"max_hours={config.max_hours:g}: the sweep would take {bound} {duration(seconds)} on this hardware. Lower the "
            "budgets or sizes, set grid.target.flops=null, use more hardware, or raise max_hours. Nothing was launched."
        )
    for planned in [*sweep.runs, *target]:
        cost = costs.get(planned.run_id)
        if cost and cost.peak_bytes > hardware.memory_per_run:
            raise Refused(
                f"{planned.group}, N={count_parameters(planned.spec.shape).non_embedding:,}: needs about "
                f"{memory(cost.peak_bytes)}; a run has {memory(hardware.memory_per_run)} here. Lower "
                "optim.micro_batch_tokens, executor.slots or executor.per_device. Nothing was launched."
            )


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
