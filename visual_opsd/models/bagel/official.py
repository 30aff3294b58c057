"""The folders that BAGEL, ThinkMorph and the first Visual-OPSD release are stored in.

``llm_config.json``, ``vit_config.json``, weights, ``ae.safetensors`` and tokenizer files. What no
file says (grids, the latent patch, the autoencoder's shape) is read off the tensors' shapes.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from visual_opsd.models.bagel.autoencoder_file import AUTOENCODER, autoencoder_like, load_codec
from visual_opsd.models.bagel.codec import LatentCodec
from visual_opsd.models.bagel.config import (
    BagelConfig,
    DecoderConfig,
    LatentConfig,
    VisionConfig,
)
from visual_opsd.models.bagel.decoder import GENERATION
from visual_opsd.models.bagel.presets import bagel_7b_mot
from visual_opsd.models.bagel.stored import StoredTensors, read_json, weight_files
from visual_opsd.models.bagel.tokenizer import TOKENIZER_FILES, Tokenizer

LLM, VISION = "llm_config.json", "vit_config.json"
FILES = (LLM, VISION, AUTOENCODER, *TOKENIZER_FILES)
"""Everything but the weights, whose names differ."""
DRAWING_MODULES = ("vae2llm.", "llm2vae.", "time_embedder.", "latent_pos_embed.")


def is_twin(name: str) -> bool:
    """A weight of the drawing expert."""
    return GENERATION in name


def is_latent(name: str) -> bool:
    """A weight that latents enter, leave or are placed by."""
    return name.startswith(DRAWING_MODULES)


def is_for_drawing(name: str) -> bool:
    """A weight that only drawings need."""
    return is_twin(name) or is_latent(name)


class OfficialFolder:
    """A downloaded folder, or a student's with the folder it was trained from behind it."""

    def __init__(self, folder: Path, base: Path | None = None) -> None:
        """Open what is there; a base may fill in files, and weights that only drawings need."""
        self.folder, self.base = folder, base
        llm, vision = (read_json(self.require(name)) for name in (LLM, VISION))
        self.tokenizer = Tokenizer.load(self._home(*TOKENIZER_FILES))
        self.weights = StoredTensors(weight_files(folder))
        if base is not None:
            behind = StoredTensors(weight_files(base))
            self.weights.borrow(behind, is_twin)
            self.weights.borrow(behind, is_latent)
        found = self.find(AUTOENCODER)
        self.autoencoder = None if found is None else StoredTensors([found])
        self.config = self._config(llm, vision)

    def codec(self, device: torch.device | str) -> LatentCodec:
        """The autoencoder; its file is needed by what can draw."""
        if self.autoencoder is None:
            raise FileNotFoundError(
                f"{self.folder} has no {AUTOENCODER}: without it, load with reading_only=True"
            )
        return load_codec(self.autoencoder, device)

    def find(self, name: str) -> Path | None:
        """A file of the folder, else of its base."""
        folders = [self.folder] if self.base is None else [self.folder, self.base]
        return next((f / name for f in folders if (f / name).is_file()), None)

    def require(self, name: str) -> Path:
        """The same; FileNotFoundError where there is none."""
        found = self.find(name)
        if found is None:
            raise FileNotFoundError(f"{self.folder} is no whole model folder: it has no {name}")
        return found

    def _home(self, *names: str) -> Path:
        """Which of the two folders holds one of these files."""
        found = next(filter(None, map(self.find, names)), None)
        return self.folder if found is None else found.parent

    def _config(self, llm: dict[str, Any], vision: dict[str, Any]) -> BagelConfig:
        decoder_path, vision_path = self.require(LLM), self.require(VISION)
        can_draw = any(map(is_for_drawing, self.weights))
        config = BagelConfig(
            decoder=_decoder(llm, decoder_path),
            vision=_vision(vision, vision_path),
            latent=self._latent() if can_draw else bagel_7b_mot().latent,
            tokens=self.tokenizer.marks,
        )
        return config if can_draw else config.reading_only

    def _latent(self) -> LatentConfig:
        """Grid and patch as the tensors have them."""
        shapes = self.weights.shapes
        latent = bagel_7b_mot().latent
        if table := shapes.get("latent_pos_embed.pos_embed"):
            latent = replace(latent, tokens_per_side=math.isqrt(table[0]))
        if self.autoencoder is not None:
            config = dict(autoencoder_like(self.autoencoder).config)
            latent = replace(
                latent,
                channels=config["latent_channels"],
                downsample=2 ** (len(config["block_out_channels"]) - 1),
            )
        if projection := shapes.get("vae2llm.weight"):
            latent = replace(latent, patch_size=math.isqrt(projection[-1] // latent.channels))
        return latent


def _decoder(content: Mapping[str, Any], path: Path) -> DecoderConfig:
    _must_be(content, path, hidden_act="silu")
    return DecoderConfig(
        vocab_size=_number(content, "vocab_size", path),
        hidden_size=_number(content, "hidden_size", path),
        intermediate_size=_number(content, "intermediate_size", path),
        num_layers=_number(content, "num_hidden_layers", path),
        num_heads=_number(content, "num_attention_heads", path),
        num_key_value_heads=_number(content, "num_key_value_heads", path),
        rms_norm_eps=_number(content, "rms_norm_eps", path, float),
        rope_theta=_number(content, "rope_theta", path, float),
    )


def _vision(content: Mapping[str, Any], path: Path) -> VisionConfig:
    """One layer less than the file counts: the official loader never builds the last."""
    _must_be(content, path, hidden_act="gelu_pytorch_tanh")
    patch = _number(content, "patch_size", path)
    return VisionConfig(
        hidden_size=_number(content, "hidden_size", path),
        intermediate_size=_number(content, "intermediate_size", path),
        num_layers=_number(content, "num_hidden_layers", path) - 1,
        num_heads=_number(content, "num_attention_heads", path),
        patch_size=patch,
        patches_per_side=_number(content, "image_size", path) // patch,
        layer_norm_eps=_number({"layer_norm_eps": 1e-6, **content}, "layer_norm_eps", path, float),
    )


def _number(content: Mapping[str, Any], key: str, path: Path, kind: type[int | float] = int) -> Any:
    value: Any = content.get(key)
    if not isinstance(value, (int, kind)) or isinstance(value, bool) or value <= 0:
        raise ValueError(f"{path}: {key} must be a positive {kind.__name__}, got {value!r}")
    return kind(value)


def _must_be(content: Mapping[str, Any], path: Path, **expected: str) -> None:
    for key, value in expected.items():
        if content.get(key, value) != value:
            raise ValueError(f"{path}: {key} must be {value!r}, got {content[key]!r}")
