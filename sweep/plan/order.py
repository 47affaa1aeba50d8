"""In which order runs start: those that most work waits for first, and none before its trunk is done."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence

from sweep.plan.spec import PlannedRun


def ranks(runs: Sequence[PlannedRun], cost: Callable[[PlannedRun], float]) -> dict[str, float]:
    """What a run costs itself plus the dearest chain of runs that waits for it (the upward rank of
    Topcuoglu et al. 2002, IEEE TPDS 13(3), equation 8), by run id. Parents that are not among `runs`
    are done."""
    by_id = {run.run_id: run for run in runs}
    children: dict[str, list[str]] = {}
    waits = dict.fromkeys(by_id, 0)
    for run_id, run in by_id.items():
        parent = parent_id(run)
        if parent in by_id:
            children.setdefault(parent, []).append(run_id)
    for run_id, own in children.items():
        waits[run_id] = len(own)
    found = {}
    bare = [run_id for run_id, count in waits.items() if not count]
    while bare:
        run_id = bare.pop()
        below = max((found[child] for child in children.get(run_id, ())), default=0.0)
        found[run_id] = cost(by_id[run_id]) + below
        parent = parent_id(by_id[run_id])
        if parent in waits:
            waits[parent] -= 1
            if not waits[parent]:
                bare.append(parent)
    return found


def parent_id(run: PlannedRun) -> str | None:
    return run.parent.run_id if run.parent else None


class Queue:
    """Runs that wait. `pop` gives the ready one of the highest rank; a run whose parent waits, or is
    being trained, is held until `settle` has heard of it."""

    def __init__(self, runs: Sequence[PlannedRun], rank: Mapping[str, float], waiting: Sequence[str]) -> None:
        """`runs` are all that matter, `waiting` the ids of those to be trained; parents outside of
        `waiting` are done."""
        self._runs = {run.run_id: run for run in runs}
        self._rank = rank
        self._ready: list[tuple[float, int, str]] = []
        self._held: dict[str, list[str]] = {}
        unsettled = set(waiting)
        self._turn = 0
        for run_id in waiting:
            parent = parent_id(self._runs[run_id])
            if parent in unsettled:
                self._held.setdefault(parent, []).append(run_id)
            else:
                self._push(run_id, self._rank[run_id])

    def __len__(self) -> int:
        """Runs that are ready."""
        return len(self._ready)

    def pop(self) -> PlannedRun:
        """Raises IndexError where none is ready."""
        return self._runs[heapq.heappop(self._ready)[2]]

    def put_back(self, planned: PlannedRun) -> None:
        """It has started before, and goes on before any other."""
        self._push(planned.run_id, float("inf"))

    def settle(self, run_id: str) -> None:
        """This run has come to its end: those that were held for it are ready."""
        for child in self._held.pop(run_id, []):
            self._push(child, self._rank[child])

    def _push(self, run_id: str, rank: float) -> None:
        heapq.heappush(self._ready, (-rank, self._turn, run_id))
        self._turn += 1


def makespan(runs: Sequence[PlannedRun], seconds: Mapping[str, float], slots: int) -> float:
    """Wall seconds of the runs on `slots` equal slots, each started by rank once its trunk is done
    (list scheduling: Graham 1969). Runs without an entry in `seconds` are done already."""
    left = [run for run in {run.run_id: run for run in runs}.values() if run.run_id in seconds]
    queue = Queue(left, ranks(left, lambda run: seconds[run.run_id]), [run.run_id for run in left])
    now, busy = 0.0, []
    while queue or busy:
        while queue and len(busy) < slots:
            run_id = queue.pop().run_id
            heapq.heappush(busy, (now + seconds[run_id], run_id))
        now, run_id = heapq.heappop(busy)
        queue.settle(run_id)
    return now
