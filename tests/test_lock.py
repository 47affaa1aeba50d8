from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from sweep.execute.lock import CoordinatorLock, Locked, is_held

HOLD = """
import sys, time
from pathlib import Path
from sweep.execute.lock import CoordinatorLock
with CoordinatorLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holding(tmp_path):
    """A lock file, and another process that holds it."""
    path = tmp_path / "coordinator.lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield path, process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_coordinator_is_refused_and_told_who_holds_the_sweep(holding):
    path, process = holding
    with pytest.raises(Locked, match=rf"process {process.pid} on .+ since 20.*Nothing was launched"):
        with CoordinatorLock(path):
            pytest.fail("two coordinators hold one sweep")


def test_a_killed_holder_leaves_no_lock_behind(holding):
    path, process = holding
    assert is_held(path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not is_held(path)
    with CoordinatorLock(path):
        assert is_held(path)


def test_the_lock_ends_with_its_block_also_on_an_error(tmp_path):
    path = tmp_path / "lock"
    with pytest.raises(ZeroDivisionError):
        with CoordinatorLock(path):
            assert is_held(path)
            raise ZeroDivisionError
    assert not is_held(path)
    with CoordinatorLock(path):
        pass


def test_a_started_program_does_not_inherit_the_lock(tmp_path):
    path = tmp_path / "lock"
    with CoordinatorLock(path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        assert not is_held(path)
    finally:
        child.kill()
        child.wait()


def test_probing_neither_creates_nor_takes_the_lock(tmp_path):
    path = tmp_path / "lock"
    assert not is_held(path)
    assert not path.exists()
    path.touch()
    assert not is_held(path)
    with CoordinatorLock(path):
        pass


def test_a_damaged_lock_file_still_refuses(holding):
    path, _ = holding
    os.truncate(path, 3)
    with pytest.raises(Locked, match="a process that left no name"):
        CoordinatorLock(path).__enter__()
