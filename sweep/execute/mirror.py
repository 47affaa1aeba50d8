"""The coordinator's end of the wandb mirror: a process beside the sweep, started and ended in bounds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType

from sweep.execute.environment import SOURCE_ROOT
from sweep.files import SweepFolder

LOGGERS = ("auto", "wandb", "none")
PATIENCE_SECONDS = {"auto": 10.0, "wandb": 60.0}
"""Assumption: how long a user waits at the end for uploads they did not ask for, and that they did."""


class Mirror:
    """Shows the sweep in wandb while it runs: `with Mirror(folder, "auto") as mirror: ...`.

    sweep/execute/wandb_mirror.py does the work in a process of its own, from what lies on disk:
    training never waits for it, and nothing that goes wrong there reaches the sweep. It publishes
    online where wandb is logged in and its server answers, and offline otherwise.

    Args:
        logger: "auto"; "wandb", which waits longer for the last uploads; "none".
        say: called with each line that is left when the mirror ends.
    Raises:
        ValueError: an unknown logger. Nothing else, ever: the mirror is not worth a run.
    """

    def __init__(
        self,
        folder: SweepFolder,
        logger: str = "auto",
        *,
        project: str = "scaling-sweep",
        patience_seconds: float | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        if logger not in LOGGERS:
            raise ValueError(f"logger {logger!r} is none of {', '.join(LOGGERS)}. Nothing was launched.")
        self._folder = folder
        self._logger = logger
        self._project = project
        self._patience = PATIENCE_SECONDS.get(logger, 0.0) if patience_seconds is None else patience_seconds
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._partial = b""
        self._unsaid: list[str] = []

    def __enter__(self) -> Mirror:
        if self._logger != "none" and os.environ.get("WANDB_MODE") != "disabled":
            try:
                self._start()
            except OSError as error:
                self._unsaid.append(f"wandb: the mirror cannot be started ({error})")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def messages(self) -> list[str]:
        """Lines for the user, each once. Never blocks."""
        if self._process is not None:
            self._hear(self._process)
        said, self._unsaid = self._unsaid, []
        return said

    def _hear(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        while read := process.stdout.read(65536):  # None when there is nothing yet, b"" at the end
            self._partial += read
        *lines, self._partial = self._partial.split(b"\n")
        self._unsaid += [line.decode("utf-8", errors="replace") for line in lines]

    def close(self) -> None:
        """Let it publish what is left, for as long as the patience lasts, and end it."""
        if self._process is not None:
            process, self._process = self._process, None
            if not self._finish(process):
                self._unsaid.append(
                    f"wandb: the mirror is not complete, the results are; `{self.command}` completes it "
                    f"(log: {self._log})"
                )
        for line in self.messages():
            self._say(line)

    def _finish(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether it ended by itself with everything published."""
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.close()  # its sign to finish
            return process.wait(self._patience) == 0
        except subprocess.TimeoutExpired:
            self._unsaid.append(f"wandb: gave up after {self._patience:.0f} s")
            return False
        finally:
            _end(process)
            self._hear(process)
            process.stdout.close()

    @property
    def command(self) -> str:
        """What makes the mirror complete at any later time."""
        return f"python -m sweep.execute.wandb_mirror {self._folder.path} --project {self._project}"

    @property
    def _log(self) -> str:
        return str(self._folder.wandb / "mirror.log")

    def _start(self) -> None:
        self._folder.wandb.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(SOURCE_ROOT))))
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "sweep.execute.wandb_mirror", str(self._folder.path.resolve())),
                    *("--project", self._project, "--follow"),
                ],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the coordinator, which ends the mirror in its turn
            )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of it: the service that wandb starts is in its process group too."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
