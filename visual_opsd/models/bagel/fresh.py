"""A tiny model before its first step: tokenizer and codec from data, weights from a seed."""

from collections.abc import Iterable, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from visual_opsd.models.bagel import presets
from visual_opsd.models.bagel.codec import LatentCodec, PatchCodec
from visual_opsd.models.bagel.model import BagelModel
from visual_opsd.models.bagel.tokenizer import Tokenizer, train_tiny_tokenizer

VOCABULARY_SIZE = 1024


def fresh_tiny(
    images: list[Float[Tensor, "3 _height _width"]],
    corpus: Iterable[str],
    constant_sentences: Sequence[str],
    seed: int,
) -> tuple[BagelModel, Tokenizer]:
    """Fit tokenizer and codec, draw the weights."""
    tokenizer = train_tiny_tokenizer(corpus, constant_sentences, VOCABULARY_SIZE)
    config = presets.tiny(tokenizer.marks, VOCABULARY_SIZE)
    codec = PatchCodec.fit(images, config.latent.pixels_per_token, config.latent.channels)
    model = BagelModel(config, LatentCodec(codec), tokenizer.decode)
    initialise(model, codec, torch.Generator().manual_seed(seed))
    return model, tokenizer


@torch.no_grad()
def initialise(model: BagelModel, codec: PatchCodec, generator: torch.Generator) -> None:
    """Linear maps keep half the variance; biases and the velocity start at zero.

    The patch embedding starts as a random turn of the codec's whitened components: from raw
    pixels, which are nearly all ice, reading is learnt ten times later than drawing.
    """
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        if weight.ndim == 2:
            is_embedding = name.endswith("embed_tokens.weight")
            deviation = 0.02 if is_embedding else 0.7 * weight.shape[1] ** -0.5
            nn.init.normal_(weight, std=deviation, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(weight)
    nn.init.zeros_(model.llm2vae.weight)

    embedding = model.vit_model.vision_model.embeddings.patch_embedding
    side, channels = codec.patch_size, codec.scale.numel()
    turn = torch.randn(embedding.out_features, channels, generator=generator) * channels**-0.5
    weight = turn @ (codec.basis / codec.scale).T
    embedding.bias.copy_(-(weight @ codec.mean))
    embedding.weight.copy_(rearrange(weight, "o (c p q) -> o (p q c)", c=3, p=side, q=side))
