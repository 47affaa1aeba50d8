"""One check for configs whose options depend on their kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def check_kind(config: Any, what: str, options: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse an unknown kind, and any option that is not its default and that its kind does not take.

    `config` is a dataclass with a field `kind`; `options` lists, for each kind, the fields it takes.

    Raises:
        ValueError: naming the option, its value, and what the kind takes.
    """
    if config.kind not in options:
        raise ValueError(f"{what} kind {config.kind!r} is none of {', '.join(options)}")
    taken = options[config.kind]
    for option in fields(config):
        value = getattr(config, option.name)
        if option.name not in ("kind", *taken) and value != option.default:
            raise ValueError(
                f"{what} kind {config.kind!r} has no use for {option.name}={value!r}; "
                f"it takes {', '.join(taken) or 'no options'}"
            )
