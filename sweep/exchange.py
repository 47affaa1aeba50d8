"""`sweep export RUN_DIR DIR` and `sweep import DIR RUN_DIR`: a run's weights to Hugging Face and back."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from sweep.data.shards import TOKENIZER, read_header
from sweep.data.tokenizer import END_OF_DOCUMENT, ByteTokenizer
from sweep.files import RunFolder, read_json, write_json

SHAPE = "shape.json"


def export_main(arguments: list[str]) -> int:
    """`sweep export RUN_DIR DIR`. Raises ValueError or OSError with nothing written over."""
    source, target = _two(arguments, "export RUN_DIR DIR")
    # torch takes seconds to import: usage errors come before it
    from safetensors.torch import load_file

    from models.config import DecoderShape
    from models.exchange import WEIGHTS, write_hugging_face
    from models.transfer import output_multiplier

    folder = RunFolder(source)
    weights = folder.checkpoint / WEIGHTS
    if not weights.is_file():
        raise ValueError(f"{weights}: no such file; {source} is no finished run (wanted a folder runs/RUN_ID)")
    _refuse_nonempty(target)
    corpus, multiplier = None, 1.0
    if folder.spec.is_file():
        request = read_json(folder.spec)
        shape, optim = DecoderShape(**request["spec"]["shape"]), request["spec"]["optim"]
        multiplier = output_multiplier(shape, optim["param"], optim["base_width"])
        corpus = Path(request["execution"]["data_folder"])
    elif (source / SHAPE).is_file():
        shape = DecoderShape(**read_json(source / SHAPE))
    else:
        raise ValueError(f"{source} has neither spec.json nor {SHAPE}: the shape of its weights is unknown")
    header = read_header(corpus) if corpus is not None and corpus.is_dir() else None
    end = header.end_of_document if header else None
    write_hugging_face(target, load_file(weights), shape, multiplier, end)
    print(f"wrote {target}: config.json, {WEIGHTS}")
    if header is None:
        print(f"no tokenizer written: the corpus that the run was trained on is not at {corpus}")
    elif (corpus / TOKENIZER).is_file():
        shutil.copyfile(corpus / TOKENIZER, target / TOKENIZER)
        write_tokenizer_config(target, shape.seq_len, end)
    elif header.tokenizer_digest == ByteTokenizer.digest:
        byte_backend().save(str(target / TOKENIZER))
        write_tokenizer_config(target, shape.seq_len, end)
    else:
        print("no tokenizer written: the corpus is token ids without text")
    return 0


def import_main(arguments: list[str]) -> int:
    """`sweep import DIR RUN_DIR`: RUN_DIR/checkpoint/model.safetensors and RUN_DIR/shape.json, which
    `sweep export` reads again. Raises ValueError or OSError."""
    source, target = _two(arguments, "import DIR RUN_DIR")
    from safetensors.torch import save_file

    from models.exchange import WEIGHTS, read_hugging_face

    _refuse_nonempty(target)
    shape, weights = read_hugging_face(source)
    checkpoint = RunFolder(target).checkpoint
    checkpoint.mkdir(parents=True, exist_ok=True)
    save_file(weights, checkpoint / WEIGHTS)
    write_json(target / SHAPE, dataclasses.asdict(shape))
    print(f"wrote {target}: {SHAPE}, checkpoint/{WEIGHTS}")
    return 0


def byte_backend():
    """ByteTokenizer as a tokenizers.Tokenizer: GPT-2's byte alphabet without a single merge."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # GPT-2's bytes_to_unicode: printable Latin-1 stands for itself, the other bytes for 256 onwards
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    vocab = {chr(byte if byte in printable else 256 + others.index(byte)): byte for byte in range(256)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END_OF_DOCUMENT])
    return backend


def write_tokenizer_config(folder: Path, seq_len: int, end_of_document: int) -> None:
    from tokenizers import Tokenizer

    end = Tokenizer.from_file(str(folder / TOKENIZER)).id_to_token(end_of_document)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": seq_len,
        "eos_token": end,
        "pad_token": end,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _two(arguments: list[str], usage: str) -> tuple[Path, Path]:
    if len(arguments) != 2:
        raise ValueError(f"usage: sweep {usage}")
    return Path(arguments[0]), Path(arguments[1])


def _refuse_nonempty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; name another. Nothing was written.")
