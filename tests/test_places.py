from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweep import state
from sweep.execute.local import LocalExecutor
from sweep.files import SweepFolder
from sweep.hardware import Hardware, find_hardware
from sweep.places import cores_per_run, executor_for, hardware_for, is_remote, lone_gain, ranks_of
from sweep.plan.schema import ConfigError, LocalExecutorConfig, RayExecutorConfig, SlurmExecutorConfig
from sweep.plan.spec import PlannedRun

ROOT = Path(__file__).resolve().parent.parent
CPU = ("scale=cpu", "+grid=isoflop")


@pytest.mark.parametrize(
    "name, kind", [("local", LocalExecutorConfig), ("slurm", SlurmExecutorConfig), ("ray", RayExecutorConfig)]
)
def test_each_place_has_its_own_keys_and_all_have_the_runs_keys(compose, name, kind):
    executor = compose(*CPU, f"executor={name}").executor
    assert type(executor) is kind and executor.retries == 2 and executor.compile is False
    assert compose("scale=gpu", "+grid=isoflop", f"executor={name}").executor.compile is True


def test_a_gpu_is_asked_for_at_gpu_scale(compose):
    for name in ("slurm", "ray"):
        assert compose(*CPU, f"executor={name}").executor.gpus_per_run == 0
        assert compose("scale=gpu", "+grid=isoflop", f"executor={name}").executor.gpus_per_run == 1
    assert compose("scale=gpu", "+grid=isoflop", "executor=ray", "executor.gpus_per_run=0.25").executor.gpus_per_run == 0.25


def test_further_options_of_sbatch_pass_through(compose):
    extra = compose(*CPU, "executor=slurm", "+executor.extra={qos: high, exclusive: true}").executor.extra
    assert extra == {"qos": "high", "exclusive": True}


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["executor=slurm", "+executor.per_device=2"], "executor.per_device"),
        (["executor=local", "+executor.partition=x"], "executor.partition"),
        (["executor=slurm", "executor.gpus_per_run=0.5"], "executor.gpus_per_run"),
        (["executor=ray", "executor.gpus_per_run=1.5"], "a part of a GPU, or on one or several whole ones"),
        (["executor=ray", "executor.gpus_per_run=-1"], "executor.gpus_per_run"),
        (["executor=ray", "+executor.cpus_per_run=4"], "executor.cpus_per_run"),
        (["executor=slurm", "device=cuda"], "device=cuda"),
        (["executor=slurm", "device=cpu", "executor.gpus_per_run=1"], "device=cpu"),
        (["executor.gpus_per_run=2", "device=cpu"], "device=cpu uses none; give null"),
        (["executor.gpus_per_run=0"], "give null, or 1 and more"),
        (["executor.gpus_per_run=2", "executor.per_device=2"], "executor.per_device"),
        (["executor.shard=true"], "means nothing without executor.gpus_per_run of 2 or more"),
        (["executor.gpus_per_run=2", "executor.shard=true", "optim=muon"], "optim=muon wants whole matrices"),
        (["executor.gpus_per_run=2", "executor.noise_scales=1"], "executor.noise_scales: .* executor.shard=false"),
        (["executor=slurm", "executor.time=5"], "executor.checkpoint_minutes"),
        (["executor=runs"], "executor: nothing chosen"),
    ],
)
def test_what_a_place_cannot_do_is_refused(compose, overrides, words):
    with pytest.raises(ConfigError, match=words):
        compose(*CPU, *overrides)


def test_a_process_for_each_gpu_of_a_run(compose):
    asked = ("executor.gpus_per_run=4",)
    for overrides in ((), ("executor.gpus_per_run=1",), ("executor=ray", "executor.gpus_per_run=0.25")):
        assert compose("scale=gpu", "+grid=isoflop", *overrides).executor.ranks == 1
    for overrides in (("executor.gpus_per_run=4",), ("executor=slurm", *asked), ("executor=ray", *asked)):
        assert compose("scale=gpu", "+grid=isoflop", *overrides).executor.ranks == 4


def test_a_run_that_wants_more_gpus_than_there_are_is_refused(compose, monkeypatch):
    monkeypatch.setattr("sweep.hardware.has_gpu", lambda: False)
    with pytest.raises(ValueError, match="executor.gpus_per_run: 2, and torch finds no GPU here"):
        hardware_for(compose(*CPU, "executor.gpus_per_run=2"))


def test_gpus_are_dealt_out_to_runs(monkeypatch):
    import torch

    class Card:
        total_memory = 80 * 10**9

    monkeypatch.setattr("sweep.hardware.has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 7)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card)
    for gpus_per_run, slots in ((None, 7), (1, 7), (2, 3), (4, 1), (7, 1)):
        found = find_hardware("auto", None, 1, gpus_per_run)
        assert (found.slots, found.memory_per_run) == (slots, Card.total_memory)
    with pytest.raises(ValueError, match="executor.gpus_per_run: 8, and this machine has 7"):
        find_hardware("auto", None, 1, 8)


def test_the_local_place_is_this_machine(compose, tmp_path):
    config = compose(*CPU, "device=cpu", "executor.slots=2")
    hardware = hardware_for(config)
    assert not is_remote(config) and hardware.slots == 2 and hardware.memory > 0
    executor = executor_for(config, hardware, SweepFolder(tmp_path))
    assert isinstance(executor, LocalExecutor) and executor.capacity == 2


@pytest.mark.parametrize("gpus, cores", [(0, 1), (0.25, 2), (1, 2), (4, 8)])
def test_a_run_reserves_the_cores_that_it_keeps_busy(gpus, cores):
    assert cores_per_run(gpus) == cores


def test_a_plan_starts_no_ray(compose, monkeypatch):
    class Ray:
        """Whatever is asked of it fails: it is only found."""

    monkeypatch.setitem(sys.modules, "ray", Ray())
    for more, slots in (([], 0), (["executor.slots=5"], 5)):
        found = hardware_for(compose(*CPU, "executor=ray", "plan_only=true", *more))
        assert found.slots == slots and found.memory_per_run == float("inf")
    with pytest.raises(AttributeError):
        hardware_for(compose(*CPU, "executor=ray"))


@pytest.mark.parametrize("place, package", [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_is_named_before_anything_starts(place, package, tmp_path):
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / f"{package}.py").write_text(f"raise ImportError('No module named {package}')")
    done = subprocess.run(
        [sys.executable, "-m", "sweep", *CPU, f"executor={place}", f"out={tmp_path}/out"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}/hide:{ROOT}"}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2 and f"pip install 'scaling-sweep[{place}]'" in done.stderr, done.stderr
    assert "Nothing was launched" in done.stderr and not (tmp_path / "out").exists()


def test_only_a_lone_run_takes_the_cores_that_would_idle(compose, tiny_spec):
    """And no more of them than its batches go round; on a GPU, and elsewhere, what was asked for."""
    here, six = Hardware("cpu", 4, 2**34, ""), tiny_spec(batch_sequences=6)
    plain, elsewhere = compose(*CPU), compose(*CPU, "executor=slurm")
    assert ranks_of(plain, here, six, alone=False) == 1
    assert ranks_of(plain, here, six, alone=True) == 3
    assert ranks_of(plain, Hardware("cpu", 2, 2**34, ""), six, alone=True) == 2
    assert ranks_of(plain, here, tiny_spec(batch_sequences=1), alone=True) == 1
    assert ranks_of(elsewhere, here, six, alone=True) == 1
    assert ranks_of(compose(*CPU, "executor.compile=true"), here, six, alone=True) == 1
    assert lone_gain(plain, here, six) > 1 == lone_gain(plain, Hardware("cuda", 4, 2**34, ""), six)


@pytest.mark.parametrize("roles, ranks", [(["holdout"], 2), (["fit"], 1), (["trunk"], 1), (["holdout", "holdout"], 1)])
def test_what_laws_are_fitted_to_is_never_shared_though_it_runs_alone(
    compose, tiny_spec, tmp_path, monkeypatch, roles, ranks
):
    """So that its loss is the same to the last bit, whatever ran beside it."""
    asked = []
    monkeypatch.setattr(
        state, "execute", lambda folder, runs, place, how, **rest: asked.extend(how(run)["ranks"] for run in runs) or []
    )
    runs = [PlannedRun(tiny_spec(batch_sequences=6, seed=seed), "g", role) for seed, role in enumerate(roles)]
    hardware = Hardware("cpu", 2, 2**34, "")
    sweep = state.Sweep(compose(*CPU), SweepFolder(tmp_path), hardware, None, facts={"fingerprint": "f"})
    sweep.execute(runs, None)
    assert asked == [ranks] * len(roles)
