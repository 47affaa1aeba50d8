from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

import simulate as script
from simulate import Clock, simulate

from sweep.execute import coordinator
from sweep.execute.executor import Ended
from sweep.execute.ledger import Ledger
from sweep.files import SweepFolder

RUNS, SLOTS = 400, 60


@pytest.fixture(scope="module")
def stormy(tmp_path_factory):
    """(folder, figures, outcomes, cluster, times that runs.csv was written) of a sweep under a hard storm."""
    folder, written = SweepFolder(tmp_path_factory.mktemp("simulated")), []
    with pytest.MonkeyPatch.context() as patch:
        write = Ledger.write
        patch.setattr(Ledger, "write", lambda ledger, durable=True: (written.append(1), write(ledger, durable)))
        figures, outcomes, cluster = simulate(folder, RUNS, SLOTS, storm=5.0)
    return folder, figures, outcomes, cluster, len(written)


def test_every_run_comes_to_an_end_whatever_befell_its_workers(stormy):
    _, figures, outcomes, cluster, _ = stormy
    assert min(figures.fates[fate] for fate in ("died", "preempted", "failed", "diverged")) >= 1
    assert len(outcomes) == figures.runs == RUNS and figures.trunks == RUNS / 2
    ends = {outcome.run_id: outcome for outcome in outcomes}
    for run_id, run in cluster.runs.items():
        if run.parent is not None and ends[run.parent.run_id].status != "finished":
            assert ends[run_id].status == ends[run.parent.run_id].status and run_id not in cluster.spans
        else:
            assert len(cluster.spans[run_id]) == ends[run_id].attempts >= 1


def test_no_run_starts_before_its_trunk_is_done_and_no_slot_is_taken_twice(stormy):
    _, figures, _, cluster, _ = stormy
    for run_id, run in cluster.runs.items():
        if run.parent is not None and run_id in cluster.spans:
            assert cluster.spans[run_id][0][0] >= cluster.spans[run.parent.run_id][-1][1]
    changes = sorted((when, by) for spans in cluster.spans.values() for span in spans for when, by in zip(span, (1, -1)))
    taken, most = 0, 0
    for _, by in changes:
        taken += by
        most = max(most, taken)
    assert most == figures.slots == SLOTS


def test_the_makespan_is_near_the_least_that_it_can_be(stormy):
    _, figures, _, _, _ = stormy
    assert figures.bound <= figures.makespan <= 1.1 * figures.bound
    assert figures.bound == max(figures.chain, figures.work / SLOTS)


def test_the_table_is_whole_at_the_end_and_was_not_rewritten_at_every_result(stormy):
    folder, figures, outcomes, _, written = stormy
    with open(folder.runs_csv, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run_id"], row["status"]) for row in rows] == [(o.run_id, o.status) for o in outcomes]
    most = figures.makespan / (RUNS * coordinator.WRITE_SECONDS_PER_ROW) + 2
    assert 2 <= written <= min(most, 1.2 * RUNS)


def test_what_is_finished_is_not_run_again(stormy):
    folder, _, outcomes, _, _ = stormy
    _, again, cluster = simulate(folder, RUNS, SLOTS, storm=0.0)
    before = {outcome.run_id for outcome in outcomes if outcome.status in ("finished", "diverged")}
    assert before and not before & set(cluster.spans)
    assert {o.attempts for o in again if o.run_id in before} == {0}
    assert {o.status for o in again} == {"finished", "diverged"}


def test_a_run_costs_the_coordinator_the_same_in_a_sweep_of_five_times_as_many(tmp_path):
    """Work that grows as the square of the runs would make it five times as much."""
    each = []
    for count in (160, 800):
        figures, _, _ = simulate(SweepFolder(tmp_path / str(count)), count, SLOTS, storm=1.0)
        each.append(sum(cpu for _, cpu in figures.decisions) / figures.runs)
    assert each[1] < 2.5 * each[0]


def test_a_broken_limit_is_named(stormy):
    _, figures, _, _, _ = stormy
    kept = replace(figures, planning=1.0, peak_bytes=10**8, decisions=[(0.001, 0.001)])
    assert kept.broken == []
    slow = replace(kept, planning=6.0, decisions=[(0.02, 0.02)], makespan=2 * figures.bound)
    assert [words.split()[0] for words in slow.broken] == ["planning", "a", "makespan"]


def test_the_clock_jumps_to_the_next_end_and_never_back(tmp_path):
    clock = Clock()
    clock.ends = [5.0, 7.0]
    times = []
    for _ in range(4):
        clock.sleep(0.5)
        times.append(clock())
    assert times == [5.0, 7.0, 7.5, 8.0]


def test_a_job_that_is_killed_ends_at_once_and_writes_nothing():
    clock, wrote = Clock(), []
    job = script.SimulatedJob(clock, 10.0, Ended(0), lambda: wrote.append(1))
    assert job.poll() is None
    job.kill()
    assert job.poll() == Ended(-9) and wrote == []
