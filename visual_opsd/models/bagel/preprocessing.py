"""From a picture to pixels, with the published quirks: they decide what the model sees."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from visual_opsd.contexts import Image, Role


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
    """How a picture enters a context: in the size for reading, and in that for latents."""

    read: ResizeRule
    drawn: ResizeRule = DRAWN
    resizes_first: bool = False
    """Every picture is first resized for latents, then by either rule: two resamplings."""

    def image(
        self,
        picture: PILImage.Image,
        role: Role = Role.PROBLEM,
        *,
        with_latents: bool = False,
    ) -> Image:
        """A picture as a context shows it."""
        if self.resizes_first:
            picture = to_picture(to_pixels(picture, self.drawn))
        return Image(
            to_pixels(picture, self.read),
            role,
            with_latents=with_latents,
            latent_pixels=to_pixels(picture, self.drawn) if with_latents else None,
        )


HARNESS = Protocol(read=READ_AT_INFERENCE, resizes_first=True)
"""ThinkMorph's inferencer and the evaluation forks; ``chat`` and all training resize once."""


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
