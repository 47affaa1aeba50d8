"""The SLURM executor against a queue that is a file; scripts/test_slurm does it with a real one."""

from __future__ import annotations

import os
import stat
import sys

import pytest
from execution_helpers import acting, planned_run, result_of, wait_for

from sweep.execute import slurm
from sweep.execute.coordinator import execute
from sweep.execute.executor import CHECKPOINTED, Ended, SubmitError
from sweep.execute.slurm import SlurmExecutor, SlurmOptions, sbatch_parameters, sweep_prefix
from sweep.execute.squeue import Queue, parse_squeue
from sweep.files import SweepFolder, write_json

OPTIONS = SlurmOptions(gpus=1, cpus=2, minutes=60, checkpoint_minutes=5, partition="main", extra={"qos": "high"})


class FakeQueue:
    """`squeue` and `scancel` on the path: the first prints a file, the second notes its arguments."""

    def __init__(self, folder, monkeypatch):
        self.listing, self.cancelled = folder / "listing", folder / "cancelled"
        self.listing.write_text("")
        self.cancelled.write_text("")
        self._command(folder / "squeue", f"cat {self.listing}")
        self._command(folder / "scancel", f'echo "$@" >> {self.cancelled}')
        for name in ("sbatch", "srun"):
            self._command(folder / name, "exit 1")
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def _command(self, path, body):
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def holds(self, *lines):
        self.listing.write_text("".join(line + "\n" for line in lines))


@pytest.fixture
def queue(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    monkeypatch.setitem(sys.modules, "submitit", object())  # submissions are not tried here
    return FakeQueue(tmp_path / "bin", monkeypatch)


@pytest.fixture
def folder(tmp_path):
    return SweepFolder(tmp_path / "sweep")


def executor(folder, monkeypatch, submit=None, **options):
    """One whose batches go to `submit`, which returns the jobs; by default as an array of job 7."""
    found = SlurmExecutor(folder, OPTIONS, slots=8, device="cpu", poll_seconds=0.0, **options)
    monkeypatch.setattr(found, "_submit_batch", submit or (lambda runs: [f"7_{i}" for i in range(len(runs))]))
    return found


def run_folders(folder, count):
    folders = [folder.run(f"{i:012x}") for i in range(count)]
    for run in folders:
        run.path.mkdir(parents=True)
    return folders


def test_jobs_of_this_sweep_are_told_from_others_by_name():
    text = "12|PENDING|mine-1\n13_4|RUNNING|mine-2\n14|RUNNING|other\n15|RUNNING|mine|odd\n"
    found = parse_squeue(text, "mine")
    assert {job: queued.state for job, queued in found.items()} == {"12": "PENDING", "13_4": "RUNNING", "15": "RUNNING"}


def test_sweeps_of_one_name_in_two_places_have_names_of_their_own(tmp_path):
    here, there = sweep_prefix(SweepFolder(tmp_path / "a" / "s")), sweep_prefix(SweepFolder(tmp_path / "b" / "s"))
    assert here != there and here.startswith("s-")


def test_what_is_submitted_in_one_round_is_one_array(folder, queue, monkeypatch):
    batches = []

    def submit(runs):
        batches.append([run.path.name for run in runs])
        return [f"7_{i}" for i in range(len(runs))]

    place = executor(folder, monkeypatch, submit)
    folders = run_folders(folder, 3)
    jobs = [place.submit(run) for run in folders]
    assert batches == []
    queue.holds(*(f"7_{i}|PENDING|{sweep_prefix(folder)}x" for i in range(3)))
    assert [job.poll() for job in jobs] == [None] * 3
    assert batches == [[run.path.name for run in folders]] and [job.name for job in jobs] == ["7_0", "7_1", "7_2"]


def test_a_job_that_left_its_exit_status_has_ended_with_it(folder, queue, monkeypatch):
    (run,) = run_folders(folder, 1)
    write_json(run.ended, {"job": "7_0", "status": 3})  # of an earlier job that happens to have this number
    job = executor(folder, monkeypatch).submit(run)
    queue.holds(f"7_0|RUNNING|{sweep_prefix(folder)}x")
    assert job.poll() is None
    write_json(run.ended, {"job": "6", "status": 0})
    assert job.poll() is None
    write_json(run.ended, {"job": "7_0", "status": CHECKPOINTED})
    assert job.poll() == Ended(CHECKPOINTED)
    again = executor(folder, monkeypatch).submit(run)
    assert again.poll() is None
    write_json(run.ended, {"job": "7_0", "status": -9, "detail": "", "out_of_memory": True})
    assert again.poll() == Ended(-9, out_of_memory=True)


def test_a_job_that_left_the_queue_without_a_word_is_given_time_and_then_has_died(folder, queue, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(slurm.time, "monotonic", lambda: clock[0])
    (run,) = run_folders(folder, 1)
    job = executor(folder, monkeypatch).submit(run)

    def look():
        """Polls for long enough that squeue has been asked and has answered."""
        for _ in range(3):
            clock[0] += 0.5
            ended = job.poll()
            process = job._executor._queue._process
            if process is not None:
                process.wait(20)
        return ended

    queue.holds(f"7_0|RUNNING|{sweep_prefix(folder)}x")
    assert look() is None and look() is None
    queue.holds()
    assert look() is None and look() is None
    clock[0] += slurm.VISIBLE_SECONDS
    ended = look()
    assert ended.status is None and "SLURM job 7_0 left the queue" in str(ended)


def test_where_squeue_fails_jobs_count_as_running(folder, queue, monkeypatch, caplog):
    asked = Queue("mine", 0.0)
    queue.holds("1|RUNNING|mine")
    wait_for(lambda: asked.look() or asked.jobs)
    queue._command(queue.listing.parent / "squeue", "echo controller is down; exit 1")
    wait_for(lambda: asked.look() or caplog.records)
    for _ in range(50):
        asked.look()
    assert list(asked.jobs) == ["1"]
    assert [record.getMessage() for record in caplog.records if "controller is down" in record.getMessage()]
    assert len(caplog.records) == 1


def test_a_first_batch_that_sbatch_refuses_ends_the_sweep_with_its_words(folder, queue, monkeypatch):
    def refuse(runs):
        raise RuntimeError("invalid partition specified: main")

    place = executor(folder, monkeypatch, refuse)
    with pytest.raises(ValueError, match="invalid partition.*\n.*executor.partition.*No job was submitted"):
        execute(folder, [planned_run()], place, acting("succeed"), poll_seconds=0.01)
    assert not folder.run(planned_run().run_id).result.exists()


def test_a_later_refusal_is_tried_again_and_in_the_end_a_reason(folder, queue, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(slurm.time, "monotonic", lambda: clock[0])
    answers = [["1"], RuntimeError("too many jobs"), ["2"], *[RuntimeError("too many jobs")] * 100]

    def submit(runs):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    first, second, third = run_folders(folder, 3)
    place = executor(folder, monkeypatch, submit)
    job = place.submit(first)
    job.poll()
    job = place.submit(second)
    job.poll()
    assert job.name is None and job.poll() is None
    clock[0] += slurm.AGAIN_SECONDS + 1
    job.poll()
    assert job.name == "2"
    job = place.submit(third)
    while job.poll() is None:
        clock[0] += slurm.AGAIN_SECONDS + 1
    assert clock[0] > slurm.REFUSED_SECONDS and "too many jobs" in str(job.ended)


def test_a_restarted_coordinator_goes_on_with_the_jobs_it_finds(folder, queue, monkeypatch):
    """Two runs are in the queue as an array, a third is not: only the third is submitted."""
    runs = [planned_run(seed) for seed in range(3)]
    write_json(folder.jobs / "batch-ab.json", [run.run_id for run in runs[:2]])
    queue.holds(*(f"5_{i}|RUNNING|{sweep_prefix(folder)}ab" for i in (0, 1)), "9|RUNNING|another")
    submitted = []

    def submit(folders):
        submitted.extend(folders)
        return ["6"]

    def end(planned, job):
        run = folder.run(planned.run_id)
        write_json(run.spec, {"run_id": planned.run_id, "spec": planned.spec.to_json(), "execution": {}})
        write_json(run.result, result_of(planned))
        write_json(run.ended, {"job": job, "status": 0})

    place = executor(folder, monkeypatch, submit)
    look = place.look

    def look_and_end():
        if submitted:
            for planned, job in zip(runs, ("5_0", "5_1", "6"), strict=True):
                end(planned, job)
        return look()

    monkeypatch.setattr(place, "look", look_and_end)
    outcomes = execute(folder, runs, place, acting("succeed"), poll_seconds=0.01)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 3
    assert [run.path.name for run in submitted] == [runs[2].run_id]


def test_nothing_is_submitted_where_it_cannot_be_told_what_is_in_the_queue(folder, queue, monkeypatch):
    queue._command(queue.listing.parent / "squeue", "echo no controller >&2; exit 1")
    place = executor(folder, monkeypatch)
    with pytest.raises(SubmitError, match="which runs SLURM holds already: .*no controller"):
        place.adopt(folder.run("a" * 12))


def test_a_waiting_job_is_cancelled_and_a_running_one_told(folder, queue, monkeypatch):
    first, second = run_folders(folder, 2)
    place = executor(folder, monkeypatch)
    job = place.submit(first)
    job.poll()
    job.cancel()
    wait_for(lambda: len(queue.cancelled.read_text().splitlines()) == 2)
    lines = sorted(queue.cancelled.read_text().splitlines())
    assert lines == ["--state=PENDING 7_0", "--state=RUNNING --signal=TERM 7_0"]
    job = place.submit(second)
    job.cancel()
    assert "before it was submitted" in str(job.poll())


def test_what_a_job_asks_for():
    asked = sbatch_parameters(OPTIONS)
    assert (asked["time"], asked["cpus_per_task"], asked["gpus_per_node"], asked["partition"]) == (60, 2, 1, "main")
    assert asked["additional_parameters"] == {"signal": "TERM@300", "no-requeue": True, "qos": "high"}
    assert "account" not in asked and "mem" not in asked
    cpu = SlurmOptions(gpus=0, cpus=1, minutes=60, checkpoint_minutes=5, memory_gb=1.5, extra={"mail_type": "END"})
    asked = sbatch_parameters(cpu)
    assert "gpus_per_node" not in asked and asked["mem"] == "1536MB"
    assert asked["additional_parameters"]["mail-type"] == "END"


def test_without_submitit_or_slurm_it_says_what_to_do(folder, queue, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="sbatch, srun, squeue, scancel cannot be found.*Nothing was launched"):
        SlurmExecutor(folder, OPTIONS, slots=1, device="cpu")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"pip install 'scaling-sweep\[slurm\]'.*Nothing was launched"):
        SlurmExecutor(folder, OPTIONS, slots=1, device="cpu")


def test_submitit_writes_an_array_with_what_was_asked_for(folder, queue, monkeypatch):
    monkeypatch.delitem(sys.modules, "submitit")
    pytest.importorskip("submitit")
    monkeypatch.setenv("SLURM_JOB_ID", "1")  # of a job that this process would be in
    monkeypatch.setenv("SLURM_CONF", "/some/slurm.conf")
    seen = queue.listing.parent / "seen"
    queue._command(
        queue.listing.parent / "sbatch",
        f'cat "$1" > {seen}; echo "conf=$SLURM_CONF job=$SLURM_JOB_ID" >> {seen}; echo Submitted batch job 42',
    )
    place = SlurmExecutor(folder, OPTIONS, slots=8, device="cpu")
    jobs = [place.submit(run) for run in run_folders(folder, 3)]
    jobs[0].poll()
    assert [job.name for job in jobs] == ["42_0", "42_1", "42_2"]
    script = seen.read_text()
    for line in ("--array=0-2%3", "--signal=TERM@300", "--no-requeue", "--qos=high", "--gpus-per-node=1", "--time=60"):
        assert f"#SBATCH {line}\n" in script, script
    assert f"--job-name={sweep_prefix(folder)}" in script and "conf=/some/slurm.conf job=\n" in script
    assert os.environ["SLURM_JOB_ID"] == "1"
