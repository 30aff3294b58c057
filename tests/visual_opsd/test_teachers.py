"""The teacher is the student's own weights at a chosen distance."""

import pytest
import torch
from torch import nn

from visual_opsd.teachers import WeightMemory


class Small(nn.Module):
    """Two trainable weights, a frozen one and a buffer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.arange(4.0))
        self.second = nn.Parameter(torch.ones(2, 2))
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.register_buffer("counter", torch.zeros(1))


@pytest.fixture
def module():
    return Small()


def remembering(decay, module):
    memory = WeightMemory(decay)
    memory.remember(module)
    return memory


@torch.no_grad()
def step(module, size):
    """An optimiser step."""
    for weight in (module.first, module.second):
        weight.add_(size)


def seen_in(memory, module):
    with memory.recalled(module):
        return module.first.detach().clone()


def test_the_fixed_teacher_never_moves(module):
    memory = remembering(1.0, module)
    for _ in range(5):
        step(module, 1.0)
        memory.follow(module)
    assert torch.equal(seen_in(memory, module), torch.arange(4.0))


def test_the_average_follows_its_formula(module):
    """After weights w_0, w_1, ... it is (1 - d) sum_k d^(n-k) w_k + d^n w_0."""
    decay, sizes = 0.9, (1.0, -2.0, 0.5)
    memory = remembering(decay, module)
    seen = [module.first.detach().clone()]
    for size in sizes:
        step(module, size)
        memory.follow(module)
        seen.append(module.first.detach().clone())
    n = len(sizes)
    expected = decay**n * seen[0]
    expected = expected + (1 - decay) * sum(decay ** (n - k) * seen[k] for k in range(1, n + 1))
    torch.testing.assert_close(seen_in(memory, module), expected)


def test_the_current_teacher_is_the_student_and_keeps_no_copy(module):
    memory = remembering(0.0, module)
    step(module, 1.0)
    memory.follow(module)
    assert torch.equal(seen_in(memory, module), module.first.detach())
    assert memory.state_dict() == {}


def test_only_what_trains_is_remembered(module):
    memory = remembering(1.0, module)
    assert sorted(memory.state_dict()) == ["first", "second"]
    with memory.recalled(module):
        module.counter += 1
    assert module.counter == 1  # shared, not recalled


def test_the_average_is_kept_in_float32(module):
    """At decay 0.995 a step of bfloat16 weights would be rounded away."""
    half = module.to(torch.bfloat16)
    memory = remembering(0.995, half)
    step(half, 1.0)
    memory.follow(half)
    assert memory.state_dict()["second"].dtype == torch.float32
    torch.testing.assert_close(memory.state_dict()["second"], torch.full((2, 2), 1.005))
    with memory.recalled(half):
        assert half.second.dtype == torch.bfloat16
    assert half.second.dtype == torch.bfloat16


@pytest.mark.parametrize("has_failed", [False, True])
def test_the_students_weights_come_back_even_after_an_error(module, has_failed):
    memory = remembering(1.0, module)
    step(module, 3.0)
    weights = {name: (weight, weight.data_ptr()) for name, weight in module.named_parameters()}
    before = {name: weight.detach().clone() for name, (weight, _) in weights.items()}

    def look():
        with memory.recalled(module):
            assert torch.equal(module.first.detach(), torch.arange(4.0))
            if has_failed:
                raise RuntimeError("inside")

    if has_failed:
        with pytest.raises(RuntimeError, match="inside"):
            look()
    else:
        look()
    for name, weight in module.named_parameters():
        assert weight is weights[name][0]  # an optimiser still holds them
        assert weight.data_ptr() == weights[name][1]
        assert torch.equal(weight, before[name])


def test_what_the_teacher_is_given_back_stays_the_teachers(module):
    """Nothing done to the recalled weights' copies reaches the memory, nor the student."""
    memory = remembering(0.5, module)
    step(module, 1.0)
    first = seen_in(memory, module)
    memory.follow(module)
    assert not torch.equal(seen_in(memory, module), first)
    torch.testing.assert_close(module.first.detach(), torch.arange(4.0) + 1)


def test_a_memory_goes_on_where_it_was_saved(module):
    memory = remembering(0.9, module)
    step(module, 1.0)
    memory.follow(module)
    saved = {name: weight.clone() for name, weight in memory.state_dict().items()}
    other = remembering(0.9, Small())
    other.load_state_dict(saved)
    for name, weight in other.state_dict().items():
        assert torch.equal(weight, saved[name])


def test_the_memory_of_another_model_is_refused(module):
    memory = remembering(0.9, module)
    with pytest.raises(ValueError, match="teacher weight third does not fit"):
        memory.load_state_dict({"third": torch.zeros(1)})
    with pytest.raises(ValueError, match="teacher weight first does not fit"):
        memory.load_state_dict({"first": torch.zeros(5)})
    with pytest.raises(ValueError, match=r"lacks .*second"):
        memory.load_state_dict({"first": torch.zeros(4)})


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=rf"decay must lie in \[0, 1\], got {decay}"):
        WeightMemory(decay)
