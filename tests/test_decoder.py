from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch

from models import decoder
from models.config import ACTIVATIONS, DecoderShape
from models.decoder import NORM_EPS, ROTARY_BASE, Decoder, rotary_table, rotate, token_losses

SHAPE = DecoderShape(n_layer=2, d_model=32, n_head=4, d_ff=48, vocab_size=50, seq_len=12)


def random_decoder(shape: DecoderShape, seed: int = 0, output_multiplier: float = 1.0) -> Decoder:
    """Every parameter drawn, gains included, so that nothing is hidden behind a zero or a one."""
    model = Decoder(shape, output_multiplier)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            mean, std = (1.0, 0.3) if name.endswith("gain") else (0.0, 0.5 * tensor.shape[-1] ** -0.5)
            tensor.normal_(mean, std, generator=generator)
    return model


def random_tokens(shape: DecoderShape, batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(shape.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_a_logit_depends_on_its_own_and_earlier_tokens_and_on_no_later_one():
    model = random_decoder(SHAPE)
    embedded = []
    model.embedding.register_forward_hook(lambda module, inputs, output: embedded.append(output))
    logits = model(random_tokens(SHAPE, 1, SHAPE.seq_len))
    for t in range(SHAPE.seq_len):
        for token in (0, 7):
            (gradient,) = torch.autograd.grad(logits[0, t, token], embedded[0], retain_graph=True)
            reaches = gradient[0].abs().amax(dim=-1)
            assert torch.all(reaches[: t + 1] > 1e-7)
            assert torch.all(reaches[t + 1 :] == 0)


def test_a_prefix_has_the_logits_it_has_alone():
    model, tokens = random_decoder(SHAPE), random_tokens(SHAPE, 3, SHAPE.seq_len)
    whole = model(tokens)
    for length in (1, 5):
        torch.testing.assert_close(model(tokens[:, :length]), whole[:, :length], atol=1e-6, rtol=1e-5)


def test_rotary_scores_depend_on_relative_position_only():
    cos, sin = rotary_table(64, 16)
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    turned_q, turned_k = (rotate(x.expand(1, 1, 64, 16), cos, sin)[0, 0] for x in (q, k))
    scores = turned_q @ turned_k.T
    for offset in range(-63, 64):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=0)
    assert scores[0].std() > 0.1  # and they do depend on it
    torch.testing.assert_close(turned_q[0], q)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(64), atol=1e-5, rtol=0)


def llama_rms_norm(x, gain):
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + NORM_EPS) * gain


def llama_rotate(x_TxK):
    """Position by position and pair by pair, as a complex factor e^(i t / base^(2j/K))."""
    length, size = x_TxK.shape
    pairs = torch.complex(x_TxK[:, : size // 2], x_TxK[:, size // 2 :])
    turned = torch.empty_like(pairs)
    for t in range(length):
        for j in range(size // 2):
            angle = t / ROTARY_BASE ** (2 * j / size)
            turned[t, j] = pairs[t, j] * complex(math.cos(angle), math.sin(angle))
    return torch.cat((turned.real, turned.imag), dim=-1)


def llama_logits(shape: DecoderShape, weights: dict, tokens_T: torch.Tensor) -> torch.Tensor:
    """A decoder written out once more, from the weights alone: one sequence, one head at a time."""
    x = weights["embedding.weight"][tokens_T]
    length, size = len(tokens_T), shape.head_size
    mask = torch.full((length, length), -math.inf).triu(1)
    for layer in range(shape.n_layer):
        w = {name.removeprefix(f"blocks.{layer}."): tensor for name, tensor in weights.items()}
        normed = llama_rms_norm(x, w["attention_norm.gain"])
        q_all, k_all, v_all = (normed @ part.T for part in w["attention.qkv.weight"].chunk(3))
        mixed = []
        for h in range(shape.n_head):
            q, k, v = (every[:, h * size : (h + 1) * size] for every in (q_all, k_all, v_all))
            if shape.qk_norm:
                q_gain, k_gain = w["attention.qk_gain"]
                q, k = llama_rms_norm(q, q_gain), llama_rms_norm(k, k_gain)
            scores = llama_rotate(q) @ llama_rotate(k).T / math.sqrt(size) + mask
            mixed.append(torch.softmax(scores, dim=-1) @ v)
        x = x + torch.cat(mixed, dim=-1) @ w["attention.out.weight"].T
        hidden = llama_rms_norm(x, w["feed_forward_norm.gain"]) @ w["feed_forward.into.weight"].T
        x = x + ACTIVATE[shape.activation](hidden, shape.d_ff) @ w["feed_forward.out.weight"].T
    head = weights["embedding.weight" if shape.tied else "head.weight"]
    return llama_rms_norm(x, weights["norm.gain"]) @ head.T


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


ACTIVATE = {
    "swiglu": lambda x, d: x[:, :d] / (1 + torch.exp(-x[:, :d])) * x[:, d:],
    "geglu": lambda x, d: gelu(x[:, :d]) * x[:, d:],
    "relu2": lambda x, d: x.clamp(min=0) ** 2,
    "gelu": lambda x, d: gelu(x),
}


@pytest.mark.parametrize(
    "activation, qk_norm, tied",
    [
        *[(activation, True, False) for activation in ACTIVATIONS],
        ("swiglu", False, False),
        ("swiglu", True, True),
    ],
)
def test_the_logits_are_those_of_a_plain_implementation(activation, qk_norm, tied):
    shape = DecoderShape(2, 32, 4, 48, 50, 12, activation, qk_norm, tied)
    model = random_decoder(shape, seed=1)
    tokens = random_tokens(shape, 2, 12, seed=2)
    weights = dict(model.named_parameters())
    expected = torch.stack([llama_logits(shape, weights, sequence) for sequence in tokens])
    assert expected.std() > 0.1
    torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-5)


def test_the_output_multiplier_multiplies_the_logits():
    tokens = random_tokens(SHAPE, 2, 5)
    plain, halved = random_decoder(SHAPE)(tokens), random_decoder(SHAPE, output_multiplier=0.5)(tokens)
    torch.testing.assert_close(halved, plain / 2)


def test_token_losses_are_the_label_s_negative_log_probability():
    model, tokens = random_decoder(SHAPE), random_tokens(SHAPE, 3, 9)
    losses = token_losses(model, tokens)
    log_probability = torch.log_softmax(model(tokens[:, :-1]), dim=-1)
    for b, t in product(range(3), range(8)):
        assert losses[b, t].item() == pytest.approx(-log_probability[b, t, tokens[b, t + 1]].item(), abs=1e-6)
    assert (losses.shape, losses.dtype) == ((3, 8), torch.float32)


def test_token_losses_are_float32_whatever_the_precision():
    model, tokens = random_decoder(SHAPE), random_tokens(SHAPE, 3, 9)
    exact = token_losses(model, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = token_losses(model, tokens)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"d_model": 33}, "not a multiple of n_head"),
        ({"d_model": 12}, "head size 3 .* must be even"),
        ({"n_layer": 0}, "n_layer must be at least 1, not 0"),
        ({"activation": "relu"}, "activation 'relu' is none of swiglu"),
    ],
)
def test_a_shape_that_is_none_is_refused(change, message):
    fields = {"n_layer": 2, "d_model": 32, "n_head": 4, "d_ff": 48, "vocab_size": 50, "seq_len": 12}
    with pytest.raises(ValueError, match=message):
        DecoderShape(**{**fields, **change})


def losses_and_gradients(model, tokens):
    model.zero_grad(set_to_none=True)
    losses = token_losses(model, tokens)
    (losses * torch.linspace(0.1, 1.0, losses.numel()).view(losses.shape)).sum().backward()
    return losses.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows_at_once", [1, 5, 24, 25])
def test_a_loss_in_parts_is_the_loss_and_so_are_its_gradients(monkeypatch, rows_at_once, tied):
    shape = replace(SHAPE, tied=tied)
    model, tokens = random_decoder(shape, output_multiplier=0.5), random_tokens(shape, 3, 9)
    whole, gradients = losses_and_gradients(model, tokens)
    monkeypatch.setattr(decoder, "LOGITS_BYTES", 4 * shape.vocab_size * rows_at_once)
    parts, of_parts = losses_and_gradients(model, tokens)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(of_parts[name], gradient, atol=1e-6, rtol=1e-5)


def test_logits_never_stand_in_full(monkeypatch):
    """No tensor that autograd keeps for the backward pass is larger than one part's logits."""
    shape = replace(SHAPE, vocab_size=997)
    model, tokens = random_decoder(shape), random_tokens(shape, 6, 9)

    def largest_kept():
        kept = [0]
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
            token_losses(model, tokens)
        return max(kept)

    weights = max(parameter.numel() for parameter in model.parameters())
    shape_of_logits = 6 * 8 * shape.vocab_size
    assert weights < shape_of_logits
    monkeypatch.setattr(decoder, "LOGITS_BYTES", 4 * shape.vocab_size * 4)
    assert largest_kept() <= max(weights, shape_of_logits // 4)
    monkeypatch.undo()
    assert largest_kept() == shape_of_logits


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_compiled_decoder_is_the_decoder(monkeypatch, in_parts):
    model, tokens = random_decoder(SHAPE), random_tokens(SHAPE, 3, 9)
    if in_parts:
        monkeypatch.setattr(decoder, "LOGITS_BYTES", 4 * SHAPE.vocab_size * 10)
    plain, gradients = losses_and_gradients(model, tokens)
    compiled = torch.compile(model)
    model.zero_grad(set_to_none=True)
    losses = token_losses(compiled, tokens)
    torch.testing.assert_close(losses, plain, atol=1e-5, rtol=1e-5)
    (losses * torch.linspace(0.1, 1.0, losses.numel()).view(losses.shape)).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)
