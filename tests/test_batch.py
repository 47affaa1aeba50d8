from __future__ import annotations

import pytest

from sweep.plan.batch import BatchSpec, growing


@pytest.mark.parametrize("batch", [BatchSpec(4), BatchSpec(1, 2), BatchSpec(1, 868), BatchSpec(3, 18), BatchSpec(8, 16)])
def test_what_is_seen_is_the_sum_of_the_batches_and_doubles_at_each_fourfold(batch):
    seen, size, doubles_at = 0, batch.sequences, batch.doubles_at
    for step in range(20_000):
        if seen == doubles_at:
            size, doubles_at = 2 * size, 4 * doubles_at
        assert (batch.at(step), batch.seen(step), batch.steps(seen)) == (size, seen, step)
        assert doubles_at is None or seen + size <= doubles_at  # never inside of an update
        seen += size


@pytest.mark.parametrize("least", [1, 4])
@pytest.mark.parametrize(("wanted", "at"), [(6, 15_625), (128, 488_281), (2.5, 9_000)])
def test_a_growing_batch_stays_by_the_square_root(wanted, at, least):
    batch = growing(wanted, at, least)
    for step in range(0, 30_000, 97):
        law = wanted * (batch.seen(step) / at) ** 0.5
        if law <= least:
            assert batch.at(step) == least
        else:
            assert 2**-0.55 < batch.at(step) / law < 2**0.55
    assert batch.at(30_000) > least


def test_the_nearest_number_of_updates_is_taken():
    batch = BatchSpec(1, 2)  # 1 1 2 2 2 4 4 4 4 4 4 8: seen 0 1 2 4 6 8 12 16
    asked = {0.4: 0, 1.6: 2, 2.9: 2, 3.1: 3, 9.9: 5, 10.1: 6, 13.9: 6, 14.1: 7}
    assert {sequences: batch.steps(sequences) for sequences in asked} == asked


def test_a_batch_that_would_double_inside_of_an_update_is_refused():
    with pytest.raises(ValueError, match="no even multiple"):
        BatchSpec(4, 12)
    with pytest.raises(ValueError, match="at least 1"):
        BatchSpec(0)
