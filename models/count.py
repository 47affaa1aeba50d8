"""Exact counts: parameters by group, and training FLOPs under every convention in use.

A matrix product of an (m, k) by a (k, n) matrix is 2·m·k·n FLOPs; the backward pass is twice the
forward one (one product for the gradient of each factor). Attention counts the full T x T products
(no causal halving) and embedding look-ups count zero: Hoffmann et al. 2022 (arXiv 2203.15556),
appendix F, and what torch.utils.flop_counter counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from models.config import DecoderShape

BACKWARD_TO_FORWARD = 2  # Kaplan et al. 2020 (arXiv 2001.08361), section 2.1


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by group. `head` is 0 where it is tied to the embedding."""

    embedding: int
    attention: int
    feed_forward: int
    norm: int
    head: int

    @property
    def total(self) -> int:
        return self.embedding + self.non_embedding

    @property
    def non_embedding(self) -> int:
        """All but the input embedding (rotary positions have no table); an untied head counts."""
        return self.attention + self.feed_forward + self.norm + self.head


@cache
def count_parameters(shape: DecoderShape) -> ParameterCount:
    """Parameters of a decoder of this shape, by group."""
    d, layers = shape.d_model, shape.n_layer
    feed_forward_matrices = 3 if shape.gated else 2
    norms_per_layer = 2 * d + (2 * shape.head_size if shape.qk_norm else 0)
    return ParameterCount(
        embedding=shape.vocab_size * d,
        attention=layers * 4 * d * d,
        feed_forward=layers * feed_forward_matrices * d * shape.d_ff,
        norm=layers * norms_per_layer + d,
        head=0 if shape.tied else shape.vocab_size * d,
    )


@dataclass(frozen=True)
class FlopCount:
    """Training FLOPs for one token, under each convention.

    exact: every matrix product, forward and backward, head and full attention included.
    six_n: 6·N with N non-embedding (Kaplan et al. 2020; `flops_6nd` is this times D).
    six_n_total: 6·N with N total (Hoffmann et al. 2022's approximation).
    kaplan: 6·(matrices in the layers) + attention, no head (Kaplan et al. 2020, table 1 with
        C_forward = 2N + 2·n_layer·n_ctx·d_attn; theirs takes attention products as causal on average).
    attention_and_head: 6·(matrices and head) + 12·n_layer·d_model·T, the count of nanoGPT and of
        PaLM's MFU (arXiv 2204.02311, appendix B); equal to `exact` for this architecture.
    """

    exact: int
    six_n: int
    six_n_total: int
    kaplan: int
    attention_and_head: int


def forward_matmul_flops(shape: DecoderShape) -> dict[str, int]:
    """Forward FLOPs for one token by kind of matrix product, enumerated product by product."""
    d, heads, size, seq = shape.d_model, shape.n_head, shape.head_size, shape.seq_len
    into = 2 if shape.gated else 1
    return {
        "query_key_value": shape.n_layer * 3 * (2 * d * d),
        "scores": shape.n_layer * heads * (2 * size * seq),
        "mix_values": shape.n_layer * heads * (2 * seq * size),
        "attention_out": shape.n_layer * (2 * d * d),
        "feed_forward": shape.n_layer * (into * 2 * d * shape.d_ff + 2 * shape.d_ff * d),
        "head": 2 * d * shape.vocab_size,
    }


@cache
def count_flops(shape: DecoderShape) -> FlopCount:
    """Training FLOPs for one token of a sequence of `shape.seq_len`, under every convention."""
    parameters = count_parameters(shape)
    layers = parameters.attention + parameters.feed_forward
    head = shape.vocab_size * shape.d_model
    attention = 12 * shape.n_layer * shape.d_model * shape.seq_len
    return FlopCount(
        exact=(1 + BACKWARD_TO_FORWARD) * sum(forward_matmul_flops(shape).values()),
        six_n=6 * parameters.non_embedding,
        six_n_total=6 * parameters.total,
        kaplan=6 * layers + attention // 2,
        attention_and_head=6 * (layers + head) + attention,
    )


def training_flops_per_token(shape: DecoderShape) -> int:
    """C/D: exact training FLOPs for one token."""
    return count_flops(shape).exact
