"""What top K does not see and what a clip throws away, in cases worked by hand."""

import math

import pytest
import torch

from visual_opsd.losses.divergence import DivergenceConfig, generalized_jsd
from visual_opsd.metrics.divergence_audit import (
    ClipLoss,
    TopKError,
    clip_effect,
    top_k_agreement,
)

RENORMALISED = DivergenceConfig(top_k=2, tail=False)
CLIPPED = DivergenceConfig(legacy=True, tail=False, entry_clip=0.05)


def logits(*probabilities):
    return torch.tensor([probabilities]).log()


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(2, 12, 50, generator=generator)


def test_a_renormalised_top_k_is_blind_to_what_the_student_alone_believes():
    """Spec of the peers, section 3, bug 7: a divergence of .177 that is seen as 0."""
    student, teacher = logits(0.25, 0.25, 0.5), logits(0.49, 0.49, 0.02)
    found = top_k_agreement(student, teacher, RENORMALISED)
    exact = generalized_jsd(student, teacher, DivergenceConfig())
    assert exact.item() == pytest.approx(0.177, abs=5e-4)
    assert found.error.item() == pytest.approx(-exact.item())
    assert found.teacher_outside.item() == pytest.approx(0.02)
    assert found.student_outside.item() == pytest.approx(0.5)
    with_tail = top_k_agreement(student, teacher, DivergenceConfig(top_k=2))
    assert with_tail.error.item() == pytest.approx(0, abs=1e-6)


def test_a_tail_never_overstates(pair):
    """Merging entries can only lose divergence (data processing inequality)."""
    for top_k in (1, 8, 49):
        assert (top_k_agreement(*pair, DivergenceConfig(top_k=top_k)).error <= 1e-6).all()
    assert top_k_agreement(*pair, DivergenceConfig(top_k=50)).error.abs().max() == 0


def test_the_official_clip_takes_the_whole_gradient():
    """Spec of the peers, bug 6: (.9, .1) against (.1, .9), both entries .184 and over the clip."""
    found = clip_effect(logits(0.1, 0.9), logits(0.9, 0.1), CLIPPED)
    assert found.is_clipped.item() == 1
    assert found.lost.item() == pytest.approx(found.gradient.item())
    assert found.gradient.item() > 0


def test_a_token_clip_keeps_the_direction():
    """Scaled by clip over value: what is lost is the rest."""
    student, teacher = logits(0.1, 0.9), logits(0.9, 0.1)
    value = generalized_jsd(student, teacher, DivergenceConfig()).item()
    found = clip_effect(student, teacher, DivergenceConfig(token_clip=0.05))
    share = (found.lost / found.gradient).item()
    assert share == pytest.approx(1 - 0.05 / value, rel=1e-4)


def test_a_clip_that_is_never_reached_costs_nothing(pair):
    clip = ClipLoss(DivergenceConfig(token_clip=math.log(2)))
    clip.update(*pair)
    assert {name: value.item() for name, value in clip.compute().items()} == {
        "clip_fraction": 0,
        "gradient_lost": 0,
    }


def test_metrics_are_means_over_tokens(pair):
    student, teacher = pair
    error, clip = TopKError(RENORMALISED), ClipLoss(CLIPPED)
    for part in (slice(0, 5), slice(5, 12)):
        error.update(student[part], teacher[part])
        clip.update(student[part], teacher[part])
    agreement = top_k_agreement(student, teacher, RENORMALISED)
    effect = clip_effect(student, teacher, CLIPPED)
    assert {name: value.item() for name, value in error.compute().items()} == pytest.approx(
        {
            "top_k_error": agreement.error.abs().mean().item(),
            "top_k_max_error": agreement.error.abs().max().item(),
            "teacher_outside": agreement.teacher_outside.mean().item(),
            "student_outside": agreement.student_outside.mean().item(),
        }
    )
    found = {name: value.item() for name, value in clip.compute().items()}
    assert found["clip_fraction"] == pytest.approx(effect.is_clipped.mean().item())
    assert found["gradient_lost"] == pytest.approx(
        (effect.lost.sum() / effect.gradient.sum()).item()
    )
    assert 0 < found["clip_fraction"] < 1 or found["gradient_lost"] > 0


def test_measuring_leaves_no_gradient_behind(pair):
    student = pair[0].clone().requires_grad_()
    clip_effect(student, pair[1], CLIPPED)
    assert student.grad is None


def test_audits_of_nothing_are_refused(pair):
    with pytest.raises(ValueError, match="needs a configuration with top_k"):
        top_k_agreement(*pair, DivergenceConfig())
    with pytest.raises(ValueError, match="needs a configuration with a clip"):
        clip_effect(*pair, DivergenceConfig())
