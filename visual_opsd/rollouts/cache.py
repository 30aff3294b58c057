"""Drawn visual thoughts on disk: content-addressed, atomic, and checked when read."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PILImage
from PIL import PngImagePlugin
from torch import Tensor

from visual_opsd.models.interface import Drawing


def key_of(
    *, checkpoint: str, problem: str, thought: tuple[int, ...], drawing: Drawing, seed: int
) -> str:
    """Digest of everything a drawing depends on; ``checkpoint`` covers the codec too.

    What is None is left out, so that a new option leaves old entries their keys.
    """
    settings = {name: value for name, value in asdict(drawing).items() if value is not None}
    parts = [checkpoint, problem, list(thought), settings, seed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class DrawingCache:
    """A folder of PNGs that carry the digest of their pixels."""

    def __init__(self, folder: Path) -> None:
        """Entries are spread over subfolders by the first two digits of their key."""
        self.folder = folder

    def path(self, key: str) -> Path:
        """Where an entry lies."""
        return self.folder / key[:2] / f"{key}.png"

    def get(self, key: str) -> Float[Tensor, "3 height width"] | None:
        """Pixels in [-1, 1]; None where there is no entry or a damaged one."""
        try:
            with PILImage.open(self.path(key)) as picture:
                picture.load()
                digest = picture.info.get("sha256")
                array = np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError):  # absent, cut short, or not a PNG any more
            return None
        if digest != hashlib.sha256(array.tobytes()).hexdigest():
            return None
        pixels = torch.from_numpy(array.copy()).permute(2, 0, 1).float()
        return pixels / 127.5 - 1

    def put(self, key: str, pixels: Float[Tensor, "3 height width"]) -> None:
        """Write an entry whole or not at all."""
        array = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        picture = PILImage.fromarray(array.permute(1, 2, 0).contiguous().cpu().numpy())
        info = PngImagePlugin.PngInfo()
        info.add_text("sha256", hashlib.sha256(picture.tobytes()).hexdigest())
        with written_whole(self.path(key)) as file:
            picture.save(file, format="PNG", pnginfo=info)


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which stands at ``path`` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        Path(temporary).chmod(0o644)  # a cache may be shared; mkstemp makes it the owner's alone
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)  # of a write that failed
