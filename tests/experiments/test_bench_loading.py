"""Loading takes little more host memory than what is loaded."""

import mmap
import sys
import time

import pytest

from experiments.bench_loading import load_rss_ratio, peak_of_anonymous_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


def test_the_watch_sees_what_is_gone_by_the_end():
    with peak_of_anonymous_memory() as peak:
        before = peak[0]
        # Pages of its own: what malloc gives may have been resident before.
        with mmap.mmap(-1, 64 * 2**20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
            for start in range(0, len(pages), mmap.PAGESIZE):
                pages[start] = 1
            time.sleep(0.1)
    assert 60 * 2**20 < peak[0] - before < 90 * 2**20


@pytest.mark.slow
def test_loading_two_gigabytes_stays_below_the_target():
    assert load_rss_ratio()["ratio"] <= 1.3
