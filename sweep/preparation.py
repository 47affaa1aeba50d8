"""The corpus of a sweep: prepared now or before, or, where it is streamed, known only by its name until then."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from sweep.data.corpus import SourceConfig
from sweep.data.tokens import CorpusFacts, TokenizerConfig, default_cache, prepare
from sweep.plan.plan import Corpus
from sweep.plan.schema import SweepConfig
from sweep.refusals import Refused

UNPREPARED = "not-prepared"
"""Stands for the fingerprint of a corpus that is streamed only once its cost is known."""


def data_configs(config: SweepConfig) -> tuple[SourceConfig, TokenizerConfig]:
    """The data and tokenizer groups as sweep/data takes them."""
    data, tokenizer = config.data, config.tokenizer
    if data.kind == "text":
        paths = [data.path] if isinstance(data.path, str) else list(data.path)
        source = SourceConfig(kind="text", path=tuple(paths), field=data.field)
    elif data.kind == "hf":
        source = SourceConfig(
            kind="hf", name=data.path, config=data.config, split=data.split, field=data.field, revision=data.revision
        )
    elif data.kind == "synthetic":
        source = SourceConfig(kind="synthetic", vocab_size=data.vocab_size, seed=data.source_seed)
    else:
        source = SourceConfig(kind="stdlib")
    return source, TokenizerConfig(tokenizer.kind, tokenizer.vocab_size, tokenizer.path, tokenizer.end_of_document)


def prepare_corpus(config: SweepConfig, tokens: float, out) -> CorpusFacts:
    """The corpus in shards, prepared now or before, for a longest run of `tokens` tokens.

    Raises Refused where the held-out split has fewer tokens than data.eval_tokens wants, and what
    `sweep.data.tokens.prepare` raises.
    """
    source, tokenizer = data_configs(config)
    facts = prepare(
        source,
        tokenizer,
        heldout_fraction=config.data.heldout_fraction,
        tokens_wanted=2 ** max(0, math.ceil(math.log2(tokens / config.data.max_epochs * STREAM_MARGIN))),
        cache=Path(config.data.cache) if config.data.cache else default_cache(),
        say=lambda line: out.print(line, markup=False),
    )
    if facts.heldout_tokens < config.data.eval_tokens + 1:
        raise Refused(
            f"data.eval_tokens={config.data.eval_tokens:,}: the held-out split has {facts.heldout_tokens:,} tokens. "
            "Lower data.eval_tokens, raise data.heldout_fraction, or add data. Nothing was launched."
        )
    return facts


STREAM_MARGIN = 1.6
"""Tokens streamed beyond the longest planned run: one extension to a smaller size at the same budget
needs about grid.size_ratio times its tokens. Rounded up to a power of two, so that a sweep that grows
keeps its corpus."""


def planned_corpus(facts: CorpusFacts | None, vocab_size: int) -> Corpus:
    """What the plan knows of the corpus; None: it is not there yet, and has as many tokens as are asked for."""
    if facts is None:
        return Corpus(UNPREPARED, vocab_size, sys.maxsize)
    return Corpus(facts.fingerprint, facts.vocab_size, facts.train_tokens)
