from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from execution_helpers import wait_for

from sweep.execute.attend import read_ended, this_job, worker_environment
from sweep.execute.environment import SOURCE_ROOT
from sweep.execute.executor import CHECKPOINTED, Ended
from sweep.execute.metrics import last_step
from sweep.files import SweepFolder, write_json

# a shell has what it starts in the background ignore SIGINT, and that is inherited
ATTEND = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); " \
    "from sweep.execute.attend import {0}, worker_environment as e; {0}(sys.argv[1], e('cpu', 1))"


@pytest.fixture
def real_run(tmp_path, corpus, tiny_spec):
    """The folder of a run that trains for real, its spec written."""

    def folder_of(steps):
        spec = tiny_spec(steps=steps)
        folder = SweepFolder(tmp_path).run(spec.run_id)
        execution = {
            "device": "cpu", "threads": 1, "data_folder": str(corpus), "micro_batch_sequences": 8, "log_every": 1,
            "evaluations": 0, "checkpoint_seconds": 60, "compile": False,
        }  # fmt: skip
        write_json(folder.spec, {"run_id": spec.run_id, "spec": spec.to_json(), "execution": execution})
        return folder

    return folder_of


def attend(function, folder):
    environment = {**os.environ, "SLURM_JOB_ID": "70", "PYTHONPATH": str(SOURCE_ROOT)}
    command = [sys.executable, "-c", ATTEND.format(function), str(folder.path)]
    return subprocess.Popen(command, env=environment)


def test_a_job_leaves_its_exit_status_behind(real_run):
    folder = real_run(20)
    assert attend("attend_job", folder).wait(60) == 0
    assert read_ended(folder, "70") == Ended(0) and folder.result.exists()
    assert read_ended(folder, "69") is None  # of another job of this run


@pytest.mark.parametrize(
    "function, number", [("attend_job", signal.SIGTERM), ("attend_interruptibly", signal.SIGINT)]
)
def test_what_a_job_is_told_reaches_the_worker_which_saves_a_checkpoint(real_run, function, number):
    folder = real_run(100_000)
    process = attend(function, folder)
    wait_for(lambda: last_step(folder.metrics) > 3, 60)
    process.send_signal(number)
    process.wait(60)
    assert (folder.checkpoint / "state.pt").exists() and not folder.result.exists()
    if function == "attend_job":
        assert read_ended(folder, "70") == Ended(CHECKPOINTED)


def test_a_worker_whose_attendant_is_killed_stops_by_itself(real_run):
    folder = real_run(100_000)
    process = attend("attend_job", folder)
    wait_for(lambda: last_step(folder.metrics) > 3, 60)
    process.kill()
    wait_for(lambda: (folder.checkpoint / "state.pt").exists(), 60)
    assert read_ended(folder, "70") is None


def test_a_job_is_named_as_squeue_names_it(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    assert this_job() == "71"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert this_job() == "70_3"


def test_an_ended_file_that_is_no_record_is_none(real_run):
    folder = real_run(20)
    assert read_ended(folder, "70") is None
    folder.ended.write_text('{"job": "70", "sta')
    assert read_ended(folder, "70") is None


def test_workers_get_their_threads_and_no_gpu_on_the_cpu():
    assert worker_environment("cpu", 3)["OMP_NUM_THREADS"] == "3"
    assert worker_environment("cpu", 1)["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment("cuda", 1)  # the place has set it
    with pytest.raises(ValueError, match="'tpu' is none of cpu, cuda"):
        worker_environment("tpu", 1)
