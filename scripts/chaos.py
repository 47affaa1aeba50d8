"""A CPU sweep under a seeded storm of faults, held against the same sweep left alone.

    python scripts/chaos.py [--faults 200] [--seed 0] [--slots 2]

Real training of tiny decoders, trunks and branches. Faults strike its workers, its coordinator and its files;
where the coordinator ends, the same command is given again. A sweep that ends before all faults were injected is
followed by another one. Prints a table: fault, times injected, survived, lost. A fault is lost where, in the end,
the row of the run that it struck (any row, where it struck no single run) is not the undisturbed one in every
column but times. Ends with status 1 where one is lost or a finished run was trained again.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from models.config import DecoderShape
from sweep.data.shards import ShardWriter
from sweep.execute.coordinator import execute
from sweep.execute.interrupts import Interrupted
from sweep.execute.ledger import FINAL
from sweep.execute.local import LocalExecutor
from sweep.execute.lock import CoordinatorLock, Locked
from sweep.execute.progress import LineProgress
from sweep.files import RunFolder, SweepFolder, read_json
from sweep.plan.order import parent_id
from sweep.plan.spec import DataSpec, OptimSpec, PlannedRun, RunSpec, ScheduleSpec
from sweep.plan.trunks import share

TIMES = {"wall_seconds", "tokens_per_second"}
VOCAB, SEQ = 32, 16
LENGTHS, WIDTHS, SEEDS = (60, 90, 120), (16, 32), (0, 1)
HANG_SECONDS = 15.0
REFUSED = 3  # exit status of a second coordinator


def runs() -> list[PlannedRun]:
    """Twelve runs that branch off four trunks of three segments."""
    specs = [
        RunSpec(
            shape=DecoderShape(2, width, 2, 2 * width, VOCAB, SEQ),
            data=DataSpec("chaos", 512),
            optim=OptimSpec("mup", 0.02, 16, 0.9, 0.95, 1e-8, 0.1, 1.0),
            schedule=ScheduleSpec("wsd", 4, steps // 5, "linear", 0.0),
            batch_sequences=8,
            steps=steps,
            seed=seed,
            precision="fp32",
        )
        for width in WIDTHS
        for seed in SEEDS
        for steps in LENGTHS
    ]
    shared = share([PlannedRun(spec, "chaos") for spec in specs])
    return [*shared.trunks, *shared.runs]


def write_corpus(folder: Path) -> None:
    """A learnable source: each token is the last one plus 1, or, one time in four, random."""
    rng = np.random.default_rng(0)
    tokens = np.cumsum(np.where(rng.random(20_000) < 0.25, rng.integers(VOCAB, size=20_000), 1)) % VOCAB
    folder.mkdir(parents=True)
    with ShardWriter(folder, VOCAB) as shards:
        shards.add_train(tokens[:18_000])
        shards.add_heldout(tokens[18_000:], rng.integers(1, 4, size=2_000))
        shards.finish(tokenizer_digest="none", end_of_document=0, entropy_rate=None, source="chaos", counts={})


def coordinate(folder: SweepFolder, corpus: Path, slots: int) -> int:
    """In a process of its own: bring every run to its end. Exit status 0; 1 with a failed run among them."""

    def settings(run: PlannedRun) -> dict:
        return {
            "device": "cpu", "threads": 1, "data_folder": str(corpus), "micro_batch_sequences": 8, "log_every": 1,
            "evaluations": 0, "checkpoint_seconds": 0.05, "compile": False, "parent": parent_id(run),
        }  # fmt: skip

    try:
        with CoordinatorLock(folder.lock):
            outcomes = execute(
                folder, runs(), LocalExecutor("cpu", slots=slots), settings, retries=1000,
                hang_seconds=HANG_SECONDS, progress=LineProgress(),
            )  # fmt: skip
    except Locked:
        return REFUSED
    except Interrupted as stopped:
        return 128 + stopped.signal
    return int(any(outcome.status == "failed" for outcome in outcomes))


@dataclass
class Sweep:
    """The sweep that the storm is over: its folder, its coordinator while it runs, and what struck whom."""

    folder: SweepFolder
    corpus: Path
    slots: int
    draw: random.Random
    coordinator: subprocess.Popen | None = None
    struck: list[tuple[str, str | None]] = field(default_factory=list)

    def start(self) -> subprocess.Popen:
        command = [sys.executable, __file__, "--coordinate", str(self.folder.path), str(self.corpus), str(self.slots)]
        with open(self.folder.path.with_suffix(".log"), "ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def workers(self) -> dict[str, int]:
        """Processes that write to the logs of this sweep's runs, by run id."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                log = os.readlink(process / "fd" / "1")
            except OSError:  # it has ended
                continue
            if log.startswith(str(self.folder.path)) and log.endswith("worker.log"):
                found[Path(log).parent.name] = int(process.name)
        return found

    def files(self, name: str) -> list[Path]:
        return sorted(self.folder.path.glob(f"runs/*/{name}"))


def to_worker(action: Callable[[int], None]) -> Callable[[Sweep], str | None]:
    def strike(sweep: Sweep) -> str | None:
        workers = sweep.workers()
        if not workers:
            raise LookupError
        run_id = sweep.draw.choice(sorted(workers))
        action(workers[run_id])
        return run_id

    return strike


def to_coordinator(number: int, workers_too: bool = False) -> Callable[[Sweep], None]:
    def strike(sweep: Sweep) -> None:
        if sweep.coordinator is None or sweep.coordinator.poll() is not None:
            raise LookupError
        victims = sweep.workers().values() if workers_too else ()
        sweep.coordinator.send_signal(number)
        for victim in victims:
            os.kill(victim, number)

    return strike


def to_file(name: str, damage: Callable[[bytes, random.Random], bytes]) -> Callable[[Sweep], str | None]:
    """Write the damaged content over the file in place, as a disk would, not beside it."""

    def strike(sweep: Sweep) -> str | None:
        files = [sweep.folder.runs_csv] if name == "runs.csv" else sweep.files(name)
        if not files or not all(path.exists() for path in files):
            raise LookupError
        path = sweep.draw.choice(files)
        with open(path, "r+b") as file:
            content = damage(file.read(), sweep.draw)
            file.seek(0)
            file.write(content)
            file.truncate()
        return None if name == "runs.csv" else path.relative_to(sweep.folder.path).parts[1]

    return strike


def half(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def flipped(content: bytes, draw: random.Random) -> bytes:
    if not content:
        return content
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def second_coordinator(sweep: Sweep) -> None:
    if sweep.coordinator is None or sweep.coordinator.poll() is not None or not sweep.workers():
        raise LookupError
    second = sweep.start()
    if second.wait() != REFUSED and sweep.coordinator.poll() is None:
        raise AssertionError("two coordinators ran at one time")


FAULTS: dict[str, Callable[[Sweep], str | None]] = {
    "worker killed": to_worker(lambda pid: os.kill(pid, signal.SIGKILL)),
    "worker told to stop": to_worker(lambda pid: os.kill(pid, signal.SIGTERM)),
    "worker hangs": to_worker(lambda pid: os.kill(pid, signal.SIGSTOP)),
    "disk full for a worker": to_worker(lambda pid: resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, 4096)) and None),
    "coordinator killed": to_coordinator(signal.SIGKILL),
    "coordinator and workers killed": to_coordinator(signal.SIGKILL, workers_too=True),
    "SIGTERM to the coordinator": to_coordinator(signal.SIGTERM),
    "Ctrl-C": to_coordinator(signal.SIGINT),
    "second coordinator": second_coordinator,
    "checkpoint cut off": to_file("checkpoint/state.pt", half),
    "bit of a checkpoint flipped": to_file("checkpoint/state.pt", flipped),
    "metrics cut off": to_file("metrics.jsonl", half),
    "runs.csv cut off": to_file("runs.csv", half),
}


def storm(sweep: Sweep, wanted: int) -> tuple[set[str], int]:
    """Strike until `wanted` faults or the sweep's end, then let it end. Returns the ids of the runs that were trained
    again after they were finished, and how many commands were given."""
    finished: dict[str, int] = {}
    again: set[str] = set()
    commands = before = 0
    while True:
        if sweep.coordinator is None or sweep.coordinator.poll() is not None:
            if sweep.coordinator is not None and sweep.coordinator.returncode == 0:
                return again, commands
            sweep.coordinator = sweep.start()
            commands += 1
        time.sleep(sweep.draw.uniform(0.2, 1.0))
        for path in sweep.files("result.json"):
            run = RunFolder(path.parent)
            if read_json(run.result)["status"] in FINAL:
                stamp = path.stat().st_mtime_ns
                if finished.setdefault(run.path.name, stamp) != stamp:
                    again.add(run.path.name)
        moved = max((path.stat().st_mtime_ns for path in sweep.files("metrics.jsonl")), default=0)
        if len(sweep.struck) < wanted and moved > before:  # each fault meets a sweep that moves again
            name = sweep.draw.choice(list(FAULTS))
            try:
                sweep.struck.append((name, FAULTS[name](sweep)))
            except (LookupError, ProcessLookupError, FileNotFoundError):  # nobody is there to strike
                continue
            before = moved
            print(f"  {name} {sweep.struck[-1][1] or ''}", flush=True)


def rows(folder: SweepFolder) -> dict[str, dict[str, str]]:
    """runs.csv without its times, by run id."""
    with open(folder.runs_csv, newline="") as file:
        return {row["run_id"]: {k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--coordinate", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.coordinate:
        folder, corpus, slots = arguments.coordinate
        return coordinate(SweepFolder(Path(folder)), Path(corpus), int(slots))

    began, injected, lost, commands, again = time.monotonic(), Counter(), Counter(), 0, set()
    with tempfile.TemporaryDirectory() as scratch:
        root, draw = Path(scratch), random.Random(arguments.seed)
        write_corpus(root / "corpus")
        calm = Sweep(SweepFolder(root / "undisturbed"), root / "corpus", arguments.slots, draw)
        if calm.start().wait() != 0:
            raise SystemExit((root / "undisturbed.log").read_text())
        expected = rows(calm.folder)
        sweeps = 0
        while injected.total() < arguments.faults:
            sweeps += 1
            sweep = Sweep(SweepFolder(root / f"storm{sweeps}"), root / "corpus", arguments.slots, draw)
            trained_again, given = storm(sweep, arguments.faults - injected.total())
            found = rows(sweep.folder)
            differ = {run_id for run_id in expected if found.get(run_id) != expected[run_id]}
            injected.update(name for name, _ in sweep.struck)
            lost.update(name for name, run_id in sweep.struck if differ and (run_id is None or run_id in differ))
            commands, again = commands + given, again | trained_again
            print(f"sweep {sweeps}: {len(sweep.struck)} faults, {given} commands, {len(differ)} rows differ", flush=True)
    print(f"{'fault':32}{'injected':>9}{'survived':>9}{'lost':>6}")
    for name in FAULTS:
        print(f"{name:32}{injected[name]:9}{injected[name] - lost[name]:9}{lost[name]:6}")
    print(f"{'all':32}{injected.total():9}{injected.total() - lost.total():9}{lost.total():6}")
    print(f"{sweeps} sweeps, {commands} commands, {time.monotonic() - began:.0f} s; finished runs trained again: {len(again)}")
    return 1 if lost.total() or again else 0


if __name__ == "__main__":
    sys.exit(main())
