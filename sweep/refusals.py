"""What stops a sweep before anything is launched: a folder that is another sweep's, other tokens, too little memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import metadata

from models.count import count_parameters
from sweep import provenance
from sweep.data.tokens import CorpusFacts
from sweep.files import SweepFolder
from sweep.hardware import Hardware, has_muon
from sweep.places import shared_by
from sweep.plan.cost import least_bytes
from sweep.plan.schema import ExecutorConfig, SweepConfig
from sweep.plan.spec import PlannedRun
from sweep.units import memory


class Refused(Exception):
    """The sweep cannot be done as asked; nothing was launched. The message says what to do."""


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
