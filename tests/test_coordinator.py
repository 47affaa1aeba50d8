from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from execution_helpers import acting, alive, local, planned_run, starts, wait_for

from sweep.execute.coordinator import execute
from sweep.execute.executor import SubmitError
from sweep.execute.interrupts import Interrupted
from sweep.execute.lock import is_held
from sweep.execute.metrics import last_step
from sweep.execute.progress import Progress
from sweep.files import SweepFolder, read_json
from sweep.plan.trunks import share


class Recorder(Progress):
    def __init__(self):
        self.notes, self.order, self.open = [], [], 0

    def begin(self, *args):
        super().begin(*args)
        self.open += 1

    def started(self, planned):
        super().started(planned)
        self.order.append(planned.run_id)

    def note(self, text):
        self.notes.append(text)

    def end(self):
        self.open -= 1


@pytest.fixture
def folder(tmp_path):
    return SweepFolder(tmp_path / "sweep")


def run(folder, runs, *acts, seconds=0.0, slots=2, **options):
    return execute(folder, runs, local(slots), acting(*acts, seconds=seconds), poll_seconds=0.01, **options)


def statuses(folder):
    with open(folder.runs_csv, newline="") as file:
        return [line["status"] for line in csv.DictReader(file)]


def test_each_run_comes_to_its_own_end_and_the_others_go_on(folder):
    runs = [planned_run(seed) for seed in range(5)]
    outcomes = run(folder, runs, "fail", "always_die", "diverge", "die_once", "succeed")
    assert [o.run_id for o in outcomes] == [p.run_id for p in runs]
    assert [o.status for o in outcomes] == ["failed", "failed", "diverged", "finished", "finished"]
    assert [o.attempts for o in outcomes] == [1, 3, 1, 2, 1]
    assert statuses(folder) == [o.status for o in outcomes]
    assert outcomes[0].reason == "ValueError: no such thing"
    assert "died 3 times" in outcomes[1].reason and "SIGKILL" in outcomes[1].reason
    assert "about to die" in outcomes[1].reason, "the end of the log explains"
    assert read_json(folder.run(runs[1].run_id).result)["reason"] == outcomes[1].reason


def test_a_worker_that_ends_well_without_a_result_has_died(folder):
    (outcome,) = run(folder, [planned_run()], "leave_without_result", retries=1)
    assert (outcome.status, outcome.attempts) == ("failed", 2)
    assert "exit status 0" in outcome.reason


def test_a_resumed_run_goes_on_from_its_checkpoint(folder):
    (outcome,) = run(folder, [planned_run()], "die_once")
    steps = [json.loads(line)["step"] for line in open(folder.run(outcome.run_id).metrics)]
    assert steps == list(range(1, 21))


def test_what_is_done_is_not_done_again_and_a_failure_is(folder):
    runs = [planned_run(seed) for seed in range(3)]
    run(folder, runs, "succeed", "diverge", "fail")
    progress = Recorder()
    outcomes = run(folder, runs, "succeed", progress=progress)
    assert [o.attempts for o in outcomes] == [0, 0, 1]
    assert [o.status for o in outcomes] == ["finished", "diverged", "finished"]
    assert progress.order == [runs[2].run_id]
    assert any("1 runs that failed before are run again" in note for note in progress.notes)
    kept = read_json(folder.run(runs[2].run_id).superseded_result)
    assert kept["reason"] == "ValueError: no such thing"


def test_a_changed_spec_is_another_run(folder):
    run(folder, [planned_run(steps=20)], "succeed")
    (outcome,) = run(folder, [planned_run(steps=40)], "succeed")
    assert outcome.attempts == 1


def test_a_result_cut_off_is_trained_again_and_never_read(folder):
    (outcome,) = run(folder, [planned_run()], "cut_result_off")
    assert (outcome.status, outcome.attempts) == ("finished", 2)
    assert outcome.result["loss"] == 2.5


def test_a_run_named_twice_is_run_once(folder):
    runs = [planned_run(0, group="a"), planned_run(0, group="b")]
    outcomes = run(folder, runs, "succeed")
    assert len(outcomes) == 1 and starts(folder.run(runs[0].run_id)) == 1
    assert statuses(folder) == ["finished", "finished"]


def test_the_table_holds_the_whole_plan_while_a_part_of_it_runs(folder):
    plan = [planned_run(0), planned_run(1, role="holdout")]
    run(folder, plan[:1], "succeed", plan=plan)
    assert statuses(folder) == ["finished", "planned"]
    with pytest.raises(ValueError, match="not in the plan.*Nothing was launched"):
        run(folder, [planned_run(7)], "succeed", plan=plan)


def test_the_longest_run_starts_first_unless_told_otherwise(folder):
    runs = [planned_run(0, steps=10), planned_run(1, steps=40), planned_run(2, steps=20)]
    longest, given = Recorder(), Recorder()
    run(folder, runs, "succeed", slots=1, progress=longest)
    assert longest.order == [runs[i].run_id for i in (1, 2, 0)]
    other = SweepFolder(folder.path.with_name("other"))
    run(other, runs, "succeed", slots=1, progress=given, longest_first=False)
    assert given.order == [p.run_id for p in runs]


def test_a_worker_that_others_stop_is_not_a_death_while_it_moves(folder):
    moving, stuck = planned_run(0), planned_run(1)
    outcomes = run(folder, [moving, stuck], "stop_once", "stop_without_moving", retries=0)
    assert (outcomes[0].status, outcomes[0].attempts) == ("finished", 2)
    assert (outcomes[1].status, outcomes[1].attempts) == ("failed", 1)
    assert "exit status 75" in outcomes[1].reason


def test_a_checkpoint_between_two_log_lines_is_a_move(folder):
    planned = planned_run()
    (outcome,) = run(folder, [planned], "stop_unlogged_once", retries=0)
    assert (outcome.status, outcome.attempts) == ("finished", 2)


def test_losses_do_not_depend_on_slots_since_threads_do_not(folder):
    planned = planned_run()
    run(folder, [planned], "succeed", slots=7)
    assert (folder.run(planned.run_id).path / "starts").read_text().split()[-1] == "1"


class Refusing:
    capacity = 2

    def adopt(self, folder):
        return None

    def submit(self, folder):
        raise SubmitError("the queue is closed")


def test_a_place_that_refuses_a_run_is_a_reason_on_record(folder):
    planned = planned_run()
    (outcome,) = execute(folder, [planned], Refusing(), acting("succeed"), poll_seconds=0.01)
    assert outcome.status == "failed" and "the queue is closed" in outcome.reason
    assert statuses(folder) == ["failed"]


def test_an_error_in_the_loop_leaves_no_worker_behind(folder):
    class Broken(Recorder):
        def update(self):
            if any(starts_file.exists() for starts_file in folder.path.glob("runs/*/starts")):
                raise RuntimeError("broken display")

    progress = Broken()
    with pytest.raises(RuntimeError, match="broken display"):
        run(folder, [planned_run()], "succeed", seconds=8, progress=progress)
    assert progress.open == 0
    lock = folder.run(planned_run().run_id).lock
    wait_for(lambda: not is_held(lock))


def test_a_full_disk_is_told_once_loses_no_run_and_is_raised_at_the_end(folder, monkeypatch):
    from sweep.execute import ledger

    def full(path, text, durable=True):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    runs, progress = [planned_run(seed) for seed in range(3)], Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "write_atomically", full)
        with pytest.raises(OSError, match="runs.csv cannot be .*No space left.*Nothing is lost") as caught:
            run(folder, runs, "succeed", slots=1, progress=progress)
    assert caught.value.errno == errno.ENOSPC
    assert len([note for note in progress.notes if "No space left" in note]) == 1
    assert [o.attempts for o in run(folder, runs, "succeed")] == [0, 0, 0]
    assert statuses(folder) == ["finished"] * 3


def test_a_disk_that_has_room_again_is_no_error(folder, monkeypatch):
    from sweep.execute import ledger

    real, calls = ledger.write_atomically, []

    def full_at_first(path, text, durable=True):
        calls.append(path)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, text)

    monkeypatch.setattr(ledger, "write_atomically", full_at_first)
    run(folder, [planned_run(seed) for seed in range(3)], "succeed", slots=1)
    assert statuses(folder) == ["finished"] * 3


def interrupt_when(condition, times=1):
    def send():
        wait_for(condition)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.3)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def under_way(folder, runs):
    return lambda: all(folder.run(p.run_id).checkpoint.exists() for p in runs)


def test_an_interrupt_checkpoints_and_the_same_command_goes_on(folder):
    runs, handler = [planned_run(seed) for seed in range(4)], signal.getsignal(signal.SIGINT)
    thread = interrupt_when(under_way(folder, runs[:2]))
    with pytest.raises(Interrupted, match="SIGINT: 0 of 4 runs.*2 were stopped, at a.*same command"):
        run(folder, runs, "succeed", seconds=8)
    thread.join()
    assert signal.getsignal(signal.SIGINT) == handler
    assert statuses(folder) == ["planned"] * 4
    assert [is_held(folder.run(p.run_id).lock) for p in runs] == [False] * 4
    outcomes = run(folder, runs, "succeed")
    assert [o.status for o in outcomes] == ["finished"] * 4
    assert [starts(folder.run(p.run_id)) for p in runs] == [2, 2, 1, 1]


def test_a_second_interrupt_kills_workers_that_do_not_listen(folder):
    planned = planned_run()
    thread = interrupt_when(under_way(folder, [planned]), times=2)
    with pytest.raises(Interrupted, match="1 were killed"):
        run(folder, [planned], "deaf", seconds=20)
    thread.join()
    assert not is_held(folder.run(planned.run_id).lock)
    assert statuses(folder) == ["planned"]


def test_an_interrupt_does_not_wait_for_a_worker_that_hangs(folder):
    planned = planned_run()
    thread = interrupt_when(lambda: last_step(folder.run(planned.run_id).metrics) >= 10)
    with pytest.raises(Interrupted, match="same command"):
        run(folder, [planned], "hang_once", hang_seconds=1.0)  # it is deaf, and asleep for ten minutes
    thread.join()
    assert not is_held(folder.run(planned.run_id).lock)
    (outcome,) = run(folder, [planned], "succeed")
    assert outcome.status == "finished"


DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from execution_helpers import acting, local, planned_run
from sweep.execute.coordinator import execute
from sweep.execute.lock import CoordinatorLock
from sweep.files import SweepFolder
folder = SweepFolder(Path({folder!r}))
with CoordinatorLock(folder.lock):
    execute(folder, [planned_run(seed) for seed in range(3)], local(), acting({act!r}, seconds=4.0))
"""


def drive(folder, act="succeed"):
    code = DRIVER.format(tests=str(Path(__file__).parent), folder=str(folder.path), act=act)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def test_a_killed_coordinator_is_taken_over_from(folder):
    runs = [planned_run(seed) for seed in range(3)]
    # Deaf workers outlive their coordinator for a while, as one in a long step would.
    coordinator = drive(folder, act="deaf")
    wait_for(under_way(folder, runs[:2]))
    second = drive(folder)
    assert "already being run by process" in second.communicate()[1]
    assert second.returncode != 0
    coordinator.send_signal(signal.SIGKILL)
    coordinator.communicate()
    orphans = [int((folder.run(p.run_id).path / "starts").read_text().split()[0]) for p in runs[:2]]
    assert all(alive(pid) for pid in orphans)

    progress = Recorder()
    outcomes = run(folder, runs, "succeed", progress=progress)
    assert [o.status for o in outcomes] == ["finished"] * 3
    assert [o.attempts for o in outcomes] == [0, 0, 1], "the orphans' results are taken, not made again"
    assert [starts(folder.run(p.run_id)) for p in runs] == [1, 1, 1]
    assert len([note for note in progress.notes if "still held by a worker" in note]) == 2
    assert statuses(folder) == ["finished"] * 3


def test_a_plan_that_is_done_starts_nothing_and_restores_its_table(folder):
    runs = [planned_run(seed) for seed in range(3)]
    run(folder, runs, "succeed")
    table = folder.runs_csv.read_bytes()
    folder.runs_csv.unlink()
    outcomes = execute(folder, runs, Refusing(), acting("succeed"))
    assert [o.attempts for o in outcomes] == [0, 0, 0]
    assert folder.runs_csv.read_bytes() == table


LENGTHS = (20, 40, 60)


def trunk_and_branches():
    """The segments of one trunk, shortest first, and their branches."""
    shared = share([planned_run(steps=steps) for steps in LENGTHS])
    return list(shared.trunks), list(shared.runs)


def run_all(folder, runs, acts, **options):
    """`acts`: what a run does, by id, where it doesn't succeed."""
    settings = lambda planned: {"act": acts.get(planned.run_id, "succeed"), "seconds": 0.0}  # noqa: E731
    return execute(folder, runs, local(2), settings, poll_seconds=0.01, **options)


def test_no_run_starts_before_its_trunk_is_done(folder):
    trunks, branches = trunk_and_branches()
    settled = []

    class Watch(Recorder):
        def started(self, planned):
            assert planned.parent is None or planned.parent.run_id in settled
            super().started(planned)

        def settled(self, planned, result):
            settled.append(planned.run_id)
            super().settled(planned, result)

    watch = Watch()
    outcomes = run_all(folder, [*branches, *trunks], {}, progress=watch)
    assert {o.status for o in outcomes} == {"finished"} and len(settled) == len(watch.order) == 6
    assert watch.order[0] == trunks[0].run_id
    assert watch.tally.fraction == pytest.approx(1.0)
    with open(folder.runs_csv, newline="") as file:
        parents = {line["run_id"]: line["parent"] for line in csv.DictReader(file)}
    assert parents == {r.run_id: r.parent.run_id if r.parent else "" for r in [*trunks, *branches]}


@pytest.mark.parametrize(("act", "status"), [("fail", "failed"), ("diverge", "diverged"), ("always_die", "failed")])
def test_what_branches_off_a_lost_trunk_is_lost_with_it_and_the_rest_goes_on(folder, act, status):
    trunks, branches = trunk_and_branches()
    outcomes = {o.run_id: o for o in run_all(folder, [*trunks, *branches], {trunks[1].run_id: act}, retries=0)}
    lost = [trunks[1], trunks[2], branches[1], branches[2]]
    assert {r.run_id for r in lost} == {run_id for run_id, o in outcomes.items() if o.status == status}
    assert outcomes[branches[0].run_id].status == "finished"
    for run in lost[1:]:
        assert outcomes[run.run_id].attempts == 0
        assert run.parent.run_id in outcomes[run.run_id].reason and status in outcomes[run.run_id].reason
    assert sorted(statuses(folder)) == sorted(["finished"] * 2 + [status] * 4)


def test_a_trunk_that_failed_is_tried_again_with_what_waited_for_it(folder):
    trunks, branches = trunk_and_branches()
    runs = [*trunks, *branches]
    run_all(folder, runs, {trunks[0].run_id: "fail"})
    outcomes = run_all(folder, runs, {})
    assert {o.status for o in outcomes} == {"finished"}
    assert [o.attempts for o in outcomes] == [1] * 6


def test_a_longer_run_goes_on_from_the_trunk_that_is_there(folder):
    trunks, branches = trunk_and_branches()
    run_all(folder, [trunks[0], branches[0]], {})
    outcomes = {o.run_id: o.attempts for o in run_all(folder, [*trunks, *branches], {})}
    assert outcomes == {r.run_id: int(r not in (trunks[0], branches[0])) for r in [*trunks, *branches]}
