"""What SLURM's queue holds of one sweep. The queue is all that is asked: sacct needs a database that many
clusters don't have."""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import IO

log = logging.getLogger(__name__)

ANSWER_SECONDS = 60.0  # assumption: a busy controller answers within this, or is asked again


class QueueError(RuntimeError):
    """squeue has no answer. The message has its own words."""


@dataclass(frozen=True)
class QueuedJob:
    """job: as squeue names it ("1234", "1234_5"); name: of the job; state: PENDING, RUNNING, COMPLETING, ..."""

    job: str
    name: str
    state: str


def squeue_command() -> list[str]:
    """Lists this user's jobs, a line each, an array's one by one."""
    return ["squeue", f"--user={os.getuid()}", "--noheader", "--array", "--format=%i|%T|%j"]


def parse_squeue(text: str, prefix: str) -> dict[str, QueuedJob]:
    """The jobs whose names start with `prefix`, by job."""
    found = {}
    for line in text.splitlines():
        job, _, rest = line.strip().partition("|")
        state, _, name = rest.partition("|")
        if name.startswith(prefix):
            found[job] = QueuedJob(job, name, state)
    return found


class Queue:
    """The queue as last seen. `look` asks for it in the background, at most every `seconds`."""

    def __init__(self, prefix: str, seconds: float) -> None:
        self._prefix, self._seconds = prefix, seconds
        self._asked = -float("inf")
        self._process: subprocess.Popen[bytes] | None = None
        self._answer: IO[bytes] | None = None
        self._warned = False
        self.jobs: dict[str, QueuedJob] = {}
        self.seen = -float("inf")
        """When squeue was started for what `jobs` holds, in seconds of time.monotonic()."""

    def read(self) -> dict[str, QueuedJob]:
        """Ask and wait. Raises QueueError."""
        asked = time.monotonic()
        try:
            done = subprocess.run(
                squeue_command(), capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            words = (getattr(error, "stderr", None) or str(error)).strip()
            raise QueueError(f"squeue gives no answer: {words}") from error
        self.jobs, self.seen, self._asked = parse_squeue(done.stdout, self._prefix), asked, asked
        return self.jobs

    def look(self) -> None:
        """Take in an answer that has come, ask again where it is time. Never blocks; where squeue fails, what
        was seen before stands, and it is said once."""
        now = time.monotonic()
        if self._process is None:
            if now - self._asked >= self._seconds:
                self._ask(now)
            return
        status = self._process.poll()
        if status is None and now - self._asked > ANSWER_SECONDS:
            self._process.kill()
        if status is not None:
            self._take(status)

    def _ask(self, now: float) -> None:
        self._asked, self._answer = now, tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                squeue_command(), stdin=subprocess.DEVNULL, stdout=self._answer, stderr=subprocess.STDOUT
            )
        except OSError as error:
            self._warn(str(error))

    def _take(self, status: int) -> None:
        assert self._answer is not None
        self._answer.seek(0)
        said = self._answer.read().decode("utf-8", errors="replace")
        self._answer.close()
        self._process = self._answer = None
        if status == 0:
            self.jobs, self.seen, self._warned = parse_squeue(said, self._prefix), self._asked, False
        else:
            self._warn(said.strip() or f"exit status {status}")

    def _warn(self, words: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("squeue gives no answer (%s); asking on, jobs count as running meanwhile", words)
