"""A model as a folder: our own layout for small ones, the official one for BAGEL and its kin.

Every name and shape is checked before memory is taken; then tensors go one by one from the mapped
file to where they stay.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visual_opsd.models.bagel import stored
from visual_opsd.models.bagel.codec import LatentCodec, PatchCodec
from visual_opsd.models.bagel.config import (
    BagelConfig,
    DecoderConfig,
    LatentConfig,
    SpecialTokens,
    VisionConfig,
)
from visual_opsd.models.bagel.export import save_official
from visual_opsd.models.bagel.model import BagelModel
from visual_opsd.models.bagel.official import FILES, LLM, OfficialFolder, is_for_drawing
from visual_opsd.models.bagel.stored import StoredTensors, weight_files
from visual_opsd.models.bagel.tokenizer import Tokenizer
from visual_opsd.models.bagel.vision import PositionTable
from visual_opsd.weights import WholeWeights

CONFIG, WEIGHTS, CODEC = "config.json", "model.safetensors", "codec.safetensors"
PROBE = "connector.fc1.weight"
"""What shows in which dtype a file holds its model."""
BASE = "base"
"""A link of this name in a student's folder leads to the folder it was trained from."""
BFLOAT16_ROUNDING = 2**-8
"""Of values up to 1: how far a stored position table may be from its formula."""


class OwnFolder:
    """``config.json``, weights, tokenizer, and a codec unless the model cannot draw."""

    def __init__(self, folder: Path) -> None:
        """Open what is there."""
        self.folder = folder
        self.config = read_config(file_in(folder, CONFIG))
        if self.config.latent.codec != "patch_pca":
            raise ValueError(
                f"{folder / CONFIG}: latent.codec {self.config.latent.codec!r} belongs in a folder "
                f"of the official layout, with {LLM}"
            )
        self.tokenizer = Tokenizer.load(folder)
        self.weights = StoredTensors([file_in(folder, WEIGHTS)])
        if self.tokenizer.marks != self.config.tokens:
            raise ValueError(
                f"{folder}: tokenizer.json (marks {self.tokenizer.marks}) does not fit {CONFIG} "
                f"(marks {self.config.tokens})"
            )

    def codec(self, device: torch.device | str) -> LatentCodec | None:
        """The linear codec; None without its file."""
        if not (self.folder / CODEC).is_file():
            return None
        latent = self.config.latent
        patches = PatchCodec(latent.pixels_per_token, latent.channels)
        weights = StoredTensors([self.folder / CODEC])
        weights.must_fit({name: x.shape for name, x in patches.state_dict().items()})
        patches.load_state_dict({name: weights[name] for name in weights.shapes})
        return LatentCodec(patches.to(device))


def open_folder(folder: Path | str, base: Path | str | None = None) -> OwnFolder | OfficialFolder:
    """Recognise a folder and check that its files fit each other; no weight is read.

    ``base`` is the folder a student was trained from: it fills in the files, and the weights for
    drawing, that the student's folder does not hold.
    """
    folder = Path(folder)
    if base is None and (folder / BASE).is_dir():
        base = folder / BASE
    found: OwnFolder | OfficialFolder
    if (folder / LLM).is_file() or base is not None:
        found = OfficialFolder(folder, None if base is None else Path(base))
    elif (folder / CONFIG).is_file():
        found = OwnFolder(folder)
    else:
        raise FileNotFoundError(
            f"{folder} is no model folder: it has no {CONFIG} and no {LLM}. If it holds a "
            "student's weights alone, as the first Visual-OPSD release saved them, name the folder "
            f"they were trained from: base=..., or a link, ln -s BASE {folder / BASE}"
        )
    if len(found.tokenizer) > found.config.decoder.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {len(found.tokenizer)} entries, which does not fit "
            f"the configuration's {found.config.decoder.vocab_size}"
        )
    whole = shapes(found.config)
    needed = {name: shape for name, shape in whole.items() if not is_for_drawing(name)}
    found.weights.must_fit(needed, optional=whole, any_length=is_table)
    return found


def load(
    folder: Path | str,
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype | None = None,
    reading_only: bool = False,
    base: Path | str | None = None,
    place: WholeWeights | None = None,
) -> tuple[BagelModel, Tokenizer]:
    """Read a folder; a missing file, key or shape is an error that names it.

    Weights keep the file's ``dtype`` unless another is asked for (a codec is always float32). With
    ``reading_only`` nothing that only drawings need is built: 8.05 of 14.61 billion parameters.
    ``place`` knows where weights go, if the strategy shards them while it builds; device and dtype
    are the strategy's then.
    """
    found, place = open_folder(folder, base), place or WholeWeights()
    config = found.config.reading_only if reading_only else found.config
    if config.can_draw:
        found.weights.must_fit(shapes(config), any_length=is_table)
    model = place.built(
        lambda: BagelModel(config, decode=found.tokenizer.decode),
        dtype or found.weights[PROBE].dtype,
        device,
    )
    _fill(model, found.weights, place)
    if config.can_draw:
        model.codec = found.codec(device)
    return model, found.tokenizer


def outline(folder: Path | str, *, reading_only: bool = False) -> BagelModel:
    """The model of a folder without weights and codec, on the meta device."""
    found = open_folder(folder)
    with torch.device("meta"):
        config = found.config.reading_only if reading_only else found.config
        return BagelModel(config, decode=found.tokenizer.decode)


def save(
    model: BagelModel,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    base: Path | str | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Write everything :func:`load` needs; the weights last, so that a torn folder shows.

    A model that only reads takes what drawing needs from its ``base``, untouched, and is whole
    again; without one it is saved as it is.
    """
    config, held, codec = model.config, weights(model), model.codec
    if base is not None and not config.can_draw:
        lender = open_folder(base)
        _same_reader(config, lender.config, lender.folder)
        held |= {name: lender.weights[name] for name in filter(is_for_drawing, lender.weights)}
        config, codec = lender.config, lender.codec("cpu")
    folder.mkdir(parents=True, exist_ok=True)
    if config.latent.codec == "autoencoder_kl":
        origin = None if base is None else Path(base).resolve().name
        save_official(config, held, codec, tokenizer, folder, origin, max_shard_bytes)
        return
    (folder / CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n")
    tokenizer.save(folder)
    if codec is not None:
        stored.write(codec.model.state_dict(), folder / CODEC)
    stored.write(held, folder / WEIGHTS)


def files(folder: Path) -> tuple[Path, ...]:
    """What makes a model what it is, whether it is whole or not; of our layout also what lacks."""
    folders = [folder, folder / BASE] if (folder / BASE).is_dir() else [folder]
    if not any((place / LLM).is_file() for place in folders):
        return tuple(folder / name for name in (CONFIG, CODEC, WEIGHTS, "tokenizer.json"))
    described = [place / name for place in folders for name in FILES if (place / name).is_file()]
    return (*described, *(path for place in folders for path in weight_files(place)))


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


def shapes(config: BagelConfig) -> dict[str, torch.Size]:
    """Every weight's shape, without a byte of memory."""
    with torch.device("meta"):
        return {name: weight.shape for name, weight in BagelModel(config).state_dict().items()}


def read_config(path: Path) -> BagelConfig:
    """Read ``config.json``; an unknown or missing key is an error that names file and key."""
    raw: dict[str, Any] = stored.read_json(path)
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


def is_table(name: str) -> bool:
    """A frozen position table: its values are a formula's, for as many places as there are."""
    return name.endswith("pos_embed.pos_embed")


def _same_reader(student: BagelConfig, base: BagelConfig, folder: Path) -> None:
    for part in ("vision", "tokens", "decoder"):
        theirs = getattr(base.reading_only, part)
        if getattr(student, part) != theirs:
            raise ValueError(
                f"the base {folder} has {theirs}, the student {getattr(student, part)}"
            )
    if not base.can_draw:
        raise ValueError(f"the base {folder} has nothing to lend: it only reads, too")


@torch.no_grad()
def _fill(model: BagelModel, found: StoredTensors, place: WholeWeights) -> None:
    """One tensor after another; the tables from their formula, which the file's must agree with."""
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name in model.state_dict():
        if not is_table(name):
            place.put(held[name], found[name])
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        assert isinstance(module, PositionTable)
        table = module.exact()
        place.put(held[name], table)
        if found.shapes[name] == tuple(table.shape):
            error = (found[name].to(table) - table).abs().max().item()
            if not error <= BFLOAT16_ROUNDING:
                raise ValueError(f"{found}: {name} is {error:.3g} away from its frozen formula")
