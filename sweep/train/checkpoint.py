"""A run's state on disk: written whole or not at all, read back without running any code.

A file of it opens with the SHA-256 of what follows, so that one that a disk damaged is known; the one before it
is kept, to go on from in its place.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save_file
from torch import nn

from sweep.files import RunFolder
from sweep.train.distributed import is_first, parted, parted_moments, whole
from sweep.train.optimizer import MuonAndAdamW

Optimizer = torch.optim.Optimizer | MuonAndAdamW


HEADER_BYTES = len(hashlib.sha256().hexdigest()) + 1  # and a newline


@dataclass
class TrainingState:
    """What a resumed run needs to go on as if it had never stopped. No generator state is in it:
    initialisation and batches are functions of the seed and the step, and nothing else draws.
    `seconds` and `resumes` are the run's own; its trunk made the first `from_step` of `step` updates.
    `window` holds the losses of the updates since the last log line, so that the next is what it would be."""

    step: int
    seconds: float
    resumes: int
    from_step: int = 0
    window: list[float] = field(default_factory=list)


def save_checkpoint(
    folder: RunFolder, run_id: str, state: TrainingState, model: nn.Module, optimizer: Optimizer
) -> None:
    """Make this the run's checkpoint, and the last one the one before. Raises OSError (a full disk) with both
    intact."""
    content = {
        "run_id": run_id,
        "step": state.step,
        "seconds": state.seconds,
        "resumes": state.resumes,
        "from_step": state.from_step,
        "window": state.window,
        "model": whole(model.state_dict()),
        "optimizer": whole(optimizer.state_dict()),
    }
    if not is_first():
        return
    path = _state_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(b" " * HEADER_BYTES)
            digested = _Digested(file)
            torch.save(content, digested)
            file.seek(0)
            file.write(digested.sha256.hexdigest().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            _keep(path)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_checkpoint(
    folder: RunFolder, run_id: str, model: nn.Module, optimizer: Optimizer
) -> TrainingState | None:
    """Restore model and optimizer in place; None where the run has no checkpoint, or none that is whole.

    Raises ValueError for a checkpoint of another run, or one that holds more than tensors and plain values.
    """
    content = _load(folder, run_id, model, optimizer)
    if content is None:
        return None
    window = content.get("window", [])  # a checkpoint from before there was one was made at a log line
    return TrainingState(content["step"], content["seconds"], content["resumes"] + 1, content["from_step"], window)


def load_trunk(
    folder: RunFolder, run_id: str, last_step: int, model: nn.Module, optimizer: Optimizer
) -> TrainingState | None:
    """Restore model and optimizer in place from the end of the trunk `run_id`, for a run that shares its
    first `last_step` updates; None where the trunk has left no checkpoint that is whole.

    Raises ValueError as `load_checkpoint` does, or for a checkpoint of more updates than are shared.
    """
    content = _load(folder, run_id, model, optimizer)
    if content is None:
        return None
    if content["step"] > last_step:
        raise ValueError(f"trunk {run_id} has made {content['step']} updates; this run shares {last_step} with it")
    return TrainingState(content["step"], seconds=0.0, resumes=0, from_step=content["step"])


def _load(folder: RunFolder, run_id: str, model: nn.Module, optimizer: Optimizer) -> dict[str, Any] | None:
    current = _state_path(folder)
    path = next((path for path in (current, _previous(current)) if _is_whole(path)), None)
    if path is None:
        return None
    with open(path, "rb") as file:
        file.seek(HEADER_BYTES)
        try:
            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} holds more than tensors and plain values, so no checkpoint of this program: nothing of it was "
                f"run. Find out who wrote it; remove it to train from the start. ({str(error).splitlines()[0]})"
            ) from error
    if content["run_id"] != run_id:
        raise ValueError(f"{path} belongs to run {content['run_id']}, not to {run_id}; remove it to start again")
    model.load_state_dict(parted(content["model"], model.state_dict()))
    optimizer.load_state_dict(parted_moments(content["optimizer"], optimizer))
    return content


def save_final_weights(folder: RunFolder, model: nn.Module) -> None:
    """Leave the finished model as checkpoint/model.safetensors, fp32."""
    tensors = whole({name: tensor.detach() for name, tensor in model.named_parameters()})
    if not is_first():
        return
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    folder.checkpoint.mkdir(parents=True, exist_ok=True)
    temporary = folder.checkpoint / "model.safetensors.tmp"
    try:
        save_file(tensors, temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, folder.weights)


def discard_checkpoint(folder: RunFolder) -> None:
    """Drop what only a resumption needs: the run has its result."""
    _state_path(folder).unlink(missing_ok=True)
    discard_previous(folder)


def discard_previous(folder: RunFolder) -> None:
    """Drop the checkpoint before the last: a trunk that is done leaves one."""
    _previous(_state_path(folder)).unlink(missing_ok=True)


def _state_path(folder: RunFolder) -> Path:
    return folder.checkpoint / "state.pt"


def _previous(path: Path) -> Path:
    return path.with_stem("previous")


def _keep(path: Path) -> None:
    """Make this checkpoint the one before, and leave it where it is, so that there is one at every moment."""
    spare = path.with_name("previous.tmp")
    spare.unlink(missing_ok=True)
    try:
        os.link(path, spare)
    except OSError:  # a file system without hard links
        os.replace(path, _previous(path))
        return
    os.replace(spare, _previous(path))
    spare.unlink(missing_ok=True)  # still there where both were one file, after a crash


class _Digested:
    """A file to write to, and the SHA-256 of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _is_whole(path: Path) -> bool:
    """Whether it is there and as it was written; damage is told in the log."""
    try:
        with open(path, "rb") as file:
            header = file.read(HEADER_BYTES)
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return False
    if header == found.encode() + b"\n":
        return True
    print(f"{path} is damaged (its SHA-256 is not what it opens with); not used", flush=True)
    return False
