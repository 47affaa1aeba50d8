"""Sources: what is read, in which order, and what is refused with which words."""

from __future__ import annotations

import gzip
import json
import os
import socket

import pyarrow
import pyarrow.parquet
import pytest

from sweep.data import hub
from sweep.data.corpus import SourceConfig, content_digest, documents, local_files


def text_source(*paths, field="text") -> SourceConfig:
    return SourceConfig(kind="text", path=tuple(map(str, paths)), field=field)


def texts(source: SourceConfig) -> list[str]:
    return [document.text.decode() for document in documents(source)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_format_gives_the_same_documents(tmp_path):
    wanted = ["first", "zweites größer\nline", "third 😀"]
    rows = [{"body": text, "other": 1} for text in wanted]
    plain = write_jsonl(tmp_path / "a.jsonl", rows)
    zipped = tmp_path / "a.jsonl.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    pyarrow.parquet.write_table(pyarrow.table({"other": [1, 1, 1], "body": wanted}), tmp_path / "a.parquet")
    folder = tmp_path / "plain"
    folder.mkdir()
    for name, text in zip(("1.txt", "2.py", "3.txt"), wanted, strict=True):
        (folder / name).write_bytes(text.encode())
    for source in (plain, zipped, tmp_path / "a.parquet", folder):
        assert texts(text_source(source, field="body")) == wanted


def test_files_come_sorted_and_once_however_they_are_named(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "ignored.png").write_bytes(b"\0")
    wanted = ["a.txt", "b.txt", "sub/c.txt"]
    assert texts(text_source(tmp_path)) == wanted
    assert texts(text_source(tmp_path / "*.txt", tmp_path, tmp_path / "a.txt")) == wanted
    assert texts(text_source(tmp_path / "**" / "*.txt")) == wanted


def test_standard_library_leaves_out_installed_packages(tmp_path, monkeypatch):
    for name in ("os.py", "email/mime.py", "site-packages/numpy/core.py", "dist-packages/apt.py", "abc.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert texts(SourceConfig()) == ["email/mime.py", "os.py"]


def test_standard_library_is_there():
    names = {file.name for file in local_files(SourceConfig())}
    assert {"argparse.py", "ast.py"} <= names and "pytest.py" not in names


def test_what_is_not_utf8_is_replaced_and_marked(tmp_path):
    (tmp_path / "a.txt").write_bytes("größe".encode("latin-1"))
    (tmp_path / "b.txt").write_bytes("größe".encode())
    rows = (rb"half \ud83d pair", b"\xff", rb"\ud83d\ude00")
    (tmp_path / "c.jsonl").write_bytes(b"".join(b'{"text": "' + row + b'"}\n' for row in rows))
    found = list(documents(text_source(tmp_path)))
    assert [document.replaced for document in found] == [True, False, True, True, False]
    mended = ["gr\ufffd\ufffde", "größe", "half \ufffd pair", "\ufffd", "😀"]
    assert [document.text.decode() for document in found] == mended


def test_null_text_is_an_empty_document_and_blank_lines_are_none(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": null}\n\n{"text": "x"}\n')
    assert texts(text_source(path)) == ["", "x"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "x"}\n{"body": "y", "id": 3}\n', ["a.jsonl, line 2", "no field 'text'", "'body', 'id'"]),
        ('{"text": "x"}\n{"text": 3}\n', ["line 2", "'text' holds int", "wanted a string"]),
        ('{"text": "x"\n', ["line 1", "not JSON"]),
        ('["x"]\n', ["line 1", "wanted a JSON object, found list"]),
    ],
)
def test_malformed_rows_are_named(tmp_path, content, words):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError) as caught:
        texts(text_source(path))
    for word in words:
        assert word in str(caught.value)


def test_parquet_errors_name_the_columns_that_exist(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"content": ["x"], "id": [1]}), path)
    with pytest.raises(ValueError, match=r"a\.parquet: no field 'text'; it has 'content', 'id'"):
        texts(text_source(path))
    path.write_bytes(b"not parquet at all")
    with pytest.raises(ValueError, match="not a Parquet file"):
        texts(text_source(path))


def test_files_that_cannot_be_read_as_text_are_refused(tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"ab\0c")
    with pytest.raises(ValueError, match=r"binary\.txt is binary \(a zero byte at offset 2\)"):
        texts(text_source(tmp_path))
    (tmp_path / "data.csv").write_text("x")
    with pytest.raises(ValueError, match=r"data\.csv: a text source reads .*\.parquet, not '\.csv'"):
        texts(text_source(tmp_path / "data.csv"))


@pytest.mark.parametrize("missing", ["nowhere", "nowhere/*.txt"])
def test_missing_paths_are_refused(tmp_path, missing):
    with pytest.raises(ValueError, match="no such file"):
        texts(text_source(tmp_path / missing))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no file ending in \.txt"):
        texts(text_source(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "web"}, "none of stdlib, text, hf, synthetic"),
        ({"kind": "text"}, "needs path"),
        ({"kind": "hf"}, "needs name"),
        ({"kind": "synthetic"}, "needs vocab_size"),
        ({"kind": "stdlib", "path": ("a",)}, "no use for path"),
        ({"kind": "text", "path": ("a",), "seed": 1}, "no use for seed=1; it takes path, field"),
        ({"kind": "text", "path": "a.txt"}, "tuple of strings"),
    ],
)
def test_source_config_refuses_what_it_would_ignore(options, words):
    with pytest.raises(ValueError, match=words):
        SourceConfig(**options)


def test_content_digest_follows_content_alone(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("alpha")
    os.utime(tmp_path / "two" / "a.txt", (0, 0))
    one, two = (content_digest(text_source(tmp_path / folder)) for folder in ("one", "two"))
    assert one == two
    (tmp_path / "two" / "a.txt").write_text("alphb")
    assert content_digest(text_source(tmp_path / "two")) != one
    assert content_digest(text_source(tmp_path / "one", field="body")) != one


def test_hub_data_set_is_streamed(tmp_path):
    folder = tmp_path / "dataset"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", [{"text": f"row {i}"} for i in range(5)])
    assert texts(SourceConfig(kind="hf", name=str(folder))) == [f"row {i}" for i in range(5)]
    with pytest.raises(ValueError, match="row 1: no field 'body'; it has 'text'"):
        texts(SourceConfig(kind="hf", name=str(folder), field="body"))
    with pytest.raises(ValueError, match="cannot be opened.*\n.*use a source of kind text"):
        texts(SourceConfig(kind="hf", name=str(folder), split="nonesuch"))


def test_unreachable_hub_names_the_local_alternative(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "REACH_SECONDS", 0.2)
    source = SourceConfig(kind="hf", name="someone/something")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        with pytest.raises(ConnectionError, match="cannot be reached.*kind text with local"):
            texts(source)
    with pytest.raises(ConnectionError, match="refused.*kind text with local"):
        texts(source)
