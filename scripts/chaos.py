"""A CPU sweep under a seeded storm of faults, held against the same sweep left alone.

    python scripts/chaos.py [--faults 200] [--seed 0] [--slots 2]

Real training of tiny decoders, trunks and branches. Faults strike its workers, its coordinator, its files and what
it asks of others; where the coordinator ends, the same command is given again. A sweep that ends before all faults
were injected is followed by another one. Prints a table: fault, times injected, survived, lost. A fault is lost
where, in the end, the row of the run that it struck (any row, where it struck no single run) is not the undisturbed
one in every column but times: losses to 1e-5 after memory ran out, which rounds sums otherwise; and a run that met a
NaN may be on record as diverged, with the reason. Ends with status 1 where one is lost or a finished run was trained
again.

wandb is a stand-in here that is down, slow or refuses; tests/test_mirror.py has the real client and a server. So is
the kernel that kills for want of memory: its count of such kills is a file.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import resource
import shutil
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
from sweep import hardware, provenance
from sweep.data.shards import ShardWriter
from sweep.execute import forking
from sweep.execute.coordinator import execute
from sweep.execute.interrupts import Interrupted
from sweep.execute.ledger import FINAL
from sweep.execute.local import LocalExecutor
from sweep.execute.lock import CoordinatorLock, Locked
from sweep.execute.mirror import Mirror
from sweep.execute.progress import LineProgress
from sweep.files import RunFolder, SweepFolder, read_json, write_atomically, write_json
from sweep.plan.order import parent_id
from sweep.plan.spec import DataSpec, OptimSpec, PlannedRun, RunSpec, ScheduleSpec
from sweep.plan.trunks import share

TIMES = {"wall_seconds", "tokens_per_second"}
VOCAB, SEQ = 32, 16
LENGTHS, WIDTHS, SEEDS = (120, 180, 240), (16,), (0, 1, 2, 3)
HANG_SECONDS = 30.0
MOST_AT_ONCE = 3  # faults before the sweep has moved again
HELD, CHANGED = 3, 4  # exit status of a second coordinator, and of one with other code
LOSSES = ("loss", "loss_se", "bits_per_byte")
CALM = {"slots": 2, "log_every": 1, "checkpoint_seconds": 0.2, "longest_first": True}
WANDB = """
import time
from pathlib import Path
Settings = dict
Image = Html = Table = lambda *arguments, **named: "shown"
def answer():
    state = Path({state!r}).read_text()
    if state == "slow": time.sleep(5)
    if state == "down": raise ConnectionError("no route to host")
    if state == "refusing": raise ValueError("no such entity")
class Run:
    def __init__(self): self.summary = {{}}
    def define_metric(self, *arguments, **named): pass
    def log(self, line): answer()
    def finish(self, exit_code=0): answer()
def login(**named): return False
def init(**named):
    answer()
    return Run()
"""


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


def coordinate(folder: SweepFolder, corpus: Path, options: dict) -> int:
    """In a process of its own: bring every run to its end. Exit status 0; 1 with a failed run among them."""

    def settings(run: PlannedRun) -> dict:
        return {
            "device": "cpu", "threads": 1, "data_folder": str(corpus), "micro_batch_sequences": 8, "evaluations": 0,
            "log_every": options["log_every"], "checkpoint_seconds": options["checkpoint_seconds"], "compile": False,
            "parent": parent_id(run),
        }  # fmt: skip

    forking.PRELOADED.append("planted_faults")
    paths = [str(corpus.parent / "modules"), str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    hardware.KERNEL_COUNTS = corpus.parent / "vmstat"
    if provenance.changed_training(folder, runs()):
        return CHANGED
    try:
        with CoordinatorLock(folder.lock), Mirror(folder, "wandb", patience_seconds=1) as mirror:
            write_json(folder.plan, {"versions": provenance.versions()})
            outcomes = execute(
                folder, runs(), LocalExecutor("cpu", slots=options["slots"]), settings, retries=1000,
                hang_seconds=HANG_SECONDS, progress=LineProgress(), longest_first=options["longest_first"], mirror=mirror,
            )  # fmt: skip
    except Locked:
        return HELD
    except Interrupted as stopped:
        return 128 + stopped.signal
    return int(any(outcome.status == "failed" for outcome in outcomes))


@dataclass
class Sweep:
    """The sweep that the storm is over: its folder, its coordinator while it runs, and what struck whom."""

    folder: SweepFolder
    corpus: Path
    options: dict
    draw: random.Random
    coordinator: subprocess.Popen | None = None
    struck: list[tuple[str, str | None]] = field(default_factory=list)
    rounded: set[str] = field(default_factory=set)  # runs for which memory ran out, perhaps
    poisoned: set[str] = field(default_factory=set)  # runs that meet a NaN
    vanished: set[str] = field(default_factory=set)

    def start(self, *more: str) -> subprocess.Popen:
        command = [sys.executable, __file__, *more, "--coordinate", str(self.folder.path), str(self.corpus)]
        command.append(json.dumps(self.options))
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

    def running(self) -> subprocess.Popen:
        """The coordinator. Raises LookupError where there is none, or none that has begun."""
        if self.coordinator is None or self.coordinator.poll() is not None or not self.workers():
            raise LookupError
        return self.coordinator

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


def to_run(action: Callable[[Sweep, RunFolder], None], among: Callable[[str], bool] = bool) -> Callable[[Sweep], str]:
    """Strike a run that a worker is at."""

    def strike(sweep: Sweep) -> str:
        run_ids = [run_id for run_id in sorted(sweep.workers()) if among(run_id)]
        if not run_ids:
            raise LookupError
        run_id = sweep.draw.choice(run_ids)
        action(sweep, sweep.folder.run(run_id))
        return run_id

    return strike


def plant(fault: str) -> Callable[[Sweep, RunFolder], None]:
    return lambda sweep, run: write_atomically(run.path / "planted", fault)


def run_out_of_memory(sweep: Sweep, run: RunFolder) -> None:
    plant("out of memory")(sweep, run)
    sweep.rounded |= with_branches({run.path.name})


def kill_for_memory(sweep: Sweep, run: RunFolder) -> None:
    """As the kernel does. A worker that another fault kills now may be taken for its victim too."""
    counts = sweep.corpus.parent / "vmstat"
    write_atomically(counts, f"oom_kill {int(counts.read_text().split()[1]) + 1}\n")
    workers = sweep.workers()
    sweep.rounded |= with_branches(set(workers))
    os.kill(workers[run.path.name], signal.SIGKILL)


def poison(sweep: Sweep, run: RunFolder) -> None:
    if sweep.poisoned:  # one is enough: it ends its run
        raise LookupError
    plant("NaN")(sweep, run)
    sweep.poisoned.add(run.path.name)


def vanish(sweep: Sweep, run: RunFolder) -> None:
    sweep.vanished.add(run.path.name)
    shutil.rmtree(run.path, ignore_errors=True)


def jump_clock(sweep: Sweep, run: RunFolder) -> None:
    """Its files bear the time of a clock that was set, decades back or ahead."""
    when = sweep.draw.choice([1e9, 4e9])
    for path in (run.heartbeat, run.metrics, *run.checkpoint.glob("*")):
        os.utime(path, (when, when))


def wandb(state: str) -> Callable[[Sweep], None]:
    def strike(sweep: Sweep) -> None:
        sweep.running()
        write_atomically(sweep.corpus.parent / "wandb", state)

    return strike


def other_code(sweep: Sweep) -> None:
    """A command with other code, after a crash: refused. The next one has the code that was there."""
    coordinator = sweep.running()
    coordinator.kill()
    coordinator.wait()
    if sweep.start("--other-code").wait() != CHANGED:
        raise AssertionError("other code trained on")


def other_settings(sweep: Sweep) -> None:
    """The next command runs the sweep in another way, which no result follows from."""
    sweep.running().send_signal(signal.SIGTERM)
    choices = {"slots": [1, 2, 3], "log_every": [1, 7], "checkpoint_seconds": [0.0, 0.2, 60], "longest_first": [True, False]}
    sweep.options = {name: sweep.draw.choice(values) for name, values in choices.items()}


def with_branches(run_ids: set[str]) -> set[str]:
    """These runs and all that go on from them."""
    found = set(run_ids)
    for run in runs():  # a trunk stands before what goes on from it
        if parent_id(run) in found:
            found.add(run.run_id)
    return found


def is_leaf(run_id: str) -> bool:
    return with_branches({run_id}) == {run_id}


def to_coordinator(number: int, workers_too: bool = False) -> Callable[[Sweep], None]:
    def strike(sweep: Sweep) -> None:
        coordinator = sweep.running()
        victims = sweep.workers().values() if workers_too else ()
        coordinator.send_signal(number)
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
    coordinator, second = sweep.running(), sweep.start()
    if second.wait() != HELD and coordinator.poll() is None:
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
    "out of memory": to_run(run_out_of_memory),
    "killed for want of memory": to_run(kill_for_memory),
    "NaN": to_run(poison, among=is_leaf),
    "read-only folder": to_run(plant("read-only folder")),
    "run's folder vanishes": to_run(vanish),
    "clock jumps": to_run(jump_clock),
    "wandb down": wandb("down"),
    "wandb slow": wandb("slow"),
    "wandb refusing": wandb("refusing"),
    "code changed": other_code,
    "settings changed": other_settings,
    "metrics cut off": to_file("metrics.jsonl", half),
    "runs.csv cut off": to_file("runs.csv", half),
}


SELDOM = {
    "worker hangs", "coordinator killed", "coordinator and workers killed", "SIGTERM to the coordinator", "Ctrl-C",
    "second coordinator", "code changed", "settings changed", "wandb down", "wandb slow", "wandb refusing",
}  # fmt: skip
"""Of these one is injected for three of each other: they take seconds, to wait for a silence or to import torch."""


class Deck:
    """The faults in a random order, all of them before any comes again."""

    def __init__(self, draw: random.Random) -> None:
        self.draw, self.names = draw, []

    def strike(self, sweep: Sweep) -> bool:
        """Strike with the next fault that finds its victim; whether one did."""
        if not self.names:
            self.names = [name for name in FAULTS for _ in range(1 if name in SELDOM else 3)]
            self.draw.shuffle(self.names)
        for name in list(dict.fromkeys(self.names)):
            try:
                sweep.struck.append((name, FAULTS[name](sweep)))
            except (LookupError, ProcessLookupError, FileNotFoundError):  # nobody is there to strike
                continue
            self.names.remove(name)
            return True
        return False


def storm(sweep: Sweep, deck: Deck, wanted: int) -> tuple[set[str], int]:
    """Strike until `wanted` faults or the sweep's end, then let it end. Returns the ids of the runs that were trained
    again after they were finished, and how many commands were given."""
    finished: dict[str, int] = {}
    again: set[str] = set()
    commands, before, at_once = 0, stamps(sweep), 0
    while True:
        if sweep.coordinator is None or sweep.coordinator.poll() is not None:
            if sweep.coordinator is not None and sweep.coordinator.returncode == 0:
                return again - sweep.vanished, commands
            sweep.coordinator = sweep.start()
            commands += 1
        time.sleep(sweep.draw.uniform(0.1, 0.6))
        for path in sweep.files("result.json"):
            stamp = final_stamp(path)
            if stamp and finished.setdefault(path.parent.name, stamp) != stamp:
                again.add(path.parent.name)
        now = stamps(sweep)
        if now != before:
            before, at_once = now, 0
        if len(sweep.struck) < wanted and at_once < MOST_AT_ONCE and deck.strike(sweep):
            before, at_once = stamps(sweep), at_once + 1
            print(f"  {sweep.struck[-1][0]} {sweep.struck[-1][1] or ''}", flush=True)


def final_stamp(path: Path) -> int | None:
    """When this result was written, where it is one that no repetition would change."""
    try:
        return path.stat().st_mtime_ns if read_json(path)["status"] in FINAL else None
    except FileNotFoundError:  # its folder vanished
        return None


def stamps(sweep: Sweep) -> dict[Path, int]:
    found = {}
    for path in sweep.files("metrics.jsonl"):
        try:
            found[path] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return found


def rows(folder: SweepFolder) -> dict[str, dict[str, str]]:
    """runs.csv without its times, by run id."""
    with open(folder.runs_csv, newline="") as file:
        return {row["run_id"]: {k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)}


def survived(sweep: Sweep, found: dict[str, str] | None, expected: dict[str, str]) -> bool:
    """Whether this row of runs.csv is the undisturbed one, or as far from it as what struck its run may bring it."""
    if found is None or found == expected:
        return found is not None
    run_id = found["run_id"]
    if run_id in sweep.poisoned:
        return found["status"] == "diverged" and "nan at step" in read_json(sweep.folder.run(run_id).result)["reason"]
    if run_id in sweep.rounded:
        rest = {name: value for name, value in found.items() if name not in LOSSES}
        near = (found[name] == expected[name] or math.isclose(float(found[name]), float(expected[name]), rel_tol=1e-5)
                for name in LOSSES)  # fmt: skip
        return rest == {name: value for name, value in expected.items() if name not in LOSSES} and all(near)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--coordinate", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--other-code", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.coordinate:
        folder, corpus, options = arguments.coordinate
        if arguments.other_code:
            provenance.TRAINING_CODE = ("sweep/worker.py",)
        return coordinate(SweepFolder(Path(folder)), Path(corpus), json.loads(options))

    began, injected, lost, commands, again = time.monotonic(), Counter(), Counter(), 0, set()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:  # a slow mirror may be there still
        root, draw = Path(scratch), random.Random(arguments.seed)
        write_corpus(root / "corpus")
        write_atomically(root / "modules" / "wandb.py", WANDB.format(state=str(root / "wandb")))
        write_atomically(root / "wandb", "well")
        write_atomically(root / "vmstat", "oom_kill 0\n")
        options = {**CALM, "slots": arguments.slots}
        calm = Sweep(SweepFolder(root / "undisturbed"), root / "corpus", options, draw)
        if calm.start().wait() != 0:
            raise SystemExit((root / "undisturbed.log").read_text())
        expected = rows(calm.folder)
        sweeps, deck = 0, Deck(draw)
        while injected.total() < arguments.faults:
            sweep = Sweep(SweepFolder(root / f"storm{sweeps}"), root / "corpus", options, draw)
            try:
                trained_again, given = storm(sweep, deck, arguments.faults - injected.total())
            except KeyboardInterrupt:  # the table is of the sweeps that have ended
                sweep.coordinator.terminate()
                sweep.coordinator.wait()
                break
            found = rows(sweep.folder)
            differ = {run_id for run_id in expected if not survived(sweep, found.get(run_id), expected[run_id])}
            injected.update(name for name, _ in sweep.struck)
            lost.update(name for name, run_id in sweep.struck if differ and (run_id is None or run_id in differ))
            sweeps, commands, again = sweeps + 1, commands + given, again | trained_again
            print(f"sweep {sweeps}: {len(sweep.struck)} faults, {given} commands, {len(differ)} rows differ", flush=True)
            for run_id in differ:
                print(f"  {expected[run_id]}\n  {found.get(run_id)}", flush=True)
    print(f"{'fault':32}{'injected':>9}{'survived':>9}{'lost':>6}")
    for name in FAULTS:
        print(f"{name:32}{injected[name]:9}{injected[name] - lost[name]:9}{lost[name]:6}")
    print(f"{'all':32}{injected.total():9}{injected.total() - lost.total():9}{lost.total():6}")
    print(f"{sweeps} sweeps, {commands} commands, {time.monotonic() - began:.0f} s; finished runs trained again: {len(again)}")
    return 1 if lost.total() or again or injected.total() < arguments.faults else 0


if __name__ == "__main__":
    sys.exit(main())
