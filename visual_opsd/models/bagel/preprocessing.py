"""From a picture to pixels, with the published quirks: they decide what the model sees."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from visual_opsd.contexts import Image
from visual_opsd.models.bagel.config import BagelConfig


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


def to_pixels(
    picture: PILImage.Image, rule: ResizeRule, num_images: int = 1
) -> Float[Tensor, "3 height width"]:
    """Composite on white, resize (bicubic, antialiased), scale to [-1, 1]."""
    picture = on_white(picture)
    picture = picture.resize(
        rule.size(*picture.size, num_images), resample=PILImage.Resampling.BICUBIC
    )
    array = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
    return (array / 255 - 0.5) / 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """The rules that a picture goes through on its way into a context."""

    read: ResizeRule
    drawn: ResizeRule = DRAWN
    resizes_twice: bool = False
    """Reads what is left of the picture at the size for latents (the interleaved inferencer)."""


INTERLEAVED = Protocol(read=READ_AT_INFERENCE, resizes_twice=True)
"""ThinkMorph's inferencer; its ``chat`` and all training read the picture itself."""


def to_image(picture: PILImage.Image, protocol: Protocol, config: BagelConfig) -> Image:
    """A picture as a context shows it: pixels for reading, and for latents in their own size."""
    sizes = (protocol.read.stride, protocol.drawn.stride)
    needed = (config.vision.patch_size, config.latent.pixels_per_token)
    if any(size % need for size, need in zip(sizes, needed, strict=True)):
        raise ValueError(
            f"a protocol of strides {sizes} does not fit patches and latent tokens of {needed} px"
        )
    latents = to_pixels(picture, protocol.drawn)
    read = to_picture(latents) if protocol.resizes_twice else picture
    return Image(to_pixels(read, protocol.read), with_latents=True, latent_pixels=latents)


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
