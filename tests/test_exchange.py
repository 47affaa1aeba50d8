"""Models that are right by an independent implementation: transformers computes what ours compute."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.config import DecoderShape
from models.decoder import Decoder, token_losses
from models.exchange import (
    Multipliers,
    Weights,
    from_config,
    read_hugging_face,
    to_config,
    to_hugging_face,
    write_hugging_face,
)
from models.transfer import PARAMETRISATIONS
from sweep.commands import COMMANDS, run_command
from sweep.data.batches import heldout_blocks
from sweep.data.corpus import SourceConfig
from sweep.data.shards import TOKENIZER
from sweep.data.tokenizer import ByteTokenizer, TokenizerConfig, load_tokenizer, train_bpe
from sweep.data.tokens import prepare
from sweep.exchange import byte_level_tokenizer, read_run
from sweep.files import RunFolder, read_json, write_json
from sweep.train.train import Execution, train

ROOT = Path(__file__).resolve().parent.parent
NO_RUN = "nowhere is no run: it has neither spec.json nor architecture.json"
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed (extra: dev)"
)
SHAPES = [
    pytest.param(
        DecoderShape(2, 24, 2, 40, vocab_size=29, seq_len=16, qk_norm=qk_norm, tied=tied),
        id=f"{'qwen3' if qk_norm else 'llama'}-{'tied' if tied else 'untied'}",
    )
    for qk_norm in (False, True)
    for tied in (False, True)
]
FACTORS = [Multipliers(), Multipliers(output=0.25), Multipliers(output=2 / 3), Multipliers(1.5, 0.5)]


PLAIN = Multipliers()


def random_weights(shape: DecoderShape, multipliers: Multipliers = PLAIN) -> Weights:
    """No tensor at its start, where gains are one and projections zero and an exchange of two goes unseen."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, tensor in Decoder(shape).named_parameters():
        drawn = torch.randn(tensor.shape, generator=generator)
        tensors[name] = 1 + 0.3 * drawn if name.endswith("gain") else drawn * tensor.shape[-1] ** -0.5
    return Weights(shape, tensors, multipliers)


def random_tokens(shape: DecoderShape, batch: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(shape.vocab_size, (batch, shape.seq_len + 1), generator=generator)


def open_in_transformers(folder: Path):
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return model


def written(weights: Weights, folder: Path) -> Path:
    folder.mkdir()
    write_hugging_face(weights, folder, end_of_document=0)
    return folder


def mean_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def their_names(tensors: dict[str, torch.Tensor], shape: DecoderShape) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in to_hugging_face(tensors, shape).items()}


@needs_transformers
@pytest.mark.parametrize("output", [1.0, 0.25, 2 / 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_are_those_of_transformers(shape, output, tmp_path):
    weights = random_weights(shape, Multipliers(output=output))
    ours, theirs = weights.decoder(), open_in_transformers(written(weights, tmp_path / "hf"))
    assert type(theirs).__name__ == ("Qwen3ForCausalLM" if shape.qk_norm else "LlamaForCausalLM")
    tokens = random_tokens(shape, batch=4)
    our_logits, their_logits = ours(tokens[:, :-1]), theirs(tokens[:, :-1]).logits
    assert our_logits.std() > 0.1
    torch.testing.assert_close(our_logits, their_logits, rtol=0, atol=1e-5)

    mean_loss(our_logits, tokens).backward()
    mean_loss(their_logits, tokens).backward()
    our_gradients = their_names({name: p.grad for name, p in ours.named_parameters()}, shape)
    our_gradients["model.norm.weight"] = our_gradients["model.norm.weight"] / output  # the chain rule, folded
    their_gradients = {name: p.grad for name, p in theirs.named_parameters()}
    assert their_gradients.keys() == our_gradients.keys()
    for name, gradient in our_gradients.items():
        assert gradient.abs().max() > 1e-4, name
        torch.testing.assert_close(gradient, their_gradients[name], rtol=0, atol=1e-5, msg=name)


@needs_transformers
@pytest.mark.parametrize("output", [1.0, 0.25])
@pytest.mark.parametrize("shape", SHAPES)
def test_twenty_steps_of_adamw_lead_to_the_same_loss(shape, output, tmp_path):
    weights = random_weights(shape, Multipliers(output=output))
    ours, theirs = weights.decoder(), open_in_transformers(written(weights, tmp_path / "hf"))

    def trained(model, gain: str, factor: float, logits) -> list[float]:
        named = dict(model.named_parameters())
        # AdamW moves a gain by the rate whatever its gradient's size: one times f wants f times the rate
        folded = {
            "params": [named.pop(gain)],
            "lr": 3e-3 * factor,
            "eps": 1e-8 / factor,
            "weight_decay": 0.1 / factor,
        }
        rest = {"params": list(named.values())}
        optimizer = torch.optim.AdamW([rest, folded], lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
        losses = []
        for step in range(21):
            tokens = random_tokens(shape, batch=4, seed=step % 5)
            loss = mean_loss(logits(tokens[:, :-1]), tokens)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return losses

    our_losses = trained(ours, "norm.gain", 1.0, ours)
    their_losses = trained(theirs, "model.norm.weight", output, lambda tokens: theirs(tokens).logits)
    assert our_losses[20] < our_losses[0] - 0.1
    assert our_losses[20] == pytest.approx(their_losses[20], abs=1e-4)


@needs_transformers
def test_what_transformers_saves_after_training_is_read_back(tmp_path):
    shape = SHAPES[3].values[0]
    weights = random_weights(shape, Multipliers(output=0.25))
    theirs = open_in_transformers(written(weights, tmp_path / "hf"))
    tokens = random_tokens(shape, batch=4)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    mean_loss(theirs(tokens[:, :-1]).logits, tokens).backward()
    optimizer.step()
    theirs.save_pretrained(tmp_path / "saved")
    back = read_hugging_face(tmp_path / "saved")
    assert back.multipliers == weights.multipliers
    assert not torch.equal(back.tensors["norm.gain"], weights.tensors["norm.gain"])
    our_logits, their_logits = back.decoder()(tokens[:, :-1]), theirs(tokens[:, :-1]).logits
    torch.testing.assert_close(our_logits, their_logits, rtol=0, atol=1e-5)


@needs_transformers
def test_a_model_that_transformers_made_is_imported(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, initializer_range=0.5,
    )
    theirs = LlamaForCausalLM(config)
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="5KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    tokens = torch.arange(12)[None] % 31
    ours = read_hugging_face(tmp_path / "hf").decoder()
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("multipliers", FACTORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_exported_comes_back(shape, multipliers, tmp_path):
    weights = random_weights(shape, multipliers)
    back = read_hugging_face(written(weights, tmp_path / "hf"))
    assert (back.shape, back.multipliers) == (weights.shape, weights.multipliers)
    for name, tensor in weights.tensors.items():
        if np.log2(multipliers.of(name)) % 1 == 0:
            assert torch.equal(back.tensors[name], tensor), name
        else:
            torch.testing.assert_close(back.tensors[name], tensor, rtol=2**-23, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_multiplier_in_the_weights_is_the_same_function(shape):
    weights = random_weights(shape, Multipliers(output=0.3, residual=0.7))
    tokens = random_tokens(shape, batch=2)[:, :-1]
    plain, folded = weights.decoder(), weights.folded().decoder()
    torch.testing.assert_close(plain(tokens), folded(tokens), rtol=0, atol=1e-6)
    with_residual = replace(weights, multipliers=Multipliers(residual=0.5)).folded()
    for name, tensor in with_residual.tensors.items():
        halved = name.endswith(("attention.out.weight", "feed_forward.out.weight"))
        assert torch.equal(tensor, weights.tensors[name] * (0.5 if halved else 1.0))


@pytest.mark.parametrize("activation", ["relu2", "gelu", "geglu"])
def test_an_architecture_without_a_counterpart_is_refused(activation, tmp_path):
    shape = replace(SHAPES[0].values[0], activation=activation)
    with pytest.raises(ValueError, match=f"activation '{activation}' has no counterpart: LlamaForCausalLM"):
        write_hugging_face(random_weights(shape), tmp_path, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change, said",
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"num_key_value_heads": 1}, "num_key_value_heads=1"),
        ({"head_dim": 8}, "head_dim=8"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps=1e-05"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope_type='llama3'.*rope_theta=5"),
        ({"rope_scaling": {"rope_type": "linear"}, "rope_parameters": None}, "rope_type='linear'"),
        ({"rope_parameters": None, "rope_theta": 5e5}, "rope_theta=500000"),
        ({"hidden_size": None}, "no whole number for hidden_size"),
    ],
)
def test_a_config_of_something_else_is_refused(change, said):
    config = to_config(SHAPES[0].values[0], Multipliers(), None)
    assert from_config(config) == SHAPES[0].values[0]
    with pytest.raises(ValueError, match=said):
        from_config({**config, **change})


def test_weights_that_do_not_fit_their_config_are_refused(tmp_path):
    folder = written(random_weights(SHAPES[0].values[0]), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    for change, said in (
        ({"num_hidden_layers": 3}, "lacks 9 of 30 tensors"),
        ({"num_hidden_layers": 1}, "has unknown 9 of 12 tensors"),
        ({"intermediate_size": 32}, r"mlp.*proj.weight is of size"),
        ({"tie_word_embeddings": True}, "lm_head.weight is not the embedding"),
        ({"scaling_sweep_multipliers": {"output": 0.0}}, "must be positive"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=said):
            read_hugging_face(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match=str(folder)):
        read_hugging_face(folder)


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory, tiny_spec):
    """trained_run(data folder, fingerprint, **changes): a finished run's folder, as a worker leaves it."""

    def run(data: Path, fingerprint: str = "f00d", **changes) -> Path:
        spec = tiny_spec(data={"fingerprint": fingerprint}, **changes)
        execution = Execution("cpu", 1, str(data), 8, 8, 0, 1e9, False)
        folder = RunFolder(tmp_path_factory.mktemp("sweep") / "runs" / spec.run_id)
        write_json(folder.spec, {"spec": spec.to_json(), "execution": vars(execution)})
        result = train(spec, execution, folder, lambda: False)
        assert result.status == "finished"
        result.write(folder)
        return folder.path

    return run


@needs_transformers
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("param", PARAMETRISATIONS)
def test_a_trained_run_has_its_loss_in_transformers_too(trained_run, corpus, param, tied, tmp_path, capsys):
    run = trained_run(corpus, optim={"param": param, "base_width": 12, "base_depth": 1}, shape={"tied": tied})
    assert run_command(["export", str(run), str(tmp_path / "hf")]) == 0
    assert "Qwen3ForCausalLM" in capsys.readouterr().out
    theirs = open_in_transformers(tmp_path / "hf")
    blocks, _ = heldout_blocks(corpus, 16, 512)
    tokens = torch.from_numpy(np.asarray(blocks))
    with torch.no_grad():
        loss = mean_loss(theirs(tokens[:, :-1]).logits, tokens).item()
        assert loss < np.log(32) - 0.1
        assert loss == pytest.approx(read_json(run / "result.json")["loss"], abs=1e-5)
        again = token_losses(read_run(RunFolder(run)).decoder(), tokens).mean().item()
        assert again == pytest.approx(loss, abs=1e-5)


TEXT = [
    f"def f{i}(x):\n    return x + {i}  # naïve Ω {'ab' * (i % 7)} \t𝒳\x00 <|endoftext|>\n"
    for i in range(400)
]


@pytest.fixture(scope="module")
def text_corpus(tmp_path_factory):
    """text_corpus(tokenizer): facts of a prepared corpus of TEXT."""
    source = tmp_path_factory.mktemp("text")
    (source / "all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXT))
    cache = tmp_path_factory.mktemp("cache")

    def prepared(tokenizer: TokenizerConfig):
        text = SourceConfig(kind="text", path=(str(source),))
        options = {"heldout_fraction": 0.2, "tokens_wanted": None, "cache": cache, "say": lambda line: None}
        return prepare(text, tokenizer, **options)

    return prepared


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory) -> Path:
    """A tokenizer.json that puts a token before each text, as Llama's do; the sweep trains without it."""
    from tokenizers.processors import TemplateProcessing

    backend = train_bpe([text.encode() for text in TEXT], 300).backend
    start = ("<|endoftext|>", 299)
    backend.post_processor = TemplateProcessing(single=f"{start[0]} $A", special_tokens=[start])
    path = tmp_path_factory.mktemp("tokenizer") / "own.json"
    backend.save(str(path))
    return path


@needs_transformers
@pytest.mark.parametrize("kind", ["bytes", "bpe", "file"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_trained_model_opens_with_its_tokenizer_and_generates(
    trained_run, text_corpus, tokenizer_file, kind, qk_norm, tmp_path
):
    from transformers import AutoTokenizer

    config = {
        "bytes": TokenizerConfig(),
        "bpe": TokenizerConfig("bpe", vocab_size=300),
        "file": TokenizerConfig("file", path=str(tokenizer_file)),
    }[kind]
    facts = text_corpus(config)
    run = trained_run(
        Path(facts.folder), facts.fingerprint, shape={"vocab_size": facts.vocab_size, "qk_norm": qk_norm}
    )
    assert run_command(["export", str(run), str(tmp_path / "hf")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    trained_with = {
        "bytes": ByteTokenizer,
        "bpe": lambda: load_tokenizer(TokenizerConfig("file", path=str(Path(facts.folder) / TOKENIZER))),
        "file": lambda: load_tokenizer(config),
    }[kind]()
    for text in TEXT[:20]:
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert ids == trained_with.encode([text.encode()])[0].tolist()
        assert tokenizer.decode(ids[:-1]) == text
    model = open_in_transformers(tmp_path / "hf")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == facts.vocab_size - 1
    prompt = tokenizer("def", return_tensors="pt")
    generated = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0]
    assert 1 <= len(generated) - prompt["input_ids"].shape[1] <= 8

    ids = prompt["input_ids"]
    ours = read_run(RunFolder(run)).decoder()
    with torch.no_grad():
        while ids.shape[1] < len(generated):
            ids = torch.cat([ids, ours(ids)[:, -1:].argmax(-1)], dim=1)
    assert ids[0].tolist() == generated.tolist()
    assert isinstance(tokenizer.decode(generated), str)


def test_bytes_are_exact_as_a_tokenizer_json():
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(json.dumps(byte_level_tokenizer()))
    backend.encode_special_tokens = True
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x10FFFF, 97)]))
    assert backend.encode(text).ids == list(text.encode())
    assert backend.decode(list(text.encode())) == text
    never_in_utf8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
    assert set(text.encode()) == set(range(256)) - never_in_utf8
    assert backend.get_vocab_size() == ByteTokenizer.vocab_size
    assert backend.token_to_id("<|endoftext|>") == ByteTokenizer.end_of_document


def test_export_and_import_are_inverse(trained_run, corpus, tmp_path, capsys):
    run = trained_run(corpus, shape={"tied": True}, optim={"base_width": 8})
    there, back, again = tmp_path / "hf", tmp_path / "back", tmp_path / "again"
    assert run_command(["export", str(run), str(there)]) == 0
    assert "without a tokenizer: " in capsys.readouterr().out
    assert run_command(["import", str(there), str(back)]) == 0
    before, after = read_run(RunFolder(run)), read_run(RunFolder(back))
    assert (before.shape, before.multipliers) == (after.shape, after.multipliers)
    assert before.multipliers == Multipliers(output=0.5)
    assert before.tensors.keys() == after.tensors.keys()
    assert all(torch.equal(tensor, after.tensors[name]) for name, tensor in before.tensors.items())
    assert run_command(["export", str(back), str(again)]) == 0
    assert (again / "model.safetensors").read_bytes() == (there / "model.safetensors").read_bytes()


def test_a_bad_request_is_refused_with_nothing_written(trained_run, corpus, tmp_path, capsys):
    run = trained_run(corpus)
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("")
    empty = tmp_path / "empty"
    empty.mkdir()
    gelu = trained_run(corpus, shape={"activation": "gelu"})
    unfinished = tmp_path / "unfinished"
    write_json(unfinished / "spec.json", read_json(run / "spec.json"))
    new = tmp_path / "new"
    before = sorted(tmp_path.rglob("*"))
    for arguments, said in (
        (["export", run, full], "not an empty folder"),
        (["export", gelu, new], "activation 'gelu' has no counterpart"),
        (["export", unfinished, new], "the run has not ended"),
        (["export", empty, new], "is no run"),
        (["export", tmp_path / "absent", new], "is no run"),
        (["import", empty, new], "has no config.json"),
    ):
        assert run_command([str(argument) for argument in arguments]) == 2
        assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    for status, said in (("diverged", "ended as 'diverged'"), ("finished", "a trunk leaves none")):
        write_json(unfinished / "result.json", {"status": status})
        assert run_command(["export", str(unfinished), str(new)]) == 2
        assert said in capsys.readouterr().err


def test_a_run_whose_corpus_is_gone_is_exported_without_tokenizer(trained_run, corpus, tmp_path, capsys):
    run = trained_run(corpus)
    request = read_json(run / "spec.json")
    for data, said in ((tmp_path / "gone", "cannot be read"), (corpus, "another corpus")):
        request["execution"]["data_folder"] = str(data)
        request["spec"]["data"]["fingerprint"] = "f00d"
        write_json(run / "spec.json", request)
        assert run_command(["export", str(run), str(tmp_path / said)]) == 0
        assert said in capsys.readouterr().out
        assert read_json(tmp_path / said / "config.json")["eos_token_id"] is None
        assert not (tmp_path / said / "tokenizer.json").exists()


def test_what_is_no_command_is_left_to_the_experiment():
    assert run_command([]) is None
    assert run_command(["+grid=isoflop"]) is None
    assert run_command(["+grid=isoflop", "export"]) is None


@pytest.mark.parametrize(
    "arguments, status, said",
    [
        (["export", "nowhere", "hf"], 2, "nowhere is no run"),
        (["import", "nowhere", "run"], 2, "nowhere has no config.json"),
        (["export"], 2, "required: RUN_DIR, DIR"),
        (["import", "-h"], 0, "usage: sweep import [-h] DIR RUN_DIR"),
    ],
)
def test_the_console_script_runs_commands(arguments, status, said, monkeypatch, capsys):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts["sweep"].split(":")
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
    with pytest.raises(SystemExit) as ended:
        getattr(import_module(module), function)()
    assert ended.value.code == status
    assert said in "".join(capsys.readouterr())


def test_a_fresh_interpreter_finds_commands_and_names_them_in_its_help():
    python = [sys.executable, "-m", "sweep"]
    told = {"capture_output": True, "text": True, "cwd": ROOT, "check": False}
    refused = subprocess.run([*python, "export", "nowhere", "hf"], **told)
    assert (refused.returncode, refused.stderr) == (2, f"{NO_RUN}\n")
    helped = subprocess.run([*python, "--help"], **told)
    assert helped.returncode == 0
    assert all(f"sweep {name} " in helped.stdout for name in COMMANDS)
