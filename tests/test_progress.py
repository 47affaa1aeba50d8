from __future__ import annotations

import io
import json
import os

import pytest
from execution_helpers import planned_run, result_of
from rich.console import Console

from sweep.execute.metrics import MetricsTail, last_step, read_history
from sweep.execute.progress import LineProgress, LiveProgress, Tally, duration, progress_for, quantity
from sweep.files import SweepFolder


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def folder(tmp_path):
    return SweepFolder(tmp_path)


def write_lines(path, steps, mode="a", **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, mode) as file:
        for step in steps:
            line = {"step": step, "tokens": 64 * step, "flops": 1e6 * step, "loss": 5 - step / 10, **more}
            file.write(json.dumps(line) + "\n")


def advance(folder, planned, fraction):
    """Have the worker of this run log that it is through this much of its FLOPs."""
    spec = planned.spec
    line = {"step": 1, "tokens": int(fraction * spec.tokens), "flops": fraction * spec.flops, "loss": 3.0}
    path = folder.run(planned.run_id).metrics
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


def test_the_tail_follows_a_file_that_grows_is_cut_off_and_is_replaced(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.read() is None
    write_lines(path, [1, 2])
    assert tail.read()["step"] == 2
    with open(path, "a") as file:
        file.write('{"step": 3, "tokens": 192, "fl')
    assert tail.read()["step"] == 2
    with open(path, "a") as file:
        file.write('ops": 3e6, "loss": 4.7}\n{"step": 3, "eval_loss": 4.0}\n')
    assert tail.read() == {"step": 3, "tokens": 192, "flops": 3e6, "loss": 4.7}
    other = tmp_path / "resumed"
    write_lines(other, [1])
    os.replace(other, path)
    assert tail.read()["step"] == 1, "a resumed worker begins again where its checkpoint was"


def test_history_keeps_what_was_done_last_and_drops_what_was_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_history(path) == [] and last_step(path) == 0
    write_lines(path, [1, 2, 3])
    with open(path, "a") as file:
        file.write('{"step": 2, "eval_loss": 4.0}\n{"step": 2, "loss": 9.0}\nnull\n{"step": 4, "l')
    history = read_history(path)
    assert [line["step"] for line in history] == [1, 2, 2, 3]
    assert ["eval_loss" in line for line in history] == [False, False, True, False]
    assert history[1]["loss"] == 9.0


def test_time_left_follows_flops_and_not_the_number_of_runs(folder):
    clock, small, large = Clock(), planned_run(0, steps=10), planned_run(1, steps=90)
    tally = Tally(folder, [small, large], set(), clock)
    assert tally.seconds_left is None
    tally.start(small)
    advance(folder, small, 1.0)
    clock.now = 10.0
    tally.end(small, settled=True)
    assert tally.settled == 1 and tally.fraction == pytest.approx(0.1)
    assert tally.seconds_left == pytest.approx(90.0)


def test_work_of_an_earlier_command_counts_as_done_but_not_as_speed(folder):
    clock, runs = Clock(), [planned_run(seed) for seed in range(4)]
    advance(folder, runs[2], 0.5)
    tally = Tally(folder, runs, {runs[0].run_id, runs[1].run_id}, clock)
    tally.start(runs[2])
    assert tally.fraction == pytest.approx(2.5 / 4)
    assert tally.seconds_left is None
    advance(folder, runs[2], 0.75)
    clock.now = 10.0
    tally.read()
    # A quarter of a run took 10 s; a quarter and a whole one are left.
    assert tally.seconds_left == pytest.approx(50.0)


def test_the_whole_is_not_over_before_its_slowest_run(folder):
    clock, fast, slow = Clock(), planned_run(0), planned_run(1)
    tally = Tally(folder, [fast, slow], set(), clock)
    tally.start(fast)
    tally.start(slow)
    advance(folder, fast, 1.0)
    advance(folder, slow, 0.1)
    clock.now = 10.0
    tally.end(fast, settled=True)
    tally.read()
    assert tally.seconds_left == pytest.approx(90.0)


def test_a_run_that_died_gives_its_work_back_only_as_far_as_it_was_lost(folder):
    clock, planned = Clock(), planned_run()
    tally = Tally(folder, [planned], set(), clock)
    tally.start(planned)
    advance(folder, planned, 0.5)
    tally.read()
    tally.end(planned, settled=False)
    assert tally.fraction == 0 and not tally.active
    tally.start(planned)
    assert tally.fraction == pytest.approx(0.5)
    tally.end(planned, settled=True)
    assert tally.fraction == 1 and tally.settled == 1


def test_lines_tell_start_and_end_of_each_run(folder):
    stream, planned = io.StringIO(), planned_run()
    progress = progress_for(stream)
    assert isinstance(progress, LineProgress)
    progress.begin(folder, [planned, planned_run(1)], set())
    progress.started(planned)
    advance(folder, planned, 1.0)
    progress.update()
    progress.settled(planned, result_of(planned, loss=1.25, loss_se=0.01))
    progress.started(planned_run(1))
    progress.settled(planned_run(1), result_of(planned_run(1), status="failed", reason="no such thing"))
    progress.end()
    opening, start, end, _, failed = stream.getvalue().splitlines()
    assert "2 runs" in opening
    assert start.startswith("start") and planned.run_id in start
    assert "loss 1.2500 ± 0.0100" in end and "1 of 2 runs, 50.0%" in end
    assert failed.startswith("failed") and "no such thing" in failed


@pytest.mark.parametrize("active", [3, 500])
def test_the_live_view_fits_the_terminal_and_shows_only_active_runs(folder, active):
    stream = io.StringIO()
    console = Console(file=stream, width=100, height=24, force_terminal=True)
    progress = LiveProgress(console)
    runs = [planned_run(seed) for seed in range(active + 200)]
    progress.begin(folder, runs, {planned.run_id for planned in runs[active:]})
    for planned in runs[:active]:
        progress.started(planned)
    advance(folder, runs[0], 0.25)
    progress.update()
    progress.note("a note with [brackets]")
    progress.end()
    progress.end()
    plain = Console(file=io.StringIO(), width=100, height=24)
    plain.print(LiveProgress.render(progress))
    lines = plain.file.getvalue().splitlines()
    assert len(lines) <= 24
    assert runs[0].run_id in lines[1] and "3.0000" in lines[1] and "320" in lines[1]
    assert runs[active].run_id not in plain.file.getvalue()
    assert f"200 of {active + 200} runs" in lines[-1]
    assert "a note with [brackets]" in stream.getvalue()


def test_numbers_are_for_people():
    said = {7: "7", 980: "980", 999.7: "1k", 35_600: "35.6k", 999_936: "1M", 3.1e6: "3.1M", 2.4e9: "2.4B"}
    assert [quantity(n) for n in said] == list(said.values())
    assert [duration(s) for s in (None, 0.4, 59.6, 185, 7800, 273_600)] == [
        "?", "0 s", "1 min 00 s", "3 min 05 s", "2 h 10 min", "3 d 04 h",
    ]  # fmt: skip
