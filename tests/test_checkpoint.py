"""Checkpoints that a disk, a crash or somebody else has changed."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import resource
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from sweep.files import RunFolder, write_json
from sweep.plan.trunks import trunk_of
from sweep.train.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from sweep.train.result import result_for
from sweep.train.train import Execution, Stopped, build_learner, train

STOPS = (9, 5)
BEFORE, CURRENT = 9, 14


@pytest.fixture(scope="module")
def execution(corpus) -> Execution:
    return Execution("cpu", 1, str(corpus), 8, 1, 0, 1e9, False)


@pytest.fixture(scope="module")
def expected(tiny_spec, execution, tmp_path_factory) -> float:
    """The loss of the undisturbed run."""
    return train(tiny_spec(), execution, RunFolder(tmp_path_factory.mktemp("whole")), never).loss


@pytest.fixture
def stopped(tiny_spec, execution, tmp_path) -> RunFolder:
    """A run that was stopped twice, and has two checkpoints."""
    folder = RunFolder(tmp_path / "stopped")
    for steps in STOPS:
        with pytest.raises(Stopped):
            train(tiny_spec(), execution, folder, stop_at_call(steps))
    return folder


def never() -> bool:
    return False


def stop_at_call(number: int):
    calls = iter(range(1, 10**6))
    return lambda: next(calls) >= number


def step_of(folder, spec, execution) -> int | None:
    learner = build_learner(spec, execution)
    state = load_checkpoint(folder, spec.run_id, learner.model, learner.optimizer)
    return None if state is None else state.step


def flip_a_bit(path, place):
    content = bytearray(path.read_bytes())
    content[place(len(content))] ^= 1 << 3
    path.write_bytes(content)


def truncate(path, kept):
    path.write_bytes(path.read_bytes()[: kept(path.stat().st_size)])


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off in the header": lambda path: truncate(path, lambda size: 20),
    "half": lambda path: truncate(path, lambda size: size // 2),
    "a byte short": lambda path: truncate(path, lambda size: size - 1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "a bit of the checksum": lambda path: flip_a_bit(path, lambda size: 5),
    "the last bit": lambda path: flip_a_bit(path, lambda size: size - 1),
    **{f"bit {i}": lambda path, i=i: flip_a_bit(path, random.Random(i).randrange) for i in range(4)},
    "zeros after a power cut": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_in_place_of_a_damaged_checkpoint_the_one_before_is_used(damage, tiny_spec, execution, stopped, capsys):
    assert step_of(stopped, tiny_spec(), execution) == CURRENT
    damage(stopped.checkpoint / "state.pt")
    assert step_of(stopped, tiny_spec(), execution) == BEFORE
    damaged = (stopped.checkpoint / "state.pt").exists()
    assert ("state.pt is damaged (its SHA-256" in capsys.readouterr().out) == damaged


def test_a_run_goes_on_from_the_checkpoint_before_to_the_same_end(tiny_spec, execution, stopped, expected):
    DAMAGE["bit 1"](stopped.checkpoint / "state.pt")
    assert train(tiny_spec(), execution, stopped, never).loss == expected


def test_with_both_damaged_it_begins_again_to_the_same_end(tiny_spec, execution, stopped, expected):
    DAMAGE["half"](stopped.checkpoint / "state.pt")
    DAMAGE["bit 0"](stopped.checkpoint / "previous.pt")
    result = train(tiny_spec(), execution, stopped, never)
    assert (result.loss, result.resumes) == (expected, 0)


@pytest.mark.parametrize("damage", ["bit 2", "half", "gone"])
def test_a_branch_of_a_damaged_trunk_makes_all_updates_itself_and_says_so(
    damage, tiny_spec, execution, tmp_path, expected, capsys
):
    trunk = trunk_of(tiny_spec())
    folder = RunFolder(tmp_path / trunk.run_id)
    train(trunk, execution, folder, never)
    DAMAGE[damage](folder.checkpoint / "state.pt")
    branch = RunFolder(tmp_path / tiny_spec().run_id)
    assert train(tiny_spec(), replace(execution, parent=trunk.run_id), branch, never).loss == expected
    assert f"trunk {trunk.run_id} has left no checkpoint" in capsys.readouterr().out
    assert branch.metrics.read_text().startswith('{"step": 1,')


class Planted:
    """What a pickle that runs code looks like."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def plant(path, payload: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_checkpoint_with_code_in_it_is_refused_and_runs_nothing(as_zip, tiny_spec, execution, tmp_path):
    """Its checksum is right: whoever can write the file can write that too."""
    folder, written = RunFolder(tmp_path / "run"), tmp_path / "written"
    buffer = io.BytesIO()
    content = {"run_id": tiny_spec().run_id, "step": 3, "model": Planted(f"touch {written}")}
    torch.save(content, buffer, _use_new_zipfile_serialization=as_zip)
    plant(folder.checkpoint / "state.pt", buffer.getvalue())
    with pytest.raises(ValueError, match="state.pt holds more than tensors and plain values.*nothing of it was run"):
        train(tiny_spec(), execution, folder, never)
    assert not written.exists()
    buffer.seek(0)
    torch.load(buffer, weights_only=False)
    assert written.exists(), "the planted code works where it is let"


@contextmanager
def files_of_at_most(size: int):
    """Any file that this process makes longer fails, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_disk_that_fills_up_during_a_checkpoint_leaves_both_and_nothing_half(
    tiny_spec, execution, stopped, expected
):
    before = {path.name: path.read_bytes() for path in stopped.checkpoint.iterdir()}
    limit = stopped.metrics.stat().st_size + 4096
    assert limit < len(before["state.pt"])
    with files_of_at_most(limit), pytest.raises(OSError) as caught:
        train(tiny_spec(), execution, stopped, stop_at_call(2))
    assert caught.value.errno == errno.EFBIG
    assert {path.name: path.read_bytes() for path in stopped.checkpoint.iterdir()} == before
    assert train(tiny_spec(), execution, stopped, never).loss == expected


def test_a_disk_that_fills_up_during_metrics_or_the_result_loses_no_update(tiny_spec, execution, stopped, expected):
    with files_of_at_most(stopped.metrics.stat().st_size + 50), pytest.raises(OSError):
        train(tiny_spec(), execution, stopped, never)
    with files_of_at_most(100), pytest.raises(OSError):
        result_for(tiny_spec(), "failed", 0, reason="full").write(stopped)
    with files_of_at_most(100), pytest.raises(OSError):
        write_json(stopped.spec, {"run_id": "x" * 200})
    assert not stopped.result.exists() and not stopped.spec.exists()
    assert not [name for name in names(stopped.path) if name.endswith(".tmp")]
    result = train(tiny_spec(), execution, stopped, never)
    assert (result.loss, result.resumes) == (expected, 2), "the attempt that failed saved nothing"
    steps = [line.split(",")[0] for line in stopped.metrics.read_text().splitlines()]
    assert steps == [f'{{"step": {step}' for step in (*range(1, 25), 24)]


def test_a_failed_write_is_not_taken_for_a_checkpoint(tiny_spec, execution, tmp_path, monkeypatch):
    folder, learner = RunFolder(tmp_path), build_learner(tiny_spec(), execution)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sweep.train.checkpoint.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(folder, tiny_spec().run_id, TrainingState(1, 0.0, 0), learner.model, learner.optimizer)
    assert names(folder.checkpoint) == []
