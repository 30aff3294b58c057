"""``ae.safetensors``: FLUX's names and shapes against those of diffusers."""

import re

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from visual_opsd.models.bagel.codec import (
    LatentCodec,
    autoencoder_kl,
    load_official_autoencoder,
)
from visual_opsd.models.bagel.stored import StoredTensors

AUTOENCODER = "ae.safetensors"
SCALING_FACTOR, SHIFT_FACTOR = 0.3611, 0.1159
"""Of FLUX's latents; the official loader has them in code, no file says them."""
NAMES = (
    ("down_blocks.", "down."),
    ("downsamplers.0.", "downsample."),
    ("upsamplers.0.", "upsample."),
    ("resnets.", "block."),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
    ("mid_block.attentions.0.", "mid.attn_1."),
    ("group_norm", "norm"),
    ("to_out.0", "proj_out"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
)


def load_codec(stored: StoredTensors, device: torch.device | str) -> LatentCodec:
    """The codec of a file, float32 whatever the model computes in (the official notebook's way)."""
    model = autoencoder_like(stored)
    expected = {name: weight.shape for name, weight in official_weights(model).items()}
    stored.must_fit(expected)
    model.to_empty(device=device)
    load_official_autoencoder(model, {name: stored[name] for name in expected})
    return LatentCodec(model, SCALING_FACTOR, SHIFT_FACTOR)


def autoencoder_like(stored: StoredTensors) -> AutoencoderKL:
    """An autoencoder of the shape the file has, on the meta device."""
    shapes = stored.shapes
    try:
        channels = shapes["encoder.conv_in.weight"][0]
        level = re.compile(r"encoder\.down\.(\d+)")
        num_levels = len({match[1] for name in shapes if (match := level.match(name))})
        multipliers = tuple(
            shapes[f"encoder.down.{index}.block.0.conv2.weight"][0] // channels
            for index in range(num_levels)
        )
        block = re.compile(r"encoder\.down\.0\.block\.\d+\.conv1\.bias")
        num_blocks = sum(block.fullmatch(name) is not None for name in shapes)
        latent_channels = shapes["decoder.conv_in.weight"][1]
    except KeyError as error:
        raise ValueError(f"{stored} is no FLUX autoencoder: missing {error}") from error
    with torch.device("meta"):
        return autoencoder_kl(
            channels=channels,
            multipliers=multipliers,
            num_residual_blocks=num_blocks,
            latent_channels=latent_channels,
        )


def official_weights(model: AutoencoderKL) -> dict[str, Tensor]:
    """The weights under the names of ``ae.safetensors``: the way back from diffusers' converter."""
    last = len(model.config["block_out_channels"]) - 1
    renamed = {}
    for name, weight in model.state_dict().items():
        official = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{last - int(m[1])}", name)
        official = re.sub(
            r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", official
        )
        for theirs, ours in NAMES:
            official = official.replace(theirs, ours)
        # The attention's maps are 1 x 1 convolutions there and linear here.
        is_map = "mid.attn_1" in official and weight.ndim == 2
        renamed[official] = weight[..., None, None] if is_map else weight
    return renamed
