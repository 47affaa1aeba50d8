"""Advisory locks that a crash does not leave behind: the kernel drops them with their process."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
from pathlib import Path
from types import TracebackType

from sweep.files import describe_holder


class Locked(RuntimeError):
    """Another living process holds the lock."""


class FileLock:
    """An exclusive flock on `path`, held from `with` to its end. Whether it is held is the kernel's
    word; what the file says (process, host, since when) only informs the one who is refused.

    The file stays when the lock is released: to remove it would let two processes hold locks on
    two files of the same name.

    Raises:
        Locked: held by another. The message opens with `held`, names the holder and ends with `advice`.
        OSError: the folder cannot be written, or its file system has no locks.
    """

    def __init__(self, path: Path, *, held: str, advice: str) -> None:
        self.path = path
        self._held = held
        self._advice = advice
        self._descriptor: int | None = None

    def __enter__(self) -> FileLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            describe_holder(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            raise Locked(f"{self._held} {holder(self.path)} ({self.path}). {self._advice}") from None
        except OSError as error:
            os.close(descriptor)
            raise OSError(
                error.errno,
                f"{self.path}: cannot take the lock ({os.strerror(error.errno or 0)}); put the sweep's "
                "folder on a file system that can be written and that has flock. Nothing was launched",
            ) from error
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class CoordinatorLock(FileLock):
    """One coordinator a sweep: `with CoordinatorLock(folder.lock): ...` around everything that
    writes in the sweep's folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path,
            held=f"The sweep in {path.parent} is already being run by",
            advice="Wait for it, stop it, or run a sweep of another name. Nothing was launched.",
        )


def is_held(path: Path) -> bool:
    """Whether a living process holds an exclusive lock on `path`. A file that is not there is not held.

    The probe takes a shared lock for an instant, so that two probes never see each other.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def kill_holder(path: Path) -> bool:
    """End the process that holds this lock, where it left its name and is one of this machine; whether it did."""
    pid, host = holding_process(path)
    if pid is None or host != socket.gethostname() or not is_held(path):
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return True


def holding_process(path: Path) -> tuple[int | None, str]:
    """Pid and host that the lock file names; (None, "") where it names none."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return int(said["pid"]), str(said["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, ""


def holder(path: Path) -> str:
    """What the lock file says of its holder, in words."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return f"process {said['pid']} on {said['host']} since {said['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that left no name"
