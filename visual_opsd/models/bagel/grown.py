"""A tiny model that learns more than it was made for: new words and new patterns of pixels.

What it has not seen gets tokens, latent channels and directions of the patch embedding of its own.
What it has seen goes on as before, but for what the codec leaves of its pictures (of mazes 1e-3).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from tokenizers import Tokenizer as RawTokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from visual_opsd.models.bagel.codec import LatentCodec, PatchCodec
from visual_opsd.models.bagel.model import BagelModel
from visual_opsd.models.bagel.tokenizer import Tokenizer


@torch.no_grad()
def grown(
    model: BagelModel,
    tokenizer: Tokenizer,
    sentences: Iterable[str],
    images: Sequence[Float[Tensor, "3 _height _width"]],
    num_channels: int,
    generator: torch.Generator,
) -> tuple[BagelModel, Tokenizer]:
    """One token for each of ``sentences``, ``num_channels`` more for patches as of ``images``.

    A new token starts as the mean of those that spelt it, a new channel without influence.
    """
    assert model.codec is not None
    larger = _with_tokens(tokenizer, sentences)
    codec = with_channels(model.codec.model, images, num_channels)
    channels = codec.scale.numel()
    config = replace(
        model.config,
        decoder=replace(model.config.decoder, vocab_size=len(larger)),
        latent=replace(model.config.latent, channels=channels),
    )
    found = BagelModel(config, LatentCodec(codec), larger.decode)
    weights = found.state_dict()
    for name, old in model.state_dict().items():
        if not name.startswith("codec."):
            weights[name].zero_()[tuple(map(slice, old.shape))] = old
    pieces = [tokenizer.encode(larger.decode([i])) for i in range(len(tokenizer), len(larger))]
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        for offset, ids in enumerate(pieces):
            weights[name][len(tokenizer) + offset] = weights[name][list(ids)].mean(dim=0)
    _see(found, codec, num_channels, generator)
    return found, larger


def with_channels(
    codec: PatchCodec, images: Sequence[Float[Tensor, "3 _height _width"]], num_channels: int
) -> PatchCodec:
    """The same codec with principal components of what it leaves of ``images`` behind its own.

    Not centred: where it leaves nothing, the new latents are zero.
    """
    side = codec.patch_size
    patches = torch.cat(
        [rearrange(x, "c (h p) (w q) -> (h w) (c p q)", p=side, q=side) for x in images]
    )
    left = (patches - codec.mean).double()
    left -= left @ codec.basis.double() @ codec.basis.double().T
    values, vectors = torch.linalg.eigh(left.T @ left / len(left))
    deviations = values[-num_channels:].flip(-1).clamp(min=0).sqrt()
    larger = PatchCodec(side, codec.scale.numel() + num_channels)
    larger.mean.copy_(codec.mean)
    larger.basis.copy_(torch.cat([codec.basis, vectors[:, -num_channels:].flip(-1)], dim=1))
    larger.scale.copy_(torch.cat([codec.scale, deviations.clamp(min=codec.scale.min())]))
    return larger


def _with_tokens(tokenizer: Tokenizer, sentences: Iterable[str]) -> Tokenizer:
    raw = RawTokenizer.from_str(tokenizer.fast.backend_tokenizer.to_str())
    raw.add_tokens(list(sentences))
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=raw))


def _see(
    model: BagelModel, codec: PatchCodec, num_channels: int, generator: torch.Generator
) -> None:
    """Add a random turn of the new components to the patch embedding, as a fresh one starts."""
    embedding = model.vit_model.vision_model.embeddings.patch_embedding
    basis, scale = codec.basis[:, -num_channels:], codec.scale[-num_channels:]
    turn = torch.randn(embedding.out_features, num_channels, generator=generator)
    weight = turn * codec.scale.numel() ** -0.5 @ (basis / scale).T
    embedding.bias.sub_(weight @ codec.mean)
    side = codec.patch_size
    embedding.weight.add_(rearrange(weight, "o (c p q) -> o (p q c)", c=3, p=side, q=side))
