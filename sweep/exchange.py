"""`sweep export RUN_DIR DIR`, `sweep import DIR RUN_DIR`: a run's model to and from Hugging Face format."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models.config import DecoderShape
from models.count import count_parameters
from models.exchange import Multipliers, Weights, architecture, read_hugging_face, write_hugging_face
from models.transfer import output_multiplier, residual_multiplier
from sweep.data.cache import current_umask
from sweep.data.shards import TOKENIZER, ShardHeader, read_header
from sweep.data.tokenizer import END_OF_DOCUMENT, ByteTokenizer
from sweep.files import RunFolder, read_json, write_json
from sweep.plan.spec import RunSpec


def export_main(arguments: Sequence[str]) -> int:
    """`sweep export RUN_DIR DIR`. Raises ValueError or OSError with nothing written."""
    parser = ArgumentParser("sweep export", description="Write a run's final weights in Hugging Face format.")
    parser.add_argument("run", metavar="RUN_DIR", type=Path, help="a run of a sweep: OUT/runs/RUN_ID")
    parser.add_argument("folder", metavar="DIR", type=Path, help="where to; must not exist, or be empty")
    asked = parser.parse_args(arguments)
    run = RunFolder(asked.run)
    weights = read_run(run)
    data, missing = prepared_corpus(run)
    tokenizer = tokenizer_of(data, weights.shape.seq_len) if data else None
    with new_folder(asked.folder) as partial:
        write_hugging_face(weights, partial, data[1].end_of_document if data else None)
        for name, content in (tokenizer or {}).items():
            (partial / name).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    parameters = count_parameters(weights.shape).total
    print(f"{asked.folder}: {architecture(weights.shape)}, {parameters:,} parameters, float32")
    if tokenizer is None:
        print(f"without a tokenizer: {missing or 'the corpus is token ids without text'}")
    return 0


def import_main(arguments: Sequence[str]) -> int:
    """`sweep import DIR RUN_DIR`. Raises ValueError or OSError with nothing written."""
    parser = ArgumentParser("sweep import", description="Inverse of sweep export: read Hugging Face format.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="config.json and model.safetensors")
    parser.add_argument("run", metavar="RUN_DIR", type=Path, help="where to; must not exist, or be empty")
    asked = parser.parse_args(arguments)
    weights = read_hugging_face(asked.folder)
    with new_folder(asked.run) as partial:
        write_imported(weights, RunFolder(partial))
    run = RunFolder(asked.run)
    print(f"{run.weights}: {count_parameters(weights.shape).total:,} parameters; shape in {run.architecture}")
    return 0


def read_run(run: RunFolder) -> Weights:
    """The final weights of a run, or of a folder that `sweep import` wrote; `.decoder()` makes a model.

    Raises ValueError where there are none, or none that fit what the folder says of itself.
    """
    try:
        if run.spec.exists():
            spec = RunSpec.from_json(read_json(run.spec)["spec"])
            shape, multipliers = spec.shape, multipliers_of(spec)
        elif run.architecture.exists():
            fields = read_json(run.architecture)
            shape, multipliers = DecoderShape(**fields["shape"]), Multipliers(**fields["multipliers"])
        else:
            names = f"neither {run.spec.name} nor {run.architecture.name}"
            raise ValueError(f"{run.path} is no run: it has {names}")
    except (TypeError, KeyError) as error:
        raise ValueError(f"{run.path} was written by another version of this program: {error}") from error
    if not run.weights.exists():
        raise ValueError(f"{run.path} has no {run.weights.relative_to(run.path)}: {why_no_weights(run)}")
    try:
        return Weights(shape, load_file(run.weights), multipliers)
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{run.weights}: {error}") from error


def multipliers_of(spec: RunSpec) -> Multipliers:
    """The factors that the run's parametrisation puts beside its weights."""
    optim = spec.optim
    return Multipliers(
        output=output_multiplier(spec.shape, optim.param, optim.base_width),
        residual=residual_multiplier(spec.shape, optim.param, optim.base_depth),
    )


def why_no_weights(run: RunFolder) -> str:
    if not run.result.exists():
        return "the run has not ended; let the sweep finish it first"
    status = read_json(run.result).get("status")
    if status == "finished":
        return "a trunk leaves none, only the branches that go on from it do; or the file was removed"
    return f"the run ended as {status!r}, and only a finished one leaves its weights"


def write_imported(weights: Weights, run: RunFolder) -> None:
    """Write weights and shape so that `read_run` reads them back."""
    run.weights.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.tensors.items()}, run.weights)
    parts = {"shape": weights.shape, "multipliers": weights.multipliers}
    write_json(run.architecture, {name: dataclasses.asdict(part) for name, part in parts.items()})


def prepared_corpus(run: RunFolder) -> tuple[tuple[Path, ShardHeader] | None, str]:
    """The shards that the run was trained on, or None and why they are not at hand."""
    if not run.spec.exists():
        return None, "an imported model names no corpus"
    request = read_json(run.spec)
    folder = Path(request["execution"]["data_folder"])
    try:
        header = read_header(folder)
    except (OSError, ValueError) as error:
        return None, f"the run's corpus cannot be read: {error}"
    if header.fingerprint != request["spec"]["data"]["fingerprint"]:
        return None, f"{folder} holds another corpus than the run's"
    return (folder, header), ""


def tokenizer_of(data: tuple[Path, ShardHeader], seq_len: int) -> dict[str, Any] | None:
    """tokenizer.json and tokenizer_config.json, by name, that give the ids that the corpus has; None for
    a corpus without text."""
    folder, header = data
    if header.tokenizer_digest == ByteTokenizer.digest:
        backend = byte_level_tokenizer()
    elif (folder / TOKENIZER).exists():
        backend = read_json(folder / TOKENIZER)
        backend["post_processor"] = None  # what it would add around a text, no shard has
    else:
        return None
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": token_of(backend, header.end_of_document),
        "model_max_length": seq_len,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # a special token spelt out in a document was text like any other
    }
    return {TOKENIZER: backend, "tokenizer_config.json": config}


def token_of(backend: dict[str, Any], token_id: int) -> str:
    """The token of this id in a tokenizer.json. Raises ValueError where it has none."""
    from tokenizers import Tokenizer

    token = Tokenizer.from_str(json.dumps(backend)).id_to_token(token_id)
    if token is None:
        raise ValueError(f"the corpus' {TOKENIZER} has no token {token_id}, which ends its documents")
    return token


def byte_level_tokenizer() -> dict[str, Any]:
    """ByteTokenizer as a tokenizer.json: byte-level BPE without a merge, whose 256 entries are the bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END_OF_DOCUMENT])
    return json.loads(backend.to_str())


def byte_characters() -> list[str]:
    """The character that byte-level tokenizers write for each byte (GPT-2's encoder.py, bytes_to_unicode):
    itself where it is printable in Latin-1, else the next from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to be filled, which takes its name once that is done; on any error, nothing
    is left. Raises ValueError where `folder` exists and is not an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; nothing was written. Name another")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        partial.chmod(0o777 & ~current_umask())
        yield partial
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
