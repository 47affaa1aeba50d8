"""What scripts/chaos.py judges by and plants, without a storm."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))

import chaos

from sweep.execute.lock import CoordinatorLock
from sweep.files import SweepFolder, write_json

TRUNK, NEXT, *_ = [run for run in chaos.runs() if run.role == "trunk"]
LEAF = next(run for run in chaos.runs() if run.role != "trunk")
ROW = {"run_id": LEAF.run_id, "status": "finished", "tokens": "1024", "loss": "2.5", "loss_se": "0.1", "bits_per_byte": "3.0"}


@pytest.fixture
def sweep(tmp_path):
    return chaos.Sweep(SweepFolder(tmp_path / "storm"), tmp_path / "corpus", dict(chaos.CALM), random.Random(0))


@pytest.mark.parametrize(
    "changes, rounded, is_survived",
    [
        ({}, False, True),
        ({"loss": "2.5000001"}, False, False),
        ({"loss": "2.5000001", "bits_per_byte": "3.0000001"}, True, True),
        ({"loss": "2.51"}, True, False),
        ({"loss": "2.5000001", "tokens": "1025"}, True, False),
        ({"status": "diverged", "loss": ""}, True, False),
        ({"status": "failed", "loss": ""}, False, False),
    ],
)
def test_a_row_is_survived_only_as_near_as_its_faults_allow(sweep, changes, rounded, is_survived):
    sweep.rounded |= {LEAF.run_id} if rounded else set()
    assert chaos.survived(sweep, {**ROW, **changes}, ROW) == is_survived
    assert not chaos.survived(sweep, None, ROW)


@pytest.mark.parametrize("reason, is_survived", [("training loss nan at step 3 of 120", True), ("its worker died", False)])
def test_a_nan_excuses_a_divergence_that_names_it(sweep, reason, is_survived):
    sweep.poisoned.add(LEAF.run_id)
    write_json(sweep.folder.run(LEAF.run_id).result, {"reason": reason})
    assert chaos.survived(sweep, {**ROW, "status": "diverged", "loss": ""}, ROW) == is_survived
    assert not chaos.survived(sweep, {**ROW, "status": "failed", "loss": ""}, ROW)


def test_what_strikes_a_trunk_reaches_all_that_goes_on_from_it():
    assert chaos.is_leaf(LEAF.run_id) and not chaos.is_leaf(TRUNK.run_id)
    reached = chaos.with_branches({TRUNK.run_id})
    assert LEAF.run_id in reached or NEXT.run_id in reached
    assert {run.run_id for run in chaos.runs() if run.parent and run.parent.run_id == TRUNK.run_id} < reached


def test_each_fault_comes_before_any_comes_again_and_none_strikes_nobody(sweep, monkeypatch):
    deck = chaos.Deck(random.Random(0))
    assert not deck.strike(sweep)  # there is no coordinator, no worker and no file
    assert sweep.struck == [] and set(deck.names) == set(chaos.FAULTS)
    monkeypatch.setattr(chaos, "FAULTS", {name: lambda sweep: None for name in chaos.FAULTS})
    for _ in range(len(deck.names)):
        assert deck.strike(sweep)
    struck = [name for name, _ in sweep.struck]
    assert all(struck.count(name) == (1 if name in chaos.SELDOM else 3) for name in chaos.FAULTS)


PLANTED = """
import os, sys, torch
import planted_faults
from sweep.train import evaluate, train
forward, tokens = lambda inputs, labels: torch.zeros(labels.shape), torch.zeros(2, 3, dtype=torch.long)
def attempt(action):
    try:
        return str(action())
    except Exception as error:
        return type(error).__name__
for module in (train, evaluate):
    print(attempt(lambda: module.token_losses(forward, tokens).mean().isnan().item()), file=sys.stderr)
print(attempt(lambda: os.replace(sys.argv[1], sys.argv[1])), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "fault, said",
    [
        ("out of memory", ["OutOfMemoryError", "False", "None"]),
        ("NaN", ["True", "False", "None"]),
        ("read-only folder", ["False", "False", "OSError"]),
    ],
)
def test_a_planted_fault_meets_the_worker_of_its_run_once(fault, said, tmp_path):
    (tmp_path / "planted").write_text(fault)
    with open(tmp_path / "worker.log", "w") as log:
        done = subprocess.run(
            [sys.executable, "-c", PLANTED, str(tmp_path / "worker.log")], stdout=log, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    assert done.stderr.split() == said and not (tmp_path / "planted").exists()


def test_a_second_coordinator_and_one_with_other_code_are_told_apart(sweep, monkeypatch):
    """Both before anything is trained."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(chaos.hardware, "KERNEL_COUNTS", sweep.corpus)
    monkeypatch.setattr(chaos.forking, "PRELOADED", list(chaos.forking.PRELOADED))
    with CoordinatorLock(sweep.folder.lock):
        assert chaos.coordinate(sweep.folder, sweep.corpus, sweep.options) == chaos.HELD
    write_json(sweep.folder.run(LEAF.run_id).spec, {})
    write_json(sweep.folder.plan, {"versions": {**chaos.provenance.versions(), "training_code": "other"}})
    assert chaos.coordinate(sweep.folder, sweep.corpus, sweep.options) == chaos.CHANGED
