"""The decoder that is trained: pre-norm, RMSNorm, rotary positions, no bias, no dropout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.config import DecoderShape
from models.count import count_parameters

ROTARY_BASE = 10_000.0  # Su et al. 2021 (arXiv 2104.09864), section 3.3
NORM_EPS = 1e-6  # Llama 2's value

LOGITS_BYTES = 2**29
"""Float32 logits beyond this are made and used in parts. Assumption: small beside a GPU's memory, and large
enough that a part keeps it busy (2,668 rows of a vocabulary of 50,304)."""

BYTES_PER_LOGIT = 4


class RMSNorm(nn.Module):
    """x / rms(x) times a learned gain, over the last axis (Zhang & Sennrich 2019, 1910.07467)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.gain.shape, self.gain.to(x.dtype), NORM_EPS)


def rotary_table(seq_len: int, head_size: int) -> tuple[Tensor, Tensor]:
    """cos and signed sin, float32[seq_len, head_size], in the half-split layout of Llama's checkpoints."""
    frequency = ROTARY_BASE ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angle = torch.outer(torch.arange(seq_len, dtype=torch.float64), frequency)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), dim=-1).float(), torch.cat((-sin, sin), dim=-1).float()


def rotate(x: Tensor, cos_TxK: Tensor, signed_sin_TxK: Tensor) -> Tensor:
    """Turn each pair (k, k + K/2) of the last axis by its position's angle; x is [..., T, K]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos_TxK + torch.cat((high, low), dim=-1) * signed_sin_TxK


class Attention(nn.Module):
    """Causal self-attention. Queries and keys are normalised and turned together, as one tensor:
    at small widths the number of operations, not of FLOPs, is what a step costs."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        d = shape.d_model
        self.n_head, self.head_size = shape.n_head, shape.head_size
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.qk_gain = nn.Parameter(torch.ones(2, shape.head_size)) if shape.qk_norm else None

    def forward(self, x_BxTxD: Tensor, cos_TxK: Tensor, signed_sin_TxK: Tensor) -> Tensor:
        batch, length, width = x_BxTxD.shape
        qkv = self.qkv(x_BxTxD).view(batch, length, 3, self.n_head, self.head_size)
        qkv_3xBxHxTxK = qkv.permute(2, 0, 3, 1, 4)
        qk, v = qkv_3xBxHxTxK[:2], qkv_3xBxHxTxK[2]
        if self.qk_gain is not None:
            qk = F.rms_norm(qk, (self.head_size,), None, NORM_EPS) * self.qk_gain[:, None, None, None].to(qk.dtype)
        q, k = rotate(qk, cos_TxK, signed_sin_TxK).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """Gated (Shazeer 2020, 2002.05202) or plain; ReLU² after So et al. 2021 (2109.08668)."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.activation = shape.activation
        self.into = nn.Linear(shape.d_model, (2 if shape.gated else 1) * shape.d_ff, bias=False)
        self.out = nn.Linear(shape.d_ff, shape.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.into(x)
        if self.activation == "relu2":
            return self.out(F.relu(hidden).square())
        if self.activation == "gelu":
            return self.out(F.gelu(hidden))
        gate, value = hidden.chunk(2, dim=-1)
        gate = F.silu(gate) if self.activation == "swiglu" else F.gelu(gate)
        return self.out(gate * value)


class Block(nn.Module):
    def __init__(self, shape: DecoderShape, residual_multiplier: float = 1.0) -> None:
        super().__init__()
        self.residual_multiplier = residual_multiplier
        self.attention_norm = RMSNorm(shape.d_model)
        self.attention = Attention(shape)
        self.feed_forward_norm = RMSNorm(shape.d_model)
        self.feed_forward = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        if self.residual_multiplier == 1.0:
            x = x + self.attention(self.attention_norm(x), cos, signed_sin)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = x + self.residual_multiplier * self.attention(self.attention_norm(x), cos, signed_sin)
        return x + self.residual_multiplier * self.feed_forward(self.feed_forward_norm(x))


class Decoder(nn.Module):
    """Token ids to logits. Initialisation is not done here but by `models.transfer.initialise`.

    Args:
        shape: what to build; the number of parameters is asserted to equal `count_parameters`.
        output_multiplier: the logits' factor, as the transfer rule wants it.
        residual_multiplier: the factor on what each half of a block adds to the residual stream.
    """

    def __init__(
        self, shape: DecoderShape, output_multiplier: float = 1.0, residual_multiplier: float = 1.0
    ) -> None:
        super().__init__()
        self.shape, self.output_multiplier = shape, output_multiplier
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape, residual_multiplier) for _ in range(shape.n_layer))
        self.norm = RMSNorm(shape.d_model)
        self.head = nn.Linear(shape.d_model, shape.vocab_size, bias=False)
        if shape.tied:
            self.head.weight = self.embedding.weight
        cos, signed_sin = rotary_table(shape.seq_len, shape.head_size)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("signed_sin", signed_sin, persistent=False)
        counted, built = count_parameters(shape).total, sum(p.numel() for p in self.parameters())
        assert counted == built, f"{counted} parameters counted, {built} built: {shape}"

    def forward(self, tokens_BxT: Tensor, labels_BxT: Tensor | None = None) -> Tensor:
        """int64[batch, length <= seq_len] to logits [batch, length, vocab]; with labels int64[batch, length],
        to their cross-entropy, nats, float32[batch, length]."""
        length = tokens_BxT.shape[1]
        x = self.embedding(tokens_BxT)
        for block in self.blocks:
            x = block(x, self.cos[:length], self.signed_sin[:length])
        x = self.norm(x)
        if labels_BxT is None:
            return self.logits(x)
        rows, labels = x.flatten(0, 1), labels_BxT.flatten()
        most = max(1, LOGITS_BYTES // (BYTES_PER_LOGIT * self.shape.vocab_size))
        if len(rows) <= most:
            return self.cross_entropy(rows, labels).view(labels_BxT.shape)
        parts = [
            # logits are made again in the backward pass, a part at a time, and never stand in full
            checkpoint(self.cross_entropy, rows[i : i + most], labels[i : i + most], use_reentrant=False)
            for i in range(0, len(rows), most)
        ]
        return torch.cat(parts).view(labels_BxT.shape)

    def logits(self, x: Tensor) -> Tensor:
        logits = self.head(x)
        return logits if self.output_multiplier == 1.0 else logits * self.output_multiplier

    def cross_entropy(self, rows: Tensor, labels: Tensor) -> Tensor:
        """float32[row] from the last norm's output [row, width] and int64[row]."""
        return F.cross_entropy(self.logits(rows).float(), labels, reduction="none")


def token_losses(model: nn.Module, tokens_BxT1: Tensor) -> Tensor:
    """Cross-entropy of each next token, nats, float32[batch, T], from int64[batch, T + 1]."""
    return model(tokens_BxT1[:, :-1], tokens_BxT1[:, 1:])
