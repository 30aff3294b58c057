"""Warm-up, cosine decay, and only what trains."""

import pytest
import torch
from torch import nn

from lightning_modules.optimisation import OptimiserConfig, configure


def test_the_rate_warms_up_falls_and_ends_where_it_should():
    config = OptimiserConfig(learning_rate=1e-2, final_learning_rate=1e-4, num_warmup_steps=10)
    found = configure(nn.Linear(1, 1), config, num_steps=100)
    assert found["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(101):
        rates.append(found["optimizer"].param_groups[0]["lr"])
        found["optimizer"].step()
        found["lr_scheduler"]["scheduler"].step()
    assert rates[:11] == pytest.approx([1e-3 * step for step in range(11)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx((1e-2 + 1e-4) / 2)  # half-way down
    assert rates[100] == pytest.approx(1e-4)


def test_frozen_weights_are_no_business_of_the_optimiser():
    module = nn.Linear(1, 1)
    module.bias.requires_grad_(False)
    found = configure(module, OptimiserConfig(), num_steps=1)
    (group,) = found["optimizer"].param_groups
    assert group["params"] == [module.weight]


def test_a_rate_that_would_rise_is_refused():
    with pytest.raises(ValueError, match=r"final_learning_rate 0\.1 must lie between 0 and"):
        OptimiserConfig(learning_rate=0.01, final_learning_rate=0.1)


MUON = OptimiserConfig(
    name="muon", learning_rate=1e-2, final_learning_rate=1e-3, num_warmup_steps=0, eps=1e-8
)


def layered() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"inner": nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 6)])})})


def steps(module, optimiser, schedule, count):
    generator = torch.Generator().manual_seed(count)
    for _ in range(count):
        x = torch.randn(8, 4, generator=generator)
        module["inner"]["layers"][0](x).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()


def test_muon_turns_matrices_as_torch_does_and_leaves_adamw_the_rest():
    module, twin = layered(), layered()
    found = configure(module, MUON, num_steps=10)
    steps(module, found["optimizer"], found["lr_scheduler"]["scheduler"], 1)
    layer = twin["inner"]["layers"][0]
    muon = torch.optim.Muon(
        [layer.weight], lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW([layer.bias], lr=1e-2, betas=MUON.betas, eps=1e-8, weight_decay=0.0)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    layer(x).square().sum().backward()
    muon.step()
    adamw.step()
    for mine, reference in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, reference)


def test_muon_goes_on_from_its_state_to_the_bit():
    straight, resumed = layered(), layered()
    one = configure(straight, MUON, num_steps=10)
    two = configure(resumed, MUON, num_steps=10)
    for found, module in ((one, straight), (two, resumed)):
        steps(module, found["optimizer"], found["lr_scheduler"]["scheduler"], 3)
    three = configure(resumed, MUON, num_steps=10)
    three["optimizer"].load_state_dict(two["optimizer"].state_dict())
    three["lr_scheduler"]["scheduler"].load_state_dict(
        two["lr_scheduler"]["scheduler"].state_dict()
    )
    steps(straight, one["optimizer"], one["lr_scheduler"]["scheduler"], 4)
    steps(resumed, three["optimizer"], three["lr_scheduler"]["scheduler"], 4)
    for mine, reference in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(mine, reference)


def test_muon_without_layers_is_refused():
    with pytest.raises(ValueError, match=r"finds no matrix below '\.layers\.'"):
        configure(nn.Linear(2, 2), MUON, num_steps=1)
