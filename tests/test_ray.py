"""The Ray executor against a stand-in for ray; scripts/test_ray does it with a cluster of two nodes."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from sweep.execute import ray as module
from sweep.execute.attend import attend_interruptibly
from sweep.execute.executor import Ended, SubmitError
from sweep.execute.ray import RayExecutor
from sweep.files import SweepFolder


class RayError(Exception):
    pass


class OutOfMemoryError(RayError):
    pass


class FakeRay:
    """As much of ray as the executor uses. Tasks are names; `ended` holds what each came to."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, *nodes: dict[str, float]) -> None:
        self.nodes_there = [{"Alive": True, "Resources": node} for node in nodes]
        self.ended: dict[str, object] = {}
        self.cancelled: list[tuple[str, bool]] = []
        self.started: list[tuple] = []
        self.options_given: dict = {}

    def nodes(self):
        return self.nodes_there

    def cluster_resources(self):
        return {}

    def remote(self, function):
        assert function is attend_interruptibly
        return self

    def options(self, **given):
        self.options_given = given
        return SimpleNamespace(remote=self._start)

    def _start(self, run, environment):
        self.started.append((run, environment))
        return run

    def wait(self, tasks, timeout):
        assert timeout == 0  # a poll never blocks
        return ([task for task in tasks if task in self.ended], [])

    def get(self, task):
        came = self.ended[task]
        if isinstance(came, Exception):
            raise came
        return came

    def cancel(self, task, force=False):
        self.cancelled.append((task, force))


@pytest.fixture
def place(monkeypatch):
    def build(*nodes, gpus=0.0, cpus=1.0, slots=None, device="cpu"):
        ray = FakeRay(*nodes)
        monkeypatch.setattr(module, "connect", lambda address: ray)
        return ray, RayExecutor(None, gpus=gpus, cpus=cpus, slots=slots, device=device)

    return build


@pytest.mark.parametrize(
    "gpus, cpus, room",
    [(0, 1, 6), (0, 2, 2), (1, 1, 3), (0.25, 0.5, 10), (0.3, 0, 9), (2, 1, 1), (0.1, 0.1, 30)],
)
def test_room_is_counted_node_by_node(place, gpus, cpus, room):
    """A node of one GPU and 3 cores, and one of two and 3; a run of two cores fits once on each."""
    _, executor = place({"GPU": 1.0, "CPU": 3.0}, {"GPU": 2.0, "CPU": 3.0}, gpus=gpus, cpus=cpus, device="cpu")
    assert executor.capacity == room


def test_a_node_that_died_has_no_room_and_slots_bound_it(place, monkeypatch):
    monkeypatch.setattr(module, "RESOURCES_SECONDS", -1.0)
    ray, executor = place({"CPU": 2.0}, {"CPU": 2.0})
    assert executor.capacity == 4
    ray.nodes_there[0]["Alive"] = False
    assert executor.capacity == 2
    ray.nodes_there[1]["Alive"] = False
    assert executor.capacity == 1  # the sweep waits for a node, rather than for nothing
    _, bounded = place({"CPU": 4.0}, slots=3)
    assert bounded.capacity == 3


def test_a_run_that_fits_on_no_node_is_refused(place):
    with pytest.raises(ValueError, match="a run asks for 1 GPU and 1 CPU.*Nothing was launched"):
        place({"CPU": 8.0}, gpus=1.0)


def test_a_task_asks_for_what_a_run_takes_and_is_never_repeated_by_ray(place):
    ray, executor = place({"CPU": 2.0, "GPU": 1.0}, gpus=0.5, cpus=1.0, device="cuda")
    given = ray.options_given
    assert (given["num_gpus"], given["num_cpus"], given["max_retries"]) == (0.5, 1.0, 0)


def test_how_a_worker_ended_is_told(place, tmp_path):
    ray, executor = place({"CPU": 2.0})
    folder = SweepFolder(tmp_path).run("0" * 12)
    job = executor.submit(folder)
    (started, environment), task = ray.started[0], str(folder.path.resolve())
    assert started == task and environment["OMP_NUM_THREADS"] == "1"
    assert job.poll() is None
    ray.ended[task] = Ended(-9)
    assert job.poll() == Ended(-9)
    ray.ended[task] = RayError("the node 10.0.0.2 died\nsomething long")
    assert job.poll().status is None and "10.0.0.2 died" in str(job.poll())
    assert not job.poll().out_of_memory
    ray.ended[task] = OutOfMemoryError("memory on the node was 95%")
    assert job.poll().out_of_memory
    job.cancel()
    job.kill()
    assert ray.cancelled == [(task, False), (task, True)]


def test_a_submission_that_ray_refuses_is_a_submit_error(place, tmp_path):
    ray, executor = place({"CPU": 2.0})

    def refuse(*_):
        raise RayError("the cluster is gone")

    executor._attend = SimpleNamespace(remote=refuse)
    with pytest.raises(SubmitError, match="the cluster is gone"):
        executor.submit(SweepFolder(tmp_path).run("0" * 12))


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'scaling-sweep\[ray\]'.*Nothing was launched"):
        module.connect(None)


def test_a_token_that_is_there_is_used_unless_the_user_says_otherwise(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "TOKEN_FILE", tmp_path / "auth_token")
    module.use_token()
    assert "RAY_AUTH_MODE" not in os.environ
    (tmp_path / "auth_token").write_text("secret")
    module.use_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    module.use_token()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_an_address_where_nobody_answers_says_what_to_check(monkeypatch):
    def init(**given):
        raise ConnectionError("Failed to connect to Ray cluster at 10.9.9.9:6379")

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    there = SimpleNamespace(is_initialized=lambda: False, init=init, exceptions=SimpleNamespace(RayError=RayError))
    monkeypatch.setitem(sys.modules, "ray", there)
    with pytest.raises(ValueError, match="10.9.9.9:6379.*executor.address.*RAY_AUTH_TOKEN_PATH.*Nothing was launched"):
        module.connect("10.9.9.9:6379")
