"""Folders that are whole or absent: built under another name, by one process at a time, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


def default_cache() -> Path:
    """$SCALING_SWEEP_CACHE, or ~/.cache/scaling-sweep."""
    return Path(os.environ.get("SCALING_SWEEP_CACHE") or "~/.cache/scaling-sweep").expanduser()


def build_once(folder: Path, build: Callable[[Path], None], say: Callable[[str], None]) -> None:
    """Make `folder` by calling build(empty folder beside it), unless it is there already.

    A build that fails or is killed leaves no `folder`; what a killed one did leave is removed by the
    next. Whoever comes second waits, then finds the first one's folder.

    Raises:
        OSError: a read-only place or a full disk; and whatever `build` raises.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with turn(folder.with_name(f"{folder.name}.lock"), say):
        if folder.exists():
            return
        prefix = f".{folder.name}-"
        for leftover in folder.parent.glob(f"{prefix}*"):
            shutil.rmtree(leftover)
        partial = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        try:
            partial.chmod(0o777 & ~current_umask())  # mkdtemp's 0700 would shut colleagues out
            build(partial)
            os.rename(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def turn(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock at `path`. The system frees it when its holder dies."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process prepares the same corpus; waiting for it (lock {path})")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def current_umask() -> int:
    """The process's umask, which can be read only by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
