"""Memory that runs out: the same batch in smaller parts, the same loss."""

from __future__ import annotations

import json
import multiprocessing
import resource
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sweep.files import RunFolder
from sweep.train import evaluate as evaluation
from sweep.train import train as module
from sweep.train.out_of_memory import MOST_HALVINGS, MicroBatch, is_out_of_memory
from sweep.train.train import Execution, train

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    RuntimeError("CUDA error: out of memory"),
]


@pytest.fixture(scope="module")
def execution(corpus) -> Execution:
    return Execution("cpu", 1, str(corpus), 8, 1, 0, 1e9, False)


def losses(folder):
    return [line["loss"] for line in map(json.loads, folder.metrics.read_text().splitlines()) if "loss" in line]


def limit(monkeypatch, fits, error, good_before=0, module=module):
    """Have every forward pass of more than `fits` sequences raise `error`, but for the first `good_before`; returns
    the sequences of all that were tried. `module` makes them: the training, or the evaluation."""
    real, tried = module.token_losses, []

    def limited(forward, tokens):
        tried.append(len(tokens))
        if len(tokens) > fits and len(tried) > good_before:
            raise error
        return real(forward, tokens)

    monkeypatch.setattr(module, "token_losses", limited)
    return tried


@pytest.fixture(scope="module")
def undisturbed(tiny_spec, execution, tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("undisturbed"))
    return train(tiny_spec(), execution, folder, lambda: False), losses(folder)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("good_before", [0, 7])
def test_halved_micro_batches_give_the_same_losses_and_are_on_record(
    error, good_before, tiny_spec, execution, tmp_path, monkeypatch, undisturbed, capsys
):
    tried = limit(monkeypatch, 2, error, good_before)
    result = train(tiny_spec(), execution, RunFolder(tmp_path), lambda: False)
    assert (result.status, result.step) == ("finished", 24)
    assert (result.micro_batch_sequences, result.oom_halvings) == (2, 2)
    assert tried == [8] * good_before + [8, 4] + [2, 2, 2, 2] * (24 - good_before)
    assert result.loss == pytest.approx(undisturbed[0].loss, abs=1e-5)
    assert losses(RunFolder(tmp_path)) == pytest.approx(undisturbed[1], abs=1e-5)
    assert (undisturbed[0].micro_batch_sequences, undisturbed[0].oom_halvings) == (8, 0)
    assert "out of memory: 2 sequences" in capsys.readouterr().out


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_evaluation_that_is_out_of_memory_goes_on_in_smaller_parts(
    error, tiny_spec, execution, tmp_path, monkeypatch, undisturbed
):
    """Its 32 blocks in parts of 8, of which the third and then another one fail."""
    tried = limit(monkeypatch, 3, error, good_before=2, module=evaluation)
    result = train(tiny_spec(), execution, RunFolder(tmp_path), lambda: False)
    assert tried == [8, 8] + [8, 4] + [2] * 8
    assert (result.micro_batch_sequences, result.oom_halvings) == (2, 2)
    assert result.loss == pytest.approx(undisturbed[0].loss, abs=1e-6)
    assert result.loss_se == pytest.approx(undisturbed[0].loss_se, abs=1e-6)


def test_an_evaluation_that_never_fits_raises(tiny_spec, execution, tmp_path, monkeypatch):
    tried = limit(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory."), module=evaluation)
    with pytest.raises(torch.OutOfMemoryError):
        train(tiny_spec(), execution, RunFolder(tmp_path), lambda: False)
    assert tried == [8, 4, 2, 1]


def test_what_a_failed_attempt_left_in_the_gradient_does_not_count(
    tiny_spec, execution, tmp_path, monkeypatch, undisturbed
):
    """The first of two parts goes through, and its gradient is there when the second one fails."""
    real, seen = module.token_losses, []

    def second_part_fails_once(forward, tokens):
        seen.append(len(tokens))
        if len(seen) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(forward, tokens)

    monkeypatch.setattr(module, "token_losses", second_part_fails_once)
    result = train(tiny_spec(), replace(execution, micro_batch_sequences=4), RunFolder(tmp_path), lambda: False)
    assert seen[:9] == [4, 4, 4, 4, 2, 2, 2, 2, 2]
    assert result.oom_halvings == 1
    assert losses(RunFolder(tmp_path)) == pytest.approx(undisturbed[1], abs=1e-5)


def test_it_is_tried_a_few_times_and_then_raised(tiny_spec, execution, tmp_path, monkeypatch, corpus):
    spec = tiny_spec(batch_sequences=64)
    tried = limit(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(torch.OutOfMemoryError):
        train(spec, replace(execution, micro_batch_sequences=64), RunFolder(tmp_path), lambda: False)
    assert tried == [64 // 2**i for i in range(MOST_HALVINGS + 1)]


def test_one_sequence_is_not_halved_and_an_odd_number_is_rounded_up():
    one, odd = MicroBatch(1), MicroBatch(5)
    assert not one.halve() and one == MicroBatch(1, 0)
    assert odd.halve() and odd == MicroBatch(3, 1)


def test_other_errors_are_raised_at_once(tiny_spec, execution, tmp_path, monkeypatch):
    tried = limit(monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        train(tiny_spec(), execution, RunFolder(tmp_path), lambda: False)
    assert tried == [8]
    assert not is_out_of_memory(ValueError("out of memory")) and all(map(is_out_of_memory, ERRORS))


@contextmanager
def memory_for_another(size: int):
    """This process can get `size` bytes more, and then the allocator fails (setrlimit(2), RLIMIT_DATA)."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(held.split()[1]) + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def trained_in_little_memory(spec, small, root):
    """In enough memory, by small parts, and then in little."""
    expected = train(spec, small, RunFolder(root / "small"), lambda: False)
    with memory_for_another(45 * 2**20):
        large = replace(small, micro_batch_sequences=1536)
        result = train(spec, large, RunFolder(root / "limited"), lambda: False)
    return expected.loss, result.oom_halvings, result.micro_batch_sequences, result.loss


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what it holds from Linux's /proc")
def test_a_host_that_is_really_out_of_memory(tiny_spec, execution, tmp_path):
    """The whole batch does not fit."""
    spec = tiny_spec(batch_sequences=1536, steps=3, schedule={"warmup_steps": 1, "decay_steps": 1})
    small = replace(execution, micro_batch_sequences=128)
    # in a process of its own: what other tests have left free in this one would do
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        expected, halvings, sequences, loss = pool.apply(trained_in_little_memory, (spec, small, tmp_path))
    assert halvings >= 1 and sequences == 1536 // 2**halvings
    assert loss == pytest.approx(expected, abs=1e-5)
