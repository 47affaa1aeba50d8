"""Whether a worker still moves: by what it writes, and a clock that nobody sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sweep.execute.lock import is_held
from sweep.files import RunFolder


FIRST_SIGN = 3.0  # assumption: imports, the data and a compilation take longer than what follows


class Pulse:
    """How long a run's worker has given no sign of life; what passes before its first one counts for a third.

    It counts from when the worker holds the run's lock, not while its job waits in a queue; a touched heartbeat
    (after each update, some seconds apart) or a longer metrics.jsonl is a sign. That a file changed is what counts,
    never the time it bears, so a clock that is set, here or on the worker's machine, ends no run.
    """

    def __init__(self, folder: RunFolder, clock: Callable[[], float]) -> None:
        self._folder, self._clock = folder, clock
        self._signs = self._look()
        self._since: float | None = None
        self._moved = False

    def silent_seconds(self) -> float:
        signs = self._look()
        if signs != self._signs:
            self._signs, self._since, self._moved = signs, self._clock(), True
        elif self._since is None and is_held(self._folder.lock):
            self._since = self._clock()
        silent = 0.0 if self._since is None else self._clock() - self._since
        return silent if self._moved else silent / FIRST_SIGN

    def _look(self) -> list[tuple[int, int] | None]:
        return [stamp(path) for path in (self._folder.heartbeat, self._folder.metrics)]


def stamp(path: Path) -> tuple[int, int] | None:
    """What changes when the file does; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
