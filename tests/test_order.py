from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from sweep.plan.order import Queue, makespan, parent_id, ranks
from sweep.plan.spec import PlannedRun
from sweep.plan.trunks import own_flops, share
from tests.execution_helpers import planned_run


def lone(count):
    return [planned_run(seed) for seed in range(count)]


def forest(seeds=3, lengths=(40, 60, 100, 160)):
    """Runs of several lengths on a trunk for each seed."""
    shared = share([planned_run(seed, steps=steps) for seed in range(seeds) for steps in lengths])
    return [*shared.trunks, *shared.runs]


def test_makespan_of_lone_runs_is_between_the_optimum_s_bounds():
    seconds = [7.0, 5.0, 4.0, 3.0, 3.0, 2.0]
    runs = lone(len(seconds))

    def spent(values, slots):
        return makespan(runs, {run.run_id: value for run, value in zip(runs, values)}, slots)

    assert spent(seconds, 1) == sum(seconds)
    assert spent(seconds, 6) == spent(seconds, 60) == 7.0
    for slots in (2, 3, 4):
        best = min(
            max(sum(s for s, place in zip(seconds, places) if place == slot) for slot in range(slots))
            for places in itertools.product(range(slots), repeat=len(seconds))
        )
        assert best <= spent(seconds, slots) <= (4 / 3 - 1 / (3 * slots)) * best  # Graham 1969, theorem 2
        assert spent(seconds[::-1], slots) == spent(seconds, slots)
    assert makespan([], {}, 2) == 0.0


def test_makespan_keeps_the_order_of_trunk_and_branch():
    runs = forest()
    seconds = {run.run_id: own_flops([run]) for run in runs}
    chain = max(ranks(runs, lambda run: seconds[run.run_id]).values())
    assert makespan(runs, seconds, 1) == pytest.approx(sum(seconds.values()))
    assert makespan(runs, seconds, 1000) == pytest.approx(chain)
    for slots in (2, 3, 5):
        bound = max(chain, sum(seconds.values()) / slots)
        assert bound <= makespan(runs, seconds, slots) * (1 + 1e-12)
        assert makespan(runs, seconds, slots) <= sum(seconds.values()) / slots + chain  # Graham 1969
    done = {run_id: value for run_id, value in seconds.items() if run_id != runs[0].run_id}
    assert makespan(runs, done, 1) == pytest.approx(sum(done.values()))  # what is done waits for nothing


def test_a_rank_is_the_dearest_chain_that_waits():
    runs = forest()
    rank = ranks(runs, lambda run: own_flops([run]))
    for run in runs:
        below = [rank[child.run_id] for child in runs if parent_id(child) == run.run_id]
        assert rank[run.run_id] == pytest.approx(own_flops([run]) + max(below, default=0.0))


def test_no_run_leaves_the_queue_before_its_parent_is_settled_and_all_leave_it_once():
    runs = forest()
    order = np.random.default_rng(0)
    queue = Queue(runs, ranks(runs, lambda run: own_flops([run])), [run.run_id for run in runs])
    active, settled = [], set()
    while queue or active:
        while queue and len(active) < 3:
            run = queue.pop()
            assert parent_id(run) is None or parent_id(run) in settled
            active.append(run.run_id)
        run_id = active.pop(order.integers(len(active)))
        settled.add(run_id)
        queue.settle(run_id)
    assert settled == {run.run_id for run in runs}


def test_the_dearest_goes_first_and_what_was_put_back_before_it():
    short, long = planned_run(0, steps=20), planned_run(1, steps=30)
    queue = Queue([short, long], ranks([short, long], lambda run: run.spec.flops), [short.run_id, long.run_id])
    assert queue.pop() == long and queue.pop() == short
    queue.put_back(short)
    queue.put_back(long)
    assert queue.pop() == short and len(queue) == 1


def test_a_parent_that_is_not_to_be_trained_holds_nobody_up():
    trunk = planned_run(0)
    branch = PlannedRun(replace(trunk.spec, steps=40), "g", parent=trunk.spec)
    queue = Queue([trunk, branch], ranks([trunk, branch], lambda run: 1.0), [branch.run_id])
    assert queue.pop() == branch
