"""The loss that is fitted: on held-out tokens that are the same for every run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from models.decoder import token_losses
from sweep.train.distributed import gathered, own_blocks
from sweep.train.out_of_memory import MicroBatch, is_out_of_memory, release


@dataclass(frozen=True)
class Evaluation:
    """`loss` and its standard error over blocks, nats a token; `bits_per_byte` of the text, None
    where the tokens stand for no text (a synthetic source)."""

    loss: float
    loss_se: float
    bits_per_byte: float | None
    tokens: int


def evaluate(
    model: nn.Module,
    blocks: np.ndarray,
    block_bytes: np.ndarray,
    micro_batch: MicroBatch,
    autocast: Callable,
    beat: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Mean next-token loss over `blocks`.

    Args:
        blocks: int64[block, T + 1] token ids.
        block_bytes: [block] UTF-8 bytes of each block's T labels.
        micro_batch: how many blocks go through the model at once; halved where memory runs out.
        autocast: a function that returns the precision's context manager.
        beat: called after each of those, as a sign of life.

    The losses are summed in float64. The standard error treats blocks as independent draws; blocks
    of one document are not, so it is a lower bound where documents are much longer than a block.
    """
    device = next(model.parameters()).device
    own = own_blocks(blocks)
    block_loss = np.empty(len(own))
    start = 0
    while start < len(own):
        part = own[start : start + micro_batch.sequences]
        try:
            losses = _block_losses(model, torch.from_numpy(part).to(device), autocast)
        except Exception as error:
            if not is_out_of_memory(error) or not micro_batch.halve():
                raise
            losses = None
        if losses is None:  # here the error is gone, and with it what it held of the failed attempt
            release()
            continue
        block_loss[start : start + len(part)] = losses
        start += len(part)
        beat()
    block_loss = gathered(block_loss)[: len(blocks)]
    tokens_in_block = blocks.shape[1] - 1
    spread = block_loss.std(ddof=1) if len(blocks) > 1 else math.nan
    text_bytes = int(block_bytes.sum())
    total = float(block_loss.sum()) * tokens_in_block
    bits_per_byte = total / math.log(2) / text_bytes if text_bytes else None
    return Evaluation(
        loss=float(block_loss.mean()),
        loss_se=float(spread / math.sqrt(len(blocks))),
        bits_per_byte=bits_per_byte,
        tokens=len(blocks) * tokens_in_block,
    )


@torch.no_grad()
def _block_losses(model: nn.Module, tokens: torch.Tensor, autocast: Callable) -> np.ndarray:
    """float64[block]: the mean loss of each, of int64[block, T + 1]."""
    with autocast():
        losses = token_losses(model, tokens)
    return losses.double().mean(dim=1).cpu().numpy()
