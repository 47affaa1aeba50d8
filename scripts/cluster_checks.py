"""What test_slurm and test_ray share: a small sweep as a process, its workers, and the comparison of runs.csv."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMES = {"wall_seconds", "tokens_per_second"}
SMALL = [
    "scale=cpu", "device=cpu", "+grid=isoflop", "logger=none", "data=text", "data.heldout_fraction=0.2",
    "data.eval_tokens=4096", "model.seq_len=32", "optim.lr=0.006", "grid.budgets=[4e9,8e9]", "grid.sizes_per_budget=4",
    "grid.size_ratio=1.7", "grid.optimum_params=4e3", "grid.optimum_at_flops=1e9", "grid.extensions=0",
    "grid.target.flops=null", "data.max_epochs=50", "optim.batch_tokens=128", "optim.batch_exponent=0",
    "executor.evaluations=0", "executor.checkpoint_seconds=0.2", "schedule.warmup_tokens=null", "schedule.warmup_fraction=0.03",
]  # fmt: skip
"""A grid of eight runs on trunks, a few seconds each: enough for a fit, without which a sweep ends with status 1.
At a rate at which none of them is left out of it."""


class Failed(Exception):
    """What was to be shown is not so."""


class TooLate(Exception):
    """The sweep was done before it could be disturbed, which shows nothing."""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def check(holds: bool, what: str) -> None:
    """Say that it is so; raise Failed where it is not."""
    if not holds:
        raise Failed(what)
    say(f"ok: {what}")


def write_corpus(folder: Path) -> None:
    """Eighty documents of made-up sentences, none a near-copy of another."""
    folder.mkdir()
    draw = random.Random(0)
    subjects, verbs, objects = (
        ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(3, 8))) for _ in range(60)] for _ in range(3)
    )
    for number in range(80):
        lines = (f"the {draw.choice(subjects)} {draw.choice(verbs)}s a {draw.choice(objects)}." for _ in range(60))
        (folder / f"{number:03}.txt").write_text("\n".join(lines))


class SweepProcess:
    """One `python -m sweep` in a work folder that holds corpus/."""

    def __init__(self, work: Path, name: str, *more: str, environment: dict[str, str] | None = None) -> None:
        self.out, self.log = work / name, work / f"{name}.log"
        data = [f"data.path={work / 'corpus'}", f"data.cache={work / 'cache'}", f"out={self.out}"]
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {})}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sweep", *SMALL, *data, *more],
                env=variables, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=work,
            )  # fmt: skip

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def finish(self, seconds: float = 1800) -> None:
        """Wait for it; raises Failed unless it ends well and in time."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"the sweep has not ended after {seconds:.0f} s:\n{self.said()[-3000:]}") from None
        if status:
            raise Failed(f"the sweep ended with status {status}:\n{self.said()[-3000:]}")

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Raises Failed where the sweep ends before `condition` is true, or that takes too long."""
        wait_for(lambda: self.process.poll() is not None or condition(), what)
        if not condition():
            raise Failed(f"the sweep ended before {what}:\n{self.said()[-3000:]}")

    def catch(self, among: Callable[[int], bool] = lambda pid: True) -> tuple[str, int]:
        """Run and pid of a worker that has saved a checkpoint, now stopped (SIGSTOP): its run lasts seconds, and
        could be through before what is to happen to it does. Raises TooLate where the sweep ends well without one."""
        caught: list[tuple[str, int]] = []

        def stop() -> bool:
            for run, pid in self.training().items():
                if among(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGSTOP)
                        if run in self.training():
                            caught.append((run, pid))
                            return True
                        os.kill(pid, signal.SIGCONT)
            return False

        wait_for(lambda: self.process.poll() is not None or stop(), "a worker with a checkpoint")
        if not caught:
            kind = Failed if self.process.returncode else TooLate
            raise kind(f"the sweep ended before a worker with a checkpoint was seen:\n{self.said()[-3000:]}")
        return caught[0]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def workers(self) -> dict[str, int]:
        """Pids of its workers that were started by command line, by run."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if "sweep.worker" in words and words[-2].startswith(str(self.out)):
                found[Path(words[-2]).name] = int(process.name)
        return found

    def results(self) -> set[str]:
        return {path.parent.name for path in self.out.glob("runs/*/result.json")}

    def training(self) -> dict[str, int]:
        """Its workers that have saved a checkpoint and are not through."""
        found = {}
        for run, pid in self.workers().items():
            folder = self.out / "runs" / run
            if (folder / "checkpoint" / "state.pt").exists() and not (folder / "result.json").exists():
                found[run] = pid
        return found


def wait_for(condition: Callable[[], object], what: str, seconds: float = 600) -> None:
    """Raises Failed where `condition` does not come true: a deadline for a hang, not a measure of speed."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.05)


def compare(reference: Path, other: Path) -> None:
    """Raise Failed unless both runs.csv are the same in every column but the times."""
    wanted, found = rows(reference), rows(other)
    check(len(wanted) > 0 and all(row["status"] == "finished" for row in wanted), f"{len(wanted)} local runs finished")
    differences = [
        f"{here['run_id']}.{column}: {here[column]} local, {there[column]} on the cluster"
        for here, there in zip(wanted, found, strict=True)
        for column in here
        if here[column] != there[column]
    ]
    check(not differences, f"runs.csv is the same in all {len(wanted)} rows and {len(wanted[0])} columns but the times"
          + "".join(f"\n  {line}" for line in differences))  # fmt: skip


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "runs.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def report(test: Callable[[], None], name: str) -> int:
    """Run the test, print PASS or FAIL; the exit status. SystemExit, for a test that is skipped, goes through."""
    try:
        test()
    except TooLate as late:
        skip(name, f"it shows nothing here: {late}")
    except Failed as failure:
        print(f"{name}: FAIL: {failure}", flush=True)
        return 1
    print(f"{name}: PASS", flush=True)
    return 0


def skip(name: str, why: str) -> None:
    print(f"{name}: SKIPPED: {why}", flush=True)
    sys.exit(0)


def have_package(package: str) -> str:
    """Install `package` into this interpreter's environment where it is missing; "" or why that can't be."""
    if importlib.util.find_spec(package) is not None:
        return ""
    say(f"installing {package}")
    done = subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"{package} cannot be installed: {done.stderr.strip()[-300:]}"
