"""A sweep of 10,000 runs on 1,000 GPUs that train nothing: the planner and the coordinator's own loop.

    python scripts/simulate.py [--runs 10000] [--slots 1000] [--storm 1.0] [--out FOLDER] [key=value ...]

The clock is simulated: it jumps to the next end of a job. Planner, coordinator, ledger, progress lines and
files are the real ones. `storm` scales how many workers die, fail and diverge. Prints a line for each figure,
with the limit that it is held to, and ends with status 1 where one is exceeded. FOLDER, if given, keeps the
sweep's folder, with its runs.csv.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import hydra

from models.count import count_parameters
from sweep import provenance
from sweep.__main__ import CONF
from sweep.execute.coordinator import Outcome, execute
from sweep.execute.executor import CHECKPOINTED, Ended, SubmitError
from sweep.execute.progress import LineProgress
from sweep.files import RunFolder, SweepFolder
from sweep.plan.cost import Measurement, Timing, run_cost
from sweep.plan.grids import cells
from sweep.plan.order import makespan, parent_id
from sweep.plan.plan import Corpus, plan
from sweep.plan.schema import to_config
from sweep.plan.spec import PlannedRun, RunSpec
from sweep.plan.trunks import share

FLOPS_PER_SECOND = 2e14  # assumption: 20% of an H100's 989e12 dense bf16 FLOP/s (NVIDIA's data sheet)
STARTUP_SECONDS = 30.0  # assumption: of a worker, on a GPU
CHECKPOINT_SECONDS = 60.0  # conf/executor/local.yaml
DEATHS, PREEMPTIONS, FAILURES, DIVERGENCES = 0.03, 0.02, 0.002, 0.004
"""Assumption: of the workers that start, those that are killed, told to stop by a queue, raise, diverge."""
BUDGETS, SIZES = 5, 8


class Clock:
    """Seconds that pass when somebody sleeps: to the next end of a job, where that is further off."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ends: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        while self.ends and self.ends[0] < self.now:
            heapq.heappop(self.ends)
        if self.ends:
            self.now = max(self.now, heapq.heappop(self.ends))


@dataclass
class SimulatedJob:
    """A worker that ends at `ends`, having written what `finish` writes."""

    clock: Clock
    ends: float
    ended: Ended
    finish: Callable[[], None]
    done: bool = False

    def poll(self) -> Ended | None:
        if self.clock.now < self.ends:
            return None
        if not self.done:
            self.done = True
            self.finish()
        return self.ended

    def cancel(self) -> None:
        self.ends, self.ended, self.finish = self.clock.now, Ended(CHECKPOINTED), lambda: None

    def kill(self) -> None:
        self.ends, self.ended, self.finish = self.clock.now, Ended(-9), lambda: None


@dataclass
class Storm:
    """What befalls the workers, each start for itself, by a seeded draw."""

    scale: float
    draws: random.Random = field(default_factory=lambda: random.Random(0))

    def fate(self) -> tuple[str, float]:
        """How a worker ends, and after which share of what it had to do."""
        draw, share_done = self.draws.random(), self.draws.random()
        for name, share in (
            ("died", DEATHS),
            ("preempted", PREEMPTIONS),
            ("failed", FAILURES),
            ("diverged", DIVERGENCES),
        ):
            if draw < share * self.scale:
                return name, share_done
            draw -= share * self.scale
        return "finished", 1.0


class SimulatedCluster:
    """An Executor of `slots` GPUs whose workers write what real ones do, at the time at which they would.

    spans: from when until when a slot was taken, by run id, a worker each; fates: how the workers ended.
    """

    def __init__(self, clock: Clock, slots: int, runs: Sequence[PlannedRun], seconds: dict[str, float], storm: Storm):
        self.clock, self.capacity, self.storm = clock, slots, storm
        self.runs = {run.run_id: run for run in runs}
        self.seconds = seconds
        self.saved = dict.fromkeys(self.runs, 0.0)
        self.spans: dict[str, list[tuple[float, float]]] = {}
        self.fates: Counter[str] = Counter()
        self.taken: list[float] = []
        self.ended = self.submitted = 0

    def adopt(self, folder: RunFolder) -> None:
        """No job of an earlier coordinator."""

    def submit(self, folder: RunFolder) -> SimulatedJob:
        planned = self.runs[folder.path.name]
        while self.taken and self.taken[0] <= self.clock.now:
            heapq.heappop(self.taken)
        if len(self.taken) >= self.capacity:
            raise SubmitError(f"all {self.capacity} slots are taken")
        fate, share_done = self.storm.fate()
        self.fates[fate] += 1
        left = self.seconds[planned.run_id] - self.saved[planned.run_id]
        ends = self.clock.now + STARTUP_SECONDS + left * share_done
        self.spans.setdefault(planned.run_id, []).append((self.clock.now, ends))
        heapq.heappush(self.taken, ends)
        heapq.heappush(self.clock.ends, ends)
        status = {"died": -9, "preempted": CHECKPOINTED}.get(fate, 0)
        self.submitted += 1
        return SimulatedJob(self.clock, ends, Ended(status), lambda: self._end(folder, planned, fate, left * share_done))

    def _end(self, folder: RunFolder, planned: PlannedRun, fate: str, seconds: float) -> None:
        self.ended += 1
        reached = self.saved[planned.run_id] + seconds
        step = max(1, round(planned.spec.steps * min(1.0, reached / self.seconds[planned.run_id])))
        if fate in ("died", "preempted"):
            kept = reached if fate == "preempted" else reached - reached % CHECKPOINT_SECONDS
            self.saved[planned.run_id] = max(self.saved[planned.run_id], kept)
            line = {"step": step, "tokens": step, "flops": float(step), "loss": 3.0}
            folder.metrics.write_text(json.dumps(line) + "\n")
        else:
            folder.result.write_text(json.dumps(result(planned.spec, fate, step, self.busy(planned.run_id))))

    def busy(self, run_id: str) -> float:
        """Seconds that a slot was taken by this run, over all its workers."""
        return sum(end - start for start, end in self.spans.get(run_id, ()))


class Passes:
    """seconds: (wall, CPU) of each decision, which is what to do with a worker that ended or a slot that is
    free: a pass of the coordinator's loop, from when it wakes until it sleeps again, over the number of those."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self.cluster = cluster
        self.seconds: list[tuple[float, float]] = []
        self.woken: tuple[float, float] | None = None
        self.before = (0, 0)

    def sleep(self, wanted: float) -> None:
        now, ended, submitted = time.perf_counter(), self.cluster.ended, self.cluster.submitted
        count = max(ended - self.before[0], submitted - self.before[1])
        if self.woken and count:  # before the first sleep the ledger is read
            wall, cpu = now - self.woken[0], time.thread_time() - self.woken[1]
            self.seconds += [(wall / count, cpu / count)] * count
        self.before = ended, submitted
        self.cluster.clock.sleep(wanted)
        self.woken = time.perf_counter(), time.thread_time()


def result(spec: RunSpec, fate: str, step: int, seconds: float) -> dict:
    """result.json, with the loss of Hoffmann et al. 2022 (arXiv 2203.15556, equation 10) and 1% of noise."""
    params, tokens = count_parameters(spec.shape).non_embedding, spec.tokens_after(step)
    finished = fate == "finished"
    loss = 1.69 + 406.4 / params**0.34 + 410.7 / tokens**0.28
    noise = random.Random(spec.run_id).gauss(1.0, 0.01)
    return {
        "run_id": spec.run_id, "status": fate, "reason": None if finished else f"simulated: {fate}", "step": step,
        "tokens": tokens, "flops": spec.flops * tokens / spec.tokens, "flops_6nd": 6.0 * params * tokens,
        "loss": loss * noise if finished and not spec.is_trunk else None, "loss_se": 0.002, "bits_per_byte": 1.0,
        "unique_tokens": tokens, "epochs": 0.5, "wall_seconds": seconds, "tokens_per_second": tokens / seconds,
        "device": "simulated",
    }  # fmt: skip


def planned(count: int, overrides: Sequence[str]) -> tuple:
    """About `count` runs, trunk segments among them, of an IsoFLOP grid at gpu scale: (config, runs)."""
    seeds = max(1, round(count / (2 * BUDGETS * SIZES)))
    budgets = [1e18 * 2.0**i for i in range(BUDGETS)]
    grid = [
        "+grid=isoflop", "scale=gpu", f"grid.budgets={budgets}", f"grid.sizes_per_budget={SIZES}", f"grid.seeds={seeds}",
        "scale.size_ratio=1.3", *overrides,
    ]  # fmt: skip
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = to_config(hydra.compose("config", overrides=grid))
    shared = share(plan(cells(config, 32768), Corpus("f" * 64, 32768, 10**13)))
    return config, [*shared.trunks, *shared.runs]


def seconds_of(runs: Sequence[PlannedRun]) -> dict[str, float]:
    """What each run takes on a slot, by the plan's own estimate from a measured shape."""
    spec = runs[0].spec
    per_step = spec.flops / spec.steps / FLOPS_PER_SECOND
    per_token = spec.flops / spec.tokens / FLOPS_PER_SECOND / 3
    timing = Timing(spec.flops / spec.tokens, spec.batch_tokens, per_step, per_token, 10**10)
    measured = Measurement(0.0, "simulated", (timing,))
    return {run.run_id: run_cost(run, measured, evaluations=4).seconds for run in runs}


@dataclass(frozen=True)
class Figures:
    """runs: distinct; planning, coordinator: wall seconds of the plan and of the whole loop; decisions: of
    `Passes`; makespan, chain, work, ideal: simulated seconds."""

    runs: int
    trunks: int
    slots: int
    planning: float
    decisions: list[tuple[float, float]]
    makespan: float
    chain: float
    work: float
    ideal: float
    coordinator: float
    peak_bytes: int
    fates: dict[str, int]
    statuses: dict[str, int]

    @property
    def bound(self) -> float:
        """Max(longest chain, work / slots) of what was really computed, what was lost with its worker included."""
        return max(self.chain, self.work / self.slots)

    @property
    def broken(self) -> list[str]:
        """What exceeds its limit, in words. Of decisions the CPU's seconds count: the rest is the machine's, which
        may be busy with others."""
        slowest = sorted(cpu for _, cpu in self.decisions)[int(0.99 * len(self.decisions))]
        found = {
            f"planning took {self.planning:.2f} s, not 5": self.planning > 5,
            f"peak memory is {self.peak_bytes / 1e6:.0f} MB, not 500": self.peak_bytes > 500e6,
            f"a decision in a hundred takes {1e3 * slowest:.1f} ms, not 10": slowest > 0.01,
            f"makespan is {self.makespan / self.bound:.3f} of its bound, not 1.1": self.makespan > 1.1 * self.bound,
        }
        return [words for words, is_broken in found.items() if is_broken]


def simulate(
    folder: SweepFolder, count: int, slots: int, storm: float, overrides: Sequence[str] = (), stream=None
) -> tuple[Figures, list[Outcome], SimulatedCluster]:
    """Plan `count` runs and bring them to their ends. `stream` takes the progress lines."""
    began = time.perf_counter()
    config, runs = planned(count, overrides)
    seconds = seconds_of(runs)
    ideal = makespan(runs, {run_id: own + STARTUP_SECONDS for run_id, own in seconds.items()}, slots)
    provenance.write_plan(folder, config, {"fingerprint": "f" * 64}, runs, [])
    planning = time.perf_counter() - began

    clock = Clock()
    cluster = SimulatedCluster(clock, slots, runs, seconds, Storm(storm))
    passes = Passes(cluster)
    with open(os.devnull, "w") if stream is None else nullcontext(stream) as said:
        began = time.perf_counter()
        outcomes = execute(
            folder, runs, cluster, lambda run: {"parent": parent_id(run)}, plan=runs,
            progress=LineProgress(said), clock=clock, sleep=passes.sleep,
        )  # fmt: skip
        took = time.perf_counter() - began
    figures = Figures(
        runs=len(runs),
        trunks=sum(run.role == "trunk" for run in runs),
        slots=slots,
        planning=planning,
        decisions=passes.seconds,
        makespan=clock.now,
        chain=longest_chain(runs, cluster.busy),
        work=sum(cluster.busy(run.run_id) for run in runs),
        ideal=ideal,
        coordinator=took,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        fates=dict(cluster.fates),
        statuses=dict(Counter(outcome.status for outcome in outcomes)),
    )
    return figures, outcomes, cluster


def longest_chain(runs: Sequence[PlannedRun], busy: Callable[[str], float]) -> float:
    """Seconds of the longest chain of runs of which each waits for the one before. Trunks stand before what
    branches off them."""
    until: dict[str, float] = {}
    for run in runs:
        until[run.run_id] = busy(run.run_id) + until.get(parent_id(run) or "", 0.0)
    return max(until.values())


def table(figures: Figures) -> list[str]:
    """A line for each figure, with its bound."""
    wall, cpu = (sorted(pair[i] for pair in figures.decisions) for i in (0, 1))
    at = lambda values, share: 1e3 * values[min(len(values) - 1, int(share * len(values)))]  # noqa: E731
    over = figures.makespan / figures.bound - 1
    return [
        f"runs             {figures.runs:,} ({figures.trunks:,} trunk segments) on {figures.slots:,} slots",
        f"workers          {figures.fates}",
        f"runs ended       {figures.statuses}",
        f"planning         {figures.planning:.2f} s (at most 5)",
        f"peak memory      {figures.peak_bytes / 1e6:.0f} MB (at most 500)",
        f"decisions        median {at(wall, 0.5):.2f} ms, 99% {at(wall, 0.99):.2f} ms, longest {at(wall, 1):.1f} ms; "
        f"CPU {at(cpu, 0.5):.2f}, {at(cpu, 0.99):.2f}, {at(cpu, 1):.1f} ms (at most 10)",
        f"coordinator      {figures.coordinator:.1f} s for all, {1e3 * figures.coordinator / figures.runs:.2f} ms a run",
        f"makespan         {figures.makespan / 3600:.2f} h; bound {figures.bound / 3600:.2f} h (longest chain "
        f"{figures.chain / 3600:.2f}, work / slots {figures.work / figures.slots / 3600:.2f}): {over:+.1%} (at most +10%)",
        f"undisturbed      {figures.ideal / 3600:.2f} h by the plan",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=1_000)
    parser.add_argument("--storm", type=float, default=1.0, help="times the assumed rates of deaths and failures")
    parser.add_argument("--out", type=Path, help="keep the sweep's folder here")
    arguments, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() if arguments.out is None else nullcontext(arguments.out) as path:
        figures, *_ = simulate(SweepFolder(Path(path)), arguments.runs, arguments.slots, arguments.storm, overrides)
    print("\n".join([*table(figures), *figures.broken]))
    return 1 if figures.broken else 0


if __name__ == "__main__":
    sys.exit(main())
