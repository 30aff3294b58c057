"""A model that is made for more than it knows, and still knows what it knew."""

from dataclasses import replace

import pytest
import torch
from einops import rearrange

from datamodules.twins import TWIN_TASKS, TwinSettings, generate_twin
from visual_opsd.contexts import student_context
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.bagel.grown import grown, with_channels

PHRASE = "What is the value of the "
TWINS = [
    generate_twin(TwinSettings(task=task), "train", index).problem()
    for task in TWIN_TASKS
    for index in range(2)
]
IMAGES = [image.pixels for problem in TWINS for image in (problem.image, *problem.visual_thoughts)]


@pytest.fixture(scope="module")
def larger(base, tokenizer):
    generator = torch.Generator().manual_seed(0)
    return grown(base, tokenizer, [PHRASE, "hourglass"], IMAGES, 6, generator)


@torch.no_grad()
def test_what_it_knew_it_knows(base, tokenizer, problems, larger):
    """Pictures that the codec keeps whole have the same states, tokens and latents as before."""
    model, _ = larger
    codec = base.codec.model
    for problem in problems[:2]:
        kept = codec.decode(codec.encode(problem.image.pixels[None]).latent_dist.mean).sample[0]
        seen = replace(problem, image=replace(problem.image, pixels=kept))
        contexts = [student_context(seen, tokenizer.encode)]
        ids = [torch.tensor(tokenizer.encode(problem.solution))]
        torch.testing.assert_close(model(contexts, ids), base(contexts, ids), atol=1e-4, rtol=1e-4)
        before, after = base.codec.encode(kept), model.codec.encode(kept)
        torch.testing.assert_close(after[:4], before, atol=1e-4, rtol=1e-4)
        assert after[4:].abs().max() < 1e-3


def test_it_keeps_more_of_the_new_pictures(base):
    left = []
    for count in (1, 6):
        codec = with_channels(base.codec.model, IMAGES, count)
        kept = [codec.decode(codec.encode(x[None]).latent_dist.mean).sample[0] for x in IMAGES]
        left.append(sum(float((k - x).square().sum()) for k, x in zip(kept, IMAGES, strict=True)))
        assert torch.allclose(codec.basis.T @ codec.basis, torch.eye(4 + count), atol=1e-4)
    assert left[0] > left[1]


@torch.no_grad()
def test_it_sees_what_it_could_not_tell_apart(base, larger):
    """A pattern that the codec dropped, and the patch embedding, which had started from it, too."""
    model, _ = larger
    codec = model.codec.model
    pattern = rearrange(codec.basis[:, 4] * codec.scale[4], "(c p q) -> (p q c)", c=3, p=16, q=16)
    seen = [
        each.vit_model.vision_model.embeddings.patch_embedding.weight @ pattern
        for each in (base, model)
    ]
    assert seen[0].abs().max() < 1e-4
    assert seen[1].abs().max() > 0.1


def test_a_phrase_is_one_token_that_starts_as_the_mean_of_its_pieces(base, tokenizer, larger):
    model, spoken = larger
    text = f"{PHRASE}purple bar?"
    (first, *_), pieces = spoken.encode(text), list(tokenizer.encode(PHRASE))
    assert first >= len(tokenizer)
    assert len(pieces) > 1
    assert spoken.decode(spoken.encode(text)) == text
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        before, after = (checkpoints.weights(each)[name] for each in (base, model))
        torch.testing.assert_close(after[first], before[pieces].mean(dim=0))


def test_it_is_a_model_folder_like_any_other(larger, tmp_path):
    model, tokenizer = larger
    checkpoints.save(model, tokenizer, tmp_path)
    loaded, _ = checkpoints.load(tmp_path)
    assert loaded.config == model.config
    for name, weight in checkpoints.weights(loaded).items():
        assert torch.equal(weight, checkpoints.weights(model)[name])
