"""The sizes of BAGEL: the released 7B, the one that trains on two cores, and one between."""

from dataclasses import replace

from visual_opsd.models.bagel.config import (
    BagelConfig,
    DecoderConfig,
    LatentConfig,
    SpecialTokens,
    VisionConfig,
)


def bagel_7b_mot() -> BagelConfig:
    """BAGEL-7B-MoT and ThinkMorph-7B: 14,607,260,128 parameters."""
    return BagelConfig(
        decoder=DecoderConfig(
            vocab_size=152_064,
            hidden_size=3584,
            intermediate_size=18_944,
            num_layers=28,
            num_heads=28,
            num_key_value_heads=4,
        ),
        vision=VisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_layers=26,
            num_heads=16,
            patch_size=14,
            patches_per_side=70,
        ),
        latent=LatentConfig(channels=16, downsample=8, patch_size=2, tokens_per_side=64),
        tokens=SpecialTokens(
            begin=151_644, end=151_645, start_of_image=151_652, end_of_image=151_653
        ),
    )


def tiny(tokens: SpecialTokens, vocab_size: int = 1024) -> BagelConfig:
    """The embedded default: one 16 px cell is one patch of the encoder and one latent token."""
    return BagelConfig(
        decoder=DecoderConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=192,
            num_layers=5,
            num_heads=4,
            num_key_value_heads=2,
            rope_theta=1e4,
        ),
        vision=VisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_layers=1,
            num_heads=2,
            patch_size=16,
            patches_per_side=8,
        ),
        latent=LatentConfig(
            channels=16,
            downsample=16,
            patch_size=1,
            tokens_per_side=8,
            timestep_shift=4.0,
            codec="patch_pca",
        ),
        tokens=tokens,
    )


def d512(tokens: SpecialTokens, vocab_size: int = 1024) -> BagelConfig:
    """The tiny model's eyes and latents around a wider decoder: arithmetic counts, not overhead."""
    decoder = DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=512,
        intermediate_size=1536,
        num_layers=8,
        num_heads=8,
        num_key_value_heads=4,
        rope_theta=1e4,
    )
    return replace(tiny(tokens, vocab_size), decoder=decoder)
