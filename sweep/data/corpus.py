"""Sources of text: from a description of a corpus to a stream of its documents."""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sweep.data.options import check_kind

PLAIN = (".txt", ".py")
STRUCTURED = (".jsonl", ".jsonl.gz", ".parquet")
NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}

OPTIONS = {
    "stdlib": (),
    "text": ("path", "field"),
    "hf": ("name", "config", "split", "field", "revision"),
    "synthetic": ("vocab_size", "seed"),
}


@dataclass(frozen=True)
class SourceConfig:
    """Where documents come from.

    kind:
        "stdlib": the source of the Python standard library that runs the program, one file a document.
        "text": local files; `path` is one or more files, folders (searched throughout) or glob patterns.
            A .txt or .py file is one document; each line of .jsonl or .jsonl.gz and each row of
            .parquet is one, its text under `field`.
        "hf": data set `name` of the Hugging Face hub, streamed: its `config`, `split` and `revision`
            (a commit, to be reproducible), its text under `field`.
        "synthetic": token ids of known entropy (synthetic.py) over `vocab_size` ids, from `seed`.

    Raises:
        ValueError: an unknown kind, a missing option, or an option that this kind does not use.
    """

    kind: str = "stdlib"
    path: tuple[str, ...] = ()
    field: str = "text"
    name: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    vocab_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_kind(self, "source", OPTIONS)
        required = {"text": "path", "hf": "name", "synthetic": "vocab_size"}.get(self.kind)
        if required and not getattr(self, required):
            raise ValueError(f"source kind {self.kind!r} needs {required}; none was given")
        if isinstance(self.path, str):
            raise ValueError(f"source path must be a tuple of strings, not the string {self.path!r}")


@dataclass(frozen=True)
class Document:
    """`text` is UTF-8; `replaced` says that it holds U+FFFD for what was not."""

    text: bytes
    replaced: bool


def documents(source: SourceConfig) -> Iterator[Document]:
    """The documents of a source of text, in an order that its content alone decides.

    Raises:
        ValueError: nothing found, a binary or malformed file, a missing field; says which and where.
        OSError: a file that cannot be read, or (ConnectionError) a hub that cannot be reached.
    """
    if source.kind == "hf":
        from sweep.data.hub import hub_documents

        return hub_documents(source)
    return local_documents(source)


def local_documents(source: SourceConfig) -> Iterator[Document]:
    """The documents of local files, file by file."""
    for file in local_files(source):
        match suffix(file):
            case ".jsonl" | ".jsonl.gz":
                yield from jsonl_documents(file, source.field)
            case ".parquet":
                yield from parquet_documents(file, source.field)
            case _:
                yield plain_document(file)


def local_files(source: SourceConfig) -> list[Path]:
    """The files of a "stdlib" or "text" source, each once, in the order in which they are read."""
    if source.kind == "stdlib":
        return standard_library_files()
    found = [file for pattern in source.path for file in matching_files(pattern)]
    return list({os.path.realpath(file): file for file in found}.values())


def standard_library_files() -> list[Path]:
    """Every .py file of the running Python's standard library, by relative path."""
    root = Path(sysconfig.get_path("stdlib"))
    files = {file.relative_to(root).as_posix(): file for file in root.rglob("*.py")}
    kept = [files[name] for name in sorted(files) if not NOT_LIBRARY.intersection(name.split("/"))]
    if not kept:
        raise ValueError(
            f"the standard library at {root} has no .py files (a zipped or stripped Python); "
            "use a source of kind text. Nothing was launched."
        )
    return kept


def matching_files(pattern: str) -> list[Path]:
    """The files that a path, a folder or a glob pattern stands for, sorted."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = [file for file in sorted(path.rglob("*")) if file.is_file() and suffix(file)]
    elif path.exists():
        found = [path]
    else:
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
    if not found:
        wanted = f"no file ending in {', '.join(PLAIN + STRUCTURED)}" if path.is_dir() else "no such file"
        raise ValueError(
            f"source path {pattern!r} (from {Path.cwd()}): {wanted}. "
            "Give a file, a folder or a glob pattern that matches. Nothing was launched."
        )
    for file in found:
        if not suffix(file):
            raise ValueError(
                f"{file}: a text source reads {', '.join(PLAIN + STRUCTURED)}, not {file.suffix!r}; "
                f"rename the file or narrow source path {pattern!r}. Nothing was launched."
            )
    return found


def suffix(file: Path) -> str | None:
    """The ending, of those that are read, that `file` has."""
    return next((ending for ending in PLAIN + STRUCTURED if file.name.lower().endswith(ending)), None)


def plain_document(file: Path) -> Document:
    """A whole file. Raises ValueError where a zero byte shows that it is no text."""
    raw = file.read_bytes()
    if b"\0" in raw:
        raise ValueError(
            f"{file} is binary (a zero byte at offset {raw.index(0)}), not text; "
            "leave it out of the source path. Nothing was launched."
        )
    try:
        raw.decode()
    except UnicodeDecodeError:
        return Document(raw.decode(errors="replace").encode(), replaced=True)
    return Document(raw, replaced=False)


def jsonl_documents(file: Path, field: str) -> Iterator[Document]:
    """One document a line: the string under `field` of a JSON object. Blank lines are passed over."""
    with gzip.open(file) if file.name.lower().endswith(".gz") else open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            where = f"{file}, line {number}"
            try:
                decoded = line.decode()
                undecodable = False
            except UnicodeDecodeError:
                decoded = line.decode(errors="replace")
                undecodable = True
            try:
                row = json.loads(decoded)
            except ValueError as error:
                raise ValueError(f"{where}: not JSON ({error}). Nothing was launched.") from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"{where}: wanted a JSON object, found {type(row).__name__}. Nothing was launched."
                )
            document = row_document(row, field, where)
            yield Document(document.text, document.replaced or undecodable)


def parquet_documents(file: Path, field: str) -> Iterator[Document]:
    """One document a row: the string in column `field`."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file}: not a Parquet file ({error}). Nothing was launched.") from error
    if field not in table.schema_arrow.names:
        raise missing_field(field, str(file), table.schema_arrow.names)
    row = 0
    for batch in table.iter_batches(columns=[field]):
        for value in batch.column(0).to_pylist():
            row += 1
            yield row_document({field: value}, field, f"{file}, row {row}")


def row_document(row: dict, field: str, where: str) -> Document:
    """The document of one structured row; a null text is an empty document."""
    if field not in row:
        raise missing_field(field, where, list(row))
    value = "" if row[field] is None else row[field]
    if not isinstance(value, str):
        raise ValueError(
            f"{where}: field {field!r} holds {type(value).__name__}, wanted a string. Nothing was launched."
        )
    try:
        return Document(value.encode(), replaced=False)
    except UnicodeEncodeError:  # JSON may escape half of a surrogate pair
        mended = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return Document(mended.encode(), replaced=True)


def missing_field(field: str, where: str, present: list[str]) -> ValueError:
    return ValueError(
        f"{where}: no field {field!r}; it has {', '.join(map(repr, present)) or 'none'}. "
        "Set the source's field to the one that holds the text. Nothing was launched."
    )


def content_digest(source: SourceConfig) -> str:
    """SHA-256 of what a local source holds: its files' content, in order, and how each is read.

    Neither paths nor times count, so a moved or copied corpus is the same one. Every byte is read,
    at about 1 GB/s.
    """
    total = hashlib.sha256(source.field.encode())
    for file in local_files(source):
        with open(file, "rb") as content:
            total.update(f"\0{suffix(file)}\0".encode() + hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()


def describe(source: SourceConfig) -> str:
    """What a person calls this source."""
    match source.kind:
        case "stdlib":
            return f"source of the Python {platform.python_version()} standard library"
        case "text":
            return f"local files {', '.join(source.path)}"
        case "hf":
            parts = [source.name, source.config, source.split, source.revision and f"at {source.revision}"]
            return f"Hugging Face data set {' '.join(part for part in parts if part)}"
        case _:
            return f"synthetic language over {source.vocab_size} ids, seed {source.seed}"
