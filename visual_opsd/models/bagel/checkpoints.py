"""A model as a folder: configuration, weights under official names, codec, tokenizer."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
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
from visual_opsd.weights import WholeWeights

CONFIG, WEIGHTS, CODEC = "config.json", "model.safetensors", "codec.safetensors"


def save(model: BagelModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write everything :func:`load` needs; the weights last, so that a torn folder shows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(asdict(model.config), indent=2) + "\n")
    tokenizer.save(folder)
    if model.codec is not None:
        _save(model.codec.model.state_dict(), folder / CODEC)
    _save(weights(model), folder / WEIGHTS)


def load(
    folder: Path | str, device: torch.device | str = "cpu", place: WholeWeights | None = None
) -> tuple[BagelModel, Tokenizer]:
    """Read a folder; a missing file, key or shape is an error that names it.

    Weights go to where ``place`` puts them, one after another, so that no more than one is whole.
    """
    folder = Path(folder)
    model, tokenizer = outline(folder)
    place = place or WholeWeights()
    if model.codec is not None:
        _fill(model.codec.model, folder / CODEC, place)
    _fill(model, file_in(folder, WEIGHTS), place, ignored="codec.")
    return model.to(device), tokenizer


def outline(folder: Path | str) -> tuple[BagelModel, Tokenizer]:
    """The model of a folder, still without its weights."""
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
        codec = LatentCodec(PatchCodec(config.latent.pixels_per_token, config.latent.channels))
    return BagelModel(config, codec, tokenizer.decode), tokenizer


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


def _save(state: dict[str, Tensor], path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    save_file({name: x.contiguous().cpu() for name, x in state.items()}, temporary)
    temporary.replace(path)


def _fill(module: nn.Module, path: Path, place: WholeWeights, ignored: str = "\0") -> None:
    """Strict load with every misfit listed; weights are read one by one."""
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    expected = {k: held[k] for k in module.state_dict() if not k.startswith(ignored)}
    try:
        with safe_open(path, framework="pt") as file:
            found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            missing = sorted(expected.keys() - found.keys())
            unexpected = sorted(found.keys() - expected.keys())
            misshapen = [
                f"{key} {found[key]} instead of {tuple(place.shape(expected[key]))}"
                for key in sorted(expected.keys() & found.keys())
                if found[key] != tuple(place.shape(expected[key]))
            ]
            if missing or unexpected or misshapen:
                raise ValueError(
                    f"{path} does not fit its configuration: missing {missing}, "
                    f"unexpected {unexpected}, misshapen {misshapen}"
                )
            for key, weight in expected.items():
                place.put(weight, file.get_tensor(key))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
