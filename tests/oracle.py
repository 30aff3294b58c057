"""Where the reference vectors of the official model are, and how a test reads them."""

import json
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from visual_opsd.models.bagel.codec import (
    LatentCodec,
    autoencoder_kl,
    load_official_autoencoder,
)
from visual_opsd.models.bagel.config import (
    BagelConfig,
    DecoderConfig,
    LatentConfig,
    SpecialTokens,
    VisionConfig,
)
from visual_opsd.models.bagel.model import BagelModel

ROOT = Path(__file__).parents[1]


def oracle_files() -> list[Path]:
    """Every ``oracle_*.safetensors`` of the folder VISUAL_OPSD_ORACLE; empty when absent."""
    folder = Path(os.environ.get("VISUAL_OPSD_ORACLE", ROOT.parent / "shared" / "oracle"))
    return sorted(folder.glob("oracle_*.safetensors"))


def load_oracle(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors by name and the JSON beside them."""
    return load_file(path), json.loads(path.with_suffix(".json").read_text())


@cache
def load(path: Path):
    """The official weights in our model, with the stored tensors and their description."""
    tensors, description = load_oracle(path)
    c = description["config"]
    llm, vit, vae, bagel = c["llm_config"], c["vit_config"], c["vae_config"], c["bagel"]
    marks = c["special_tokens"]
    config = BagelConfig(
        decoder=DecoderConfig(
            vocab_size=llm["vocab_size"],
            hidden_size=llm["hidden_size"],
            intermediate_size=llm["intermediate_size"],
            num_layers=llm["num_hidden_layers"],
            num_heads=llm["num_attention_heads"],
            num_key_value_heads=llm["num_key_value_heads"],
            rms_norm_eps=llm["rms_norm_eps"],
            rope_theta=llm["rope_theta"],
        ),
        vision=VisionConfig(
            hidden_size=vit["hidden_size"],
            intermediate_size=vit["intermediate_size"],
            num_layers=vit["num_hidden_layers"],
            num_heads=vit["num_attention_heads"],
            patch_size=vit["patch_size"],
            patches_per_side=bagel["vit_max_num_patch_per_side"],
            layer_norm_eps=vit["layer_norm_eps"],
        ),
        latent=LatentConfig(
            channels=vae["z_channels"],
            downsample=vae["downsample"],
            patch_size=bagel["latent_patch_size"],
            tokens_per_side=bagel["max_latent_size"],
            timestep_shift=bagel["timestep_shift"],
        ),
        tokens=SpecialTokens(
            begin=marks["bos_token_id"],
            end=marks["eos_token_id"],
            start_of_image=marks["start_of_image"],
            end_of_image=marks["end_of_image"],
        ),
    )
    autoencoder = autoencoder_kl(
        channels=vae["ch"],
        multipliers=tuple(vae["ch_mult"]),
        num_residual_blocks=vae["num_res_blocks"],
        latent_channels=vae["z_channels"],
    )
    official = {key[3:]: value for key, value in tensors.items() if key.startswith("ae/")}
    load_official_autoencoder(autoencoder, official)
    model = BagelModel(config)
    weights = {key[3:]: value for key, value in tensors.items() if key.startswith("sd/")}
    model.load_state_dict(weights, strict=True)
    model.codec = LatentCodec(autoencoder, vae["scale_factor"], vae["shift_factor"])
    return model.eval(), tensors, description["cases"]


def cases(name):
    """One parameter a reference file, its id naming file and case."""
    files = oracle_files()
    reason = "no oracle_*.safetensors: set VISUAL_OPSD_ORACLE to the folder of reference vectors"
    if not files:
        return [pytest.param(None, id=name, marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(path, id=f"{path.stem}-{name}") for path in files]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
