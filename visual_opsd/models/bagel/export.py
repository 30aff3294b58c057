"""A student as a folder that the official inferencer and the evaluation forks open."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from visual_opsd.models.bagel.autoencoder_file import (
    AUTOENCODER,
    SCALING_FACTOR,
    SHIFT_FACTOR,
    official_weights,
)
from visual_opsd.models.bagel.codec import LatentCodec
from visual_opsd.models.bagel.config import BagelConfig
from visual_opsd.models.bagel.official import LLM, VISION
from visual_opsd.models.bagel.stored import write
from visual_opsd.models.bagel.tokenizer import Tokenizer

CARD = "README.md"


def save_official(
    config: BagelConfig,
    weights: Mapping[str, Tensor],
    codec: LatentCodec | None,
    tokenizer: Tokenizer,
    folder: Path,
    origin: str | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Write the official files; the weights last, so that a torn folder shows.

    Released weights are one file, and so are these: the official inferencer opens one. Shards, for
    those who need them, are as transformers reads them. ``origin`` names the base in the card.
    """
    if config.decoder.experts == "shared":
        raise ValueError("official files hold two experts; this model shares one set of weights")
    if codec is not None and (codec.scaling_factor, codec.shift_factor) != (
        SCALING_FACTOR,
        SHIFT_FACTOR,
    ):
        raise ValueError(
            f"official latents are scaled by {SCALING_FACTOR} and shifted by {SHIFT_FACTOR}, this "
            f"codec's by {codec.scaling_factor} and {codec.shift_factor}: no file could say so"
        )
    write_json(llm_config(config), folder / LLM)
    write_json(vit_config(config), folder / VISION)
    tokenizer.save_official(folder)
    if codec is not None:
        write(official_weights(codec.model), folder / AUTOENCODER, {"format": "pt"})
    (folder / CARD).write_text(model_card(config, weights, origin))
    write(weights, folder / "model.safetensors", {"format": "pt"}, max_shard_bytes)


def llm_config(config: BagelConfig) -> dict[str, Any]:
    """``llm_config.json``: what transformers' Qwen2Config reads."""
    decoder = config.decoder
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": config.tokens.begin,
        "eos_token_id": config.tokens.end,
        "hidden_act": "silu",
        "hidden_size": decoder.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": decoder.intermediate_size,
        "max_position_embeddings": 32768,
        "model_type": "qwen2",
        "num_attention_heads": decoder.num_heads,
        "num_hidden_layers": decoder.num_layers,
        "num_key_value_heads": decoder.num_key_value_heads,
        "rms_norm_eps": decoder.rms_norm_eps,
        "rope_theta": decoder.rope_theta,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": decoder.vocab_size,
    }


def vit_config(config: BagelConfig) -> dict[str, Any]:
    """``vit_config.json``: one layer more than there is, because the official loader drops one."""
    vision = config.vision
    return {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": vision.hidden_size,
        "image_size": vision.patches_per_side * vision.patch_size,
        "intermediate_size": vision.intermediate_size,
        "layer_norm_eps": vision.layer_norm_eps,
        "model_type": "siglip_vision_model",
        "num_attention_heads": vision.num_heads,
        "num_channels": 3,
        "num_hidden_layers": vision.num_layers + 1,
        "patch_size": vision.patch_size,
    }


def model_card(
    config: BagelConfig, weights: Mapping[str, Tensor], origin: str | None = None
) -> str:
    """What the folder is, in the hub's format."""
    billions = sum(weight.numel() for weight in weights.values()) / 1e9
    kinds = sorted({str(weight.dtype).removeprefix("torch.") for weight in weights.values()})
    parts = (
        "Both experts: it reads, writes and draws."
        if config.can_draw
        else "The understanding expert alone: it reads and writes. To draw, or to open it in the\n"
        "official inferencer, save it with the folder it was trained from as its base."
    )
    lent = "" if origin is None else f"The drawing half is that of `{origin}`, untouched.\n"
    return f"""---
library_name: visual-opsd
pipeline_tag: image-text-to-text
tags: [bagel, thinkmorph, visual-opsd]
---

# A BAGEL student

{billions:.3f} billion parameters in {", ".join(kinds)}, {config.decoder.num_layers} layers.
Files and tensors are named as those of BAGEL-7B-MoT and ThinkMorph-7B.
{parts}
{lent}
    from visual_opsd.models.bagel import checkpoints
    model, tokenizer = checkpoints.load("this folder")

`vit_config.json` counts one vision layer more than is stored, as the released one does. The licence
is that of the weights it was trained from.
"""


def write_json(content: dict[str, Any], path: Path) -> None:
    """An object, a line a key."""
    path.write_text(json.dumps(content, indent=2) + "\n")
