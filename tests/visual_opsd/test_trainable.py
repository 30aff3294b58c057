"""What is trained is what reads and writes, whole or through adapters that can be switched off."""

import copy

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests import tiny
from visual_opsd.contexts import student_context, teacher_context
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.interface import Sampling
from visual_opsd.teachers import WeightMemory
from visual_opsd.trainable import (
    LoRAConfig,
    adapt,
    adapters,
    adapters_off,
    freeze_drawing,
    merge_adapters,
    save_adapters,
)

LORA = LoRAConfig(rank=4, alpha=8, seed=1)


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def moved(model, size=0.1):
    """As after some steps: adapters start as no change at all."""
    generator = torch.Generator().manual_seed(0)
    for weight in trained(model).values():
        weight += size * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture
def adapted(model):
    adapt(model, LORA)
    return moved(model)


@pytest.fixture
def said(tokenizer, problems):
    """What a model says about eight problems, in the teacher's context."""
    contexts = [teacher_context(problem, tokenizer.encode) for problem in problems]
    ids = [torch.arange(5, 12) for _ in problems]

    @torch.no_grad()
    def score(model):
        return model.logits(model(contexts, ids))

    return score


def test_adapters_stand_beside_what_reads_and_writes_alone(model):
    adapt(model, LORA)
    num_layers, maps = model.config.decoder.num_layers, 7
    assert len(adapters(model)) == num_layers * maps
    assert len(trained(model)) == 2 * num_layers * maps
    for name in trained(model):
        assert ".lora_" in name
        assert "_moe_gen" not in name
        assert name.startswith("language_model.model.layers.")


def test_new_adapters_change_nothing(base, model, said):
    adapt(model, LORA)
    assert torch.equal(said(model), said(base))


def test_a_seed_makes_the_adapters_and_leaves_global_random_state_alone(base):
    before = torch.random.get_rng_state()
    found = []
    for seed in (1, 1, 2):
        one = copy.deepcopy(base)
        adapt(one, LoRAConfig(rank=4, alpha=8, seed=seed))
        found.append(torch.cat([weight.flatten() for weight in trained(one).values()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_switched_off_it_is_the_start_to_the_bit(base, adapted, said):
    names = set(trained(adapted))
    with_adapters = said(adapted)
    assert (with_adapters - said(base)).abs().max() > 0.1
    with adapters_off(adapted):
        assert torch.equal(said(adapted), said(base))
    with pytest.raises(RuntimeError, match="inside"), adapters_off(adapted):
        raise RuntimeError("inside")
    assert torch.equal(said(adapted), with_adapters)
    assert set(trained(adapted)) == names


def test_a_pass_without_adapters_leaves_the_students_gradients_alone(adapted, tokenizer, problems):
    """Also where a layer runs again in the backward pass, which is after the teacher's."""
    contexts = [student_context(problem, tokenizer.encode) for problem in problems]
    ids = [torch.arange(5, 12) for _ in problems]
    gradients = []
    for recomputes, has_teacher in ((False, False), (False, True), (True, True)):
        adapted.run_with(recomputes_layers=recomputes)
        loss = adapted.logits(adapted(contexts, ids)).logsumexp(dim=-1).mean()
        if has_teacher:
            with adapters_off(adapted), torch.no_grad():
                adapted(contexts, ids)
        gradients.append(torch.autograd.grad(loss, list(trained(adapted).values())))
    for one, same, other in zip(*gradients, strict=True):
        assert one.abs().sum() > 0
        assert torch.equal(one, same)
        assert torch.equal(one, other)


def test_merged_it_is_a_plain_model_that_says_the_same(base, adapted, said, tokenizer, tmp_path):
    expected = said(adapted)
    merge_adapters(adapted)
    assert not adapters(adapted)
    assert adapted.state_dict().keys() == base.state_dict().keys()
    torch.testing.assert_close(said(adapted), expected, atol=1e-4, rtol=0)
    checkpoints.save(adapted, tokenizer, tmp_path)
    assert torch.equal(said(checkpoints.load(tmp_path)[0]), said(adapted))


def test_the_adapters_alone_open_in_peft(base, adapted, said, tmp_path):
    save_adapters(adapted, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(x.numel() for x in saved.values()) == sum(
        p.numel() for p in trained(adapted).values()
    )
    opened = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))
    assert torch.equal(said(opened.base_model.model), said(adapted))


def test_the_average_of_adapters_is_the_twin_whose_adapters_are_averaged(adapted, said):
    """And remembers nothing else."""
    memory = WeightMemory(0.9)
    memory.remember(adapted)
    assert memory.state_dict().keys() == trained(adapted).keys()
    twin = copy.deepcopy(adapted)
    moved(adapted, size=0.3)
    memory.follow(adapted)
    with torch.no_grad():
        for name, weight in trained(twin).items():
            weight.lerp_(adapted.get_parameter(name), 0.1)
    with memory.recalled(adapted):
        assert torch.equal(said(adapted), said(twin))


def test_beside_rounded_weights_adapters_stay_float32(model, tokenizer, problems):
    """A step of 1e-5 is below what bfloat16 tells apart at 0.01."""
    adapt(tiny.rounded(model), LORA)
    assert {weight.dtype for weight in trained(model).values()} == {torch.float32}
    frozen = [p for n, p in model.named_parameters() if not p.requires_grad]
    assert {weight.dtype for weight in frozen} == {torch.bfloat16}
    contexts = [student_context(problem, tokenizer.encode) for problem in problems]
    completions = model.sample(contexts, Sampling(max_tokens=8), range(8))
    states = model(contexts, completions.ids)
    assert states.dtype == torch.bfloat16
    model.logits(states).float().logsumexp(dim=-1).sum().backward()
    up = [p for n, p in trained(model).items() if "lora_B" in n]
    assert all(weight.grad.abs().sum() > 0 for weight in up)


def test_what_only_draws_is_frozen_and_the_rest_learns(model, tokenizer, problems):
    freeze_drawing(model)
    contexts = [student_context(problem, tokenizer.encode) for problem in problems]
    states = model(contexts, [torch.arange(5) for _ in problems])
    model.logits(states).logsumexp(dim=-1).sum().backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == trained(model).keys()


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"rank": 0}, "rank must be at least 1, got 0"), ({"alpha": 0}, "alpha must be at least 1")],
)
def test_a_size_that_makes_no_sense_is_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        LoRAConfig(**settings)


def test_targets_that_name_nothing_are_an_error_that_says_so(model):
    with pytest.raises(ValueError, match=r"lora\.targets 'nowhere'"):
        adapt(model, LoRAConfig(targets="nowhere"))
