"""The solved rate counts problems, not batches."""

import math

import pytest
import torch

from visual_opsd.metrics.accuracy import SolvedRate
from visual_opsd.statistics import wilson


def test_the_rate_counts_problems_over_batches_and_ranks():
    first, second = SolvedRate(), SolvedRate()
    first.update(torch.tensor([True, True, True]))
    first.update(torch.tensor([False]))
    second.update(torch.tensor([False, True]))
    first.merge_state(second)
    expected = wilson(4, 6)
    assert [value.item() for value in first.compute().values()] == pytest.approx(
        [expected.value, expected.low, expected.high]
    )


def test_nothing_seen_is_not_a_rate_of_zero():
    with pytest.warns(UserWarning, match="before the ``update``"):
        rate = SolvedRate().compute()
    assert math.isnan(rate["solved_rate"])
    assert (rate["solved_rate_low"], rate["solved_rate_high"]) == (0, 1)
