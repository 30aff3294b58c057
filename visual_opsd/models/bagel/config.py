"""The shape of a BAGEL model; ``presets`` holds the two that matter here."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The language model with its two experts."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    experts: Literal["separate", "shared", "understanding"] = "separate"
    """Mixture of transformers; one set of weights for all tokens, as in Transfusion; or only the
    half that reads and writes: nothing that latents pass through is built, so it cannot draw."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}"
            )
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The SigLIP encoder an image is read through."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    """Layers that run; the official json counts one more, which is never built."""
    num_heads: int
    patch_size: int
    patches_per_side: int
    """Side of the position grid; an image takes its top left corner."""
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """The latent tokens an image is drawn in."""

    channels: int
    downsample: int
    """Pixels a side of one latent."""
    patch_size: int
    """Latents a side of one token."""
    tokens_per_side: int
    """Side of the position grid."""
    timestep_shift: float = 1.0
    """Shift of the time distribution in training."""
    codec: Literal["autoencoder_kl", "patch_pca"] = "autoencoder_kl"

    @property
    def token_size(self) -> int:
        """Width of one latent token."""
        return self.channels * self.patch_size**2

    @property
    def pixels_per_token(self) -> int:
        """Pixels a side of one latent token."""
        return self.downsample * self.patch_size


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids of the four marks."""

    begin: int
    end: int
    start_of_image: int
    end_of_image: int


@dataclass(frozen=True, kw_only=True)
class BagelConfig:
    """A whole model."""

    decoder: DecoderConfig
    vision: VisionConfig
    latent: LatentConfig
    tokens: SpecialTokens

    @property
    def can_draw(self) -> bool:
        """Whether latents have a way through the model."""
        return self.decoder.experts != "understanding"

    @property
    def reading_only(self) -> "BagelConfig":
        """The same model without what only drawings need."""
        if self.decoder.experts == "shared":
            raise ValueError("shared experts have no half that only reads")
        return replace(self, decoder=replace(self.decoder, experts="understanding"))
