"""What this machine has: GPUs, cores, memory."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

GPU_NODES = ("/dev/nvidia0", "/dev/kfd", "/dev/dxg")
"""Device files of NVIDIA, of ROCm and of NVIDIA under WSL: without one of them there is no GPU, which
is known without the seconds that importing torch takes."""
CGROUP_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "quota period" in microseconds, or "max period"
KERNEL_COUNTS = Path("/proc/vmstat")  # oom_kill is among them since Linux 4.13, and counts for all cgroups
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Hardware:
    """device: "cpu" or "cuda"; slots: workers that run side by side, 0 where that is not known; memory: bytes, of one
    GPU or of the machine; why: how the device was chosen, for the user. Of a GPU's memory, as much as the slots have if
    each is on one GPU: of a run on several, `memory_per_run` is what each of its processes has."""

    device: str
    slots: int
    memory: int
    why: str

    @property
    def memory_per_run(self) -> float:
        """Bytes that each of the side-by-side workers can have (a GPU's are shared by `per_device`)."""
        return self.memory / max(1, self.slots)


def has_gpu() -> bool:
    """Whether torch can compute on a GPU here."""
    if not any(Path(node).exists() for node in GPU_NODES):
        return False
    import torch

    return torch.cuda.is_available()


def has_muon() -> bool:
    """Whether the installed torch has torch.optim.Muon, which came with 2.9; torch is not imported."""
    major, minor = re.match(r"(\d+)\.(\d+)", metadata.version("torch")).groups()
    return (int(major), int(minor)) >= (2, 9)


def usable_cores() -> int:
    """CPU cores this process may use: its affinity, within the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CGROUP_CPU_QUOTA.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def host_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its cgroup's limit."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in CGROUP_LIMITS:
        try:
            physical = min(physical, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return physical


def oom_kills() -> int:
    """Processes that this machine's kernel has killed for want of memory since it started; 0 where it does not say."""
    try:
        counts = dict(line.split() for line in KERNEL_COUNTS.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(counts.get("oom_kill", 0))


def find_hardware(device: str, slots: int | None, per_device: int, gpus_per_run: int | None = None) -> Hardware:
    """The hardware that `device` ("auto", "cpu", "cuda") and the executor's slots come to.

    Raises ValueError when a GPU is asked for and there is none, or fewer than a run takes (None: one, if any).
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: {device!r} is none of auto, cpu, cuda")
    gpu = device != "cpu" and has_gpu()
    if device == "cuda" and not gpu:
        raise ValueError("device: cuda was asked for, and torch finds no GPU here. Say device=cpu. Nothing was launched.")
    if gpu:
        import torch

        count, name = torch.cuda.device_count(), torch.cuda.get_device_name(0)
        side_by_side = slots or count // (gpus_per_run or 1) * per_device
        if not side_by_side:
            raise ValueError(f"executor.gpus_per_run: {gpus_per_run}, and this machine has {count}. Nothing was launched.")
        memory = torch.cuda.get_device_properties(0).total_memory // per_device * side_by_side
        return Hardware("cuda", side_by_side, memory, f"{count} x {name}")
    if gpus_per_run:
        raise ValueError(f"executor.gpus_per_run: {gpus_per_run}, and torch finds no GPU here. Nothing was launched.")
    count = slots or usable_cores()
    why = "asked for" if device == "cpu" else "no GPU here"
    return Hardware("cpu", count, host_memory(), f"CPU, {usable_cores()} cores ({why})")
