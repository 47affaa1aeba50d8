"""The shape of a decoder: a frozen value, free of torch, that counts and sizes are functions of."""

from __future__ import annotations

from dataclasses import dataclass

PARAMETRISATIONS = ("mup", "completep", "sp")
"""How initialisation and rates transfer between shapes: models/transfer.py."""

GATED = ("swiglu", "geglu")
ACTIVATIONS = (*GATED, "relu2", "gelu")


@dataclass(frozen=True)
class DecoderShape:
    """A pre-norm decoder (RMSNorm, rotary positions, no bias, no dropout).

    n_layer, d_model, n_head, d_ff, vocab_size and seq_len are counts; d_ff is the width of one
    feed-forward matrix (a gated activation has two of them on the way in). `tied` shares the
    output head with the input embedding.

    Raises:
        ValueError: a size below 1, d_model not a multiple of n_head, an odd head size (rotary
            positions turn pairs of coordinates), or an unknown activation.
    """

    n_layer: int
    d_model: int
    n_head: int
    d_ff: int
    vocab_size: int
    seq_len: int
    activation: str = "swiglu"
    qk_norm: bool = True
    tied: bool = False

    def __post_init__(self) -> None:
        for name in ("n_layer", "d_model", "n_head", "d_ff", "vocab_size", "seq_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.d_model % self.n_head:
            raise ValueError(f"d_model={self.d_model} is not a multiple of n_head={self.n_head}")
        if self.head_size % 2:
            raise ValueError(f"head size {self.head_size} (d_model/n_head) must be even for rotary positions")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is none of {', '.join(ACTIVATIONS)}")

    @property
    def head_size(self) -> int:
        return self.d_model // self.n_head

    @property
    def gated(self) -> bool:
        return self.activation in GATED
