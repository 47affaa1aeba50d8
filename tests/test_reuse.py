"""Runs that another sweep has finished are taken over whole, and only where they are what would be trained."""

from __future__ import annotations

import json

import pytest
from execution_helpers import planned_run, put, result_of

from sweep.execute.ledger import load_result
from sweep.execute.reuse import RECORD, reusable, take_over
from sweep.experiment import run
from sweep.files import SweepFolder, write_json

SMALL = (
    "scale=cpu", "+grid=product", "logger=none", "data=synthetic", "data.vocab_size=64", "data.eval_tokens=1024",
    "model.seq_len=32", "grid.params=4e3", "grid.tokens=4e3", "executor.evaluations=0", "data.heldout_fraction=0.3",
    "optim.batch_tokens=128", "optim.batch_exponent=0", "schedule=trunk", "device=cpu",
    "schedule.warmup_tokens=null", "schedule.warmup_fraction=0.03",
)  # fmt: skip


def execution(planned):
    return {"device": "cpu", "log_every": 1, "evaluations": 0, "parent": None}


@pytest.fixture
def folders(tmp_path):
    """Two sweeps side by side, and a finished run with a checkpoint in the first."""
    first, second = SweepFolder(tmp_path / "first"), SweepFolder(tmp_path / "second")
    done = planned_run(0)
    there = put(first, done, result_of(done))
    write_json(there.spec, {**json.loads(there.spec.read_text()), "execution": execution(done)})
    there.checkpoint.mkdir()
    there.weights.write_bytes(b"weights")
    there.lock.write_text("held once")
    return first, second, done, there


def test_a_finished_run_is_taken_over_whole_and_says_from_where(folders):
    _, second, done, there = folders
    found = reusable(second, [done, planned_run(1)], execution)
    assert list(found) == [done.run_id]
    (said,) = take_over(second, found)
    assert "1 runs were taken over from sweep first" in said
    here = second.run(done.run_id)
    assert load_result(here) == load_result(there) and here.weights.read_bytes() == b"weights"
    assert not here.lock.exists()
    assert json.loads((here.path / RECORD).read_text()) == {"sweep": "first", "run": str(there.path)}
    assert reusable(second, [done], execution) == {}  # it has begun here


@pytest.mark.parametrize("status, taken", [("finished", 1), ("diverged", 1), ("failed", 0)])
def test_what_may_come_out_otherwise_is_not_taken(folders, status, taken):
    _, second, done, there = folders
    write_json(there.result, result_of(done, status=status))
    assert len(reusable(second, [done], execution)) == taken


def test_a_damaged_or_another_run_is_not_taken(folders):
    _, second, done, there = folders
    write_json(there.result, result_of(done, tokens=1))
    assert reusable(second, [done], execution) == {}
    there.result.write_text("{")
    assert reusable(second, [done], execution) == {}


def test_a_run_that_recorded_less_than_is_asked_for_is_not_taken(folders):
    _, second, done, _ = folders
    assert reusable(second, [done], lambda run: {**execution(run), "device": "cuda", "parent": "x"})
    assert reusable(second, [done], lambda run: {**execution(run), "evaluations": 5}) == {}


@pytest.mark.parametrize("before, wanted, taken", [(1, 0, 1), (5, 2, 1), (3, 2, 0), (1, 3, 0)])
def test_a_run_that_was_evaluated_at_more_places_will_do(folders, before, wanted, taken):
    """Six parts hold the ends of three; four hold not."""
    _, second, done, there = folders
    spec = json.loads(there.spec.read_text())
    write_json(there.spec, {**spec, "execution": {**execution(done), "evaluations": before}})
    assert len(reusable(second, [done], lambda run: {**execution(run), "evaluations": wanted})) == taken


def test_a_second_grid_trains_nothing_twice(compose, tmp_path, capsys):
    cache = f"data.cache={tmp_path / 'cache'}"
    grids = {
        "one": ("+grid.over.seed=[1,2]",),
        "two": ("+grid.over.seed=[2,3]", "grid.name=other"),
        "three": ("+grid.over.seed=[2]", "reuse=false"),
    }
    for name, more in grids.items():
        run(compose(*SMALL, cache, f"out={tmp_path / 'sweeps' / name}", *more))
    said = capsys.readouterr().out
    # trunk and branch of each seed: 4 runs, then those of seed 3, then those of seed 2 again
    trained = [line.split("; ")[1] for line in said.splitlines() if "trained by this command" in line]
    assert trained == ["4 trained by this command", "2 trained by this command", "2 trained by this command"]
    assert "2 of those done are taken over from sweeps beside this one" in said
    results = [
        {load_result(folder)["loss"] for folder in map(SweepFolder(tmp_path / "sweeps" / name).run, ids)}
        for name, ids in (
            (name, [path.name for path in (tmp_path / "sweeps" / name / "runs").iterdir()]) for name in grids
        )
    ]
    assert results[2] <= results[1] and len(results[0] & results[1]) == 2  # of the branch; None of the trunk
