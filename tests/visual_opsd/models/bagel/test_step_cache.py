"""Velocities between two evaluations are foretold, and what that costs is known."""

from dataclasses import replace

import pytest
import torch

from visual_opsd.contexts import Text, drawing_context
from visual_opsd.models.bagel.flow import VelocitySeries
from visual_opsd.models.interface import Drawing, StepCache

DRAWING = Drawing(num_timesteps=17)


@pytest.fixture
def drawn(model, problems, tokenizer):
    """Latents of two drawings under some settings, and how often the model was asked."""
    thought = Text(tokenizer.encode("<think>The red line.</think><image_start>"))
    contexts = [drawing_context(problem, tokenizer.encode, thought) for problem in problems[:2]]
    grids = [tuple(side // 16 for side in c.main[1].pixels.shape[1:]) for c in contexts]
    tokens = sum(height * width for height, width in grids)
    noise = torch.randn(tokens, 4, generator=torch.Generator().manual_seed(0))
    calls = []
    model.llm2vae.register_forward_hook(lambda *_: calls.append(None))

    def draw(drawing):
        calls.clear()
        return model.flow(contexts, drawing, noise, grids), len(calls)

    return draw


def test_an_interval_of_one_is_the_full_protocol(drawn):
    full, num_full = drawn(DRAWING)
    cached, num_cached = drawn(replace(DRAWING, step_cache=StepCache(interval=1)))
    assert torch.equal(full, cached)
    assert num_full == num_cached == 16


@pytest.mark.parametrize("one_batch", [True, False], ids=["one-batch", "separate-calls"])
def test_only_the_steps_of_the_plan_are_evaluated(drawn, one_batch):
    drawing = replace(DRAWING, branches_in_one_batch=one_batch)
    _, num_calls = drawn(replace(drawing, step_cache=StepCache(interval=4, warm_up=4)))
    branches = 1 if one_batch else 3
    assert num_calls == branches * (4 + 3)  # steps 0 1 2 3, 7, 11, 15


def test_a_foretold_drawing_is_near_the_full_one_and_a_series_is_nearer_than_a_repeat(drawn):
    full, _ = drawn(DRAWING)
    errors = [
        (drawn(replace(DRAWING, step_cache=StepCache(interval=3, order=order)))[0] - full)
        .norm()
        .item()
        / full.norm().item()
        for order in (0, 1)
    ]
    assert 0 < errors[1] < errors[0] < 0.1


def test_where_guidance_ends_the_series_starts_anew(drawn):
    """Separate calls stop paying for guidance there: its branches cannot be foretold on."""
    drawing = replace(DRAWING, guidance_interval=(0.5, 1.0), branches_in_one_batch=False)
    full, _ = drawn(drawing)
    cached, _ = drawn(replace(drawing, step_cache=StepCache(interval=2)))
    assert (cached - full).norm() < 0.1 * full.norm()


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_series_foretells_what_its_order_can(order):
    """A velocity that is constant, or linear in the step, is foretold exactly."""
    series = VelocitySeries(StepCache(interval=3, order=order, warm_up=3))
    for step in range(9):
        velocity = torch.tensor([[float(step) if order else 1.0]])
        found = series.at(step, 1, lambda v=velocity: v)
        torch.testing.assert_close(found, velocity)


def test_nonsense_is_refused_by_value():
    for settings, message in (
        ({"interval": 0}, "interval must be >= 1, got 0"),
        ({"order": -1}, "order must be >= 0, got -1"),
        ({"warm_up": 0}, "warm_up must be >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            StepCache(**settings)
