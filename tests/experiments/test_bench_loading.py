"""Loading takes little more host memory than what is loaded."""

import sys

import pytest
import torch

from experiments.bench_loading import load_rss_ratio, peak_of_anonymous_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


def test_the_watch_sees_what_is_gone_by_the_end():
    with peak_of_anonymous_memory() as peak:
        before = peak[0]
        torch.ones(64 * 2**20 // 4).sum()
    assert 60 * 2**20 < peak[0] - before < 90 * 2**20


@pytest.mark.slow
def test_loading_two_gigabytes_stays_below_the_target():
    assert load_rss_ratio()["ratio"] <= 1.3
