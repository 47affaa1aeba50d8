from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.config import DecoderShape
from models.decoder import Decoder, token_losses
from models.transfer import initialise, output_multiplier, parameter_groups, tensor_rule

BASE = 32
VOCAB = 8
"""Few enough tokens that a batch holds each many times: otherwise chance, which falls with the width,
outweighs what the updates have in common."""


def decoder_shape(width: int, *, tied: bool = False, n_head: int | None = None) -> DecoderShape:
    return DecoderShape(2, width, n_head or width // 16, 2 * width, VOCAB, 16, tied=tied)


def initialised(shape: DecoderShape, param: str, seed: int = 0) -> Decoder:
    model = Decoder(shape, output_multiplier(shape, param, BASE))
    initialise(model, param, BASE, seed)
    return model


@pytest.mark.parametrize("param", ["mup", "sp"])
@pytest.mark.parametrize("tied", [True, False])
def test_each_parameter_is_in_one_group(param, tied):
    model = initialised(decoder_shape(64, tied=tied), param)
    groups = parameter_groups(model, model.shape, param, BASE, 0.1)
    grouped = [id(tensor) for group in groups for tensor in group["params"]]
    assert sorted(grouped) == sorted(id(tensor) for tensor in model.parameters())


KINDS = {
    "embedding.weight": "vector",
    "norm.gain": "vector",
    "blocks.1.attention.qk_gain": "vector",
    "head.weight": "head",
    "blocks.0.attention.qkv.weight": "hidden",
    "blocks.0.feed_forward.into.weight": "hidden",
    "blocks.0.attention.out.weight": "residual",
    "blocks.0.feed_forward.out.weight": "residual",
}


@pytest.mark.parametrize("width", [16, 32, 256])
def test_mup_s_rates_and_variances_follow_the_width_as_in_the_paper(width):
    # Yang et al. 2022, table 3, Adam: matrices into the width have rate 1/width and variance 1/fan_in
    for name, kind in KINDS.items():
        rule = tensor_rule(name, decoder_shape(width), "mup", BASE)
        assert rule.rate == (1.0 if kind == "vector" else BASE / width), name
        assert rule.decays == (kind != "vector"), name
        if kind == "hidden":
            assert rule.std == width**-0.5
        elif kind in ("head", "residual"):
            assert rule.std == 0.0
    assert tensor_rule("embedding.weight", decoder_shape(width), "mup", BASE).std == 1.0


def test_a_tied_head_scales_its_logits_instead():
    for width in (16, 32, 256):
        shape = decoder_shape(width, tied=True)
        rule = tensor_rule("embedding.weight", shape, "mup", BASE)
        assert (rule.rate, rule.std) == (1.0, BASE**-0.5)
        assert output_multiplier(shape, "mup", BASE) == BASE / width
        assert output_multiplier(shape, "sp", BASE) == 1.0
        assert output_multiplier(decoder_shape(width), "mup", BASE) == 1.0


def test_sp_is_gpt_2_s_at_every_width():
    for width, name in ((width, name) for width in (16, 256) for name in KINDS):
        rule = tensor_rule(name, decoder_shape(width), "sp", BASE)
        assert rule.rate == 1.0
        if KINDS[name] == "residual":
            assert rule.std == 0.02 / math.sqrt(2 * 2)
        elif not name.endswith("gain"):
            assert rule.std == 0.02


@pytest.mark.parametrize("param", ["mup", "sp"])
def test_tensors_are_drawn_as_their_rule_says(param):
    model = initialised(decoder_shape(256), param)
    for name, tensor in model.named_parameters():
        rule = tensor_rule(name, model.shape, param, BASE)
        if rule.std is None:
            assert torch.all(tensor == 1.0)
        else:
            assert tensor.std().item() == pytest.approx(rule.std, rel=0.05), name
            assert abs(tensor.mean().item()) <= 4 * rule.std / math.sqrt(tensor.numel()), name


def test_an_unknown_parametrisation_is_refused():
    with pytest.raises(ValueError, match="param='ntk' is none of mup, completep, sp"):
        initialised(decoder_shape(32), "ntk")


def test_initialisation_is_the_seed_s_alone():
    torch.manual_seed(1)
    first = initialised(decoder_shape(32), "mup", seed=5).state_dict()
    torch.manual_seed(2)
    torch.rand(7)
    model = Decoder(decoder_shape(32))
    state = torch.get_rng_state()
    initialise(model, "mup", BASE, seed=5)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn from the global generator
    assert all(torch.equal(tensor, first[name]) for name, tensor in model.state_dict().items())
    other = initialised(decoder_shape(32), "mup", seed=6).state_dict()
    assert not torch.equal(other["embedding.weight"], first["embedding.weight"])


@pytest.mark.parametrize("param", ["mup", "sp"])
@pytest.mark.parametrize("width", [16, 64, 256])
def test_weights_are_forgotten_at_the_same_pace_at_every_width(param, width):
    """With a zero gradient, decoupled decay alone moves a weight: by the factor 1 - rate·decay."""
    model, rate, decay = initialised(decoder_shape(width), param), 0.01, 0.3
    optimizer = torch.optim.AdamW(parameter_groups(model, model.shape, param, BASE, decay))
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    for tensor in model.parameters():
        tensor.grad = torch.zeros_like(tensor)
    optimizer.step()
    for name, tensor in model.named_parameters():
        decays = not name.endswith("gain") and name != "embedding.weight"
        torch.testing.assert_close(tensor.detach(), before[name] * (1 - rate * decay if decays else 1.0))


WIDTHS = (32, 64, 128, 256)
STEPS = 4


def changes_by_step(shape: DecoderShape, param: str, seed: int) -> np.ndarray:
    """rms change of the logits and of the last residual in each AdamW update: float64[step, 2].

    The task, a permutation to apply to the last token, is the same for every width.
    """
    model = initialised(shape, param, seed)
    optimizer = torch.optim.AdamW(parameter_groups(model, shape, param, BASE, 0.1), betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(1000 + seed)
    permutation = torch.randperm(VOCAB, generator=generator)

    def batch() -> torch.Tensor:
        tokens = [torch.randint(VOCAB, (16, 1), generator=generator)]
        for _ in range(shape.seq_len):
            tokens.append(permutation[tokens[-1]])
        return torch.cat(tokens, dim=1)

    residual = []
    model.norm.register_forward_pre_hook(lambda module, inputs: residual.append(inputs[0].detach()))
    probe, states = batch()[:, :-1], []
    for step in range(STEPS + 1):
        with torch.no_grad():
            states.append((model(probe), residual[-1]))
        if step == STEPS:
            break
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * group["rate"]
        token_losses(model, batch()).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return np.array(
        [[(b - a).square().mean().sqrt().item() for a, b in zip(*pair)] for pair in zip(states, states[1:])]
    )


def growth_with_width(param: str, seeds: int, **shape_options) -> np.ndarray:
    """Log-log slope in the width of either change, geometric mean over seeds and steps: float64[2].

    The first step is left out: while the head is zero no gradient reaches the residual stream.
    """
    changes = [
        [changes_by_step(decoder_shape(width, **shape_options), param, seed)[1:] for seed in range(seeds)]
        for width in WIDTHS
    ]
    return np.polyfit(np.log(WIDTHS), np.log(changes).mean(axis=(1, 2)), 1)[0]


@pytest.mark.parametrize(
    "options, seeds",  # a tied head starts at random, not at zero, so its slope scatters more
    [({}, 2), ({"n_head": 2}, 2), ({"tied": True}, 6)],
    ids=["head size fixed", "head number fixed", "tied"],
)
def test_under_mup_an_update_moves_logits_and_residual_alike_at_every_width(options, seeds):
    assert np.all(np.abs(growth_with_width("mup", seeds, **options)) < 0.15)


def test_under_sp_an_update_moves_them_the_more_the_wider():
    assert np.all(growth_with_width("sp", seeds=2) > 0.7)
