"""Weights in Hugging Face's format, held against the independent implementation in `transformers`."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file

from models.config import DecoderShape
from models.decoder import Decoder, token_losses
from models.exchange import (
    hugging_face_config,
    read_hugging_face,
    shape_of,
    to_hugging_face,
    write_hugging_face,
)
from sweep.commands import run_command
from sweep.exchange import write_tokenizer_config, byte_backend
from sweep.files import RunFolder, write_json
from sweep.train.train import Execution, train

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers (extra dev) is not installed"
)
KINDS = [(qk_norm, tied) for qk_norm in (False, True) for tied in (False, True)]


def decoder(qk_norm: bool, tied: bool, multiplier: float = 1.0) -> Decoder:
    shape = DecoderShape(2, 32, 4, 80, 97, 24, qk_norm=qk_norm, tied=tied)
    model, generator = Decoder(shape, multiplier), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.normal_(1.0 if name.endswith("gain") else 0.0, 0.15, generator=generator)
    return model


def opened(folder, model: Decoder, multiplier: float = 1.0):
    from transformers import AutoModelForCausalLM

    write_hugging_face(folder, dict(model.named_parameters()), model.shape, multiplier, 0)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def tokens(seed: int) -> torch.Tensor:
    return torch.randint(97, (4, 25), generator=torch.Generator().manual_seed(seed))


def their_loss(model, batch):
    logits = model(input_ids=batch[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@needs_transformers
@pytest.mark.parametrize("qk_norm, tied", KINDS)
def test_logits_gradients_and_twenty_steps_are_those_of_transformers(qk_norm, tied, tmp_path):
    ours = decoder(qk_norm, tied)
    theirs = opened(tmp_path, ours)
    assert type(theirs).__name__ == ("Qwen3ForCausalLM" if qk_norm else "LlamaForCausalLM")
    batch = tokens(0)
    logits, expected = ours(batch[:, :-1]), theirs(input_ids=batch[:, :-1]).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)

    token_losses(ours, batch).mean().backward()
    their_loss(theirs, batch).backward()
    gradients = to_hugging_face({n: p.grad for n, p in ours.named_parameters()}, ours.shape)
    found = {name: tensor.grad for name, tensor in theirs.named_parameters()}
    assert gradients.keys() == found.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5)

    settings = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    optimizers = [torch.optim.AdamW(model.parameters(), **settings) for model in (ours, theirs)]
    start = token_losses(ours, batch).mean().item()
    for step in range(20):
        losses = token_losses(ours, tokens(step)).mean(), their_loss(theirs, tokens(step))
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        end, their_end = token_losses(ours, batch).mean().item(), their_loss(theirs, batch).item()
    assert end < start - 0.1
    assert end == pytest.approx(their_end, abs=1e-4)


@needs_transformers
def test_a_tied_heads_multiplier_is_in_the_final_gain(tmp_path):
    ours = decoder(True, True, 0.3)
    batch = tokens(0)
    expected = opened(tmp_path, ours, 0.3)(input_ids=batch).logits[:, :24]
    torch.testing.assert_close(ours(batch[:, :24]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("qk_norm, tied", KINDS)
def test_there_and_back_no_bit_changes(qk_norm, tied, tmp_path):
    model = decoder(qk_norm, tied)
    write_hugging_face(tmp_path, dict(model.named_parameters()), model.shape, 1.0, None)
    shape, weights = read_hugging_face(tmp_path)
    before = dict(model.named_parameters())
    assert shape == model.shape and weights.keys() == before.keys()
    assert all(torch.equal(weights[name], before[name]) for name in before)


@pytest.mark.parametrize("activation", ["relu2", "gelu", "geglu"])
def test_an_activation_without_counterpart_is_refused(activation):
    shape = dataclasses.replace(decoder(True, False).shape, activation=activation)
    with pytest.raises(ValueError, match=activation):
        hugging_face_config(shape)


@pytest.mark.parametrize("key, value", [("model_type", "gpt2"), ("num_key_value_heads", 2), ("rms_norm_eps", 1e-5)])
def test_a_model_that_no_decoder_is_is_refused(key, value):
    config = hugging_face_config(decoder(False, False).shape)
    with pytest.raises(ValueError, match=key):
        shape_of({**config, key: value})


def test_the_byte_tokenizer_is_exact():
    text = "a b\n\tßé€😀" + "".join(map(chr, range(256)))
    backend = byte_backend()
    assert backend.encode(text).ids == list(text.encode())
    assert backend.decode(list(text.encode())) == text and backend.token_to_id("<|endoftext|>") == 256


@needs_transformers
def test_the_byte_tokenizer_opens_in_transformers(tmp_path):
    from transformers import AutoTokenizer

    byte_backend().save(str(tmp_path / "tokenizer.json"))
    write_tokenizer_config(tmp_path, 24, 256)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("é a").input_ids == list("é a".encode())
    assert tokenizer.eos_token_id == 256 and tokenizer.decode(list("é a".encode())) == "é a"


def test_refusals_name_the_cause(tmp_path, capsys):
    assert run_command(["+grid=isoflop"]) is None
    assert run_command(["export", str(tmp_path)]) == 2
    assert run_command(["export", str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert "no finished run" in capsys.readouterr().err
    done = subprocess.run([sys.executable, "-m", "sweep", "import", str(tmp_path), "x"], capture_output=True, text=True)
    assert done.returncode == 2 and "config.json" in done.stderr


def test_a_trained_run_is_exported_opened_and_imported(tmp_path, tiny_spec, corpus):
    spec, execution = tiny_spec(), Execution("cpu", 1, str(corpus), 8, 1, 0, 60.0, False)
    run = RunFolder(tmp_path / "run")
    write_json(run.spec, {"run_id": spec.run_id, "spec": spec.to_json(), "execution": asdict(execution)})
    assert train(spec, execution, run, lambda: False).status == "finished"
    out, back = tmp_path / "hf", tmp_path / "back"
    assert run_command(["export", str(run.path), str(out)]) == 0
    assert run_command(["export", str(run.path), str(out)]) == 2
    assert run_command(["import", str(out), str(back)]) == 0
    before = load_file(run.checkpoint / "model.safetensors")
    after = load_file(RunFolder(back).checkpoint / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("exported and imported; transformers (extra dev) is not installed to open it with")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(out)
    made = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert made.shape == (1, 7)
