"""Warm-up, cosine decay, and only what trains."""

import pytest
import torch
from torch import nn

from lightning_modules.optimisation import OptimiserConfig, configure


def test_the_rate_warms_up_falls_and_ends_where_it_should():
    config = OptimiserConfig(learning_rate=1e-2, final_learning_rate=1e-4, num_warmup_steps=10)
    found = configure([nn.Parameter(torch.zeros(1))], config, num_steps=100)
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
    frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
    moving = nn.Parameter(torch.zeros(1))
    found = configure([frozen, moving], OptimiserConfig(), num_steps=1)
    (group,) = found["optimizer"].param_groups
    assert group["params"] == [moving]


def test_a_rate_that_would_rise_is_refused():
    with pytest.raises(ValueError, match=r"final_learning_rate 0\.1 must lie between 0 and"):
        OptimiserConfig(learning_rate=0.01, final_learning_rate=0.1)
