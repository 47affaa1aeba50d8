from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from execution_helpers import alive, wait_for

from sweep.files import RunFolder, read_json, write_json
from sweep.train.train import Execution, train
from sweep.worker import EX_TEMPFAIL

STEPS = 200
"""About a second: long enough to be interrupted, short enough to be repeated."""


@pytest.fixture
def spec(tiny_spec):
    return tiny_spec(steps=STEPS, schedule={"decay_steps": 60})


@pytest.fixture
def settings(corpus) -> dict:
    return asdict(Execution("cpu", 1, str(corpus), 8, 1, 0, 0.2, False))


@pytest.fixture
def requested(tmp_path, spec, settings) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    write_json(folder.spec, {"run_id": spec.run_id, "spec": spec.to_json(), "execution": settings})
    return folder


@pytest.fixture
def start(requested):
    """start(): the worker of `requested` as a process, killed when the test ends."""
    started = []

    def process() -> subprocess.Popen:
        with open(requested.log, "ab") as log:
            command = [sys.executable, "-m", "sweep.worker", str(requested.path)]
            started.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
        return started[-1]

    yield process
    for worker in started:
        worker.kill()
        worker.wait()


def logged(folder: RunFolder) -> int:
    return len(folder.metrics.read_text().splitlines()) if folder.metrics.exists() else 0


def progress(folder: RunFolder, lines: int) -> Callable[[], bool]:
    target = logged(folder) + lines
    return lambda: logged(folder) >= target


def test_stopped_killed_and_started_again_a_run_is_the_undisturbed_one(
    spec, settings, requested, start, tmp_path
):
    expected = train(spec, Execution(**settings), RunFolder(tmp_path / "undisturbed"), lambda: False)

    worker = start()
    wait_for(progress(requested, 20), 60)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == EX_TEMPFAIL
    assert not requested.result.exists()
    assert 20 <= logged(requested) < STEPS
    checkpoint = (requested.checkpoint / "state.pt").read_bytes()

    worker = start()
    wait_for(lambda: (requested.checkpoint / "state.pt").read_bytes() != checkpoint, 60)
    wait_for(progress(requested, 5), 60)
    worker.send_signal(signal.SIGKILL)
    assert worker.wait(60) == -signal.SIGKILL
    assert not requested.result.exists()

    assert start().wait(120) == 0
    result = read_json(requested.result)
    assert (result["status"], result["reason"], result["resumes"]) == ("finished", None, 2)
    assert (result["loss"], result["run_id"]) == (expected.loss, spec.run_id)
    assert logged(requested) == STEPS + 1
    assert [path.name for path in requested.checkpoint.iterdir()] == ["model.safetensors"]


def test_what_goes_wrong_is_a_result_with_its_traceback(spec, settings, requested, start, tmp_path):
    settings = {**settings, "data_folder": str(tmp_path / "nowhere")}
    write_json(requested.spec, {"run_id": spec.run_id, "spec": spec.to_json(), "execution": settings})
    assert start().wait(60) == 0
    result = read_json(requested.result)
    assert (result["status"], result["loss"], result["step"]) == ("failed", None, 0)
    assert result["reason"].startswith("FileNotFoundError: ") and "nowhere" in result["reason"]
    assert result["traceback"].startswith("Traceback (most recent call last)")
    assert result["traceback"].strip().splitlines()[-1] in requested.log.read_text()


def test_when_the_process_that_started_it_dies_it_checkpoints_and_ends(requested):
    command = f'"{sys.executable}" -m sweep.worker "{requested.path}" & echo $!; wait'
    parent = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    wait_for(progress(requested, 5), 60)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: not alive(worker), 60)
    assert (requested.checkpoint / "state.pt").exists()
    assert not requested.result.exists() and logged(requested) < STEPS


def test_one_run_has_one_worker_and_a_waiting_one_can_be_stopped(requested, start):
    requested.lock.write_text("its holder")

    def opened_by(pid):
        return requested.lock.resolve() in {
            Path(os.path.realpath(link)) for link in Path(f"/proc/{pid}/fd").glob("*")
        }

    with open(requested.lock) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        worker = start()
        wait_for(lambda: opened_by(worker.pid), 60)
        time.sleep(0.3)
        assert worker.poll() is None and not requested.metrics.exists()
        assert requested.lock.read_text() == "its holder"
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == EX_TEMPFAIL
    assert not requested.result.exists()


def test_anything_but_one_folder_is_a_usage_error():
    for arguments in ([], ["a", "b"]):
        command = [sys.executable, "-m", "sweep.worker", *arguments]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == 1 and "usage: python -m sweep.worker RUN_DIR" in ended.stderr
