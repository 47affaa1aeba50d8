"""`sweep status`, `cancel` and `logs`: what they say of a sweep's folder, and what they stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from execution_helpers import planned_run, put, result_of, wait_for

from sweep.execute import cancel, logs, status
from sweep.execute.lock import FileLock, is_held
from sweep.execute.status import RunStatus, seconds_left, status_of, training_rate
from sweep.files import SweepFolder, write_json


def write_plan(folder, runs):
    entries = [
        {"run_id": run.run_id, "group": run.group, "role": run.role,
         "parent": run.parent.run_id if run.parent else None, "spec": run.spec.to_json()}
        for run in runs
    ]  # fmt: skip
    write_json(folder.plan, {"runs": entries})


def write_metrics(folder, planned, steps, rate=1e6):
    """Lines of a worker that trained so many of the run's steps at `rate` FLOP/s."""
    spec, run = planned.spec, folder.run(planned.run_id)
    run.path.mkdir(parents=True, exist_ok=True)
    per_step = spec.flops / spec.steps
    lines = [
        {"step": step, "tokens": step * spec.batch_tokens, "flops": step * per_step, "loss": 4.0 - step / 100,
         "lr": 0.01, "grad_norm": 1.0, "seconds": step * per_step / rate}
        for step in range(1, steps + 1)
    ]  # fmt: skip
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def sweep(tmp_path):
    """One run each: finished, failed, under way, waiting."""
    folder = SweepFolder(tmp_path / "mine")
    runs = [planned_run(seed) for seed in range(4)]
    write_plan(folder, runs)
    put(folder, runs[0], result_of(runs[0]))
    put(folder, runs[1], result_of(runs[1], status="failed", reason="OSError: no disk\nmore", tokens=128))
    write_metrics(folder, runs[2], 10)
    return folder, runs


def test_states_come_from_results_and_progress_from_tokens(sweep):
    folder, runs = sweep
    found = [status_of(folder, planned, time.time()) for planned in runs]
    assert [one.state for one in found] == ["finished", "failed", "running", "waiting"]
    assert [one.tokens for one in found] == [runs[0].spec.tokens, 128, 10 * runs[2].spec.batch_tokens, 0]
    assert found[2].flops_left == pytest.approx(runs[2].spec.flops / 2)
    assert found[3].flops_left == runs[3].spec.flops and found[1].flops_left == 0
    later = status_of(folder, runs[2], time.time() + 3600)
    assert (later.state, later.tokens) == ("waiting", found[2].tokens)  # its worker is gone; what it did is not


def test_a_silent_run_whose_lock_is_held_is_under_way(sweep):
    folder, runs = sweep
    with FileLock(folder.run(runs[3].run_id).lock, held="", advice=""):
        assert status_of(folder, runs[3], time.time()).state == "running"


def test_the_rate_is_that_of_the_last_stretch(sweep):
    folder, runs = sweep
    write_metrics(folder, runs[2], 20, rate=5e5)
    assert training_rate(folder.run(runs[2].run_id)) == pytest.approx(5e5)
    assert training_rate(folder.run(runs[3].run_id)) is None


def test_time_left_is_work_over_rate_and_no_less_than_the_slowest_needs():
    planned = planned_run()
    half, none = planned.spec.tokens // 2, 0
    work = planned.spec.flops

    def of(state, tokens, rate):
        return RunStatus(planned, state, tokens, None, rate, None)

    assert seconds_left([of("finished", half, None)]) == 0
    assert seconds_left([of("waiting", none, None)]) is None
    assert seconds_left([of("running", half, work), of("waiting", none, None)]) == pytest.approx(1.5)
    assert seconds_left([of("running", half, work), of("running", half, work / 10)]) == pytest.approx(5)


def test_status_says_what_is_what(sweep, capsys):
    folder, runs = sweep
    assert status.main([str(folder.path)]) == 1  # a run failed
    said = capsys.readouterr().out
    assert runs[1].run_id in said and "failed: OSError: no disk" in said and runs[2].run_id in said
    assert runs[3].run_id not in said and "1 finished" in said and "1 waiting" in said and "62.5% of" in said
    assert "no coordinator is running" in said
    status.main([str(folder.path), "--all"])
    assert runs[3].run_id in capsys.readouterr().out


def test_a_folder_without_a_sweep_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no sweep"):
        status.main([str(tmp_path)])
    (tmp_path / "plan.json").write_text('{"runs": [{"run_id": "x", "spec": {"depth": 3}}]}')
    with pytest.raises(ValueError, match="another version"):
        status.main([str(tmp_path)])


def test_logs_are_found_by_the_start_of_an_id(sweep, capsys):
    folder, runs = sweep
    run = folder.run(runs[1].run_id)
    run.log.write_text("one\ntwo\nthree\n")
    assert logs.main([str(folder.path), runs[1].run_id[:6], "-n", "2"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines() == [f"{runs[1].run_id}: failed OSError: no disk", "more", "two", "three"]
    assert logs.main([str(folder.path), runs[3].run_id]) == 1
    for start in ("", "zz", "../../etc"):
        with pytest.raises(ValueError, match="is none of them"):
            logs.main([str(folder.path), start])


HOLDER = """
import signal, sys, time
from pathlib import Path
from sweep.execute.lock import CoordinatorLock
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
with CoordinatorLock(Path(sys.argv[1])):
    while len(told) < int(sys.argv[2]):
        time.sleep(0.01)
"""


@pytest.mark.parametrize("options, signals", [([], 1), (["--now"], 2)])
def test_cancel_tells_the_coordinator_and_waits_for_its_end(sweep, capsys, options, signals):
    folder, _ = sweep
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder.lock), str(signals)])
    wait_for(lambda: is_held(folder.lock))
    assert cancel.main([str(folder.path), *options]) == 0
    assert process.wait(20) == 0 and "stopped" in capsys.readouterr().out


def test_a_coordinator_on_another_machine_is_named_and_left_alone(sweep, capsys):
    folder, _ = sweep
    with FileLock(folder.lock, held="", advice=""):
        folder.lock.write_text(json.dumps({"pid": os.getpid(), "host": "elsewhere", "since": "now"}))
        assert cancel.main([str(folder.path)]) == 1
    said = capsys.readouterr().err
    assert "on elsewhere" in said and socket.gethostname() in said and "Nothing was stopped" in said
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # and we are alive


def test_cancel_without_a_coordinator_tells_the_jobs_that_are_left(sweep, capsys, tmp_path, monkeypatch):
    from sweep.execute.slurm import sweep_prefix

    folder, runs = sweep
    assert cancel.main([str(folder.path)]) == 0 and "0 SLURM jobs" in capsys.readouterr().out
    write_json(folder.jobs / "batch-ab.json", [run.run_id for run in runs])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(OSError, match="login node"):
        cancel.main([str(folder.path)])
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in (
        ("squeue", f"echo '5_2|RUNNING|{sweep_prefix(folder)}ab'; echo '6|RUNNING|another'"),
        ("scancel", f'echo "$@" >> {tmp_path}/told'),
    ):
        (commands / name).write_text(f"#!/bin/sh\n{body}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands))
    assert cancel.main([str(folder.path)]) == 0 and "1 SLURM jobs" in capsys.readouterr().out
    assert (tmp_path / "told").read_text().splitlines()[-1] == "--state=RUNNING --signal=TERM 5_2"
