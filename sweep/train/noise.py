"""The gradient noise scale while a run trains: from gradients alone, the batch beyond which more data a step
buys little (McCandlish et al. 2018, arXiv 1812.06162)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.decoder import token_losses
from sweep.data.batches import TokenBatches

SEQUENCES = 64
"""Of the stream, that a measurement takes: as many small batches of one sequence, and one large of them all.
Assumption: what they cost is one large batch, and what one measurement leaves to chance a study averages over
    several."""


@dataclass(frozen=True)
class NoiseScale:
    """square: |G|², trace: tr(Σ) of one token's gradient, both unbiased and so possibly below 0 (appendix
    A.1).

    tokens: B_simple = tr(Σ)/|G|² (equation 2.9). It is below 0 where chance hid |G|², and is kept so, since
    means of 1/B_simple over measurements are then unbiased; None where |G|² is 0.
    """

    square: float
    trace: float

    @property
    def tokens(self) -> float | None:
        return self.trace / self.square if self.square else None


def noise_scale(gradients: Iterable[Sequence[Tensor]], small_tokens: int) -> NoiseScale:
    """From the gradients of independent batches of `small_tokens` tokens each, and their mean as the one of
    the large batch. Norms are summed in float64. Raises ValueError: fewer than two."""
    total: list[Tensor] | None = None
    squares, count = 0.0, 0
    for gradient in gradients:
        squares += _square(gradient)
        count += 1
        if total is None:
            total = [part.detach().double() for part in gradient]
        else:
            for whole, part in zip(total, gradient, strict=True):
                whole += part
    if count < 2:
        raise ValueError(f"a noise scale is a comparison of gradients: two or more are wanted, found {count}")
    small, large = squares / count, _square(total) / count**2
    square = (count * large - small) / (count - 1)
    trace = (small - large) * small_tokens * count / (count - 1)
    return NoiseScale(square, trace)


def _square(gradient: Sequence[Tensor]) -> float:
    return float(sum(part.detach().double().square().sum() for part in gradient))


def measure_noise(model: nn.Module, batches: TokenBatches, step: int, autocast: Callable) -> NoiseScale:
    """At the weights as they are, on the sequences that come next in the run's stream. It touches neither
    weights nor .grad, and there is nothing random in it, so that the run goes on as if nothing had been
    measured.

    model: not compiled; its gradients are taken without the hooks that gather them over ranks.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = parameters[0].device

    def gradients() -> Iterator[Sequence[Tensor]]:
        for sequence in _sequences(batches, step):
            with autocast():
                loss = token_losses(model, sequence.to(device)).mean()
            yield torch.autograd.grad(loss, parameters)

    return noise_scale(gradients(), batches.seq_len)


def _sequences(batches: TokenBatches, step: int) -> Iterator[Tensor]:
    """SEQUENCES of them, int64[1, T + 1] each, from batch `step` on."""
    left = SEQUENCES
    while left > 0:
        for sequence in torch.from_numpy(batches.batch(step))[:left].split(1):
            yield sequence
            left -= 1
        step += 1
