"""The memory plan adds up to what models, optimisers and caches really hold."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.optim import AdamW

from tests import tiny
from visual_opsd.models.bagel.decoder import KeyValueCache
from visual_opsd.models.bagel.memory import (
    RUNS,
    TrainingSetup,
    memory_plan,
    num_trained,
    parameter_counts,
    table,
)
from visual_opsd.models.bagel.model import BagelModel
from visual_opsd.models.bagel.presets import bagel_7b_mot
from visual_opsd.teachers import WeightMemory

ROOT = Path(__file__).parents[4]
ALONE = TrainingSetup(num_gpus=1, weight_bytes=4)
SEVEN_B = bagel_7b_mot()


def held(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_the_official_shapes_have_the_published_sizes():
    """1223 tensors and these totals stand in public reads of the released files."""
    with torch.device("meta"):
        state = BagelModel(SEVEN_B).state_dict()
    assert len(state) == 1223
    assert sum(weight.numel() for weight in state.values()) == 14_607_260_128
    assert parameter_counts(SEVEN_B) == {
        "understanding": 7_615_623_680,
        "generation": 6_525_628_928,
        "vision": 402_552_736,
        "connector": 16_980_992,
        "position_tables": (4900 + 4096) * 3584,
        "latents": (256 + 1 + 3584 + 1) * 3584 + (64 + 1) * 3584 + (3584 + 1) * 64,
    }


def test_a_model_that_only_reads_trains_8_billion():
    assert round(num_trained(SEVEN_B.reading_only, TrainingSetup()) / 1e9, 2) == 8.04
    counts = parameter_counts(SEVEN_B.reading_only)
    assert counts["generation"] == counts["latents"] == 0
    assert counts["understanding"] == parameter_counts(SEVEN_B)["understanding"]


def test_a_real_training_step_holds_what_the_plan_says(tokenizer, problems):
    """On one device in float32, where the trained weights are their own float32 copy."""
    config = tiny.configuration(tokenizer.marks).reading_only
    model = BagelModel(config)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    memory = WeightMemory(0.995)
    memory.remember(model)
    optimiser = AdamW(trained)
    sum(weight.sum() for weight in trained).backward()
    optimiser.step()

    plan = memory_plan(config, ALONE)
    moments = [x for state in optimiser.state.values() for x in state.values() if x.ndim]
    assert plan["weights"] == held(model.state_dict().values())
    assert plan["trained_in_float32"] == 0  # the weights are float32
    assert plan["gradients"] == held(weight.grad for weight in trained)
    assert plan["optimiser"] == held(moments)
    assert plan["teacher"] == held(memory.weights.values())
    cache = KeyValueCache(config.decoder, trained[0], ALONE.num_rows, ALONE.num_tokens)
    assert plan["rollout_cache"] == held(cache.keys) + held(cache.values)


def test_adapters_are_counted_on_the_understanding_expert_alone():
    width, inner, narrow = 3584, 18_944, 512
    sides = 2 * 2 * width + 2 * (width + narrow) + 3 * (width + inner)
    for config in (SEVEN_B, SEVEN_B.reading_only):
        assert num_trained(config, TrainingSetup(trainable="lora", lora_rank=8)) == 28 * 8 * sides


def test_gpus_share_what_is_sharded_and_nothing_else():
    one = memory_plan(SEVEN_B.reading_only, replace(ALONE, weight_bytes=2))
    eight = memory_plan(SEVEN_B.reading_only, TrainingSetup(num_gpus=8))
    for part in ("weights", "trained_in_float32", "gradients", "optimiser", "teacher"):
        assert one[part] == pytest.approx(8 * eight[part], rel=1e-6)
    for part in ("rollout_cache", "training_activations", "training_logits"):
        assert one[part] == eight[part]
    assert one["rollout_gather"] == 0 < eight["rollout_gather"]
    by_layer = memory_plan(SEVEN_B.reading_only, TrainingSetup(gather="layer"))
    assert by_layer["rollout_gather"] < eight["rollout_gather"] / 5


@pytest.mark.parametrize("name", RUNS)
def test_the_documented_runs_fit_their_gpus(name):
    """2 GB are left for the CUDA context and the allocator's gaps."""
    plan = memory_plan(SEVEN_B.reading_only, RUNS[name])
    gigabytes = int(name.split()[-2])
    assert max(plan["rollout"], plan["training"]) < (gigabytes - 2) * 1e9


def test_the_document_shows_what_the_function_says():
    assert table() in (ROOT / "docs" / "memory.md").read_text()


def test_without_checkpointing_every_decoder_layer_keeps_its_inside():
    setup = TrainingSetup(trainable="lora")
    again = memory_plan(SEVEN_B.reading_only, setup)["training_activations"]
    kept = memory_plan(SEVEN_B.reading_only, replace(setup, recomputes=False))
    inside = setup.num_tokens * (6 * 3584 + 4 * 18_944) * setup.weight_bytes
    assert kept["training_activations"] - again == 27 * inside


def test_an_encoder_that_trains_keeps_what_its_layers_held():
    full, lora = (
        memory_plan(SEVEN_B.reading_only, TrainingSetup(trainable=trainable))
        for trainable in ("understanding", "lora")
    )
    patches = 10_240 * 26 * (8 * 1152 + 2 * 4304) * 2
    assert full["training_activations"] - lora["training_activations"] == patches


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="num_gpus must be at least 1, got 0"):
        TrainingSetup(num_gpus=0)
