"""The first release's diagnostic, and the bias it is kept to show."""

import pytest
import torch

from visual_opsd.losses.divergence import kl_divergence_per_token
from visual_opsd.metrics.legacy import EndAlignedKLGapLegacy, end_aligned_kl_gap_legacy


@pytest.fixture
def logprobs():
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(7, 9, generator=generator)).log_softmax(-1)


def test_texts_of_one_length_give_equation_4(logprobs):
    teacher, student = logprobs[:3], logprobs[3:6]
    expected = kl_divergence_per_token(teacher, student).mean()
    torch.testing.assert_close(end_aligned_kl_gap_legacy(teacher, student), expected)


def test_the_longer_text_loses_its_beginning(logprobs):
    expected = end_aligned_kl_gap_legacy(logprobs[-4:], logprobs[:4])
    torch.testing.assert_close(end_aligned_kl_gap_legacy(logprobs, logprobs[:4]), expected)


def test_a_teacher_that_adds_nothing_still_shows_a_gap(logprobs):
    """One model, one text, one word more on a side: nothing to learn, yet nats to report."""
    one_word_more = torch.cat([logprobs[:5], logprobs[4:5], logprobs[5:]])
    assert end_aligned_kl_gap_legacy(logprobs, logprobs).item() == 0
    assert end_aligned_kl_gap_legacy(one_word_more, logprobs).item() > 0.5


def test_nothing_to_align_is_refused(logprobs):
    with pytest.raises(ValueError, match="7 and 0"):
        end_aligned_kl_gap_legacy(logprobs, logprobs[:0])


def test_every_problem_weighs_alike(logprobs):
    gap = EndAlignedKLGapLegacy()
    pairs = [(logprobs[:5], logprobs[2:4]), (logprobs, logprobs.flip(0))]
    for pair in pairs:
        gap.update(*pair)
    expected = sum(end_aligned_kl_gap_legacy(*pair) for pair in pairs) / 2
    assert gap.compute().item() == pytest.approx(expected.item())
