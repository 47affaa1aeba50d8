"""metrics.jsonl as others read it: while the worker still writes, and after it was resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Any

Line = dict[str, Any]


class MetricsTail:
    """The latest training line of a metrics.jsonl, reading only what was added since the last look.

    A resumed worker replaces the file by a shorter one; it is then read from its beginning.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._latest: Line | None = None
        self._inode = -1
        self._offset = 0

    def read(self) -> Line | None:
        """None before the first line. A last line that is still being written is left for later."""
        try:
            with open(self._path, "rb") as file:
                self._seek(file)
                added = file.read()
        except FileNotFoundError:
            return self._latest
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        for text in reversed(whole.splitlines()):
            line = _parse(text)
            if line is not None and "loss" in line:
                self._latest = line
                break
        return self._latest

    def _seek(self, file: IO[bytes]) -> None:
        status = os.fstat(file.fileno())
        if status.st_ino != self._inode or status.st_size < self._offset:
            self._inode, self._offset = status.st_ino, 0
        file.seek(self._offset)


def read_history(path: Path) -> list[Line]:
    """Every whole line in the order of steps; of lines for one step and kind the last one written,
    which is what a resumed worker did again. Empty where there is no file."""
    lines: dict[tuple[int, bool, bool], Line] = {}
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    for raw in text.splitlines():
        line = _parse(raw)
        if line is not None:
            lines[line["step"], "eval_loss" in line, "gradient_square" in line] = line
    return [lines[key] for key in sorted(lines)]


def last_step(path: Path) -> int:
    """The step of the last whole training line; 0 before the first."""
    latest = MetricsTail(path).read()
    return 0 if latest is None else int(latest["step"])


def _parse(raw: bytes) -> Line | None:
    """One line; None where a crash cut it off."""
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None
