"""How learning rate and initialisation transfer across width: parameter groups for AdamW.

μP in the form without multipliers (Yang et al. 2022, arXiv 2203.03466, table 3, Adam column): a
matrix that sums over the width (hidden matrices and an untied head) learns at a rate in proportion
to 1/width and starts with variance 1/fan_in, the head and the projections that write into the
residual stream at zero; embeddings and norm gains learn at a rate that does not depend on width.
A tied head keeps the embedding's rate and scales the logits by 1/width instead (table 8). The head
size is meant to be one number for a family: then attention's 1/sqrt(head size) and μP's 1/head size
differ by a constant only. Where the number of heads is fixed instead, scores may grow with
sqrt(head size); over a first few updates no trace of it was found (tests/test_transfer.py).

"sp", the standard parametrisation, is GPT-2's: one rate for all, normal(0, 0.02), and projections
into the residual stream scaled by 1/sqrt(2·n_layer).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from models.config import DecoderShape
from models.decoder import Decoder

PARAMETRISATIONS = ("mup", "sp")
SP_STD = 0.02  # GPT-2 (Radford et al. 2019), its published code


@dataclass(frozen=True)
class TensorRule:
    """`std` of the normal initialisation (None: ones, a norm's gain; 0: zeros), the factor on the
    peak learning rate, and whether weight decay applies."""

    std: float | None
    rate: float
    decays: bool


def output_multiplier(shape: DecoderShape, param: str, base_width: int) -> float:
    """The logits' factor: base_width / width where μP meets a tied head, else 1."""
    return base_width / shape.d_model if param == "mup" and shape.tied else 1.0


def tensor_rule(name: str, shape: DecoderShape, param: str, base_width: int) -> TensorRule:
    """The rule for the parameter `name` of a `Decoder` of this shape.

    Raises ValueError for an unknown parametrisation.
    """
    if param not in PARAMETRISATIONS:
        raise ValueError(f"param={param!r} is none of {', '.join(PARAMETRISATIONS)}")
    if name.endswith("gain"):
        return TensorRule(std=None, rate=1.0, decays=False)
    writes_residual = name.endswith("out.weight")
    if param == "sp":
        std = SP_STD / math.sqrt(2 * shape.n_layer) if writes_residual else SP_STD
        return TensorRule(std=std, rate=1.0, decays=name != "embedding.weight")
    if name == "embedding.weight":
        return TensorRule(std=base_width**-0.5 if shape.tied else 1.0, rate=1.0, decays=False)
    fan_in = shape.d_ff if name.endswith("feed_forward.out.weight") else shape.d_model
    starts_at_zero = writes_residual or name == "head.weight"
    return TensorRule(
        std=0.0 if starts_at_zero else fan_in**-0.5,
        rate=base_width / shape.d_model,
        decays=True,
    )


def initialise(model: Decoder, param: str, base_width: int, seed: int) -> None:
    """Fill every parameter in place, float32 on the CPU, from `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            rule = tensor_rule(name, model.shape, param, base_width)
            if rule.std is None:
                tensor.fill_(1.0)
            elif rule.std == 0.0:
                tensor.zero_()
            else:
                tensor.normal_(0.0, rule.std, generator=generator)


def parameter_groups(
    model: nn.Module, shape: DecoderShape, param: str, base_width: int, weight_decay: float
) -> list[dict]:
    """AdamW groups of tensors under one rule, each with "rate", the factor on the scheduled rate.

    Decay is decoupled and multiplies the scheduled rate without the width factor (`weight_decay` is
    divided by it here), so that its timescale in steps is one for all widths (Wang & Aitchison
    2024, arXiv 2405.13698, section 4).
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, tensor in model.named_parameters():
        rule = tensor_rule(name, shape, param, base_width)
        groups.setdefault((rule.rate, rule.decays), []).append(tensor)
    return [
        {"params": tensors, "rate": rate, "weight_decay": weight_decay / rate if decays else 0.0}
        for (rate, decays), tensors in groups.items()
    ]
