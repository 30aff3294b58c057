"""Attention by role, phase and layer, as a share and per token of what is looked at."""

import pytest
import torch

from visual_opsd.metrics.attention_share import AttentionShare, attention_by_role

ROLES = ["text", "problem", "visual_thought", "completion"]
LAYOUT = ["text", "problem", "text", "visual_thought", "completion"]


def mass_of(num_layers, num_tokens):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_layers, num_tokens, len(LAYOUT), generator=generator).softmax(-1)


def test_segments_of_one_role_add_up():
    mass = mass_of(2, 3)
    shares = attention_by_role(mass, LAYOUT, ROLES)
    torch.testing.assert_close(shares[..., 0], mass[..., 0] + mass[..., 2])
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(2, 3))


def test_a_large_image_looks_important_for_its_size_alone():
    """Attention spread evenly over all tokens: shares follow sizes, the share a token is equal."""
    sizes = torch.tensor([[2, 9, 3, 36, 10]])
    mass = (sizes / sizes.sum()).expand(1, 4, 5)
    metric = AttentionShare(1, ["thought"], ROLES)
    metric.update(mass, LAYOUT, sizes, torch.tensor([4]), torch.zeros(4, dtype=torch.long))
    found = metric.compute()
    assert found["share"][0, 0].tolist() == pytest.approx([5 / 60, 9 / 60, 36 / 60, 10 / 60])
    assert found["per_token"][0, 0].tolist() == pytest.approx([1 / 60] * 4)


def test_phases_and_completions_are_kept_apart():
    mass, lengths = mass_of(2, 5), torch.tensor([2, 3])
    phases = torch.tensor([0, 1, 0, 0, 1])
    sizes = torch.tensor([[1, 4, 1, 4, 2], [1, 9, 1, 9, 3]])
    metric = AttentionShare(2, ["thought", "answer", "never"], ROLES)
    metric.update(mass[:, :2], LAYOUT, sizes[:1], lengths[:1], phases[:2])
    metric.update(mass[:, 2:], LAYOUT, sizes[1:], lengths[1:], phases[2:])
    found = metric.compute()
    thought, problem = mass[:, [0, 2, 3]], 1
    expected = thought[..., 1].mean(dim=1).double()
    torch.testing.assert_close(found["share"][:, 0, problem], expected, rtol=1e-6, atol=1e-6)
    per_token = (thought[..., 1] / torch.tensor([4, 9, 9])).mean(dim=1).double()
    torch.testing.assert_close(found["per_token"][:, 0, problem], per_token, rtol=1e-6, atol=1e-6)
    assert found["share"][:, 2].isnan().all()
    second = metric.completions()["share"][1, :, 1, problem]
    torch.testing.assert_close(second, mass[:, 4, 1].double(), rtol=1e-6, atol=1e-6)


def test_a_context_without_a_visual_thought_gives_it_nothing():
    metric = AttentionShare(1, ["all"], ROLES)
    mass, sizes = torch.tensor([[[0.25, 0.75]]]), torch.tensor([[3, 9]])
    metric.update(mass, ["text", "problem"], sizes, torch.tensor([1]), torch.tensor([0]))
    assert metric.compute()["per_token"][0, 0].tolist() == pytest.approx([0.25 / 3, 0.75 / 9, 0, 0])


def test_layouts_that_do_not_fit_are_refused():
    metric = AttentionShare(2, ["all"], ROLES)
    rest = torch.ones(1, 5, dtype=torch.long), torch.tensor([3]), torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match="1 layers came, expected 2"):
        metric.update(mass_of(1, 3), LAYOUT, *rest)
    with pytest.raises(ValueError, match="2 roles for 5 segments"):
        metric.update(mass_of(2, 3), LAYOUT[:2], *rest)
    with pytest.raises(ValueError, match=r"unknown roles \['donor'\]"):
        metric.update(mass_of(2, 3), [*LAYOUT[:4], "donor"], *rest)
