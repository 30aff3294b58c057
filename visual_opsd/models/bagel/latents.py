"""Images as latent tokens: clean in a context, noised where the model learns to draw them."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from visual_opsd.models.bagel.codec import LatentCodec
from visual_opsd.models.bagel.config import LatentConfig
from visual_opsd.models.bagel.packing import Images


@dataclass(frozen=True, slots=True, eq=False)
class LatentImage:
    """An image as latent tokens at a time of the flow."""

    tokens: Float[Tensor, "tokens width"]
    grid: tuple[int, int]
    time: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class ImageNoise:
    """What is random about one latent image of a training row."""

    posterior: Float[Tensor, "1 channels rows columns"]
    """Of the autoencoder."""
    raw_time: float = -math.inf
    """Normal, before sigmoid and shift; nothing to a clean image."""
    flow: Float[Tensor, "tokens width"] | None = None
    """What a target is mixed with; None where the image is clean."""


def encode(
    codec: LatentCodec | None,
    config: LatentConfig,
    images: Sequence[Float[Tensor, "3 _height _width"]],
    noise: Sequence[Tensor],
    *,
    pads_images: bool = False,
) -> list[LatentImage]:
    """Pixels to clean latent tokens; the posterior is sampled, never its mean."""
    if not images:
        return []
    if codec is None:
        raise ValueError("this model was loaded without a codec: it cannot see latents")
    if pads_images:
        encoded = codec.encode_padded(images, noise, config.downsample)
    else:
        encoded = [codec.encode(*pair) for pair in zip(images, noise, strict=True)]
    side = config.patch_size
    return [
        LatentImage(
            rearrange(latents, "z (h p) (w q) -> (h w) (p q z)", p=side, q=side),
            (latents.shape[1] // side, latents.shape[2] // side),
        )
        for latents in encoded
    ]


def context_noise(pixels: Float[Tensor, "3 height width"], config: LatentConfig) -> Tensor:
    """Posterior noise as a function of the picture: scoring sees what sampling saw."""
    seed = zlib.crc32(pixels.detach().float().cpu().numpy().tobytes())
    return torch.randn(_shape(pixels, config), generator=torch.Generator().manual_seed(seed))


def start_noise(num_tokens: int, config: LatentConfig, seed: int) -> Float[Tensor, "tokens width"]:
    """Where a drawing starts."""
    return torch.randn(num_tokens, config.token_size, generator=torch.Generator().manual_seed(seed))


def training_noise(
    images: Images, config: LatentConfig, seeds: Sequence[int], *, pads_images: bool = False
) -> list[ImageNoise]:
    """Every latent image takes the next numbers of its row's own stream."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shapes = [_shape(pixels, config) for pixels in images.drawn]
    largest = tuple(max(sides) for sides in zip(*shapes, strict=True))
    found = []
    for shape, is_target, row in zip(shapes, images.is_noised, images.drawn_row, strict=True):
        generator = generators[row]
        noise = ImageNoise(torch.randn(largest if pads_images else shape, generator=generator))
        if is_target:
            raw_time = torch.randn((), generator=generator).item()
            size = (math.prod(shape) // config.token_size, config.token_size)
            flow = torch.randn(size, generator=generator)
            noise = replace(noise, raw_time=raw_time, flow=flow)
        found.append(noise)
    return found


def noised(
    clean: LatentImage, noise: ImageNoise, config: LatentConfig
) -> tuple[LatentImage, Float[Tensor, "tokens width"]]:
    """A target on its way to noise, x_t = (1 - t) x_0 + t e; and its velocity, e - x_0."""
    assert noise.flow is not None
    raw, shift = torch.tensor(noise.raw_time).sigmoid().item(), config.timestep_shift
    time = shift * raw / (1 + (shift - 1) * raw)
    flow = noise.flow.to(clean.tokens)
    mixed = (1 - time) * clean.tokens + time * flow
    return replace(clean, tokens=mixed, time=time), flow - clean.tokens


def _shape(pixels: Tensor, config: LatentConfig) -> tuple[int, int, int, int]:
    height, width = (side // config.downsample for side in pixels.shape[1:])
    return (1, config.channels, height, width)
