"""A model as a folder: configuration, weights under official names, codec, tokenizer."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from visual_opsd.models.bagel.codec import LatentCodec, PatchCodec
from visual_opsd.models.bagel.config import (
    BagelConfig,
    DecoderConfig,
    LatentConfig,
    SpecialTokens,
    VisionConfig,
)
from visual_opsd.models.bagel.model import BagelModel
from visual_opsd.models.bagel.tokenizer import Tokenizer

CONFIG, WEIGHTS, CODEC = "config.json", "model.safetensors", "codec.safetensors"


def save(model: BagelModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write everything :func:`load` needs; the weights last, so that a torn folder shows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(asdict(model.config), indent=2) + "\n")
    tokenizer.save(folder)
    if model.codec is not None:
        _save(model.codec.model.state_dict(), folder / CODEC)
    _save(weights(model), folder / WEIGHTS)


def load(folder: Path | str, device: torch.device | str = "cpu") -> tuple[BagelModel, Tokenizer]:
    """Read a folder; a missing file, key or shape is an error that names it."""
    folder = Path(folder)
    config = read_config(file_in(folder, CONFIG))
    if config.latent.codec != "patch_pca":
        raise ValueError(
            f"{folder / CONFIG}: latent.codec {config.latent.codec!r} cannot be read from a folder "
            "yet, only 'patch_pca'"
        )
    tokenizer = Tokenizer.load(folder)
    if tokenizer.marks != config.tokens or len(tokenizer) > config.decoder.vocab_size:
        raise ValueError(
            f"{folder}: tokenizer.json ({len(tokenizer)} entries, marks {tokenizer.marks}) does "
            f"not fit {CONFIG} ({config.decoder.vocab_size} entries, marks {config.tokens})"
        )
    codec = None
    if (folder / CODEC).is_file():
        patches = PatchCodec(config.latent.pixels_per_token, config.latent.channels)
        _fill(patches, _read(folder / CODEC), folder / CODEC)
        codec = LatentCodec(patches)
    model = BagelModel(config, codec, tokenizer.decode)
    path = file_in(folder, WEIGHTS)
    _fill(model, _read(path), path, ignored="codec.")
    return model.to(device), tokenizer


def file_in(folder: Path, name: str) -> Path:
    """A file of a model folder; FileNotFoundError where there is none."""
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder} is no model folder: it has no {name}")
    return folder / name


def weights(model: BagelModel) -> dict[str, Tensor]:
    """The weights a model file holds: all but the codec's."""
    return {
        name: weight for name, weight in model.state_dict().items() if not name.startswith("codec.")
    }


def read_config(path: Path) -> BagelConfig:
    """Read ``config.json``; an unknown or missing key is an error that names file and key."""
    try:
        raw: dict[str, dict[str, Any]] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    parts = {
        "decoder": DecoderConfig,
        "vision": VisionConfig,
        "latent": LatentConfig,
        "tokens": SpecialTokens,
    }
    if unknown := sorted(raw.keys() - parts.keys()):
        raise ValueError(f"{path}: unknown {unknown}, expected {sorted(parts)}")
    try:
        return BagelConfig(**{key: build(**raw[key]) for key, build in parts.items()})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _save(state: dict[str, Tensor], path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    save_file({name: x.contiguous().cpu() for name, x in state.items()}, temporary)
    temporary.replace(path)


def _fill(module: nn.Module, state: dict[str, Tensor], path: Path, ignored: str = "\0") -> None:
    """Strict load with every misfit listed."""
    expected = {k: v for k, v in module.state_dict().items() if not k.startswith(ignored)}
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in sorted(expected.keys() & state.keys())
        if state[key].shape != expected[key].shape
    ]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"{path} does not fit its configuration: missing {missing}, unexpected {unexpected}, "
            f"misshapen {misshapen}"
        )
    module.load_state_dict(state, strict=False)
