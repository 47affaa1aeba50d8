from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.config import DecoderShape
from models.decoder import Decoder, token_losses
from models.transfer import (
    PARAMETRISATIONS,
    build_decoder,
    initialise,
    muon_rate,
    output_multiplier,
    parameter_groups,
    residual_multiplier,
    tensor_rule,
)
from sweep.plan.spec import OptimSpec
from sweep.train.optimizer import build_optimizer

BASE, BASE_DEPTH = 32, 2
VOCAB = 8
"""Few enough tokens that a batch holds each many times: otherwise chance, which falls with the width,
outweighs what the updates have in common."""


def decoder_shape(width: int, n_layer: int = 2, *, tied: bool = False, n_head: int | None = None) -> DecoderShape:
    return DecoderShape(n_layer, width, n_head or width // 16, 2 * width, VOCAB, 16, tied=tied)


def initialised(shape: DecoderShape, param: str, seed: int = 0, embedding_mean: float = 0.0) -> Decoder:
    model = build_decoder(shape, param, BASE, BASE_DEPTH)
    initialise(model, param, BASE, seed, embedding_mean)
    return model


@pytest.mark.parametrize("param", PARAMETRISATIONS)
@pytest.mark.parametrize("tied", [True, False])
def test_each_parameter_is_in_one_group(param, tied):
    model = initialised(decoder_shape(64, tied=tied), param)
    groups = parameter_groups(model, model.shape, param, BASE, 0.1, BASE_DEPTH)
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


@pytest.mark.parametrize("param", PARAMETRISATIONS)
def test_a_mean_of_the_embedding_shifts_it_by_so_many_of_its_deviations_and_nothing_else(param):
    for tied in (False, True):
        plain, shifted = (build_decoder(decoder_shape(32, tied=tied), param, BASE, BASE_DEPTH) for _ in range(2))
        initialise(plain, param, BASE, seed=3)
        initialise(shifted, param, BASE, seed=3, embedding_mean=0.8)
        for (name, before), after in zip(plain.named_parameters(), shifted.parameters()):
            moved = 0.8 * 0.02 if param == "sp" else 0.8
            if name != "embedding.weight" or tied:
                moved = 0.0
            torch.testing.assert_close(after - before, torch.full_like(before, moved), atol=1e-6, rtol=0)


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


def test_completep_is_mup_with_a_multiplier_and_eps_after_the_depth():
    # Dey et al. 2025 (arXiv 2505.01618), table 1 with alpha = 1, and equation 40
    for width, n_layer in ((16, 2), (32, 4), (256, 16)):
        shape = decoder_shape(width, n_layer)
        for name in KINDS:
            mup = tensor_rule(name, shape, "mup", BASE)
            rule = tensor_rule(name, shape, "completep", BASE, BASE_DEPTH)
            assert (rule.std, rule.rate, rule.decays) == (mup.std, mup.rate, mup.decays)
            before_head = BASE / width if name != "head.weight" else 1.0
            assert rule.eps == before_head * (BASE_DEPTH / n_layer if "blocks" in name else 1.0)
        assert residual_multiplier(shape, "completep", BASE_DEPTH) == BASE_DEPTH / n_layer
        assert residual_multiplier(shape, "mup", BASE_DEPTH) == 1.0
    with pytest.raises(ValueError, match="wants base_depth"):
        build_decoder(shape, "completep", BASE)


def test_at_its_base_completep_is_mup_bit_for_bit():
    tokens = torch.randint(VOCAB, (2, 16), generator=torch.Generator().manual_seed(0))
    models = [initialised(decoder_shape(BASE, BASE_DEPTH), param) for param in ("mup", "completep")]
    for model in models:  # head and projections start at zero, which would hide the blocks
        initialise(model, "sp", BASE, seed=0)
    assert torch.equal(models[0](tokens), models[1](tokens))
    deeper = Decoder(decoder_shape(BASE, BASE_DEPTH), residual_multiplier=0.5)
    deeper.load_state_dict(models[0].state_dict())
    assert not torch.allclose(deeper(tokens), models[0](tokens))


def test_the_residual_multiplier_is_a_factor_on_the_projections_into_the_stream():
    shape = decoder_shape(32, 4)
    model = Decoder(shape, residual_multiplier=0.5)
    initialise(model, "sp", BASE, seed=0)
    plain = Decoder(shape)
    halved = {k: w / 2 if k.endswith("out.weight") else w for k, w in model.state_dict().items()}
    plain.load_state_dict(halved)
    tokens = torch.randint(VOCAB, (2, 16), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(tokens), plain(tokens))


def optim_spec(param: str, kind: str = "adamw") -> OptimSpec:
    return OptimSpec(
        param, 0.01, BASE, 0.9, 0.95, 1e-8, 0.1, 1.0, kind,
        BASE_DEPTH if param == "completep" else None, 0.95 if kind == "muon" else None,
    )  # fmt: skip


class Task:
    """A permutation to apply to the last token: the same for every shape, drawn from the seed."""

    def __init__(self, seed: int, batch: int) -> None:
        self.generator, self.size = torch.Generator().manual_seed(1000 + seed), batch
        self.permutation = torch.randperm(VOCAB, generator=self.generator)

    def batch(self) -> torch.Tensor:
        tokens = [torch.randint(VOCAB, (self.size, 1), generator=self.generator)]
        for _ in range(16):
            tokens.append(self.permutation[tokens[-1]])
        return torch.cat(tokens, dim=1)


def sizes_by_step(
    shape: DecoderShape, param: str, seed: int, steps: int, batch: int, kind: str, embedding_mean: float
) -> np.ndarray:
    """After each update: rms of the logits, of the last residual, and of what either changed by in it,
    float64[step, 4], on tokens that are not trained on."""
    model = initialised(shape, param, seed, embedding_mean)
    optimizer = build_optimizer(model, optim_spec(param, kind))
    task, residual = Task(seed, batch), []
    model.norm.register_forward_pre_hook(lambda module, inputs: residual.append(inputs[0].detach()))
    probe, states = task.batch()[:, :-1], []
    for step in range(steps + 1):
        with torch.no_grad():
            states.append((model(probe), residual[-1]))
        if step == steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * group["rate"]
        token_losses(model, task.batch()).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return np.array([
        [tensor.square().mean().sqrt().item() for tensor in (*new, *(b - a for a, b in zip(old, new)))]
        for old, new in zip(states, states[1:])
    ])  # fmt: skip


def slopes(
    shapes: dict[int, DecoderShape], param: str, *, seeds=1, steps=10, batch=4, kind="adamw", embedding_mean=0.0
) -> np.ndarray:
    """Log-log slope in the key of `shapes` of logits, residual and their changes, geometric mean over
    seeds and steps: float64[4]. The first step is left out: while the head is zero no gradient
    reaches the residual stream."""
    sizes = [
        [sizes_by_step(shape, param, seed, steps, batch, kind, embedding_mean)[1:] for seed in range(seeds)]
        for shape in shapes.values()
    ]
    return np.polyfit(np.log(list(shapes)), np.log(sizes).mean(axis=(1, 2)), 1)[0]


FLAT, GROWING = 0.15, 0.5
"""Slopes, with torch 2.13, of logits, residual and their changes. Over these widths: mup -0.00, -0.00,
-0.01, -0.03; sp 0.63, 2.77, 0.92, 2.86; Muon -0.03, 0.01, -0.03, 0.05 (sp: 0.78, 0.73, 0.66, 0.90). Over
these depths: completep -0.01, -0.01, -0.02, -0.04, with Muon 0.00, -0.00, 0.00, -0.03; mup 0.03, 0.50, 0.19,
0.85; sp -0.14, 0.98, 0.11, 1.10."""

WIDTHS = {width: decoder_shape(width) for width in (64, 128, 256, 512, 1024)}
NARROWER = {width: decoder_shape(width) for width in (32, 64, 128, 256)}
"""For Muon, whose orthogonalisation in bfloat16 takes minutes at 1,024 on a CPU without it."""
DEPTHS = {n_layer: decoder_shape(32, n_layer) for n_layer in (2, 4, 8, 16)}


@pytest.mark.parametrize("embedding_mean", [0.0, 0.8])
def test_under_mup_activations_and_updates_are_of_one_size_from_width_64_to_1024(embedding_mean):
    assert np.all(np.abs(slopes(WIDTHS, "mup", embedding_mean=embedding_mean)) < FLAT)


def test_under_sp_they_grow_with_the_width():
    assert np.all(slopes(WIDTHS, "sp") > GROWING)


@pytest.mark.parametrize("param", ["mup", "completep"])
def test_muon_moves_every_width_alike_under_mup(param):
    assert np.all(np.abs(slopes(NARROWER, param, kind="muon")) < FLAT)


def test_muon_moves_the_wider_the_more_under_sp():
    assert np.all(slopes(NARROWER, "sp", kind="muon") > GROWING)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_under_completep_activations_and_updates_are_of_one_size_over_eight_times_the_depth(kind):
    assert np.all(np.abs(slopes(DEPTHS, "completep", seeds=2, kind=kind)) < FLAT)


@pytest.mark.parametrize("param", ["mup", "sp"])
def test_otherwise_the_residual_and_its_updates_grow_with_the_depth(param):
    _, residual, _, change = slopes(DEPTHS, param, seeds=2)
    assert change > GROWING
    assert residual > 2 * FLAT  # it starts at the embedding's size, which does not grow


@pytest.mark.parametrize(
    "options, seeds",  # a tied head starts at random, not at zero, so its slope scatters more
    [({"n_head": 2}, 2), ({"tied": True}, 6)],
    ids=["head number fixed", "tied"],
)
def test_under_mup_an_update_moves_logits_and_residual_alike_at_every_width(options, seeds):
    shapes = {width: decoder_shape(width, **options) for width in (32, 64, 128, 256)}
    assert np.all(np.abs(slopes(shapes, "mup", seeds=seeds, steps=4, batch=16)[2:]) < FLAT)


def gradients(shape: DecoderShape, seed: int) -> dict[str, float]:
    """rms of a gradient's entries over completep's factor on eps, by kind of tensor, after four updates
    (before them the zero projections let no gradient through)."""
    model = initialised(shape, "completep", seed)
    optimizer, task = build_optimizer(model, optim_spec("completep")), Task(seed, batch=16)
    for step in range(5):
        optimizer.zero_grad()
        token_losses(model, task.batch()).mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * group["rate"] * (step < 4)
        optimizer.step()
    found: dict[str, list[float]] = {}
    for name, tensor in model.named_parameters():
        factor = tensor_rule(name, shape, "completep", BASE, BASE_DEPTH).eps
        kind = name.split(".", 2)[2] if name.startswith("blocks.") else name
        found.setdefault(kind, []).append(tensor.grad.square().mean().sqrt().item() / factor)
    return {kind: float(np.mean(values)) for kind, values in found.items()}


@pytest.mark.parametrize("shapes", [NARROWER, DEPTHS], ids=["width", "depth"])
def test_completep_s_eps_stays_the_same_share_of_the_gradients(shapes):
    """But for the gain that all heads share: its gradient sums over the heads, whose number grows with
    the width here, so that its eps falls a little faster than it needs to."""
    found = [[gradients(shape, seed) for seed in range(2)] for shape in shapes.values()]
    for kind in found[0][0]:
        rms = np.log([[seed[kind] for seed in row] for row in found]).mean(axis=1)
        slope = np.polyfit(np.log(list(shapes)), rms, 1)[0]
        assert abs(slope) < 0.35 or kind == "attention.qk_gain" and 0 < slope < 1, (kind, slope)


def test_muon_s_rate_falls_with_the_square_root_of_the_width():
    rates = [muon_rate(decoder_shape(width), "mup", BASE) for width in (16, 32, 128)]
    assert rates == pytest.approx([2**0.5, 1.0, 0.5])
    assert muon_rate(decoder_shape(128), "sp", BASE) == 1.0
