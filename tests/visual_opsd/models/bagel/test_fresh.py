"""A model before its first step, and the sizes it comes in."""

import torch

from datamodules.thoughts import template_corpus
from tests import tiny
from visual_opsd.models.bagel import checkpoints, presets
from visual_opsd.models.bagel.fresh import fresh_tiny
from visual_opsd.models.bagel.model import BagelModel


def test_a_seed_makes_a_model(problems):
    images = [problem.image.pixels for problem in problems]
    made = [
        fresh_tiny(images, template_corpus(), tiny.CONSTANT_SENTENCES, seed)[0]
        for seed in (1, 1, 2)
    ]
    one, same, other = (checkpoints.weights(model) for model in made)
    assert all(torch.equal(weight, same[name]) for name, weight in one.items())
    name = "language_model.lm_head.weight"
    assert not torch.equal(one[name], other[name])
    assert 1e6 < sum(weight.numel() for weight in one.values()) < 4e6
    assert all(not weight.any() for weight in made[0].llm2vae.parameters())  # no velocity yet


def test_the_large_preset_has_the_released_number_of_parameters():
    """BAGEL-7B-MoT's index.json: 14,607,260,128 with the frozen position tables."""
    with torch.device("meta"):
        model = BagelModel(presets.bagel_7b_mot())
    assert sum(weight.numel() for weight in model.state_dict().values()) == 14_607_260_128
