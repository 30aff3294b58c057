"""From a picture to pixels, with the published quirks: they decide what the model sees."""

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PILImage
from PIL import UnidentifiedImageError
from torch import Tensor

from visual_opsd.contexts import Image, Role
from visual_opsd.models.bagel.config import BagelConfig

MAX_PICTURE_PIXELS = 2**26
"""8192 x 8192. A header may promise any size: more is refused before a pixel is decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeRule:
    """How large a picture is read or drawn; sides become multiples of ``stride``."""

    max_side: int
    min_side: int
    stride: int
    max_pixels: int = 14 * 14 * 9 * 1024

    def size(self, width: int, height: int, num_images: int = 1) -> tuple[int, int]:
        """New (width, height) of a picture that is one of ``num_images``.

        Too many pixels shrink both *sides* by the ratio of the *areas*, which is too much; the
        official models were trained so.
        """
        scale = min(self.max_side / max(width, height), 1.0)
        scale = max(scale, self.min_side / min(width, height))
        width, height = self._scaled(width, height, scale)
        budget = self.max_pixels / num_images
        if width * height > budget:
            width, height = self._scaled(width, height, budget / (width * height))
        if max(width, height) > self.max_side:
            width, height = self._scaled(width, height, self.max_side / max(width, height))
        return width, height

    def _scaled(self, width: int, height: int, scale: float) -> tuple[int, int]:
        # Python rounds halves to even; so does the official code.
        def side(length: int) -> int:
            return max(self.stride, round(round(length * scale) / self.stride) * self.stride)

        return side(width), side(height)


DRAWN = ResizeRule(max_side=1024, min_side=512, stride=16)
"""For latents, in training and inference."""
READ_AT_INFERENCE = ResizeRule(max_side=980, min_side=224, stride=14)
READ_IN_SFT = ResizeRule(max_side=518, min_side=224, stride=14)
"""BAGEL's and ThinkMorph's editing and interleaved training."""
READ_IN_OPSD = ResizeRule(max_side=980, min_side=378, stride=14, max_pixels=2_007_040)
"""VLM fine-tuning and Visual-OPSD training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AsItIs:
    """The rule of the tiny model: a picture comes in whole cells and stays as it is."""

    stride: int

    def size(self, width: int, height: int, num_images: int = 1) -> tuple[int, int]:
        """The same (width, height); ValueError where they are no whole number of cells."""
        del num_images
        if width % self.stride or height % self.stride:
            raise ValueError(
                f"expected sides that are multiples of {self.stride} px; got {width}x{height}"
            )
        return width, height


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a picture enters a context: in the size for reading, and in that for latents."""

    read: ResizeRule | AsItIs
    drawn: ResizeRule | AsItIs = DRAWN
    resizes_first: bool = False
    """Every picture is first resized for latents, then by either rule: two resamplings."""

    def image(
        self,
        picture: PILImage.Image,
        role: Role = Role.PROBLEM,
        *,
        with_latents: bool = False,
        num_images: int = 1,
    ) -> Image:
        """A picture, one of ``num_images`` which share the budget of pixels that are read."""
        picture = on_white(picture)
        if self.resizes_first:
            picture = resized(picture, self.drawn)
        has_own_latents = with_latents and self.drawn != self.read
        return Image(
            to_pixels(picture, self.read, num_images),
            role,
            with_latents=with_latents,
            latent_pixels=to_pixels(picture, self.drawn) if has_own_latents else None,
        )

    def kept(
        self, picture: PILImage.Image, role: Role = Role.PROBLEM, *, num_images: int = 1
    ) -> Image:
        """A picture as a problem keeps it: read, and ready for whoever asks for its latents."""
        read = self.image(picture, role, with_latents=True, num_images=num_images)
        return replace(read, with_latents=False)


ProtocolName = Literal["train", "paper", "harness"]
PROTOCOLS: dict[ProtocolName, Protocol] = {
    "train": Protocol(read=READ_IN_OPSD),
    "paper": Protocol(read=READ_IN_OPSD),
    "harness": Protocol(read=READ_AT_INFERENCE, resizes_first=True),
}
"""``train``: Visual-OPSD and VLM training. ``paper``: evaluation as the paper tells it,
preprocessed as in training. ``harness``: what its evaluation code runs instead, the inferencer's
two resizings."""


def protocol_for(config: BagelConfig, name: ProtocolName) -> Protocol:
    """The named protocol; the tiny model, whose patch is a maze's cell, resizes nothing."""
    if config.latent.codec == "patch_pca":
        rule = AsItIs(stride=config.vision.patch_size)
        return Protocol(read=rule, drawn=rule)
    return PROTOCOLS[name]


def open_picture(source: Path | bytes, name: str = "") -> PILImage.Image:
    """A picture from a file or its bytes, decoded and on white.

    Raises:
        ValueError: What cannot be read, and what would be too large, before it is decoded; names
            the file, or ``name``.
        FileNotFoundError: No such file.
    """
    where = name or (str(source) if isinstance(source, Path) else "the picture")
    if isinstance(source, Path) and not source.is_file():
        raise FileNotFoundError(f"no picture {source}")
    try:
        with PILImage.open(source if isinstance(source, Path) else io.BytesIO(source)) as picture:
            width, height = picture.size
            if width * height > MAX_PICTURE_PIXELS:
                raise ValueError(
                    f"{where} has {width} x {height} pixels; more than {MAX_PICTURE_PIXELS:,} "
                    "are not read"
                )
            return on_white(picture)
    except PILImage.DecompressionBombError as error:
        raise ValueError(f"{where} is not read: {error}") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{where} is no picture that can be read: {error}") from error


def to_pixels(
    picture: PILImage.Image, rule: ResizeRule | AsItIs, num_images: int = 1
) -> Float[Tensor, "3 height width"]:
    """Composite on white, resize (bicubic, antialiased), scale to [-1, 1]."""
    array = torch.from_numpy(np.array(resized(on_white(picture), rule, num_images)))
    return (array.permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def resized(
    picture: PILImage.Image, rule: ResizeRule | AsItIs, num_images: int = 1
) -> PILImage.Image:
    """Bicubic with antialiasing, to what the rule says."""
    size = rule.size(*picture.size, num_images)
    return picture.resize(size, resample=PILImage.Resampling.BICUBIC)


def to_picture(pixels: Float[Tensor, "3 height width"]) -> PILImage.Image:
    """Pixels in [-1, 1] as a picture of bytes."""
    array = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return PILImage.fromarray(array.permute(1, 2, 0).contiguous().cpu().numpy())


def on_white(picture: PILImage.Image) -> PILImage.Image:
    """RGB; what is transparent becomes white."""
    if picture.mode == "RGBA" or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = PILImage.new("RGBA", layer.size, "WHITE")
        return PILImage.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")
