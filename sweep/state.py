"""One sweep as it grows: what is planned, what came of it, and how the rest is brought to a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sweep import provenance
from sweep.execute.coordinator import Outcome, execute
from sweep.execute.executor import Executor
from sweep.execute.ledger import Ledger
from sweep.execute.mirror import Mirror
from sweep.execute.progress import progress_for
from sweep.execute.reuse import reusable, take_over
from sweep.files import RunFolder, SweepFolder
from sweep.hardware import Hardware
from sweep.places import THREADS, executor_for, ranks_of
from sweep.plan.grids import Cell
from sweep.plan.order import parent_id
from sweep.plan.plan import Corpus, micro_batch_sequences, plan
from sweep.plan.schema import SweepConfig
from sweep.plan.spec import PlannedRun
from sweep.plan.trunks import Shared, share
from sweep.refusals import Refused


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
        """Trunks first: a parent comes before what goes on from it."""
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
        for run_id, result in ledger.settled().items():
            self.outcomes.setdefault(run_id, Outcome(run_id, result["status"], result.get("reason"), 0, result))

    def reusable(self, runs: Sequence[PlannedRun]) -> dict[str, RunFolder]:
        """By run id, where a sweep beside this one has finished it; none with reuse=false."""
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
