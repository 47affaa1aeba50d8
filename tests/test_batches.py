"""Batches: a pure function of (seed, step); each block once an epoch; the same held-out blocks for all."""

from __future__ import annotations

import numpy as np
import pytest

from sweep.data.batches import TokenBatches, block_order, heldout_blocks
from sweep.data.shards import ShardWriter
from sweep.plan.batch import BatchSpec

SEQ = 4
TRAIN = 4 * 10 + 3  # ten blocks and their labels, and two tokens that fill no block


@pytest.fixture
def folder(tmp_path):
    """Shards whose training token i is i and whose held-out token i is 100 + i, of i bytes."""
    with ShardWriter(tmp_path, 200) as shards:
        shards.add_train(np.arange(TRAIN))
        shards.add_heldout(np.arange(100, 130), np.arange(30))
        shards.finish(tokenizer_digest="t", end_of_document=199, entropy_rate=None, source="test", counts={})
    return tmp_path


def stream(folder, batch_sequences: int, sequences: int, seed: int = 0) -> np.ndarray:
    batches = TokenBatches(folder, SEQ, BatchSpec(batch_sequences), seed)
    return np.concatenate([batches.batch(step) for step in range(sequences // batch_sequences)])


def test_every_block_once_in_each_epoch(folder):
    sequences = stream(folder, 2, 30)
    assert sequences.dtype == np.int64 and sequences.shape == (30, SEQ + 1)
    for epoch in np.split(sequences, 3):
        assert sorted(epoch[:, 0]) == list(range(0, 40, SEQ))
    np.testing.assert_array_equal(sequences - sequences[:, :1], np.tile(np.arange(SEQ + 1), (30, 1)))


def test_epochs_have_different_orders(folder):
    first, second, third = (tuple(epoch[:, 0]) for epoch in np.split(stream(folder, 1, 30), 3))
    assert len({first, second, third}) == 3


def test_stream_does_not_depend_on_batch_size(folder):
    one = stream(folder, 1, 60)
    for batch_sequences in (2, 3, 4, 12, 20):  # 12 and 20 straddle and span epochs of 10
        np.testing.assert_array_equal(stream(folder, batch_sequences, 60), one)


def test_steps_can_be_asked_in_any_order(folder):
    resumed = TokenBatches(folder, SEQ, BatchSpec(3), seed=5)
    fresh = TokenBatches(folder, SEQ, BatchSpec(3), seed=5)
    forward = [fresh.batch(step) for step in range(12)]
    for step in (11, 3, 7, 3, 0):
        np.testing.assert_array_equal(resumed.batch(step), forward[step])


def test_seed_decides_the_order(folder):
    assert not np.array_equal(stream(folder, 5, 10, seed=0), stream(folder, 5, 10, seed=1))


@pytest.mark.parametrize(
    ("seed", "epoch", "order"),
    [
        (0, 0, [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]),
        (7, 3, [2, 5, 9, 7, 3, 0, 6, 8, 4, 1]),
        (2**64 - 1, 0, [8, 9, 0, 7, 4, 2, 6, 3, 1, 5]),
    ],
)
def test_order_is_the_same_on_every_machine(seed, epoch, order):
    assert block_order(seed, epoch, 10).tolist() == order


def test_orders_are_uniform():
    """The block that comes first, over 3,000 seeds: a chi-square statistic of 9 degrees of freedom."""
    firsts = np.bincount([block_order(seed, 0, 10)[0] for seed in range(3000)], minlength=10)
    assert ((firsts - 300) ** 2 / 300).sum() < 27.9  # its 99.9% quantile


def test_unique_tokens_and_epochs(folder):
    batches = TokenBatches(folder, SEQ, BatchSpec(2), 0)
    assert batches.unique_tokens(24) == 24 and batches.epochs(24) == 0.6
    assert batches.unique_tokens(400) == 40 and batches.epochs(400) == 10
    seen = stream(folder, 2, 6)[:, 1:]
    assert len(np.unique(seen)) == batches.unique_tokens(seen.size)


def test_heldout_blocks_are_spaced_evenly_over_the_split(folder):
    blocks, label_bytes = heldout_blocks(folder, SEQ, 12)
    starts = [100, 108, 116]  # 7 whole blocks of 4 labels in 30 tokens: the 0th, 2nd and 4th
    np.testing.assert_array_equal(blocks, [np.arange(first, first + 5) for first in starts])
    assert label_bytes.tolist() == [sum(range(k + 1, k + 5)) for k in (0, 8, 16)]
    assert blocks.dtype == label_bytes.dtype == np.int64


def test_all_of_the_split_is_every_label_once(folder):
    blocks, _ = heldout_blocks(folder, SEQ, 28)
    np.testing.assert_array_equal(blocks[:, 1:].ravel(), np.arange(101, 129))


def test_all_heldout_tokens_but_the_first_can_be_labels(folder):
    blocks, _ = heldout_blocks(folder, 29, 29)
    assert blocks.shape == (1, 30)
    with pytest.raises(ValueError, match="needs 31 held-out tokens; the split has 30. Lower .* to 28 or"):
        heldout_blocks(folder, 2, 30)


@pytest.mark.parametrize("eval_tokens", [0, -4, 3, 13])
def test_eval_tokens_must_fill_whole_blocks(folder, eval_tokens):
    with pytest.raises(ValueError, match="no positive multiple of seq_len=4; use (4|12), say"):
        heldout_blocks(folder, SEQ, eval_tokens)


def test_impossible_sizes_are_refused(folder):
    with pytest.raises(ValueError, match="43 training tokens hold no sequence of seq_len=43"):
        TokenBatches(folder, 43, BatchSpec(1), 0)
    assert TokenBatches(folder, 42, BatchSpec(1), 0).blocks == 1
    for seq_len, seed in ((0, 0), (4, -1), (4, 2**64)):
        with pytest.raises(ValueError, match="must"):
            TokenBatches(folder, seq_len, BatchSpec(1), seed)


def test_large_vocabularies_are_kept_whole(tmp_path):
    with ShardWriter(tmp_path, 70_000) as shards:
        shards.add_train(np.array([0, 65_535, 65_536, 69_999, 1]))
        shards.add_heldout(np.array([69_999, 65_536]), np.array([1, 1]))
        shards.finish(tokenizer_digest="t", end_of_document=0, entropy_rate=None, source="test", counts={})
    assert TokenBatches(tmp_path, 4, BatchSpec(1), 0).batch(0).tolist() == [[0, 65_535, 65_536, 69_999, 1]]
