"""Preparation: tokens are the documents, counted to the byte; made once, whole or not at all."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from sweep.data import tokens as tokens_module
from sweep.data.batches import heldout_blocks
from sweep.data.cache import build_once
from sweep.data.corpus import SourceConfig
from sweep.data.shards import HEADER, HELDOUT, HELDOUT_BYTES, TOKENIZER, TRAIN, read_header, read_tokens
from sweep.data.tokenizer import ByteTokenizer, TokenizerConfig, load_tokenizer, train_bpe
from sweep.data.tokens import prepare, vocabulary_size

WORDS = ["größe", "return", "self", "😀", "def", "x_1", "  ", "\n", "日本語", "<|endoftext|>", "import", "0.5"]


def write_corpus(folder, documents=60):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows = [" ".join(WORDS[i] for i in rng.integers(len(WORDS), size=80)) for _ in range(documents)]
    rows += [rows[0], "", "   "]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return SourceConfig(kind="text", path=(str(folder),))


@pytest.fixture
def source(tmp_path):
    return write_corpus(tmp_path / "corpus")


def prepared(source, tmp_path, tokenizer=None, *, cache="cache", **options):
    options = {"heldout_fraction": 0.3, "tokens_wanted": None} | options
    return prepare(source, tokenizer or TokenizerConfig(), cache=tmp_path / cache, **options)


def shard_documents(facts, name) -> list[list[int]]:
    """The documents in a shard, their end-of-document tokens cut off."""
    folder = Path(facts.folder)
    header = read_header(folder)
    tokens = read_tokens(folder, name, header.dtype)
    ends = np.flatnonzero(tokens == header.end_of_document)
    assert ends[-1] == len(tokens) - 1
    return [document[:-1].tolist() for document in np.split(tokens, ends + 1)[:-1]]


def test_shards_hold_every_document_once(source, tmp_path):
    facts = prepared(source, tmp_path)
    rows = [json.loads(line)["text"] for line in open(tmp_path / "corpus" / "rows.jsonl")]
    train, heldout = shard_documents(facts, TRAIN), shard_documents(facts, HELDOUT)
    assert sorted(bytes(document).decode() for document in train + heldout) == sorted(rows[:60])
    counts = facts.counts
    assert counts["train_documents"] == len(train) and counts["heldout_documents"] == len(heldout)
    assert counts["duplicates"] == 1 and counts["empty"] == 2
    assert counts["near_both_sides"] == counts["not_utf8"] == 0
    assert counts["train_bytes"] + counts["train_documents"] == facts.train_tokens
    assert counts["heldout_characters"] == sum(len(bytes(document).decode()) for document in heldout)
    assert facts.vocab_size == 257 and facts.entropy_rate is None


def test_heldout_bytes_are_exact_for_any_number_of_tokens(source, tmp_path):
    """Bits per byte of a uniform guess over the 257 ids, counted by hand from the tokens themselves."""
    facts = prepared(source, tmp_path)
    folder = Path(facts.folder)
    for eval_tokens in (8, 800, 4000):
        blocks, label_bytes = heldout_blocks(folder, 8, eval_tokens)
        labels = blocks[:, 1:].ravel()
        assert label_bytes.sum() == np.sum(labels != 256)
        by_hand = math.log2(257) * len(labels) / np.sum(labels != 256)
        assert math.log(257) * labels.size / math.log(2) / label_bytes.sum() == pytest.approx(by_hand)
    assert facts.bytes_per_token == facts.counts["heldout_bytes"] / facts.heldout_tokens


def test_heldout_order_is_not_that_of_the_source(tmp_path):
    source = write_corpus(tmp_path / "corpus", 200)
    facts = prepared(source, tmp_path, heldout_fraction=0.5)
    rows = [json.loads(line)["text"] for line in open(tmp_path / "corpus" / "rows.jsonl")]
    places = [rows.index(bytes(document).decode()) for document in shard_documents(facts, HELDOUT)]
    assert abs(np.corrcoef(places, np.arange(len(places)))[0, 1]) < 4 / np.sqrt(len(places))


def test_fingerprint_follows_content_and_tokenizer_alone(source, tmp_path):
    facts = prepared(source, tmp_path)
    shutil.copytree(tmp_path / "corpus", tmp_path / "elsewhere")
    moved = SourceConfig(kind="text", path=(str(tmp_path / "elsewhere"),))
    again = prepared(moved, tmp_path, cache="another")
    assert again.fingerprint == facts.fingerprint and again.folder != facts.folder
    assert prepared(source, tmp_path, heldout_fraction=0.2).fingerprint != facts.fingerprint
    assert prepared(source, tmp_path, TokenizerConfig("bpe", vocab_size=270)).fingerprint != facts.fingerprint
    with open(tmp_path / "elsewhere" / "rows.jsonl", "a") as file:
        file.write('{"text": "one more"}\n')
    assert prepared(moved, tmp_path).fingerprint != facts.fingerprint


def test_second_call_reads_the_cache(source, tmp_path, monkeypatch):
    said = []
    facts = prepared(source, tmp_path, say=said.append)
    assert len(said) == 1 and "preparing" in said[0]
    monkeypatch.setattr(tokens_module, "documents", None)
    assert prepared(source, tmp_path, say=said.append) == facts and len(said) == 1


def test_bpe_decodes_to_the_documents(source, tmp_path):
    facts = prepared(source, tmp_path, TokenizerConfig("bpe", vocab_size=300))
    from tokenizers import Tokenizer

    saved = Tokenizer.from_file(f"{facts.folder}/{TOKENIZER}")
    assert saved.token_to_id("<|endoftext|>") == 299 and facts.vocab_size == 300
    plain = prepared(source, tmp_path)
    for name in (TRAIN, HELDOUT):
        decoded = [saved.decode(document) for document in shard_documents(facts, name)]
        assert decoded == [bytes(document).decode() for document in shard_documents(plain, name)]
    assert any("<|endoftext|>" in text for text in decoded)  # spelt out in a document, it is text
    assert facts.bytes_per_token > 1.5 * plain.bytes_per_token


def test_bpe_bytes_sum_to_the_text(source, tmp_path):
    facts = prepared(source, tmp_path, TokenizerConfig("bpe", vocab_size=300))
    folder = Path(facts.folder)
    sizes, header = read_tokens(folder, HELDOUT_BYTES, "<u4"), read_header(folder)
    tokens = read_tokens(folder, HELDOUT, header.dtype)
    assert sizes.sum() == facts.counts["heldout_bytes"] == header.heldout_bytes
    assert not sizes[tokens == header.end_of_document].any()


def test_byte_lengths_of_whole_characters_are_those_of_their_text():
    tokenizer = train_bpe([" ".join(WORDS).encode() * 20], 300)
    text = "return größe, 日本語 😀".encode()
    tokens, sizes = tokenizer.byte_lengths(text)
    covered = 0
    for token, size in zip(tokens[:-1].tolist(), sizes[:-1].tolist(), strict=True):
        piece = tokenizer.backend.decode([token])
        if "\ufffd" not in piece:  # no part of a character
            assert len(piece.encode()) == size
        covered += size
    assert covered == len(text) and sizes[-1] == 0


def test_bpe_is_a_function_of_its_texts():
    texts = [" ".join(WORDS[i:]).encode() for i in range(8)]
    assert train_bpe(texts, 280).digest == train_bpe(texts, 280).digest
    assert train_bpe(texts, 280).digest != train_bpe([b"other words altogether " * 9], 270).digest
    with pytest.raises(ValueError, match="tokenizer.vocab_size=5000.*hold only [0-9]+ entries"):
        train_bpe(texts, 5000)


def test_bpe_is_trained_on_training_documents_alone(source, tmp_path, monkeypatch):
    seen = []
    spy = lambda texts, size: seen.extend(texts) or train_bpe(texts, size)  # noqa: E731
    monkeypatch.setattr(tokens_module, "train_bpe", spy)
    prepared(source, tmp_path, TokenizerConfig("bpe", vocab_size=270))
    plain = prepared(source, tmp_path)
    assert seen == [bytes(document) for document in shard_documents(plain, TRAIN)]
    seen.clear()
    monkeypatch.setattr(tokens_module, "BPE_SAMPLE_BYTES", 1000)
    bounded = prepared(source, tmp_path, TokenizerConfig("bpe", vocab_size=271))
    assert 1000 <= sum(map(len, seen)) < 3000
    assert bounded.counts == plain.counts  # and all the documents are tokenised


def test_a_saved_tokenizer_gives_the_same_shards(source, tmp_path):
    trained = prepared(source, tmp_path, TokenizerConfig("bpe", vocab_size=300))
    path = f"{trained.folder}/{TOKENIZER}"
    config = TokenizerConfig("file", path=path)
    assert vocabulary_size(source, config) == 300
    loaded = prepared(source, tmp_path, config)
    for name in (TRAIN, HELDOUT, HELDOUT_BYTES):
        assert open(f"{loaded.folder}/{name}", "rb").read() == open(f"{trained.folder}/{name}", "rb").read()


def test_tokenizer_files_that_will_not_do(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_tokenizer(TokenizerConfig("file", path=str(tmp_path / "nowhere.json")))
    (tmp_path / "other.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"other\.json is no tokenizer"):
        load_tokenizer(TokenizerConfig("file", path=str(tmp_path / "other.json")))
    path = tmp_path / "tokenizer.json"
    train_bpe([b"some text"], 257).backend.save(str(path))
    path.write_text(path.read_text().replace("<|endoftext|>", "<stop>"))
    with pytest.raises(ValueError, match="looked for .*</s>.*its special tokens are <stop>"):
        load_tokenizer(TokenizerConfig("file", path=str(path)))
    named = TokenizerConfig("file", path=str(path), end_of_document="<stop>")
    assert load_tokenizer(named).end_of_document == 256


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "words"}, "none of bytes, bpe, file"),
        ({"kind": "bytes", "vocab_size": 300}, "no use for vocab_size=300; it takes no options"),
        ({"kind": "bpe"}, "needs vocab_size of at least 257"),
        ({"kind": "bpe", "vocab_size": 256}, "needs vocab_size of at least 257"),
        ({"kind": "file"}, "needs path"),
        ({"kind": "file", "path": "x", "vocab_size": 3}, "no use for vocab_size"),
    ],
)
def test_tokenizer_config_refuses_what_it_would_ignore(options, words):
    with pytest.raises(ValueError, match=words):
        TokenizerConfig(**options)


def test_vocabulary_sizes(source):
    assert vocabulary_size(source, TokenizerConfig()) == ByteTokenizer.vocab_size == 257
    assert vocabulary_size(source, TokenizerConfig("bpe", vocab_size=1000)) == 1000
    synthetic = SourceConfig("synthetic", vocab_size=40)
    assert vocabulary_size(synthetic, TokenizerConfig()) == 40
    with pytest.raises(ValueError, match="leave the tokenizer at its default"):
        vocabulary_size(synthetic, TokenizerConfig("bpe", vocab_size=1000))
    with pytest.raises(ValueError, match="does not fit uint32"):
        vocabulary_size(source, TokenizerConfig("bpe", vocab_size=2**32 + 1))


def test_synthetic_corpus(tmp_path):
    source = SourceConfig("synthetic", vocab_size=40, seed=3)
    facts = prepared(source, tmp_path, heldout_fraction=0.1, tokens_wanted=50_000)
    longer = prepared(source, tmp_path, heldout_fraction=0.1, tokens_wanted=60_000)
    assert 50_000 <= facts.train_tokens < 60_000 <= longer.train_tokens
    train, more = (read_tokens(Path(each.folder), TRAIN, "<u2") for each in (facts, longer))
    np.testing.assert_array_equal(train, more[: len(train)])
    assert facts.entropy_rate > 0 and facts.bytes_per_token == 0 and facts.heldout_tokens > 1000
    with pytest.raises(ValueError, match="tokens_wanted must say where to stop"):
        prepared(source, tmp_path)


def test_a_streamed_data_set_stops_when_it_has_enough(tmp_path, monkeypatch):
    write_corpus(tmp_path / "corpus", 200)
    monkeypatch.setattr(tokens_module, "ENCODE_BYTES", 1000)
    source = SourceConfig(kind="hf", name=str(tmp_path / "corpus"))
    facts = prepared(source, tmp_path, tokens_wanted=5000)
    assert 5000 <= facts.train_tokens < 8000
    assert prepared(source, tmp_path).train_tokens > 3 * facts.train_tokens


def test_one_sided_splits_and_empty_corpora_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match="of 60 documents 0 are held out.*heldout_fraction=1e-09"):
        prepared(source, tmp_path, heldout_fraction=1e-9)
    (tmp_path / "blank.txt").write_text(" \n")
    blank = SourceConfig(kind="text", path=(str(tmp_path / "blank.txt"),))
    for tokenizer in (TokenizerConfig(), TokenizerConfig("bpe", vocab_size=300)):
        with pytest.raises(ValueError, match=r"no document left to use \(1 are empty\)"):
            prepared(blank, tmp_path, tokenizer)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"] * 3


def test_damaged_shards_are_refused(source, tmp_path):
    facts = prepared(source, tmp_path)
    with open(f"{facts.folder}/{TRAIN}", "r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match=r"train\.bin has 100 bytes, its header says [0-9]+: the file"):
        prepared(source, tmp_path)


def test_a_failed_build_leaves_nothing_and_the_next_one_succeeds(tmp_path):
    folder = tmp_path / "cache" / "key"

    def fail(partial):
        (partial / HEADER).write_text("{}")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        build_once(folder, fail, print)
    assert [path.name for path in folder.parent.iterdir()] == ["key.lock"]
    build_once(folder, lambda partial: (partial / "whole").write_text("x"), print)
    assert (folder / "whole").exists()


def build_slowly(folder, started, log):
    def build(partial):
        (partial / "built").write_text("x")
        started.set()
        time.sleep(0.5)
        with open(log, "a") as file:
            file.write("built\n")

    build_once(folder, build, lambda line: None)


def test_a_killed_build_is_never_taken_for_a_whole_one(tmp_path):
    folder, log = tmp_path / "key", tmp_path / "log"
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=build_slowly, args=(folder, started, log))
    process.start()
    assert started.wait(20)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not folder.exists() and list(tmp_path.glob(".key-*"))
    build_once(folder, lambda partial: (partial / "whole").write_text("x"), print)
    assert [path.name for path in folder.iterdir()] == ["whole"] and not list(tmp_path.glob(".key-*"))


def test_processes_that_build_at_once_take_turns(tmp_path):
    folder, log = tmp_path / "key", tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=build_slowly, args=(folder, context.Event(), log)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert log.read_text() == "built\n" and (folder / "built").exists()
