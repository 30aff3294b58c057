"""A real BAGEL of about forty thousand weights with its tokenizer, on real mazes."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch

from datamodules.frozen_lake import MazeSettings, generate_problem
from datamodules.mazes import MazeData
from datamodules.thoughts import template_corpus
from visual_opsd.benchmarks.mazes import NAVIGATION_QUESTION
from visual_opsd.contexts import (
    REFERENCE_INTRO,
    SYSTEM_PROMPT_TRAIN,
    TRANSITION,
    Context,
    Problem,
)
from visual_opsd.models.bagel.codec import LatentCodec, PatchCodec, autoencoder_kl
from visual_opsd.models.bagel.config import (
    BagelConfig,
    DecoderConfig,
    LatentConfig,
    SpecialTokens,
    VisionConfig,
)
from visual_opsd.models.bagel.fresh import initialise
from visual_opsd.models.bagel.model import BagelModel
from visual_opsd.models.bagel.tokenizer import Tokenizer, train_tiny_tokenizer

VOCABULARY_SIZE = 320
ASKS = "</think><image_start>"
"""One token; who writes it asks for a drawing."""
CONSTANT_SENTENCES = (
    SYSTEM_PROMPT_TRAIN,
    REFERENCE_INTRO,
    TRANSITION,
    NAVIGATION_QUESTION,
    "<think>",
    ASKS,
    "<image_end><think>",
    "</think><answer>\\boxed{",
    "}</answer>",
)
SETTINGS = MazeSettings(sizes=(3, 4))


def some_problems(count: int) -> tuple[Problem, ...]:
    """Mazes of 3 x 3 and 4 x 4 cells in turn."""
    return tuple(generate_problem(SETTINGS, "validation", index) for index in range(count))


def make_tokenizer() -> Tokenizer:
    """Sentences of the prompts are one token each, as in the shipped one."""
    return train_tiny_tokenizer(template_corpus(), CONSTANT_SENTENCES, VOCABULARY_SIZE)


def configuration(tokens: SpecialTokens) -> BagelConfig:
    """The preset ``tiny``, four times narrower."""
    return BagelConfig(
        decoder=DecoderConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=32,
            intermediate_size=32,
            num_layers=2,
            num_heads=4,
            num_key_value_heads=2,
            rope_theta=1e4,
        ),
        vision=VisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_layers=1,
            num_heads=2,
            patch_size=16,
            patches_per_side=4,
        ),
        latent=LatentConfig(
            channels=4,
            downsample=16,
            patch_size=1,
            tokens_per_side=4,
            timestep_shift=4.0,
            codec="patch_pca",
        ),
        tokens=tokens,
    )


def make_model(
    tokenizer: Tokenizer, problems: Sequence[Problem], config: BagelConfig | None = None
) -> BagelModel:
    """Weights from a seed; the velocity does not start at zero, so that a drawing shows it."""
    config = config or configuration(tokenizer.marks)
    images = [image.pixels for p in problems for image in (p.image, *p.visual_thoughts)]
    codec = PatchCodec.fit(images, config.latent.pixels_per_token, config.latent.channels)
    model = BagelModel(config, LatentCodec(codec), tokenizer.decode)
    generator = torch.Generator().manual_seed(0)
    initialise(model, codec, generator)
    with torch.no_grad():
        model.llm2vae.weight.normal_(std=0.1, generator=generator)
    return model.eval()


@torch.no_grad()
def inclined(
    model: BagelModel, contexts: Sequence[Context], shares: dict[int, float]
) -> BagelModel:
    """Make some tokens come about that often: random weights alone write an end once in 320."""
    generator = torch.Generator().manual_seed(0)
    completions = [
        torch.randint(VOCABULARY_SIZE, (32,), generator=generator) for _ in range(len(contexts))
    ]
    mean = model(contexts, completions).mean(dim=0)
    for token, share in shares.items():
        logit = math.log(share * VOCABULARY_SIZE)
        model.language_model.lm_head.weight[token] = logit * mean / mean.square().sum()
    return model


def rounded(model: BagelModel) -> BagelModel:
    """Weights in bfloat16 as a run loads them: the codec stays float32."""
    for name, part in model.named_children():
        if name != "codec":
            part.to(torch.bfloat16)
    return model


def with_experts(config: BagelConfig, experts: str) -> BagelConfig:
    """The same shape, with ``separate`` or ``shared`` experts."""
    return replace(config, decoder=replace(config.decoder, experts=experts))


def make_autoencoder_model(
    tokenizer: Tokenizer,
    patch_size: int = 16,
    positions: int = 4,
    multipliers: tuple[int, ...] = (1, 2),
) -> BagelModel:
    """The same decoder behind a small AutoencoderKL: the codec of the 7B model.

    ``positions``: patches and latents a side, at most. ``multipliers``: of the autoencoder's
    channels, one a halving and one before.
    """
    downsample = 2 ** (len(multipliers) - 1)
    config = configuration(tokenizer.marks)
    vision = replace(config.vision, patch_size=patch_size, patches_per_side=positions)
    config = replace(config, vision=vision)
    latent = replace(config.latent, channels=4, codec="autoencoder_kl")
    latent = replace(
        latent,
        downsample=downsample,
        patch_size=16 // downsample,
        tokens_per_side=positions,
    )
    torch.manual_seed(0)  # diffusers draws its weights from the global state
    autoencoder = autoencoder_kl(
        channels=32, multipliers=multipliers, num_residual_blocks=1, latent_channels=4
    )
    codec = LatentCodec(autoencoder, scaling_factor=0.36, shift_factor=0.12)
    model = BagelModel(replace(config, latent=latent), codec, tokenizer.decode)
    return model.eval()


def quiet_trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    """On the CPU, in silence."""
    settings = {
        "max_steps": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "inference_mode": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(callbacks=list(callbacks), **{**settings, **options})


def fit(module: L.LightningModule, *callbacks: L.Callback, **options: Any) -> None:
    """Train on twelve mazes, two a batch."""
    data = MazeData.generated(SETTINGS, batch_size=2, num_problems=12)
    quiet_trainer(*callbacks, **options).fit(module, data)
