"""Documents of a Hugging Face data set, streamed; and a quick, clear failure where there is no network."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sweep.data.corpus import Document, SourceConfig, describe, row_document

REACH_SECONDS = 3.0  # assumption: longer than any healthy answer; `datasets` itself retries for 25 s
LOCAL_ALTERNATIVE = "use a source of kind text with local .txt, .jsonl or .parquet files, or of kind stdlib"


def hub_documents(source: SourceConfig) -> Iterator[Document]:
    """The rows of the data set's split, in its own order; `source.name` may be a local folder.

    Raises:
        ConnectionError: no hub within REACH_SECONDS, or lost while streaming.
        ValueError: no such data set, config, split, revision or field.
    """
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if not offline and not Path(source.name).exists():
        require_hub(source)
    for number, row in enumerate(rows(source), start=1):
        yield row_document(row, source.field, f"{describe(source)}, row {number}")


def rows(source: SourceConfig) -> Iterator[dict[str, Any]]:
    """The stream of `datasets`, with its many failures told as two: never opened, or lost midway."""
    import datasets

    try:
        stream = datasets.load_dataset(
            source.name, source.config, split=source.split, revision=source.revision, streaming=True
        )
        iterator = iter(stream)
    except Exception as error:  # builders raise whatever their readers do
        raise ValueError(
            f"{describe(source)} cannot be opened: {type(error).__name__}: {error}\nCheck the source's name, "
            f"config, split and revision; or {LOCAL_ALTERNATIVE}. Nothing was launched."
        ) from error
    count = 0
    while True:
        try:
            row = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise ConnectionError(
                f"{describe(source)} failed after {count} rows: {type(error).__name__}: {error}\n"
                f"Run again to start the stream anew, or {LOCAL_ALTERNATIVE}. Nothing was launched."
            ) from error
        count += 1
        yield row


def require_hub(source: SourceConfig) -> None:
    """Raises ConnectionError unless the hub answers anything at all within REACH_SECONDS.

    In a thread, since a name that no server resolves can block for longer than any timeout allows.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(endpoint, method="HEAD")
            urllib.request.urlopen(request, timeout=REACH_SECONDS).close()
        except urllib.error.HTTPError:
            outcome.append(None)  # an answer, if an unfriendly one
        except Exception as error:
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    if outcome and outcome[0] is None:
        return
    reason = outcome[0] if outcome else f"no answer in {REACH_SECONDS:g} s"
    raise ConnectionError(
        f"{describe(source)}: the hub at {endpoint} cannot be reached ({reason}). With no network, "
        f"{LOCAL_ALTERNATIVE}; or set HF_HUB_OFFLINE=1 if the data set is in the local cache. "
        "Nothing was launched."
    )
