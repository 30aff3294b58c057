"""Which tokens count, and by how much."""

import pytest
import torch
from torch.distributions import Categorical

from visual_opsd.losses.tokens import entropy, most_uncertain, token_weights

IS_SAMPLED = (torch.tensor([True, False, True, True, True]), torch.tensor([True]))
ENTROPIES = torch.tensor([0.1, 9.0, 0.3, 0.2, 0.0, 0.5])


def test_entropy_is_the_textbooks_and_takes_no_gradient():
    logits = (3 * torch.randn(7, 11, generator=torch.Generator().manual_seed(0))).requires_grad_()
    found = entropy(logits)
    torch.testing.assert_close(found, Categorical(logits=logits.detach()).entropy())
    assert not found.requires_grad
    ruled_out = torch.tensor([[0.0, 0.0, -torch.inf]])
    torch.testing.assert_close(entropy(ruled_out), torch.tensor([2.0]).log())


def test_the_most_uncertain_tokens_are_each_completions_own():
    """Worked by hand: half of four sampled tokens; the injected one never, a lone one always."""
    first, second = most_uncertain(IS_SAMPLED, ENTROPIES, 0.5)
    assert first.tolist() == [False, False, True, True, False]
    assert second.tolist() == [True]
    first, second = most_uncertain(IS_SAMPLED, ENTROPIES, 0.2)
    assert first.tolist() == [False, False, True, False, False]
    assert second.tolist() == [True]


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_what_counts_always_weighs_one_in_all(share):
    weights = token_weights(most_uncertain(IS_SAMPLED, ENTROPIES, share))
    assert weights.sum() == pytest.approx(1)
    assert weights[1] == 0
    assert weights[5] == pytest.approx(0.5)


def test_the_whole_share_is_the_papers_mean():
    assert most_uncertain(IS_SAMPLED, ENTROPIES, 1.0) == IS_SAMPLED


def test_a_completion_without_a_sampled_token_counts_for_nothing():
    nothing = (torch.zeros(3, dtype=torch.bool),)
    assert not token_weights(most_uncertain(nothing, torch.ones(3), 0.2)).any()
