"""What a training run asks of one GPU, part by part: arithmetic on the model's shape.

All sizes are bytes. ``docs/memory.md`` shows ``RUNS``; nothing here was measured on a GPU.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import nn

from visual_opsd.models.bagel.config import BagelConfig
from visual_opsd.models.bagel.decoder import GENERATION, LOGITS_A_CHUNK
from visual_opsd.models.bagel.model import BagelModel
from visual_opsd.models.bagel.presets import bagel_7b_mot

ADAPTED = re.compile(r"language_model\.model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj")
"""The linear maps of the understanding expert; the drawing twins end otherwise."""
FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """How a Visual-OPSD run is laid out; the defaults are the full fine-tune on eight GPUs."""

    trainable: Literal["understanding", "lora"] = "understanding"
    num_gpus: int = 8
    """ZeRO-3 shards weights, gradients, optimiser and teacher over so many."""
    lora_rank: int = 16
    weight_bytes: int = 2
    """A weight in computation: 2 in bfloat16. What trains is also kept in float32."""
    gradient_bytes: int = 4
    """An accumulated gradient; 2 accumulates in bfloat16."""
    optimiser_bytes: int = 8
    """A trained weight's state: AdamW's two moments in float32."""
    teacher_copy: bool = True
    """The teacher is a float32 copy of what trains: ``fixed`` and ``ema`` of a full fine-tune,
    ``ema`` of an adapter. An adapter switched off needs none, nor does ``current``."""
    gather: Literal["whole", "layer"] = "whole"
    """What a rollout gathers at once: the understanding expert, or a layer at a time."""
    recomputes: bool = True
    """Activation checkpointing: decoder layers run again in the backward pass."""
    num_rows: int = 1
    """Problems a GPU and batch."""
    num_tokens: int = 10_240
    """Of the longer context with its completion, a row (official ``max_forward_tokens``)."""
    num_completion_tokens: int = 1024

    def __post_init__(self) -> None:
        for name in ("num_gpus", "lora_rank", "weight_bytes", "num_rows", "num_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


RUNS = {
    "full fine-tune, 8 x 80 GB": TrainingSetup(),
    "LoRA, one 80 GB": TrainingSetup(
        trainable="lora", num_gpus=1, lora_rank=64, teacher_copy=False, num_rows=4
    ),
    "LoRA, one 24 GB": TrainingSetup(
        trainable="lora", num_gpus=1, teacher_copy=False, num_tokens=4096
    ),
}
"""The three runs the documentation plans, all on visual thoughts drawn before."""


def table() -> str:
    """``RUNS`` of the 7B model, as ``docs/memory.md`` shows them, in GB (10^9 bytes)."""
    config = bagel_7b_mot().reading_only
    plans = [memory_plan(config, setup) for setup in RUNS.values()]
    lines = ["| GB a GPU | " + " | ".join(RUNS) + " |", "|---" * (len(RUNS) + 1) + "|"]
    for part in plans[0]:
        numbers = " | ".join(f"{plan[part] / 1e9:.2f}" for plan in plans)
        lines.append(f"| {part.replace('_', ' ')} | {numbers} |")
    return "\n".join(lines)


def parameter_counts(config: BagelConfig) -> dict[str, int]:
    """Elements by part, counted on the meta device: nothing is allocated."""
    counts = dict.fromkeys(
        ("understanding", "generation", "vision", "connector", "position_tables", "latents"), 0
    )
    for name, weight in _on_meta(config).state_dict().items():
        counts[_part(name)] += weight.numel()
    return counts


def num_trained(config: BagelConfig, setup: TrainingSetup) -> int:
    """Elements that train: the understanding pathway with its eyes, or adapters on it."""
    if setup.trainable == "understanding":
        counts = parameter_counts(config)
        return counts["understanding"] + counts["vision"] + counts["connector"]
    adapted = [
        module
        for name, module in _on_meta(config).named_modules()
        if ADAPTED.fullmatch(name) and isinstance(module, nn.Linear)
    ]
    return sum(setup.lora_rank * (m.in_features + m.out_features) for m in adapted)


def memory_plan(config: BagelConfig, setup: TrainingSetup) -> dict[str, int]:
    """Bytes a GPU by part, and what is alive at once in ``rollout`` and in ``training``.

    ``config`` says what is held: ``config.reading_only`` for a run whose visual thoughts were
    drawn before. Left out: the CUDA context and the allocator's gaps, 1 to 2 GB.
    """
    counts = parameter_counts(config)
    held, trained = sum(counts.values()), num_trained(config, setup)
    is_full = setup.trainable == "understanding"
    is_float32_already = setup.num_gpus == 1 and setup.weight_bytes == FLOAT32

    def shard(elements: int, size: int) -> int:
        return -(-elements // setup.num_gpus) * size

    standing = {
        "weights": shard(held, setup.weight_bytes),
        "trained_in_float32": 0 if is_float32_already else shard(trained, FLOAT32),
        "gradients": shard(trained, setup.gradient_bytes),
        "optimiser": shard(trained, setup.optimiser_bytes),
        "teacher": shard(trained, FLOAT32) if setup.teacher_copy else 0,
    }
    at_once = _gathered_at_once(config, setup)
    understanding = (held - counts["generation"] - counts["latents"]) * setup.weight_bytes
    is_whole = setup.gather == "whole" and setup.num_gpus > 1
    rollout = {
        "rollout_gather": understanding if is_whole else at_once,
        "rollout_cache": _cache(config, setup),
    }
    training = {
        "training_gather": at_once,
        "training_teacher_cast": shard(trained, setup.weight_bytes)
        if setup.teacher_copy and is_full
        else 0,
        "training_activations": _activations(config, setup),
        "training_logits": _logits(config, setup),
    }
    always = sum(standing.values())
    return {
        **standing,
        **rollout,
        **training,
        "rollout": always + sum(rollout.values()),
        "training": always + sum(training.values()),
    }


@lru_cache(maxsize=4)  # a study plans many runs of few shapes
def _on_meta(config: BagelConfig) -> BagelModel:
    with torch.device("meta"):
        return BagelModel(config)


def _part(name: str) -> str:
    if name.endswith("pos_embed.pos_embed"):
        return "position_tables"
    top = name.partition(".")[0]
    if top == "language_model":
        return "generation" if GENERATION in name else "understanding"
    return {"vit_model": "vision", "connector": "connector"}.get(top, "latents")


def _gathered_at_once(config: BagelConfig, setup: TrainingSetup) -> int:
    """The largest module ZeRO-3 fetches, and the decoder layer it fetches ahead."""
    if setup.num_gpus == 1:
        return 0
    model = _on_meta(config).language_model
    layer = sum(weight.numel() for weight in model.model.layers[0].parameters())
    return (max(layer, model.lm_head.weight.numel()) + layer) * setup.weight_bytes


def _cache(config: BagelConfig, setup: TrainingSetup) -> int:
    """Keys and values of every layer for every token of the rollout."""
    decoder = config.decoder
    width = 2 * decoder.num_layers * decoder.num_key_value_heads * decoder.head_dim
    return setup.num_rows * setup.num_tokens * width * setup.weight_bytes


def _activations(config: BagelConfig, setup: TrainingSetup) -> int:
    """Every decoder layer's input, and the inside of the one that is computed again, or of all.

    If the encoder trains, every token counts as a patch of an image too. Its layers always keep
    two norms' inputs and outputs, query, key, value, their mixture, and fc1's output before and
    behind the gelu: of the real one 17,824 values a patch.
    """
    decoder, vision = config.decoder, config.vision
    tokens = setup.num_rows * setup.num_tokens
    inner = 6 * decoder.hidden_size + 4 * decoder.intermediate_size
    insides = 1 if setup.recomputes else decoder.num_layers
    width = decoder.num_layers * decoder.hidden_size + insides * inner
    if setup.trainable == "understanding":
        width += vision.num_layers * (8 * vision.hidden_size + 2 * vision.intermediate_size)
    mask = setup.num_rows * setup.num_tokens**2 * (1 + setup.weight_bytes)
    return tokens * width * setup.weight_bytes + mask


def _logits(config: BagelConfig, setup: TrainingSetup) -> int:
    """The teacher's log-probabilities of whole completions; six chunks of the student's side."""
    rows = setup.num_rows * setup.num_completion_tokens
    chunk = min(rows * config.decoder.vocab_size, LOGITS_A_CHUNK)
    return (rows * config.decoder.vocab_size + 6 * chunk) * FLOAT32
