"""Several processes that share a run: one process' losses, files and faults."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from execution_helpers import alive, wait_for
from safetensors.torch import load_file

from models import decoder
from sweep import worker
from sweep.execute.coordinator import execute
from sweep.execute.executor import Ended
from sweep.files import RunFolder, SweepFolder, read_json, write_json
from sweep.plan.spec import PlannedRun
from sweep.train import distributed, measure
from sweep.train import train as module
from sweep.train.checkpoint import HEADER_BYTES
from sweep.train.ranks import RankLost, train_on_ranks
from sweep.train.shared_memory import SharedMemory
from sweep.train.train import Execution, Learner, Stopped, train

LINUX = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks in Linux's /proc")


class Left:
    """A request to stop that nobody makes."""

    def __init__(self) -> None:
        self.orphaned = lambda: False

    def __call__(self) -> bool:
        return self.orphaned()


class StoppedAt(Left):
    """One that the last of `ranks` ranks alone is told, after some updates."""

    def __init__(self, updates: int, ranks: int) -> None:
        super().__init__()
        self.updates, self.ranks = updates, ranks

    def __call__(self) -> bool:
        if self.ranks > 1 and (distributed.ranks() == 1 or torch.distributed.get_rank() < self.ranks - 1):
            return False
        self.updates -= 1
        return self.updates <= 0


@pytest.fixture(scope="module")
def spec(tiny_spec):
    """7 sequences, which neither two ranks nor micro-batches of two divide."""
    return tiny_spec(steps=20, batch_sequences=7)


@pytest.fixture(scope="module")
def execution(corpus) -> Execution:
    return Execution("cpu", 1, str(corpus), 2, 1, 2, 1e9, False)


@pytest.fixture(scope="module")
def alone(spec, execution, tmp_path_factory):
    """(result, folder) of the run by one process."""
    folder = RunFolder(tmp_path_factory.mktemp("alone"))
    return train(spec, replace(execution, micro_batch_sequences=8), folder, Left()), folder


def lines(folder: RunFolder) -> list[dict]:
    return [{**json.loads(line), "seconds": 0} for line in folder.metrics.read_text().splitlines()]


def assert_same(folder: RunFolder, result, expected) -> None:
    """Every logged value, the weights and the result, to 1e-5."""
    reference, like = expected
    for name in ("loss", "loss_se", "bits_per_byte", "epochs", "flops"):
        assert getattr(result, name) == pytest.approx(getattr(reference, name), abs=1e-5, rel=1e-12), name
    found, wanted = lines(folder), lines(like)
    assert [line.keys() for line in found] == [line.keys() for line in wanted]
    for one, other in zip(found, wanted):
        assert one == pytest.approx(other, abs=1e-5)
    weights = load_file(folder.weights)
    torch.testing.assert_close(weights, load_file(like.weights), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shard", [False, True], ids=["replicated", "sharded"])
def test_two_ranks_make_the_updates_of_one_process(spec, execution, alone, tmp_path, monkeypatch, shard):
    """With logits made in parts, as for a large vocabulary."""
    monkeypatch.setattr(decoder, "LOGITS_BYTES", 10 * 4 * spec.shape.vocab_size)
    result = train_on_ranks(spec, replace(execution, ranks=2, shard=shard), RunFolder(tmp_path), Left())
    assert_same(RunFolder(tmp_path), result, alone)
    assert (result.status, result.device, result.micro_batch_sequences) == ("finished", "2 x cpu", 2)


def test_a_run_goes_on_with_another_number_of_ranks(spec, execution, alone, tmp_path):
    """Three ranks, then one process, then two that share weights and moments, then one; each is stopped, of the
    ranks by one that alone was told to; what each leaves is what one process would have left."""
    folder, saved = RunFolder(tmp_path), []
    for ranks, shard in ((3, False), (1, None), (2, True)):
        at = replace(execution, ranks=ranks, shard=shard)
        with pytest.raises(Stopped):
            (train_on_ranks if ranks > 1 else train)(spec, at, folder, StoppedAt(5, ranks))
        with open(folder.checkpoint / "state.pt", "rb") as file:
            file.seek(HEADER_BYTES)
            saved.append(torch.load(file, weights_only=True))
    assert [content["step"] for content in saved] == [5, 10, 15]
    shapes = [
        (
            {name: tensor.shape for name, tensor in content["model"].items()},
            {i: {name: x.shape for name, x in of.items()} for i, of in content["optimizer"]["state"].items()},
            content["optimizer"]["param_groups"][0].keys(),
        )
        for content in saved
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    result = train(spec, execution, folder, Left())
    assert result.resumes == 3
    assert_same(folder, result, alone)


def test_a_rank_that_runs_out_of_memory_has_all_halve_their_micro_batches(
    spec, execution, alone, tmp_path, monkeypatch, capfd
):
    real = module.token_losses

    def limited(forward, tokens):
        if len(tokens) > 1 and torch.distributed.get_rank() == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(forward, tokens)

    monkeypatch.setattr(module, "token_losses", limited)
    at = replace(execution, ranks=2, micro_batch_sequences=4)
    result = train_on_ranks(spec, at, RunFolder(tmp_path), Left())
    assert (result.micro_batch_sequences, result.oom_halvings) == (1, 2)
    assert_same(RunFolder(tmp_path), result, alone)
    assert "out of memory: 1 sequences" in capfd.readouterr().out


def test_divergence_is_every_rank_s(spec, execution, tmp_path):
    wild = replace(spec, optim=replace(spec.optim, param="sp", lr=1e25))
    expected = train(wild, execution, RunFolder(tmp_path / "one"), Left())
    result = train_on_ranks(wild, replace(execution, ranks=2), RunFolder(tmp_path / "two"), Left())
    assert (result.status, result.reason, result.step) == ("diverged", expected.reason, expected.step)


def test_what_goes_wrong_on_one_rank_is_raised_as_it_is(spec, execution, tmp_path, monkeypatch):
    real = module.token_losses

    def failing(forward, tokens):
        if torch.distributed.get_rank() == 1:
            raise ZeroDivisionError("of this rank alone")
        return real(forward, tokens)

    monkeypatch.setattr(module, "token_losses", failing)
    with pytest.raises(ZeroDivisionError, match="of this rank alone") as caught:
        train_on_ranks(spec, replace(execution, ranks=2), RunFolder(tmp_path), Left())
    assert "on rank 1:" in caught.value.__notes__[0] and "in failing" in caught.value.__notes__[0]


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="there are two GPUs here")
def test_more_ranks_than_gpus_are_refused(spec, execution, tmp_path):
    with pytest.raises(ValueError, match=r"a run of 2 GPUs sees \d here; lower executor.gpus_per_run"):
        train_on_ranks(spec, replace(execution, ranks=2, device="cuda"), RunFolder(tmp_path), Left())


def test_what_is_measured_for_several_ranks_is_one_s_part_and_a_bound(spec, execution, monkeypatch):
    seen = []
    real = Learner.update
    monkeypatch.setattr(Learner, "update", lambda self, step, tokens: seen.append(len(tokens)) or real(self, step, tokens))
    monkeypatch.setattr(measure, "MOST_STEPS", 2)
    timing = measure.measure(spec, replace(execution, ranks=2))
    assert set(seen) == {4} and timing.batch_tokens == spec.batch_tokens and timing.is_bound
    one, two = measure.bound(spec, 1e9, 1, 1), measure.bound(spec, 1e9, 2, 2)
    assert one.seconds_per_step == 2 * two.seconds_per_step and one.peak_bytes == 2 * two.peak_bytes


@pytest.fixture
def request_run(spec, execution, tmp_path):
    """request_run(steps): the folder of a run that a worker is asked to make on two ranks."""

    def requested(steps: int) -> RunFolder:
        long, folder = replace(spec, steps=steps), RunFolder(tmp_path / "run")
        at = asdict(replace(execution, ranks=2, checkpoint_seconds=0.05, evaluations=0))
        write_json(folder.spec, {"run_id": long.run_id, "spec": long.to_json(), "execution": at})
        return folder

    return requested


def start(folder: RunFolder) -> int:
    """A worker, forked from here, where torch is imported."""
    process = os.fork()
    if process == 0:
        try:
            sys.stdout = sys.stderr = open(folder.log, "a", buffering=1)  # not pytest's
            os._exit(worker.main([str(folder.path)]))
        finally:
            os._exit(70)
    return process


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def ranks_of(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def logged(folder: RunFolder) -> int:
    return len(folder.metrics.read_text().splitlines()) if folder.metrics.exists() else 0


@LINUX
def test_told_to_stop_the_ranks_checkpoint_and_a_killed_one_ends_the_worker_as_it_would_end_itself(
    request_run,
):
    requested = request_run(2000)  # seconds, to be interrupted in
    process = start(requested)
    wait_for(lambda: logged(requested) > 5, 60)
    os.kill(process, signal.SIGTERM)
    assert ended(process) == worker.EX_TEMPFAIL and not requested.result.exists()
    assert (requested.checkpoint / "state.pt").exists()

    process, before = start(requested), logged(requested)
    wait_for(lambda: logged(requested) > before, 60)
    both = ranks_of(process)
    os.kill(both[0], signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    assert not any(map(alive, both)) and not requested.result.exists()
    assert "rank 0 was lost" in requested.log.read_text()


class Here:
    """An executor of one worker at a time, forked from here; kills rank 1 of the first one."""

    capacity = 1

    def __init__(self) -> None:
        self.started, self.status = [], None

    def adopt(self, folder: RunFolder) -> None:
        return None

    def submit(self, folder: RunFolder) -> Here:
        self.folder, self.status = folder, None
        self.started.append(start(folder))
        return self

    def poll(self) -> Ended | None:
        done, status = (0, 0) if self.status else os.waitpid(self.started[-1], os.WNOHANG)
        if done:
            self.status = Ended(os.waitstatus_to_exitcode(status))
        elif len(self.started) == 1 and (self.folder.checkpoint / "state.pt").exists():
            with suppress(IndexError, ProcessLookupError):  # it is dead already
                os.kill(ranks_of(self.started[0])[1], signal.SIGKILL)
        return self.status


@LINUX
def test_a_run_of_which_a_rank_was_killed_is_started_again_and_goes_on(spec, execution, alone, tmp_path):
    place = Here()
    at = {**asdict(execution), "ranks": 2, "checkpoint_seconds": 0.0}
    (outcome,) = execute(SweepFolder(tmp_path), [PlannedRun(spec, "here")], place, lambda run: at, poll_seconds=0.01)
    assert (outcome.status, outcome.attempts, len(place.started)) == ("finished", 2, 2)
    assert outcome.result["resumes"] == 1 and outcome.result["loss"] == pytest.approx(alone[0].loss, abs=1e-5)


@LINUX
def test_when_the_worker_is_killed_its_ranks_checkpoint_and_end_and_hold_its_lock_until_then(request_run):
    requested = request_run(60)
    process = start(requested)
    wait_for(lambda: logged(requested) > 5, 60)
    both = ranks_of(process)
    os.kill(process, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    again = start(requested)  # waits for the lock
    wait_for(lambda: not any(map(alive, both)), 60)
    assert (requested.checkpoint / "state.pt").exists()
    assert ended(again) == 0
    result = read_json(requested.result)
    assert (result["status"], result["resumes"], result["device"]) == ("finished", 1, "2 x cpu")
    assert [line["step"] for line in lines(requested) if "loss" in line] == list(range(1, 61))
    assert [path.name for path in requested.checkpoint.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("batch, count, most", [(7, 2, 2), (7, 2, 1), (8, 4, 2), (5, 4, 1), (64, 3, 64), (3, 2, 8)])
def test_the_ranks_micro_batches_are_the_batch_once_over(monkeypatch, batch, count, most):
    tokens = torch.arange(batch)[:, None]
    monkeypatch.setattr(distributed, "ranks", lambda: count)
    seen, passes = torch.zeros(batch), set()
    for rank in range(count):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        parts = list(distributed.micro_batches(tokens, most))
        passes.add(len(parts))
        assert [last for _, _, last in parts] == [False] * (len(parts) - 1) + [True]
        for rows, weight, _ in parts:
            assert 1 <= len(rows) <= most
            seen[rows[:, 0]] += weight / count / len(rows)
    torch.testing.assert_close(seen, torch.full((batch,), 1 / batch))
    assert len(passes) == 1  # a sharded model's passes are collectives


def test_the_ranks_blocks_are_all_blocks_in_order(monkeypatch):
    blocks = np.arange(7)
    monkeypatch.setattr(distributed, "ranks", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        shares.append(distributed.own_blocks(blocks))
    assert {len(share) for share in shares} == {3}
    assert np.array_equal(np.concatenate(shares)[:7], blocks)


def test_a_lost_rank_says_which_and_how():
    assert "rank 3 was lost (exit status -9)" in str(RankLost(3, -9)) and RankLost(3, -9).status == -9


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_average_and_agree_through_shared_memory(ranks, monkeypatch):
    """In parts and whole, many times over, each rank at a pace of its own, between meeting and reading too."""
    parameters, updates = 11, 60
    shared = SharedMemory(ranks, parameters)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(updates, ranks, parameters, generator=generator)
    flags = torch.rand(updates, ranks, 2, generator=generator) < 0.2
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
                draw, meet = random.Random(rank), shared._meet
                shared._meet = lambda: (meet(), time.sleep(draw.choice((0, 0, 0.004))))
                for update in range(updates):
                    gradients = drawn[update, rank].clone()
                    for part in gradients.split(4 if update % 7 == 0 else parameters):
                        shared.average(part)
                    torch.testing.assert_close(gradients, drawn[update].mean(0))
                for update in range(updates):
                    said = tuple(flags[update, rank].tolist())
                    assert shared.agreed(*said) == tuple(flags[update].any(0).tolist())
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    statuses = {}
    while len(statuses) < ranks:
        for child in set(children) - statuses.keys():
            if any(statuses.values()):  # for one that has failed, the others would wait
                os.kill(child, signal.SIGKILL)
            ended, status = os.waitpid(child, 0 if any(statuses.values()) else os.WNOHANG)
            if ended:
                statuses[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    assert list(statuses.values()) == [0] * ranks
