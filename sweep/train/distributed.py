"""What the ranks of a run do together: split a batch, average gradients, agree, gather a state that is spread.

A rank is one of the processes that share a run (sweep/train/ranks.py). In a process that is none, every function
here leaves what it is given as it is.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.decoder import Decoder
from sweep.plan.cost import shards
from sweep.plan.spec import RunSpec
from sweep.train.shared_memory import SharedMemory

shared_memory: SharedMemory | None = None
"""That of a CPU's ranks; like the process group, one a process."""


def ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes the run's files."""
    return ranks() == 1 or dist.get_rank() == 0


def agreed(*flags: bool) -> tuple[bool, ...]:
    """Each flag as true where any rank has it so. Every rank must ask at the same points of its work."""
    if ranks() == 1:
        return flags
    if shared_memory is not None:
        return shared_memory.agreed(*flags)
    said = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(said, op=dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in said.tolist())


def mean(value: Tensor) -> Tensor:
    """The ranks' mean of each number; `value` is written over."""
    if ranks() == 1:
        return value
    dist.all_reduce(value)
    return value / ranks()


def micro_batches(batch: Tensor, most: int) -> Iterator[tuple[Tensor, float, bool]]:
    """This rank's part of a batch, int64[sequence, T + 1], at most `most` sequences at a time; with each the weight
    of its mean in the gradient, of which the ranks' mean is taken, and whether it is the last.

    All ranks have the same number of them, as the collectives of a sharded model want: a rank with fewer sequences
    makes up for it with a repeated one of weight 0.
    """
    count = ranks()
    if count == 1:
        parts = batch.split(most)
    else:
        largest = math.ceil(len(batch) / count)
        parts = batch.tensor_split(count)[dist.get_rank()].tensor_split(math.ceil(largest / most))
    for i, part in enumerate(parts, 1):
        yield part if len(part) else batch[-1:], count * len(part) / len(batch), i == len(parts)


def accumulating(forward: nn.Module, is_last: bool) -> AbstractContextManager:
    """Where forward and backward of a micro-batch belong: gradients are averaged after the last one only. (Those
    of a sharded model after each, since a rank has no room for the whole gradient.)"""
    return forward.no_sync() if not is_last and hasattr(forward, "no_sync") else nullcontext()


def own_blocks(blocks: np.ndarray) -> np.ndarray:
    """This rank's share of [block, ...]: equally many on each rank, the last block repeated where they run out."""
    if ranks() == 1:
        return blocks
    share = math.ceil(len(blocks) / ranks())
    first = share * dist.get_rank()
    return blocks[np.minimum(np.arange(first, first + share), len(blocks) - 1)]


def gathered(values: np.ndarray) -> np.ndarray:
    """The ranks' float64[block], one after the other."""
    if ranks() == 1:
        return values
    parts = [torch.empty(len(values), dtype=torch.float64) for _ in range(ranks())]
    dist.all_gather(parts, torch.from_numpy(values))
    return torch.cat(parts).numpy()


def spread(model: Decoder, spec: RunSpec, shard: bool | None, device: torch.device) -> nn.Module:
    """Bring the model to the rank's device; returns what its forward pass goes through. Where it is sharded
    (plan/cost.py says when), its parameters become DTensors."""
    if ranks() == 1:
        return model.to(device)
    if shards(spec, ranks(), shard, device_memory(device)) == 1:
        # the new name came with torch 2.13, and the old one is what earlier ones know
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        parallel = nn.parallel.DistributedDataParallel(
            model.to(device), broadcast_buffers=False, gradient_as_bucket_view=True
        )
        if shared_memory is not None:
            parallel.register_comm_hook(None, shared_memory.hook)
        return parallel
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # it warns of in-place operations on its output, which nobody here does
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(device.type, (ranks(),))
    for module in (*model.blocks, model):
        # resharded always, so that outside of a pass every parameter is a rank's part of it
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return model


def device_memory(device: torch.device | str) -> float:
    """Bytes of a GPU; infinite for a CPU, whose processes share one memory: spreading saves nothing there."""
    is_gpu = torch.device(device).type == "cuda"
    return torch.cuda.get_device_properties(device).total_memory if is_gpu else math.inf


def whole(state: Any) -> Any:
    """A state dict with each tensor that is spread over the ranks gathered: on the CPU, on the first rank only.
    All ranks must call it."""
    if hasattr(state, "full_tensor"):
        full = state.full_tensor()
        return full.cpu() if is_first() else None
    if isinstance(state, dict):
        return {name: whole(value) for name, value in state.items()}
    return state


def full(scalar: Tensor) -> Tensor:
    """One that may be spread, on every rank."""
    return scalar.full_tensor() if hasattr(scalar, "full_tensor") else scalar


def parted(state: dict[Any, Any], like: dict[Any, Tensor]) -> dict[Any, Any]:
    """`state` with each tensor cut as the one of that key in `like` is, where that is spread over the ranks."""
    return {key: _part(value, like.get(key)) for key, value in state.items()}


def parted_moments(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state dict, each moment cut as its parameter is."""
    parameters = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    if not any(hasattr(tensor, "full_tensor") for tensor in parameters):
        return state
    moments = {i: {name: _part(value, parameters[i]) for name, value in of.items()} for i, of in state["state"].items()}
    return {**state, "state": moments}


def _part(value: Tensor, like: Tensor | None) -> Tensor:
    if not hasattr(like, "full_tensor") or value.shape != like.shape:  # AdamW's step is a scalar
        return value
    from torch.distributed.tensor import distribute_tensor

    # each rank has read the whole of it: nothing to send
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
