"""N to shape: the family that one rule makes, and its member nearest to a size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.config import DecoderShape
from models.count import count_parameters


@dataclass(frozen=True)
class FamilyRule:
    """A one-parameter family of shapes, by width.

    Depth is `n_layer` for every width, or width / `aspect_ratio` (only widths where that is a
    whole number of layers are members, so that depth has no jumps). Heads are `n_head` for every
    width, or of `head_size` coordinates. The feed-forward width is `ff_ratio` times the width,
    rounded to a multiple of `width_step`, as are widths.

    Raises:
        ValueError: both or neither of a pair are given, or a number is not positive.
    """

    width_step: int
    ff_ratio: float
    vocab_size: int
    seq_len: int
    activation: str
    qk_norm: bool
    tied: bool
    n_layer: int | None = None
    aspect_ratio: float | None = None
    n_head: int | None = None
    head_size: int | None = None

    def __post_init__(self) -> None:
        for one, other in (("n_layer", "aspect_ratio"), ("n_head", "head_size")):
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                raise ValueError(f"give {one} or {other}, not both and not neither")
        for name in ("width_step", "ff_ratio", "n_layer", "aspect_ratio", "n_head", "head_size"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")

    def shape(self, d_model: int) -> DecoderShape | None:
        """The member of width `d_model`, or None where the rule has none at that width."""
        n_layer = self.n_layer if self.n_layer is not None else d_model / self.aspect_ratio
        n_head = self.n_head if self.n_head is not None else d_model / self.head_size
        if n_layer != int(n_layer) or n_head != int(n_head) or n_layer < 1 or n_head < 1:
            return None
        if d_model % int(n_head) or (d_model // int(n_head)) % 2:
            return None
        d_ff = max(1, round(self.ff_ratio * d_model / self.width_step)) * self.width_step
        return DecoderShape(
            n_layer=int(n_layer),
            d_model=d_model,
            n_head=int(n_head),
            d_ff=d_ff,
            vocab_size=self.vocab_size,
            seq_len=self.seq_len,
            activation=self.activation,
            qk_norm=self.qk_norm,
            tied=self.tied,
        )


WIDEST = 65_536  # assumption: wider than any decoder this rule will be asked for


def nearest_shape(rule: FamilyRule, params: float) -> DecoderShape:
    """The member whose non-embedding parameter count is nearest to `params` in log N.

    Raises ValueError where the family has no member, or `params` lies beyond its smallest or
    largest one by more than a factor of two.
    """
    best, best_distance = None, math.inf
    for width in range(rule.width_step, WIDEST + 1, rule.width_step):
        shape = rule.shape(width)
        if shape is None:
            continue
        distance = abs(math.log(count_parameters(shape).non_embedding / params))
        if distance > best_distance:
            break
        best, best_distance = shape, distance
    if best is None:
        raise ValueError(f"no width up to {WIDEST} gives whole layers and heads: {rule}")
    if best_distance > math.log(2):
        found = count_parameters(best).non_embedding
        raise ValueError(f"no shape near {params:.3g} parameters; the nearest has {found:,} (d_model={best.d_model})")
    return best
