"""A run's state on disk: written whole or not at all, read back without running any code."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from sweep.files import RunFolder
from sweep.train.optimizer import MuonAndAdamW

Optimizer = torch.optim.Optimizer | MuonAndAdamW


@dataclass
class TrainingState:
    """What a resumed run needs to go on as if it had never stopped. No generator state is in it:
    initialisation and batches are functions of the seed and the step, and nothing else draws.
    `seconds` and `resumes` are the run's own; its trunk made the first `from_step` of `step` updates."""

    step: int
    seconds: float
    resumes: int
    from_step: int = 0


def save_checkpoint(
    folder: RunFolder, run_id: str, state: TrainingState, model: nn.Module, optimizer: Optimizer
) -> None:
    """Replace the run's checkpoint. Raises OSError (a full disk) with the old one intact."""
    content = {
        "run_id": run_id,
        "step": state.step,
        "seconds": state.seconds,
        "resumes": state.resumes,
        "from_step": state.from_step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    path = _state_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_checkpoint(
    folder: RunFolder, run_id: str, model: nn.Module, optimizer: Optimizer
) -> TrainingState | None:
    """Restore model and optimizer in place; None where the run has no checkpoint yet.

    Raises ValueError for a checkpoint of another run.
    """
    content = _load(folder, run_id, model, optimizer)
    if content is None:
        return None
    return TrainingState(content["step"], content["seconds"], content["resumes"] + 1, content["from_step"])


def load_trunk(
    folder: RunFolder, run_id: str, last_step: int, model: nn.Module, optimizer: Optimizer
) -> TrainingState | None:
    """Restore model and optimizer in place from the end of the trunk `run_id`, for a run that shares its
    first `last_step` updates; None where the trunk has left no checkpoint.

    Raises ValueError for a checkpoint of another run, or of more updates than are shared.
    """
    content = _load(folder, run_id, model, optimizer)
    if content is None:
        return None
    if content["step"] > last_step:
        raise ValueError(f"trunk {run_id} has made {content['step']} updates; this run shares {last_step} with it")
    return TrainingState(content["step"], seconds=0.0, resumes=0, from_step=content["step"])


def _load(folder: RunFolder, run_id: str, model: nn.Module, optimizer: Optimizer) -> dict[str, Any] | None:
    path = _state_path(folder)
    if not path.exists():
        return None
    device = next(model.parameters()).device
    content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    if content["run_id"] != run_id:
        raise ValueError(f"{path} belongs to run {content['run_id']}, not to {run_id}; remove it to start again")
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return content


def save_final_weights(folder: RunFolder, model: nn.Module) -> None:
    """Leave the finished model as checkpoint/model.safetensors, fp32."""
    folder.checkpoint.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.named_parameters()}
    temporary = folder.checkpoint / "model.safetensors.tmp"
    save_file(tensors, temporary)
    os.replace(temporary, folder.weights)


def discard_checkpoint(folder: RunFolder) -> None:
    """Drop what only a resumption needs: the run has its result."""
    _state_path(folder).unlink(missing_ok=True)


def _state_path(folder: RunFolder) -> Path:
    return folder.checkpoint / "state.pt"
