"""How an image becomes latents and back: diffusers' AutoencoderKL, or a linear map for the tiny.

Both are called as diffusers' models are, and both are frozen.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


def autoencoder_kl(
    *,
    channels: int = 128,
    multipliers: tuple[int, ...] = (1, 2, 4, 4),
    num_residual_blocks: int = 2,
    latent_channels: int = 16,
) -> AutoencoderKL:
    """The autoencoder of FLUX.1 that BAGEL draws with; the defaults are its real size."""
    return AutoencoderKL(
        block_out_channels=tuple(channels * multiplier for multiplier in multipliers),
        down_block_types=("DownEncoderBlock2D",) * len(multipliers),
        up_block_types=("UpDecoderBlock2D",) * len(multipliers),
        layers_per_block=num_residual_blocks,
        latent_channels=latent_channels,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def load_official_autoencoder(model: AutoencoderKL, state_dict: dict[str, Tensor]) -> None:
    """Fill ``model`` from an ``ae.safetensors`` under the official names; every key must fit."""
    config = dict(model.config)
    model.load_state_dict(convert_ldm_vae_checkpoint(state_dict, config), strict=True)


class PatchCodec(nn.Module):
    """Closed-form principal components of patches, whitened: a linear variational autoencoder.

    ``encode`` and ``decode`` answer as AutoencoderKL does; the posterior has no spread.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, patch_size: int = 16, channels: int = 16) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.register_buffer("mean", torch.zeros(3 * patch_size**2))
        self.register_buffer("basis", torch.zeros(3 * patch_size**2, channels))
        self.register_buffer("scale", torch.ones(channels))

    @classmethod
    def fit(
        cls,
        images: list[Float[Tensor, "3 _height _width"]],
        patch_size: int = 16,
        channels: int = 16,
        deviation_floor: float = 0.3,
    ) -> "PatchCodec":
        """Principal components of all patches; deviations below the floor are not blown up."""
        codec = cls(patch_size, channels)
        patches = torch.cat([codec._patches(image[None]).flatten(0, 2) for image in images])
        patches = patches.double()
        mean = patches.mean(dim=0)
        values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        basis = vectors[:, -channels:].flip(-1)
        # Eigenvectors have no sign of their own: make the largest entry positive.
        largest = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
        codec.mean.copy_(mean)
        codec.basis.copy_(basis * largest.sign())
        deviations = values[-channels:].flip(-1).clamp(min=0).sqrt()
        codec.scale.copy_(deviations.clamp(min=deviation_floor))
        return codec

    def encode(self, pixels: Float[Tensor, "batch 3 height width"]) -> AutoencoderKLOutput:
        """Project and whiten."""
        latents = (self._patches(pixels) - self.mean) @ self.basis / self.scale
        mean = rearrange(latents, "b h w z -> b z h w")
        log_variance = torch.full_like(mean, -30.0)
        return AutoencoderKLOutput(
            latent_dist=DiagonalGaussianDistribution(
                torch.cat([mean, log_variance], dim=1), deterministic=True
            )
        )

    def decode(self, latents: Float[Tensor, "batch channels height width"]) -> DecoderOutput:
        """The linear map back."""
        tokens = rearrange(latents, "b z h w -> b h w z") * self.scale
        patches = tokens @ self.basis.T + self.mean
        return DecoderOutput(
            sample=rearrange(
                patches,
                "b h w (c p q) -> b c (h p) (w q)",
                p=self.patch_size,
                q=self.patch_size,
                c=3,
            )
        )

    def _patches(self, pixels: Tensor) -> Tensor:
        return rearrange(
            pixels,
            "b c (h p) (w q) -> b h w (c p q)",
            p=self.patch_size,
            q=self.patch_size,
        )


class LatentCodec(nn.Module):
    """Pixels in [-1, 1] to scaled latents and back, image by image, posterior sampled.

    In float32, whatever the decoder computes in.
    """

    model: Any
    """AutoencoderKL or PatchCodec."""

    def __init__(
        self, model: nn.Module, scaling_factor: float = 1.0, shift_factor: float = 0.0
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(requires_grad=False)
        self.scaling_factor = scaling_factor
        self.shift_factor = shift_factor

    @torch.no_grad()
    def encode(
        self, pixels: Float[Tensor, "3 height width"], noise: Tensor | None = None
    ) -> Float[Tensor, "channels rows columns"]:
        """A sample of the posterior: mean + deviation * noise; its mean without noise."""
        posterior = self._posterior(pixels[None])
        z = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        return (self.scaling_factor * (z - self.shift_factor))[0]

    @torch.no_grad()
    def encode_padded(
        self,
        images: Sequence[Float[Tensor, "3 _height _width"]],
        noise: Sequence[Tensor],
        side: int,
    ) -> list[Float[Tensor, "channels _rows _columns"]]:
        """Samples of images padded with grey to one size and encoded together, then cut apart.

        ``side`` pixels make a latent. The autoencoder looks over the padding: what an image becomes
        depends on the largest of the batch (the official trainer).
        """
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        batch = torch.stack(
            [F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in images]
        )
        posterior = self._posterior(batch)
        z = self.scaling_factor * (
            posterior.mean + posterior.std * torch.cat(list(noise)) - self.shift_factor
        )
        sizes = [(x.shape[1] // side, x.shape[2] // side) for x in images]
        return [latents[:, :h, :w] for latents, (h, w) in zip(z, sizes, strict=True)]

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "channels rows columns"]
    ) -> Float[Tensor, "3 height width"]:
        """Latents to pixels, clamped to [-1, 1]."""
        z = latents[None].float() / self.scaling_factor + self.shift_factor
        with torch.autocast(z.device.type, enabled=False):
            return self.model.decode(z).sample[0].clamp(-1, 1)

    def _posterior(self, pixels: Tensor) -> DiagonalGaussianDistribution:
        with torch.autocast(pixels.device.type, enabled=False):
            return self.model.encode(pixels.float()).latent_dist
