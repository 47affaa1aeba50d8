"""From text to token ids: bytes, a byte-level BPE trained here, or anybody's tokenizer.json."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sweep.data.options import check_kind
from sweep.data.shards import TOKENIZER

END_OF_DOCUMENT = "<|endoftext|>"
COMMON_ENDS = (END_OF_DOCUMENT, "<|end_of_text|>", "</s>", "<eos>")
"""What GPT-2 and its heirs, Llama 3, Llama 2 and T5, and Gemma call it."""

OPTIONS = {"bytes": (), "bpe": ("vocab_size",), "file": ("path", "end_of_document")}


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes token ids. Each document is followed by one end-of-document token.

    kind:
        "bytes": ids 0 to 255 are UTF-8 bytes, 256 is the end of a document.
        "bpe": byte-level byte-pair encoding of `vocab_size` entries (the last one the end of a
            document), trained on the first training documents.
        "file": the tokenizer.json at `path`; `end_of_document` names its token for that, else the
            first it has of COMMON_ENDS is taken.

    Raises:
        ValueError: an unknown kind, a missing option, or an option that this kind does not use.
    """

    kind: str = "bytes"
    vocab_size: int | None = None
    path: str | None = None
    end_of_document: str | None = None

    def __post_init__(self) -> None:
        check_kind(self, "tokenizer", OPTIONS)
        if self.kind == "file" and not self.path:
            raise ValueError("tokenizer kind 'file' needs path; none was given")
        if self.kind == "bpe" and (self.vocab_size is None or self.vocab_size < 257):
            raise ValueError(
                f"tokenizer kind 'bpe' needs vocab_size of at least 257 (every byte and the end of a "
                f"document), not {self.vocab_size}"
            )


class Tokenizer(Protocol):
    """What shards are written with. `digest` changes whenever some text could become other ids."""

    vocab_size: int
    end_of_document: int
    digest: str

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """UTF-8 documents -> integer[token] each, the end-of-document token included."""

    def byte_lengths(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        """One document -> its tokens and the UTF-8 bytes each stands for, int64[token], which sum
        to len(text); the end-of-document token stands for none."""

    def save(self, folder: Path) -> None:
        """Write TOKENIZER into `folder`, where there is something to write."""


class ByteTokenizer:
    """A token is a byte; the 257th is the end of a document."""

    vocab_size = 257
    end_of_document = 256
    digest = hashlib.sha256(b"bytes, 256 ends a document").hexdigest()

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        end = np.array([self.end_of_document], dtype=np.uint16)
        return [np.concatenate([np.frombuffer(text, dtype=np.uint8), end]) for text in texts]

    def byte_lengths(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        [tokens] = self.encode([text])
        return tokens, (tokens != self.end_of_document).astype(np.int64)

    def save(self, folder: Path) -> None:
        pass


class FastTokenizer:
    """A tokenizer of Hugging Face's `tokenizers`, used for plain text alone: no truncation, no
    padding, no template, and a special token spelt out in a document is text like any other.

    `backend` is a tokenizers.Tokenizer; `end_of_document` is an id in it.
    """

    def __init__(self, backend: Any, end_of_document: int) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self.backend = backend
        self.end_of_document = end_of_document
        self.vocab_size = vocabulary_size_of(backend)
        identity = f"{backend.to_str()} {end_of_document}"
        self.digest = hashlib.sha256(identity.encode()).hexdigest()

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        decoded = [text.decode() for text in texts]
        encodings = self.backend.encode_batch_fast(decoded, add_special_tokens=False)
        return [np.array([*encoding.ids, self.end_of_document], dtype=np.uint32) for encoding in encodings]

    def byte_lengths(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        """A token stands for the text between where the furthest token before it ends and where it
        ends; what follows the last token goes to it. A character cut between tokens goes to the first."""
        decoded = text.decode()
        encoding = self.backend.encode(decoded, add_special_tokens=False)
        tokens = np.array([*encoding.ids, self.end_of_document], dtype=np.uint32)
        bytes_before = np.concatenate([[0], np.cumsum(utf8_lengths(decoded))])
        ends = np.array([end for _, end in encoding.offsets], dtype=np.int64)
        covered = bytes_before[np.maximum.accumulate(ends)] if len(ends) else np.zeros(0, dtype=np.int64)
        if len(covered):
            covered[-1] = len(text)
        return tokens, np.append(np.diff(covered, prepend=0), 0)

    def save(self, folder: Path) -> None:
        self.backend.save(str(folder / TOKENIZER))


def utf8_lengths(text: str) -> np.ndarray:
    """UTF-8 bytes of each character: int64[len(text)]."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    return 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)


def vocabulary_size_of(backend: Any) -> int:
    """The largest id plus one; ids may have holes."""
    return max(backend.get_vocab(with_added_tokens=True).values()) + 1


def train_bpe(texts: Sequence[bytes], vocab_size: int) -> FastTokenizer:
    """Byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909, on bytes as in GPT-2).

    The same texts give the same tokenizer.

    Raises:
        ValueError: the texts hold too few distinct pairs for `vocab_size` entries.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((text.decode() for text in texts), trainer=trainer, length=len(texts))
    learned = backend.get_vocab_size()
    if learned != vocab_size - 1:
        raise ValueError(
            f"tokenizer.vocab_size={vocab_size}: {sum(map(len, texts))} bytes of training text hold only "
            f"{learned + 1} entries; lower vocab_size to that or use a larger corpus. Nothing was launched."
        )
    backend.add_special_tokens([END_OF_DOCUMENT])
    return FastTokenizer(backend, vocab_size - 1)


def load_tokenizer(config: TokenizerConfig) -> FastTokenizer:
    """The tokenizer of a "file" config.

    Raises:
        ValueError: no such file, a file that is no tokenizer, or no end-of-document token.
    """
    from tokenizers import Tokenizer as Backend

    path = Path(config.path).expanduser()
    if not path.is_file():
        raise ValueError(
            f"tokenizer.path {config.path!r} (from {Path.cwd()}): no such file. Nothing was launched."
        )
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise ValueError(
            f"{path} is no tokenizer: {error}. Wanted a tokenizer.json as Hugging Face's `tokenizers` "
            "saves it. Nothing was launched."
        ) from error
    names = (config.end_of_document,) if config.end_of_document else COMMON_ENDS
    found = [name for name in names if backend.token_to_id(name) is not None]
    if not found:
        special = [token.content for token in backend.get_added_tokens_decoder().values()]
        raise ValueError(
            f"{path} has no end-of-document token: looked for {', '.join(names)}; its special tokens are "
            f"{', '.join(special) or 'none'}. Name one as tokenizer.end_of_document. Nothing was launched."
        )
    return FastTokenizer(backend, backend.token_to_id(found[0]))
