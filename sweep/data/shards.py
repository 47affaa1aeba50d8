"""The folder that a prepared corpus lies in: token files and a header. NumPy and JSON alone.

    header.json         ShardHeader
    train.bin           token ids, `dtype`, little-endian, documents end to end
    heldout.bin         the same for the held-out split
    heldout_bytes.bin   uint32: UTF-8 bytes of text that each held-out token stands for
    tokenizer.json      the tokenizer, where it is one that `tokenizers` reads
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sweep.files import read_json, write_json

FORMAT_VERSION = 1
"""Raised whenever the same source would be cut into other tokens or stored in another way."""

HEADER = "header.json"
TOKENIZER = "tokenizer.json"
TRAIN, HELDOUT, HELDOUT_BYTES = "train.bin", "heldout.bin", "heldout_bytes.bin"
BYTES_DTYPE = "<u4"


@dataclass(frozen=True)
class ShardHeader:
    """What the files hold.

    fingerprint: SHA-256 over the content of both splits, the bytes of the held-out tokens, the
        tokenizer's digest and the format version; no path and no time is in it.
    end_of_document: the id that follows every document.
    heldout_bytes: UTF-8 bytes of the held-out documents; 0 for a source that has no text.
    entropy_rate: nats a token where the source's is known, else None.
    source, counts: for people; not in the fingerprint.
    """

    format: int
    fingerprint: str
    tokenizer_digest: str
    vocab_size: int
    end_of_document: int
    dtype: str
    train_tokens: int
    heldout_tokens: int
    heldout_bytes: int
    entropy_rate: float | None
    source: str
    counts: dict[str, int]


def token_dtype(vocab_size: int) -> str:
    """The smallest of uint16 and uint32 that holds every id. Raises ValueError where neither does."""
    for dtype in ("<u2", "<u4"):
        if vocab_size - 1 <= np.iinfo(dtype).max:
            return dtype
    raise ValueError(f"a vocabulary of {vocab_size} does not fit uint32 ids. Nothing was launched.")


class ShardWriter:
    """Appends documents' tokens to an empty folder; the header, written last, makes it whole."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.folder = folder
        self.vocab_size = vocab_size
        self.dtype = token_dtype(vocab_size)
        self.heldout_bytes = 0
        self._items = {TRAIN: 0, HELDOUT: 0, HELDOUT_BYTES: 0}
        self._files = {name: open(folder / name, "wb") for name in self._items}
        self._hashes = {name: hashlib.sha256() for name in self._items}

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    @property
    def train_tokens(self) -> int:
        return self._items[TRAIN]

    @property
    def heldout_tokens(self) -> int:
        return self._items[HELDOUT]

    def add_train(self, tokens: np.ndarray) -> None:
        """Append integer[token]."""
        self._append(TRAIN, tokens, self.dtype)

    def add_heldout(self, tokens: np.ndarray, token_bytes: np.ndarray) -> None:
        """Append integer[token] and the bytes of text each stands for, integer[token]."""
        if len(tokens) != len(token_bytes):
            raise ValueError(f"{len(tokens)} tokens but the bytes of {len(token_bytes)}")
        self._append(HELDOUT, tokens, self.dtype)
        self._append(HELDOUT_BYTES, token_bytes, BYTES_DTYPE)
        self.heldout_bytes += int(token_bytes.sum())

    def _append(self, name: str, values: np.ndarray, dtype: str) -> None:
        content = np.ascontiguousarray(values, dtype=dtype).data
        self._files[name].write(content)
        self._hashes[name].update(content)
        self._items[name] += len(values)

    def finish(
        self,
        *,
        tokenizer_digest: str,
        end_of_document: int,
        entropy_rate: float | None,
        source: str,
        counts: dict[str, int],
    ) -> ShardHeader:
        """Flush to the disk, write the header and return it."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        identity = {
            "format": FORMAT_VERSION,
            "tokenizer": tokenizer_digest,
            "dtype": self.dtype,
            **{name: content.hexdigest() for name, content in self._hashes.items()},
        }
        header = ShardHeader(
            format=FORMAT_VERSION,
            fingerprint=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
            tokenizer_digest=tokenizer_digest,
            vocab_size=self.vocab_size,
            end_of_document=end_of_document,
            dtype=self.dtype,
            train_tokens=self.train_tokens,
            heldout_tokens=self.heldout_tokens,
            heldout_bytes=self.heldout_bytes,
            entropy_rate=entropy_rate,
            source=source,
            counts=counts,
        )
        write_json(self.folder / HEADER, dataclasses.asdict(header))
        return header


def read_header(folder: Path) -> ShardHeader:
    """The header of a prepared corpus, once its files are seen to be as long as it says.

    Raises:
        FileNotFoundError: no header, so nothing was prepared here.
        ValueError: another format version, or a file cut short.
    """
    fields = read_json(folder / HEADER)
    if fields.get("format") != FORMAT_VERSION:
        raise ValueError(
            f"{folder} holds shards of format {fields.get('format')}, this program reads {FORMAT_VERSION}; "
            "delete the folder and prepare the corpus again. Nothing was launched."
        )
    header = ShardHeader(**fields)
    width = np.dtype(header.dtype).itemsize
    for name, size in (
        (TRAIN, header.train_tokens * width),
        (HELDOUT, header.heldout_tokens * width),
        (HELDOUT_BYTES, header.heldout_tokens * np.dtype(BYTES_DTYPE).itemsize),
    ):
        found = (folder / name).stat().st_size
        if found != size:
            raise ValueError(
                f"{folder / name} has {found} bytes, its header says {size}: the file is damaged; "
                "delete the folder and prepare the corpus again. Nothing was launched."
            )
    return header


def read_tokens(folder: Path, name: str, dtype: str) -> np.ndarray:
    """A token file as a read-only array backed by the file: unsigned[token]."""
    return np.asarray(np.memmap(folder / name, dtype=dtype, mode="r"))
