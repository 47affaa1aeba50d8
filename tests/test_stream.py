from __future__ import annotations

import numpy as np
import pytest
import torch

from sweep.data.batches import TokenBatches
from sweep.plan.batch import BatchSpec
from sweep.train.stream import BatchStream

CPU = torch.device("cpu")


@pytest.mark.parametrize("steps", [range(12), [5, 6, 7, 3, 4, 4, 9]])
def test_batches_made_ahead_are_the_batches(corpus, steps):
    batches = TokenBatches(corpus, 16, BatchSpec(4), seed=3)
    plain, ahead = BatchStream(batches, CPU), BatchStream(batches, CPU, ahead=True)
    for step in steps:
        expected = torch.from_numpy(np.asarray(batches.batch(step)))
        assert torch.equal(plain.batch(step), expected) and torch.equal(ahead.batch(step), expected)


def test_an_error_in_the_thread_reaches_whoever_asks(corpus):
    class Broken(TokenBatches):
        def batch(self, step):
            if step == 2:
                raise OSError("disk gone")
            return super().batch(step)

    ahead = BatchStream(Broken(corpus, 16, BatchSpec(4), seed=3), CPU, ahead=True)
    ahead.batch(0), ahead.batch(1)
    with pytest.raises(OSError, match="disk gone"):
        ahead.batch(2)
