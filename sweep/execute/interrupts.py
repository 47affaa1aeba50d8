"""Ctrl-C and SIGTERM as a count that a loop can look at, instead of an exception anywhere."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(RuntimeError):
    """The user or the machine asked the coordinator to stop, and it did. `signal` is the first asked by."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = signal.Signals(number)


class Interrupts:
    """Within `with`, SIGINT and SIGTERM only count. Outside the main thread, where Python delivers
    no signals, it counts nothing."""

    def __init__(self) -> None:
        self.count = 0
        self.first = signal.SIGINT
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.count:
            self.first = signal.Signals(number)
        self.count += 1
