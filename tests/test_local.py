from __future__ import annotations

import os
import subprocess
import sys

import pytest
from execution_helpers import FAKE_WORKER, alive, planned_run, wait_for

from sweep.execute import local as module
from sweep.execute.executor import CHECKPOINTED, Ended, SubmitError
from sweep import hardware
from sweep.execute.environment import SOURCE_ROOT
from sweep.execute.local import LocalExecutor, parse_gpu_listing, slot_environments
from sweep.hardware import usable_cores
from sweep.execute.local import visible_gpus
from sweep.execute.metrics import last_step
from sweep.files import SweepFolder, read_json, write_json

SLEEPER = ("sh", "-c", "sleep 60")


@pytest.fixture
def run_folder(tmp_path):
    planned = planned_run()
    folder = SweepFolder(tmp_path).run(planned.run_id)
    request = {"act": "succeed", "seconds": 0}
    write_json(folder.spec, {"run_id": planned.run_id, "spec": planned.spec.to_json(), "execution": request})
    return folder


def test_a_worker_runs_in_its_own_session_and_logs_to_its_folder(run_folder):
    job = LocalExecutor("cpu", slots=1, worker_command=FAKE_WORKER).submit(run_folder)
    assert os.getsid(job.pid) == job.pid != os.getsid(0)
    wait_for(lambda: job.poll() is not None)
    assert job.poll() == Ended(0)
    assert "fake worker" in run_folder.log.read_text()
    job.cancel()  # after the end: nothing to do, and no error
    job.kill()


def test_slots_bound_what_runs_and_are_given_back(run_folder):
    executor = LocalExecutor("cpu", slots=1, worker_command=SLEEPER)
    assert executor.capacity == 1
    job = executor.submit(run_folder)
    with pytest.raises(SubmitError, match="1 slots are taken"):
        executor.submit(run_folder)
    job.kill()
    wait_for(lambda: job.poll() is not None)
    assert str(job.poll()) == "killed by SIGKILL"
    again = executor.submit(run_folder)
    again.kill()
    wait_for(lambda: again.poll() is not None)


def test_kill_takes_the_workers_children_along(run_folder):
    pid_file = run_folder.path / "child"
    job = LocalExecutor(
        "cpu", slots=1, worker_command=("sh", "-c", f"sleep 60 & echo $! > {pid_file}; wait")
    ).submit(run_folder)
    wait_for(lambda: pid_file.exists() and pid_file.read_text().strip() != "")
    job.kill()
    wait_for(lambda: job.poll() is not None)
    wait_for(lambda: not alive(int(pid_file.read_text())))


def test_a_command_that_is_not_there_is_a_submit_error(run_folder):
    with pytest.raises(SubmitError, match="cannot be started"):
        LocalExecutor("cpu", slots=1, worker_command=("/no/such/program",)).submit(run_folder)


def test_slots_follow_cores_and_threads():
    assert LocalExecutor("cpu", threads=1).capacity == usable_cores()
    assert LocalExecutor("cpu", threads=10_000).capacity == 1


def test_a_containers_quota_counts_as_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda pid: set(range(16)))
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(hardware, "CGROUP_CPU_QUOTA", quota)
    assert usable_cores() == 16
    for microseconds, cores in (("max", 16), ("250000", 2), ("50000", 1), ("9900000", 16)):
        quota.write_text(f"{microseconds} 100000\n")
        assert usable_cores() == cores


def test_gpus_are_filled_one_by_one_before_they_are_shared():
    outer = {"CUDA_VISIBLE_DEVICES": "3,GPU-ab, 5"}
    places = slot_environments("cuda", None, 2, 1, outer)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == ["3", "GPU-ab", "5"] * 2
    assert slot_environments("cuda", 4, 2, 1, outer) == places[:4]


def test_a_run_on_several_gpus_sees_them_and_no_other_does():
    outer = {"CUDA_VISIBLE_DEVICES": "3,GPU-ab,5,6,7"}
    places = slot_environments("cuda", None, 1, 1, outer, gpus_per_run=2)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == ["3,GPU-ab", "5,6"]
    with pytest.raises(ValueError, match=r"slots=3, but 2 group\(s\) of 2 GPUs"):
        slot_environments("cuda", 3, 1, 1, outer, gpus_per_run=2)
    with pytest.raises(ValueError, match="a run takes 6 GPUs, and 5 are visible"):
        slot_environments("cuda", None, 1, 1, outer, gpus_per_run=6)


def test_a_worker_sees_only_its_own_gpu(run_folder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    executor = LocalExecutor("cuda", worker_command=FAKE_WORKER, threads=3)
    assert executor.capacity == 2
    job = executor.submit(run_folder)
    wait_for(lambda: job.poll() is not None)
    _, gpu, threads = (run_folder.path / "starts").read_text().split()
    assert (gpu, threads) == ("6", "3")


def test_cuda_ignores_what_follows_a_minus_one():
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "1,-1,2"}) == ["1"]


def test_mig_slices_stand_for_the_gpu_they_cut():
    listing = (
        "GPU 0: NVIDIA H100 (UUID: GPU-aaaa)\n"
        "  MIG 1g.10gb     Device  0: (UUID: MIG-1111)\n"
        "  MIG 1g.10gb     Device  1: (UUID: MIG-2222)\n"
        "GPU 1: NVIDIA H100 (UUID: GPU-bbbb)\n"
    )
    assert parse_gpu_listing(listing) == ["MIG-1111", "MIG-2222", "GPU-bbbb"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("tpu", None, 1, 1), "'tpu' is none of cpu, cuda, mps"),
        (("cpu", None, 2, 1), "on device=cpu set slots"),
        (("cpu", 0, 1, 1), "slots must be at least 1, not 0"),
        (("cuda", 5, 2, 1), r"slots=5, but 2 device\(s\) x per_device=2 hold 4"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(monkeypatch, arguments, complaint):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ValueError, match=complaint):
        LocalExecutor(*arguments)


def test_no_gpu_in_sight_is_an_error_that_says_where_it_looked():
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES='' names no GPU.*device=cpu"):
        visible_gpus({"CUDA_VISIBLE_DEVICES": ""})


def test_an_end_is_told_in_words():
    ends = (Ended(3), Ended(-9), Ended(-200), Ended(None, "node lost"), Ended(None))
    assert [str(end) for end in ends] == [
        "exit status 3", "killed by SIGKILL", "killed by signal 200", "node lost", "ended in an unknown way",
    ]  # fmt: skip


@pytest.fixture
def real_run(tmp_path, corpus, tiny_spec):
    """The folder of a run that trains for real, its spec written."""
    spec = tiny_spec(steps=2000)
    folder = SweepFolder(tmp_path).run(spec.run_id)
    execution = {
        "device": "cpu", "threads": 1, "data_folder": str(corpus), "micro_batch_sequences": 8, "log_every": 1,
        "evaluations": 0, "checkpoint_seconds": 60, "compile": False,
    }  # fmt: skip
    write_json(folder.spec, {"run_id": spec.run_id, "spec": spec.to_json(), "execution": execution})
    return folder


def test_a_forked_worker_trains_in_its_own_session_and_stops_at_a_checkpoint_when_told(real_run):
    job = LocalExecutor("cpu", slots=1).submit(real_run)
    wait_for(lambda: last_step(real_run.metrics) > 3)
    assert os.getsid(job.pid) == job.pid != os.getsid(0)
    job.cancel()
    wait_for(lambda: job.poll() is not None)
    assert job.poll() == Ended(CHECKPOINTED)
    assert (real_run.checkpoint / "state.pt").exists() and not real_run.result.exists()
    job.cancel()  # after the end: nothing to do, and no error
    job.kill()


def test_a_forked_worker_that_is_killed_says_by_what(real_run):
    job = LocalExecutor("cpu", slots=1).submit(real_run)
    wait_for(lambda: last_step(real_run.metrics) > 3)
    job.kill()
    wait_for(lambda: job.poll() is not None)
    assert str(job.poll()) == "killed by SIGKILL"


def test_a_forked_worker_and_a_spawned_one_come_to_the_same(tmp_path, real_run, tiny_spec):
    spec, request = tiny_spec(), read_json(real_run.spec)
    results = []
    for name, command in (("forked", None), ("spawned", (sys.executable, "-m", "sweep.worker"))):
        folder = SweepFolder(tmp_path / name).run(spec.run_id)
        write_json(folder.spec, {**request, "run_id": spec.run_id, "spec": spec.to_json()})
        job = LocalExecutor("cpu", slots=1, worker_command=command).submit(folder)
        wait_for(lambda: job.poll() is not None)
        assert job.poll() == Ended(0), folder.log.read_text()
        results.append(read_json(folder.result))
    assert results[0]["status"] == "finished"
    assert all(results[0][name] == results[1][name] for name in ("loss", "loss_se", "bits_per_byte", "flops"))


def test_a_forked_worker_outlives_its_coordinator_by_no_more_than_a_checkpoint(real_run):
    """Also one whose coordinator died before it had begun."""
    source = (
        "import os, sys\nfrom pathlib import Path\nfrom sweep.execute.local import LocalExecutor\n"
        "from sweep.files import RunFolder\n"
        "job = LocalExecutor('cpu', slots=1).submit(RunFolder(Path(sys.argv[1])))\n"
        "print(job.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE_ROOT)}
    coordinator = subprocess.run(
        [sys.executable, "-c", source, str(real_run.path)], capture_output=True, text=True, env=environment
    )
    assert coordinator.returncode == -9
    wait_for(lambda: not alive(int(coordinator.stdout)))
    assert last_step(real_run.metrics) < 1000 and not real_run.result.exists()


def test_a_worker_does_not_run_the_script_again_that_its_coordinator_is(tmp_path, real_run):
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        f"with open({str(tmp_path / 'read')!r}, 'a') as file: file.write(__name__ + ' ')\n"
        "if __name__ == '__main__':\n"
        "    import time\n    from sweep.execute.forking import fork_worker\n    from sweep.files import RunFolder\n"
        f"    job = fork_worker(RunFolder(Path({str(real_run.path)!r})), {{}}, {{}})\n"
        "    while job.poll() is None: time.sleep(0.05)\n"
    )
    request = read_json(real_run.spec)
    write_json(real_run.spec, request | {"execution": request["execution"] | {"data_folder": "/no/such"}})
    environment = {**os.environ, "PYTHONPATH": str(SOURCE_ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script)], check=True, env=environment)
    assert read_json(real_run.result)["status"] == "failed"  # it did run
    assert (tmp_path / "read").read_text() == "__main__ "


def test_packed_runs_are_the_lone_ones_bit_for_bit_and_one_s_failure_is_its_own(tmp_path, real_run, tiny_spec):
    request, specs = read_json(real_run.spec), [tiny_spec(seed=seed, steps=40) for seed in range(3)]

    def results(name, slots, broken=None):
        executor, jobs, found = LocalExecutor("cpu", slots=slots), [], []
        for spec in specs:
            folder = SweepFolder(tmp_path / name).run(spec.run_id)
            execution = request["execution"] | ({"data_folder": "/no/such"} if spec is broken else {})
            write_json(folder.spec, {"run_id": spec.run_id, "spec": spec.to_json(), "execution": execution})
            jobs.append(executor.submit(folder))
            if slots == 1:
                wait_for(lambda: jobs[-1].poll() is not None)
        wait_for(lambda: all(job.poll() is not None for job in jobs))
        for spec in specs:
            found.append(read_json(SweepFolder(tmp_path / name).run(spec.run_id).result))
        return [(result["status"], result["loss"], result["loss_se"]) for result in found]

    alone = results("alone", 1)
    assert [status for status, *_ in alone] == ["finished"] * 3
    assert results("packed", 3) == alone
    beside = results("beside", 3, broken=specs[1])
    assert beside[1][0] == "failed" and beside[::2] == alone[::2]
