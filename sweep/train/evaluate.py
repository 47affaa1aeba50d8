"""The loss that is fitted: on held-out tokens that are the same for every run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from models.decoder import token_losses
from sweep.train.distributed import gathered, own_blocks


@dataclass(frozen=True)
class Evaluation:
    """`loss` and its standard error over blocks, nats a token; `bits_per_byte` of the text, None
    where the tokens stand for no text (a synthetic source)."""

    loss: float
    loss_se: float
    bits_per_byte: float | None
    tokens: int


def evaluate(
    model: nn.Module, blocks: np.ndarray, block_bytes: np.ndarray, sequences: int, autocast
) -> Evaluation:
    """Mean next-token loss over `blocks`.

    Args:
        blocks: int64[block, T + 1] token ids.
        block_bytes: [block] UTF-8 bytes of each block's T labels.
        sequences: how many blocks go through the model at once.
        autocast: a function that returns the precision's context manager.

    The losses are summed in float64. The standard error treats blocks as independent draws; blocks
    of one document are not, so it is a lower bound where documents are much longer than a block.
    """
    device = next(model.parameters()).device
    own = own_blocks(blocks)
    block_loss = np.empty(len(own))
    with torch.no_grad():
        for start in range(0, len(own), sequences):
            tokens = torch.from_numpy(own[start : start + sequences]).to(device)
            with autocast():
                losses = token_losses(model, tokens)
            block_loss[start : start + sequences] = losses.double().mean(dim=1).cpu().numpy()
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
