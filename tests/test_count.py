from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from itertools import product

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.config import ACTIVATIONS, DecoderShape
from models.count import BACKWARD_TO_FORWARD, count_flops, count_parameters, forward_matmul_flops
from models.decoder import Decoder, token_losses
from sweep.plan.grids import cells, extensions, provisional_target_params, target_cell

ARCHITECTURES = list(product(ACTIVATIONS, (True, False), (True, False)))
FACTS = DecoderShape(n_layer=6, d_model=384, n_head=6, d_ff=1024, vocab_size=32_768, seq_len=2_048)


@pytest.mark.parametrize("activation, qk_norm, tied", ARCHITECTURES)
def test_every_group_has_as_many_parameters_as_torch_holds(activation, qk_norm, tied):
    shape = DecoderShape(3, 48, 4, 80, 101, 8, activation, qk_norm, tied)
    model = Decoder(shape)
    built = Counter()
    for name, tensor in model.named_parameters():
        parts = name.split(".")
        place = parts[2] if parts[0] == "blocks" else parts[0]
        built["norm" if name.endswith("gain") else place] += tensor.numel()
    counted = count_parameters(shape)
    assert asdict(counted) == {"head": 0, **built}
    assert counted.total == sum(tensor.numel() for tensor in model.parameters())
    assert counted.non_embedding == counted.total - model.embedding.weight.numel()


def torch_counts(shape: DecoderShape) -> tuple[int, int]:
    """(forward, whole training) FLOPs of one sequence as torch counts them. With fused attention the
    backward pass would compute the scores again, which is no part of the model's cost."""
    with torch.device("meta"):
        model = Decoder(shape)
        tokens = torch.zeros((1, shape.seq_len + 1), dtype=torch.int64)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            loss = token_losses(model, tokens).mean()
            forward = counter.get_total_flops()
            loss.backward()
    return forward, counter.get_total_flops()


def assert_torch_agrees(shape: DecoderShape) -> None:
    forward, training = torch_counts(shape)
    assert forward == shape.seq_len * sum(forward_matmul_flops(shape).values()), shape
    assert training == (1 + BACKWARD_TO_FORWARD) * forward == shape.seq_len * count_flops(shape).exact, shape


@pytest.mark.parametrize("activation, qk_norm, tied", ARCHITECTURES)
def test_training_flops_are_torch_s_for_every_architecture(activation, qk_norm, tied):
    assert_torch_agrees(DecoderShape(2, 48, 4, 80, 101, 24, activation, qk_norm, tied))


@pytest.mark.parametrize("scale, vocab_size", [("cpu", 257), ("gpu", 32_768)])
def test_training_flops_are_torch_s_for_every_shape_the_presets_plan(compose, scale, vocab_size):
    shapes: set[DecoderShape] = set()
    for grid in (
        ["+grid=isoflop"],
        ["+grid=ladder"],
        ["+grid=product", "grid.params=${scale.optimum_params}", "grid.tokens=1e9"],
    ):
        config = compose(f"scale={scale}", *grid)
        planned = cells(config, vocab_size)
        target = target_cell(config, vocab_size, provisional_target_params(config))
        shapes.update(cell.shape for cell in [*planned, *([target] if target else [])])
        for best in (min, max):  # the edges to which a budget that is not bracketed is extended
            losses = [(cell, abs(cell.params - best(c.params for c in planned))) for cell in planned]
            shapes.update(
                cell.shape for more in extensions(config, vocab_size, losses) for cell in more.cells
            )
    assert len(shapes) > 8
    for shape in shapes:
        assert_torch_agrees(shape)


@pytest.mark.parametrize("shape", [FACTS, DecoderShape(2, 64, 2, 168, 257, 128, "relu2", False, True)])
def test_the_conventions_are_what_their_sources_say(shape):
    flops, parameters = count_flops(shape), count_parameters(shape)
    matrices = parameters.attention + parameters.feed_forward
    head = shape.vocab_size * shape.d_model  # a tied head is multiplied with all the same
    assert (
        flops.exact
        == flops.attention_and_head
        == (6 * (matrices + head) + 12 * shape.n_layer * shape.d_model * shape.seq_len)
    )
    assert flops.six_n == 6 * parameters.non_embedding
    assert flops.six_n_total == 6 * parameters.total
    # Kaplan et al. 2020, equation 2.2: C_forward = 2N + 2 n_layer n_ctx d_attn, N without the head
    assert flops.kaplan == 3 * (2 * matrices + 2 * shape.n_layer * shape.seq_len * shape.d_model)


def test_conventions_differ_by_a_factor_of_three_for_a_10m_decoder():
    flops, parameters = count_flops(FACTS), count_parameters(FACTS)
    assert 6 * (parameters.attention + parameters.feed_forward) / flops.exact == pytest.approx(
        0.33, abs=0.005
    )
    assert flops.six_n_total / flops.exact == pytest.approx(1.10, abs=0.005)


def test_attention_flops_grow_with_the_context_and_nothing_else_does():
    short, long = (forward_matmul_flops(DecoderShape(2, 48, 4, 80, 101, seq)) for seq in (16, 64))
    grown = {kind for kind in short if long[kind] != short[kind]}
    assert grown == {"scores", "mix_values"}
    assert all(long[kind] == 4 * short[kind] for kind in grown)
