"""Fixtures that several modules share: composed configurations, a tiny corpus, a tiny run."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported anywhere, workers included

from models.config import DecoderShape
from sweep.data.shards import ShardWriter
from sweep.plan.spec import DataSpec, OptimSpec, RunSpec, ScheduleSpec

VOCAB, SEQ = 32, 16


@pytest.fixture(scope="session")
def compose():
    """compose(*overrides): what `python -m sweep *overrides` makes of them, as a SweepConfig."""
    import hydra

    from sweep.__main__ import CONF
    from sweep.plan.schema import to_config

    @lru_cache(maxsize=None)  # a composition takes a fifth of a second, and what it makes is frozen
    def composed(*overrides: str):
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return to_config(hydra.compose("config", overrides=list(overrides)))

    return composed


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Shards of a learnable source: each token is the last one plus 1, or, one time in four, random."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    jumps = np.where(rng.random(6000) < 0.25, rng.integers(VOCAB, size=6000), 1)
    tokens = np.cumsum(jumps) % VOCAB
    with ShardWriter(folder, VOCAB) as shards:
        shards.add_train(tokens[:5000])
        shards.add_heldout(tokens[5000:], rng.integers(1, 4, size=1000))
        shards.finish(tokenizer_digest="none", end_of_document=0, entropy_rate=None, source="test", counts={})
    return folder


TINY = RunSpec(
    shape=DecoderShape(n_layer=2, d_model=16, n_head=2, d_ff=32, vocab_size=VOCAB, seq_len=SEQ),
    data=DataSpec(fingerprint="f00d", eval_tokens=512),
    optim=OptimSpec("mup", 0.02, 16, 0.9, 0.95, 1e-8, 0.1, 1.0),
    schedule=ScheduleSpec("wsd", 2, 8, "linear", 0.0),
    batch_sequences=8,
    steps=24,
    seed=3,
    precision="fp32",
)


@pytest.fixture(scope="session")
def tiny_spec():
    """tiny_spec(**changes): a run of two dozen steps on `corpus`; a change may be one to a nested part."""

    def spec(**changes) -> RunSpec:
        nested = {
            name: replace(getattr(TINY, name), **change)
            for name, change in changes.items()
            if isinstance(change, dict)
        }
        return replace(TINY, **{**changes, **nested})

    return spec
