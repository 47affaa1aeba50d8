"""How learning rate and initialisation transfer across width and depth: parameter groups and factors.

"mup" is μP in the form without multipliers (Yang et al. 2022, arXiv 2203.03466, table 3, Adam column):
a matrix that sums over the width (hidden matrices and an untied head) learns at a rate in proportion
to 1/width and starts with variance 1/fan_in, the head and the projections that write into the
residual stream at zero; embeddings and norm gains learn at a rate that does not depend on width.
A tied head keeps the embedding's rate and scales the logits by 1/width instead (table 8). The head
size is meant to be one number for a family: then attention's 1/sqrt(head size) and μP's 1/head size
differ by a constant only. Where the number of heads is fixed instead, scores may grow with
sqrt(head size); over a first few updates no trace of it was found (tests/test_transfer.py).

"completep" is μP with Dey et al. 2025's rule over depth (arXiv 2505.01618, table 1, alpha = 1): what a
block adds to the residual stream is multiplied by base_depth / n_layer, rates stay as they are, and
AdamW's eps follows the size of the gradients, which the multiplier makes smaller (their equation 40).

Constant factors on the rate of one kind of tensor leave all of this as it is, and are found by trying at one
width (Everett et al. 2024, arXiv 2407.05872, section 4.3). The one here is the input embedding's: a row of it gets a
gradient only where its token stands, and starts far larger than its updates.

Nothing here has a bias. A mean of the input embedding at the start is one: a direction that all tokens share, by which
heads can attend to a position whatever stands there. It is spread over all coordinates, so that what a matrix learns of
it moves the output as fast at every width; in one coordinate the same would fade in proportion to 1/width.

"sp", the standard parametrisation, is GPT-2's: one rate for all, normal(0, 0.02), and projections
into the residual stream scaled by 1/sqrt(2·n_layer).

Muon's update of an (out, in) matrix has about max(out, in)^-1/2 as the rms of its entries. torch
multiplies it by 0.2·sqrt(max(out, in)), so that the same rate moves a matrix as far as AdamW does
(Liu et al. 2025, arXiv 2502.16982, section 2.2). All of its singular values being alike, the spectral
norm then grows with the square root of the width, and a rate in proportion to width^-1/2 keeps it the
same, as Yang, Simon & Bernstein 2023 (2310.17813, condition 1) want for shapes of one family. So one
`lr` serves both optimizers: at base_width Muon moves its matrices as AdamW would.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from models.config import PARAMETRISATIONS, DecoderShape
from models.decoder import Decoder

SP_STD = 0.02  # GPT-2 (Radford et al. 2019), its published code


@dataclass(frozen=True)
class TensorRule:
    """`std` of the normal initialisation (None: ones, a norm's gain; 0: zeros), the factors on the
    peak learning rate and on AdamW's eps, and whether weight decay applies."""

    std: float | None
    rate: float
    decays: bool
    eps: float = 1.0


def output_multiplier(shape: DecoderShape, param: str, base_width: int) -> float:
    """The logits' factor: base_width / width where μP meets a tied head, else 1."""
    return base_width / shape.d_model if param != "sp" and shape.tied else 1.0


def residual_multiplier(shape: DecoderShape, param: str, base_depth: int | None) -> float:
    """The factor on what each half of a block adds: base_depth / n_layer for completep, else 1.

    Raises ValueError where completep lacks its base.
    """
    if param != "completep":
        return 1.0
    if base_depth is None:
        raise ValueError("param='completep' wants base_depth, in layers")
    return base_depth / shape.n_layer


def build_decoder(shape: DecoderShape, param: str, base_width: int, base_depth: int | None = None) -> Decoder:
    """A decoder with the multipliers of its parametrisation, not initialised yet."""
    return Decoder(
        shape, output_multiplier(shape, param, base_width), residual_multiplier(shape, param, base_depth)
    )


def tensor_rule(
    name: str, shape: DecoderShape, param: str, base_width: int, base_depth: int | None = None
) -> TensorRule:
    """The rule for the parameter `name` of a `Decoder` of this shape.

    Raises ValueError for an unknown parametrisation.
    """
    if param not in PARAMETRISATIONS:
        raise ValueError(f"param={param!r} is none of {', '.join(PARAMETRISATIONS)}")
    eps = _eps_factor(name, shape, base_width, base_depth) if param == "completep" else 1.0
    if name.endswith("gain"):
        return TensorRule(std=None, rate=1.0, decays=False, eps=eps)
    writes_residual = name.endswith("out.weight")
    if param == "sp":
        std = SP_STD / math.sqrt(2 * shape.n_layer) if writes_residual else SP_STD
        return TensorRule(std=std, rate=1.0, decays=name != "embedding.weight")
    if name == "embedding.weight":
        return TensorRule(std=base_width**-0.5 if shape.tied else 1.0, rate=1.0, decays=False, eps=eps)
    fan_in = shape.d_ff if name.endswith("feed_forward.out.weight") else shape.d_model
    starts_at_zero = writes_residual or name == "head.weight"
    return TensorRule(
        std=0.0 if starts_at_zero else fan_in**-0.5,
        rate=base_width / shape.d_model,
        decays=True,
        eps=eps,
    )


def _eps_factor(name: str, shape: DecoderShape, base_width: int, base_depth: int | None) -> float:
    """How the gradient's entries scale: with 1/width for all that lies before the head, and in the
    blocks with the residual multiplier too. The head's own do not change with the width: without the
    multiplier that Dey et al. put on the logits, their eps/width for it is eps."""
    if name == "head.weight":
        return 1.0
    in_block = residual_multiplier(shape, "completep", base_depth) if name.startswith("blocks.") else 1.0
    return base_width / shape.d_model * in_block


def initialise(model: Decoder, param: str, base_width: int, seed: int, embedding_mean: float = 0.0) -> None:
    """Fill every parameter in place, float32 on the CPU, from `seed` alone. Depth plays no part in
    "completep": its multiplier does what GPT-2's 1/sqrt(2·n_layer) does in "sp". The entries of an untied input
    embedding have the mean `embedding_mean`, in units of their standard deviation (no paper: README, design notes, says
    what was measured).

    Raises ValueError for an unknown parametrisation.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            rule = tensor_rule(name, model.shape, param, base_width, base_depth=1)
            if rule.std is None:
                tensor.fill_(1.0)
            elif rule.std == 0.0:
                tensor.zero_()
            else:
                mean = embedding_mean if name == "embedding.weight" and not model.shape.tied else 0.0
                tensor.normal_(0.0, 1.0, generator=generator).add_(mean).mul_(rule.std)


def parameter_groups(
    model: nn.Module,
    shape: DecoderShape,
    param: str,
    base_width: int,
    weight_decay: float,
    base_depth: int | None = None,
    embedding_rate: float = 1.0,
    chosen: Callable[[str], bool] = lambda name: True,
) -> list[dict]:
    """AdamW groups of tensors under one rule, each with "rate", the factor on the scheduled rate, and
    "eps_factor". Of the parameters whose name is `chosen`. `embedding_rate` is a further factor on the rate of
    an input embedding; a tied one is the head too, and has none.

    Decay is decoupled and multiplies the scheduled rate without the width factor (`weight_decay` is
    divided by it here), so that its timescale in steps is one for all widths (Wang & Aitchison
    2024, arXiv 2405.13698, section 4).
    """
    groups: dict[tuple[float, bool, float], list[nn.Parameter]] = {}
    for name, tensor in model.named_parameters():
        if chosen(name):
            rule = tensor_rule(name, shape, param, base_width, base_depth)
            more = embedding_rate if name == "embedding.weight" and not shape.tied else 1.0
            groups.setdefault((rule.rate * more, rule.decays, rule.eps), []).append(tensor)
    return [
        {
            "params": tensors,
            "rate": rate,
            "weight_decay": weight_decay / rate if decays else 0.0,
            "eps_factor": eps,
        }
        for (rate, decays, eps), tensors in groups.items()
    ]


def is_hidden_matrix(name: str) -> bool:
    """Whether the parameter `name` is a matrix in the layers: not embedding, head or gain."""
    return name.startswith("blocks.") and name.endswith(".weight")


def stacked_matrices(name: str, shape: DecoderShape) -> int:
    """How many matrices of equal size the rows of hidden matrix `name` hold: query, key and value are
    one tensor here, and so are a gated feed-forward's gate and value."""
    if name.endswith("attention.qkv.weight"):
        return 3
    return 2 if shape.gated and name.endswith("feed_forward.into.weight") else 1


def muon_rate(shape: DecoderShape, param: str, base_width: int) -> float:
    """The factor on the scheduled rate of Muon's matrices: sqrt(base_width / width), or 1 for "sp"."""
    return 1.0 if param == "sp" else math.sqrt(base_width / shape.d_model)
