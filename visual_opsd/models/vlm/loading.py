"""Which folders hold a vision-language model that we read, and how they are opened."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from visual_opsd.contexts import Encode
from visual_opsd.models.bagel.stored import read_json
from visual_opsd.models.vlm.model import ImageProcessor, VLMReader

FAMILIES = ("qwen3_vl", "qwen3_vl_moe", "internvl")


class VLMTokenizer:
    """The two directions of a tokenizer; special tokens are left out on the way back."""

    def __init__(self, tokenizer: Any) -> None:
        self.fast = tokenizer
        self.encode: Encode = lru_cache(maxsize=4096)(self._encode)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        return str(self.fast.decode(list(ids), skip_special_tokens=True))

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.fast(text, add_special_tokens=False)["input_ids"])


def is_vlm(folder: Path) -> bool:
    """Whether the folder's configuration names one of ``FAMILIES``."""
    path = folder / "config.json"
    return path.is_file() and read_json(path).get("model_type") in FAMILIES


def load(folder: Path, device: torch.device | str = "cpu") -> tuple[VLMReader, VLMTokenizer]:
    """A downloaded folder, never the hub; weights keep the file's dtype.

    Raises:
        ValueError: A file is missing or is not what it should be; the folder is named.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        process = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        vlm = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, dtype="auto"
        )
    except (OSError, ImportError) as error:
        raise ValueError(f"{folder} holds no whole vision-language model: {error}") from error
    reader = VLMReader(vlm.eval().to(device), tokenizer, eyes(vlm.config, tokenizer, process))
    return reader.eval(), VLMTokenizer(tokenizer)


def eyes(config: Any, tokenizer: Any, process: Any) -> ImageProcessor:
    """How a family's pictures become tokens."""
    placeholder = tokenizer.convert_ids_to_tokens(config.image_token_id)
    if config.model_type == "internvl":
        length = config.image_seq_length

        def tiles(seen: dict[str, Tensor]) -> list[int]:
            return [length * int(number) for number in seen["num_patches"]]

        return ImageProcessor(process, placeholder, tiles, around=("<img>", "</img>"))

    def merged(seen: dict[str, Tensor]) -> list[int]:
        return [int(grid.prod()) // process.merge_size**2 for grid in seen["image_grid_thw"]]

    return ImageProcessor(process, placeholder, merged)
