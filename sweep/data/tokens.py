"""From a corpus to shards of token ids, prepared once and cached by content."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from sweep.data.cache import build_once, default_cache
from sweep.data.corpus import SourceConfig, content_digest, describe, documents
from sweep.data.shards import FORMAT_VERSION, ShardWriter, read_header, token_dtype
from sweep.data.split import Fate, Splitter, document_digest
from sweep.data.synthetic import SyntheticLanguage, is_heldout
from sweep.data.tokenizer import ByteTokenizer, Tokenizer, TokenizerConfig, load_tokenizer, train_bpe

__all__ = ["CorpusFacts", "TokenizerConfig", "default_cache", "prepare", "vocabulary_size"]

BPE_SAMPLE_BYTES = 64 << 20  # assumption: bounds memory and about a minute of training
ENCODE_BYTES = 4 << 20  # text tokenised in one call; bounds memory, changes no token
SAY_SECONDS = 10.0


@dataclass(frozen=True)
class CorpusFacts:
    """A prepared corpus.

    fingerprint: digest of the tokens of both splits and of the tokenizer (shards.ShardHeader).
    folder: where the shards are.
    bytes_per_token: UTF-8 bytes of text that a held-out token stands for, on average over the whole
        split, end-of-document tokens included; 0.0 for a source without text.
    entropy_rate: nats a token where the source's is known exactly, else None.
    counts: documents and what became of them, bytes, characters.
    """

    fingerprint: str
    folder: str
    vocab_size: int
    train_tokens: int
    heldout_tokens: int
    bytes_per_token: float
    source: str
    entropy_rate: float | None
    counts: dict[str, int]


def vocabulary_size(source: SourceConfig, tokenizer: TokenizerConfig) -> int:
    """Ids in the vocabulary, the end-of-document token's included, without reading the corpus.

    Raises:
        ValueError: more ids than uint32 holds, a tokenizer file that is none, or a tokenizer asked of
            a synthetic source.
    """
    if source.kind == "synthetic":
        if tokenizer != TokenizerConfig():
            raise ValueError(
                f"a synthetic source emits token ids and no text, so tokenizer kind {tokenizer.kind!r} has "
                "nothing to do; leave the tokenizer at its default. Nothing was launched."
            )
        size = source.vocab_size
    elif tokenizer.kind == "bytes":
        size = ByteTokenizer.vocab_size
    elif tokenizer.kind == "bpe":
        size = tokenizer.vocab_size
    else:
        size = load_tokenizer(tokenizer).vocab_size
    token_dtype(size)
    return size


def prepare(
    source: SourceConfig,
    tokenizer: TokenizerConfig,
    *,
    heldout_fraction: float,
    tokens_wanted: int | None,
    cache: Path,
    say: Callable[[str], None] = print,
) -> CorpusFacts:
    """Tokenise, de-duplicate and split a corpus into shards under `cache`, or find it there.

    Args:
        heldout_fraction: share of documents held out, between 0 and 1.
        tokens_wanted: training tokens needed. An "hf" source stops within 4 MB of text after it has
            them (None: at its end) and a "synthetic" one within a document (None is refused), so it is
            part of what these corpora are; local sources are always taken whole. Where a source
            holds fewer, fewer come: the caller compares `train_tokens`.
        cache: folder for all prepared corpora, created where missing.
        say: told what is going on, a line at a time; silent where the corpus is found.
    Raises:
        ValueError: a bad source, tokenizer, field or file, or nothing to train on or to hold out.
        OSError: an unreadable file, a full disk, a hub that cannot be reached (ConnectionError).
    """
    splitter = Splitter(heldout_fraction)
    vocabulary_size(source, tokenizer)
    if tokens_wanted is not None and tokens_wanted < 1:
        raise ValueError(f"tokens_wanted must be at least 1 or None, not {tokens_wanted}")
    folder = cache / cache_key(source, tokenizer, heldout_fraction, tokens_wanted)

    def build(partial: Path) -> None:
        say(f"preparing the {describe(source)} in {folder}")
        if source.kind == "synthetic":
            write_synthetic(partial, source, heldout_fraction, tokens_wanted)
        else:
            write_text(partial, source, tokenizer, splitter, tokens_wanted, say)

    build_once(folder, build, say)
    header = read_header(folder)
    return CorpusFacts(
        fingerprint=header.fingerprint,
        folder=str(folder),
        vocab_size=header.vocab_size,
        train_tokens=header.train_tokens,
        heldout_tokens=header.heldout_tokens,
        bytes_per_token=header.heldout_bytes / header.heldout_tokens,
        source=describe(source),
        entropy_rate=header.entropy_rate,
        counts=header.counts,
    )


def cache_key(
    source: SourceConfig, tokenizer: TokenizerConfig, heldout_fraction: float, tokens_wanted: int | None
) -> str:
    """32 hexadecimal digits of a digest of all that decides the shards: of local files the content, of
    the hub's data sets the name and revision asked for."""
    described = dataclasses.asdict(source)
    if source.kind in ("stdlib", "text"):
        described = {"kind": source.kind, "content": content_digest(source)}
        tokens_wanted = None
    spelled = dataclasses.asdict(tokenizer)
    if tokenizer.kind == "file":
        spelled = {"kind": "file", "digest": load_tokenizer(tokenizer).digest}
    identity = [FORMAT_VERSION, described, spelled, heldout_fraction, tokens_wanted]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def write_text(
    folder: Path,
    source: SourceConfig,
    config: TokenizerConfig,
    splitter: Splitter,
    tokens_wanted: int | None,
    say: Callable[[str], None],
) -> None:
    """Shards of a source of text.

    Training documents go in source order, held-out ones in the order of their hashes, so that the
    first of them are a fair sample.
    """
    counts: Counter[str] = Counter()
    stream = split_documents(source, splitter, counts)
    tokenizer, stream = ready_tokenizer(config, stream)
    heldout: list[bytes] = []
    with ShardWriter(folder, tokenizer.vocab_size) as shards:
        spoken = time.monotonic()
        for texts in chunks(stream, heldout):
            for tokens in tokenizer.encode(texts):
                shards.add_train(tokens)
            if tokens_wanted is not None and shards.train_tokens >= tokens_wanted:
                break
            if time.monotonic() - spoken > SAY_SECONDS:
                spoken = time.monotonic()
                say(f"  {shards.train_tokens:,} training tokens")
        for text in sorted(heldout, key=lambda text: document_digest(text)[8:]):
            shards.add_heldout(*tokenizer.byte_lengths(text))
        counts.update(splitter.counts)
        require_both_sides(source, splitter)
        tokenizer.save(folder)
        shards.finish(
            tokenizer_digest=tokenizer.digest,
            end_of_document=tokenizer.end_of_document,
            entropy_rate=None,
            source=describe(source),
            counts=dict(counts),
        )


def split_documents(
    source: SourceConfig, splitter: Splitter, counts: Counter[str]
) -> Iterator[tuple[Fate, bytes]]:
    """Those documents that are kept, each with its side; counts what it sees.

    Raises ValueError where the source ends with a side empty, before a tokenizer is trained on it.
    """
    for document in documents(source):
        counts["not_utf8"] += document.replaced
        fate = splitter.fate(document.text)
        if fate in (Fate.TRAIN, Fate.HELDOUT):
            counts[f"{fate.name.lower()}_bytes"] += len(document.text)
            counts[f"{fate.name.lower()}_characters"] += len(document.text.decode())
            yield fate, document.text
    require_both_sides(source, splitter)


def ready_tokenizer(
    config: TokenizerConfig, stream: Iterator[tuple[Fate, bytes]]
) -> tuple[Tokenizer, Iterator[tuple[Fate, bytes]]]:
    """The tokenizer, and the stream from its start again: a BPE is trained on the stream's first
    BPE_SAMPLE_BYTES of training documents, which wait in memory meanwhile."""
    if config.kind == "bytes":
        return ByteTokenizer(), stream
    if config.kind == "file":
        return load_tokenizer(config), stream
    head: list[tuple[Fate, bytes]] = []
    sample: list[bytes] = []
    size = 0
    for fate, text in stream:
        head.append((fate, text))
        if fate is Fate.TRAIN:
            sample.append(text)
            size += len(text)
        if size >= BPE_SAMPLE_BYTES:
            break
    return train_bpe(sample, config.vocab_size), chain(head, stream)


def chunks(stream: Iterable[tuple[Fate, bytes]], heldout: list[bytes]) -> Iterator[list[bytes]]:
    """Training documents in lists of about ENCODE_BYTES; held-out ones are appended to `heldout`."""
    texts: list[bytes] = []
    size = 0
    for fate, text in stream:
        if fate is Fate.HELDOUT:
            heldout.append(text)
            continue
        texts.append(text)
        size += len(text)
        if size >= ENCODE_BYTES:
            yield texts
            texts, size = [], 0
    yield texts


def require_both_sides(source: SourceConfig, splitter: Splitter) -> None:
    """Raises ValueError where one side of the split has no document."""
    train, heldout = splitter.counts[Fate.TRAIN.value], splitter.counts[Fate.HELDOUT.value]
    if not train + heldout:
        raise ValueError(
            f"the {describe(source)}: no document left to use ({splitter.counts[Fate.EMPTY.value]} are "
            "empty). Give a source with text in it. Nothing was launched."
        )
    if not train or not heldout:
        raise ValueError(
            f"the {describe(source)}: of {train + heldout} documents {heldout} are held out and {train} left "
            f"to train on, with heldout_fraction={splitter.heldout_fraction}; both need one. Change "
            "heldout_fraction, or cut the corpus into more documents. Nothing was launched."
        )


def write_synthetic(
    folder: Path, source: SourceConfig, heldout_fraction: float, tokens_wanted: int | None
) -> None:
    """Shards of a synthetic source: whole documents until the training split has tokens_wanted."""
    if tokens_wanted is None:
        raise ValueError(
            "a synthetic source has no end: tokens_wanted must say where to stop. Nothing was launched."
        )
    language = SyntheticLanguage(source.vocab_size, source.seed)
    counts = {Fate.TRAIN.value: 0, Fate.HELDOUT.value: 0}
    with ShardWriter(folder, source.vocab_size) as shards:
        for number, tokens in enumerate(language.documents()):
            if shards.train_tokens >= tokens_wanted and shards.heldout_tokens:
                break
            if is_heldout(source.seed, number, heldout_fraction):
                shards.add_heldout(tokens, np.zeros_like(tokens))
                counts[Fate.HELDOUT.value] += 1
            elif shards.train_tokens < tokens_wanted:
                shards.add_train(tokens)
                counts[Fate.TRAIN.value] += 1
        shards.finish(
            tokenizer_digest=hashlib.sha256(b"token ids without text").hexdigest(),
            end_of_document=language.end_of_document,
            entropy_rate=language.entropy_rate,
            source=describe(source),
            counts=counts,
        )
