"""From (seed, step) to a batch of training sequences, and the held-out sequences of every run."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from sweep.data.shards import BYTES_DTYPE, HELDOUT, HELDOUT_BYTES, TRAIN, read_header, read_tokens
from sweep.plan.batch import BatchSpec


class TokenBatches:
    """Training sequences of a prepared corpus, in an order that `seed` alone decides.

    The corpus is cut into blocks of `seq_len` tokens, each read with the token after it as its last
    label. An epoch takes every block once, in its own order. The stream of sequences does not
    depend on `batch`: a run with another batch size or length sees the same stream.

    Args:
        folder: a prepared corpus (tokens.prepare).
        seq_len: T, tokens predicted in one sequence.
        batch: how many sequences each update takes.
        seed: 0 to 2**64 - 1.
    Raises:
        ValueError: a size below 1, a seed out of range, or a corpus shorter than one block.
    """

    def __init__(self, folder: Path, seq_len: int, batch: BatchSpec, seed: int) -> None:
        if seq_len < 1:
            raise ValueError(f"seq_len={seq_len} must be at least 1")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed={seed} must lie between 0 and 2**64 - 1")
        header = read_header(folder)
        self.seq_len = seq_len
        self._batch = batch
        self.seed = seed
        self.blocks = (header.train_tokens - 1) // seq_len
        if self.blocks < 1:
            raise ValueError(
                f"{folder}: {header.train_tokens} training tokens hold no sequence of seq_len={seq_len} and "
                "the label after it; lower seq_len or use a larger corpus. Nothing was launched."
            )
        self._tokens = read_tokens(folder, TRAIN, header.dtype)
        self._within = np.arange(seq_len + 1)

    def batch(self, step: int) -> np.ndarray:
        """Batch number `step` (from 0): int64[batch at that step, seq_len + 1].

        Inputs are [:, :-1], labels [:, 1:]. A pure function of (seed, step).
        """
        first = self._batch.seen(step)
        starts = self._blocks_at(first, first + self._batch.at(step)) * self.seq_len
        return self._tokens[starts[:, None] + self._within].astype(np.int64)

    def unique_tokens(self, tokens: int) -> int:
        """U: how many distinct tokens a run of `tokens` training tokens sees."""
        return min(tokens, self.blocks * self.seq_len)

    def epochs(self, tokens: int) -> float:
        """How many times over a run of `tokens` training tokens sees the corpus."""
        return tokens / (self.blocks * self.seq_len)

    def _blocks_at(self, first: int, last: int) -> np.ndarray:
        """The blocks at places first <= place < last of the stream: int64[last - first]."""
        pieces = []
        while first < last:
            epoch, place = divmod(first, self.blocks)
            stop = min(self.blocks, place + last - first)
            pieces.append(block_order(self.seed, epoch, self.blocks)[place:stop])
            first += stop - place
        return np.concatenate(pieces)


@lru_cache(maxsize=2)
def block_order(seed: int, epoch: int, blocks: int) -> np.ndarray:
    """The order of one epoch: a permutation, int64[block], read-only.

    Blocks are sorted by random 64-bit keys. The keys are Philox's raw output, which NumPy keeps the
    same for ever and everywhere (NEP 19), as it does not for `Generator.permutation`.
    """
    keys = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(blocks)
    order = np.argsort(keys, kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


def heldout_blocks(folder: Path, seq_len: int, eval_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """The held-out sequences that every loss is measured on: `eval_tokens` labels, in blocks spaced
    evenly over the whole split, so that every document has its share.

    Args:
        folder: a prepared corpus.
        seq_len: T, labels in one sequence.
        eval_tokens: labels in all, a multiple of seq_len.
    Returns:
        tokens int64[block, seq_len + 1], inputs [:, :-1] and labels [:, 1:];
        bytes int64[block], UTF-8 bytes of text that the block's labels stand for, so that
        bits per byte = (summed loss in nats) / ln 2 / (summed bytes). All 0 where there is no text.
    Raises:
        ValueError: eval_tokens no positive multiple of seq_len, or more than the split holds.
    """
    header = read_header(folder)
    if seq_len < 1 or eval_tokens < 1 or eval_tokens % seq_len:
        below = max(eval_tokens // max(seq_len, 1), 1) * seq_len
        raise ValueError(
            f"eval_tokens={eval_tokens} is no positive multiple of seq_len={seq_len}; "
            f"use {below}, say. Nothing was launched."
        )
    if header.heldout_tokens < eval_tokens + 1:
        raise ValueError(
            f"{folder}: eval_tokens={eval_tokens} needs {eval_tokens + 1} held-out tokens; the split has "
            f"{header.heldout_tokens}. Lower eval_tokens to "
            f"{(header.heldout_tokens - 1) // seq_len * seq_len} or less, raise heldout_fraction, or "
            "use a larger corpus. Nothing was launched."
        )
    tokens = read_tokens(folder, HELDOUT, header.dtype)
    token_bytes = read_tokens(folder, HELDOUT_BYTES, BYTES_DTYPE)
    blocks, wanted = (header.heldout_tokens - 1) // seq_len, eval_tokens // seq_len
    starts = np.arange(wanted) * blocks // wanted * seq_len
    labels = starts[:, None] + np.arange(1, seq_len + 1)
    whole = tokens[starts[:, None] + np.arange(seq_len + 1)].astype(np.int64)
    return whole, token_bytes[labels].astype(np.int64).sum(axis=1)
