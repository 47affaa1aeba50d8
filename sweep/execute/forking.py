"""Workers forked from one process that has torch imported: a run of a second does not wait a second for it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import forkserver
from types import ModuleType

from sweep.execute.executor import Ended, SubmitError, process_ended
from sweep.files import RunFolder
from sweep.hardware import oom_kills

PRELOADED = ["torch", "sweep.train.train", "sweep.train.checkpoint", "sweep.train.result"]
"""What a worker needs. None of it starts a thread or touches a GPU, so that a fork of it is as good as new."""


class ForkedJob:
    """One worker process, the leader of its own process group."""

    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        self._process, self._oom_kills = process, oom_kills()

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> Ended | None:
        status = self._process.exitcode
        return None if status is None else process_ended(status, self._oom_kills)

    def cancel(self) -> None:
        self._send(os.kill, signal.SIGTERM)

    def kill(self) -> None:
        self._send(os.kill, signal.SIGKILL)
        self._send(os.killpg, signal.SIGKILL)

    def _send(self, how, number: int) -> None:
        if self.poll() is None:
            try:
                how(self.pid, number)
            except ProcessLookupError:  # it ended meanwhile, or leads no group yet
                pass


def fork_worker(folder: RunFolder, environment: Mapping[str, str], of_server: Mapping[str, str]) -> ForkedJob:
    """Start the worker of this run. `environment` is added to its own, `of_server` to that of the process
    it is forked from, which is started once and ends with this one.

    Raises SubmitError where no process can be started.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    arguments = (str(folder.path.resolve()), str(folder.log.resolve()), dict(environment))
    # a daemon is told to stop, not waited for, should this process end by an error
    process = context.Process(target=_work, args=arguments, daemon=True)
    before = dict(os.environ)
    os.environ.update(of_server)
    try:
        with _without_main():
            forkserver.ensure_running()
            process.start()
    except OSError as error:
        raise SubmitError(f"{folder.path}: its worker cannot be started: {error}") from error
    finally:
        os.environ.clear()
        os.environ.update(before)
    return ForkedJob(process)


@contextmanager
def _without_main():
    """Else each worker runs the script that this process was started by once more, for nothing: `sweep` imports
    Hydra."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(run: str, log: str, environment: dict[str, str]) -> None:
    """In the worker: a session and a log of its own, then the run."""
    os.setsid()
    os.environ.update(environment)
    with open(log, "ab") as file, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    coordinator = multiprocessing.parent_process()
    # by name, since this process alone is to import it
    worker = import_module("sweep.worker")
    sys.exit(worker.main([run], orphaned=lambda: not coordinator.is_alive()))
