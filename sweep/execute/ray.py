"""Workers as Ray tasks (the only module that imports ray): a local cluster, or one that is there."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

from sweep.execute.attend import attend_interruptibly, worker_environment
from sweep.execute.executor import Ended, SubmitError
from sweep.files import RunFolder

RESOURCES_SECONDS = 5.0  # assumption: how late a node that joined is made use of
TOKEN_FILE = Path("~/.ray/auth_token")  # Ray's own default, where neither variable names another


class RayExecutor:
    """A task for each run, which starts the worker on whatever node has room for it.

    The folder of the sweep and the cache of its data must lie where every node sees them. Ray is told not
    to repeat a task: where a node dies the coordinator starts the run again, from its checkpoint.

    Args:
        address: of a cluster ("10.0.0.1:6379", or "auto" on one of its nodes); None: one on this machine.
        gpus, cpus: that a run takes of one node, fractions allowed: gpus=0.25 packs four runs on each GPU.
        slots: tasks to hold at one time; None: as many as the cluster has room for.
        device: "cpu" or "cuda".
    Raises:
        ValueError: ray is not installed, no cluster answers at `address` or it wants a token, or a run
            asks for more than all nodes have together.
    """

    def __init__(
        self,
        address: str | None,
        *,
        gpus: float,
        cpus: float,
        slots: int | None,
        device: str,
        threads: int = 1,
    ) -> None:
        environment = worker_environment(device, threads)
        self._ray = connect(address)
        self._gpus, self._cpus, self._slots = gpus, cpus, slots
        self._seen, self._room = -math.inf, 1
        if self._count_room() < 1:
            have = self._ray.cluster_resources()
            raise ValueError(
                f"executor=ray: a run asks for {gpus:g} GPU and {cpus:g} CPU on one node; the cluster has "
                f"{have.get('GPU', 0):g} and {have.get('CPU', 0):g}. Lower executor.gpus_per_run "
                "or add nodes. Nothing was launched."
            )
        self._environment = environment
        self._attend = self._ray.remote(attend_interruptibly).options(
            num_gpus=gpus,
            num_cpus=cpus,
            max_retries=0,
            runtime_env={"env_vars": {"PYTHONPATH": environment["PYTHONPATH"]}},
        )

    @property
    def capacity(self) -> int:
        if self._slots is not None:
            return self._slots
        if time.monotonic() - self._seen > RESOURCES_SECONDS:
            self._room, self._seen = self._count_room(), time.monotonic()
        return max(1, self._room)

    def adopt(self, folder: RunFolder) -> None:
        """None, always: a Ray task ends with the process that started it."""

    def submit(self, folder: RunFolder) -> RayJob:
        try:
            return RayJob(self._ray, self._attend.remote(str(folder.path.resolve()), self._environment))
        except self._ray.exceptions.RayError as error:
            raise SubmitError(f"{folder.path}: Ray does not take its task: {error}") from error

    def _count_room(self) -> int:
        """Runs that fit on all living nodes together, node by node: a task never spans two."""
        room = 0
        for node in self._ray.nodes():
            if node["Alive"]:
                have = node["Resources"]
                asked = ((self._gpus, have.get("GPU", 0.0)), (self._cpus, have.get("CPU", 0.0)))
                room += min((math.floor(there / wanted + 1e-9) for wanted, there in asked if wanted > 0), default=0)
        return room


class RayJob:
    """One task."""

    def __init__(self, ray: Any, task: Any) -> None:
        self._ray, self._task = ray, task

    def poll(self) -> Ended | None:
        done, _ = self._ray.wait([self._task], timeout=0)
        if not done:
            return None
        try:
            return self._ray.get(self._task)
        except self._ray.exceptions.RayError as error:  # its process or its node died, or it was cancelled
            words = " ".join(str(error).split())
            kind = type(error).__name__
            # Ray's own memory monitor kills a task before the kernel would
            return Ended(None, f"{kind}: {words[:300]}", out_of_memory=kind == "OutOfMemoryError")

    def cancel(self) -> None:
        self._ray.cancel(self._task)

    def kill(self) -> None:
        self._ray.cancel(self._task, force=True)


def require_ray() -> Any:
    """ray, not connected to anything. Raises ValueError, with what to do, where it is not installed."""
    use_token()
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            f"executor=ray needs ray ({error}). Install it: pip install 'scaling-sweep[ray]', or say "
            "executor=local. Nothing was launched."
        ) from error
    return ray


def connect(address: str | None) -> Any:
    """ray, connected. Raises ValueError, with what to do."""
    ray = require_ray()
    if ray.is_initialized():
        return ray
    try:
        own = {"include_dashboard": False} if address is None else {}
        ray.init(address=address or "local", log_to_driver=False, logging_level="WARNING", **own)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ValueError(
            f"executor=ray: no connection to {address or 'a cluster on this machine'} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:500]}). Check executor.address; where the "
            "cluster wants a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=<file>, or put it in "
            f"{TOKEN_FILE}. Nothing was launched."
        ) from error
    return ray


def use_token() -> None:
    """Use the token that is there: `ray start --head` demands one by default since Ray 2.60, and a driver
    sends one only where RAY_AUTH_MODE says so, which is read when ray is imported."""
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if "RAY_AUTH_MODE" not in os.environ and (given or TOKEN_FILE.expanduser().exists()):
        os.environ["RAY_AUTH_MODE"] = "token"
