"""Drawing: a picture is a function of its own context and seed, however it is computed."""

import copy
from dataclasses import replace

import pytest
import torch

from tests import tiny
from visual_opsd.contexts import DrawingContext, Role, Text, drawing_context, start_drawing
from visual_opsd.models.interface import Drawing, Sampling
from visual_opsd.rollouts.trajectories import rescoring_error

PLAIN = Drawing(num_timesteps=5, text_guidance=1.0, image_guidance=1.0)
GUIDED = Drawing(num_timesteps=4, text_guidance=4.0, image_guidance=2.0)
GREY_LEVEL = 2 / 255


@pytest.fixture(scope="module")
def with_autoencoder(tokenizer):
    return tiny.make_autoencoder_model(tokenizer)


@pytest.fixture
def contexts(problems, tokenizer):
    thought = Text(tokenizer.encode("<think>The red line.</think><image_start>"))
    return [drawing_context(problem, tokenizer.encode, thought) for problem in problems[:4]]


def grids_of(contexts):
    return [tuple(side // 16 for side in c.main[1].pixels.shape[1:]) for c in contexts]


def noise_for(model, contexts, seed=0):
    tokens = sum(height * width for height, width in grids_of(contexts))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, model.config.latent.token_size, generator=generator)


def pictures_differ(one, other):
    return (one.pixels - other.pixels).abs().max().item()


@pytest.mark.parametrize("drawing", [PLAIN, GUIDED], ids=["plain", "guided"])
def test_a_drawing_depends_on_its_own_row_alone(base, contexts, drawing):
    """Not on its batch mates, though they are larger, nor on their order."""
    seeds = [3, 1, 4, 1]
    together = base.draw(contexts, drawing, seeds)
    backwards = base.draw(contexts[::-1], drawing, seeds[::-1])[::-1]
    for row, context in enumerate(contexts):
        (alone,) = base.draw([context], drawing, [seeds[row]])
        # A value on the edge between two grey levels may fall on either side.
        assert pictures_differ(alone, together[row]) <= 1.01 * GREY_LEVEL
        assert pictures_differ(alone, backwards[row]) <= 1.01 * GREY_LEVEL
    (reseeded,) = base.draw(contexts[:1], drawing, [9])
    assert pictures_differ(reseeded, together[0]) > 10 * GREY_LEVEL


def test_a_drawing_depends_on_its_context(base, contexts, problems, tokenizer):
    one, other = contexts[0], contexts[2]  # both 3 x 3
    pictures = base.draw([one, other], GUIDED, [0, 0])
    assert pictures_differ(*pictures) > 2 * GREY_LEVEL


def test_a_drawing_is_as_large_as_its_problem_and_made_of_grey_levels(base, contexts, problems):
    before = torch.random.get_rng_state()
    for picture, problem in zip(base.draw(contexts, PLAIN, range(4)), problems, strict=False):
        assert picture.pixels.shape == problem.image.pixels.shape
        assert picture.role is Role.VISUAL_THOUGHT
        levels = (picture.pixels + 1) * 127.5
        torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
        assert levels.min() >= 0
        assert levels.max() <= 255
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.4, 1.0)], ids=["always", "early"])
@pytest.mark.parametrize("renormalisation", ["global", "channel", "text_channel"])
@pytest.mark.parametrize("image_guidance", [2.0, 1.0], ids=["image-guided", "text-guided"])
def test_guidance_in_one_batch_equals_separate_calls(
    base, contexts, renormalisation, image_guidance, interval
):
    drawing = replace(
        GUIDED,
        renormalisation=renormalisation,
        image_guidance=image_guidance,
        guidance_interval=interval,
    )
    noise, grids = noise_for(base, contexts), grids_of(contexts)
    one = base.flow(contexts, drawing, noise, grids)
    separate = base.flow(contexts, replace(drawing, branches_in_one_batch=False), noise, grids)
    torch.testing.assert_close(one, separate, atol=1e-5, rtol=0)
    unguided = base.flow(contexts, replace(drawing, text_guidance=1.0), noise, grids)
    assert (one - unguided).abs().max() > 1e-3


def test_words_alone_become_a_picture_of_the_size_asked_for(base, tokenizer):
    """Text to image: the text-free branch sees nothing at all."""
    prompts = [(Text(tokenizer.encode(words)),) for words in ("A red line.", "Ice, and a hole.")]
    contexts = [start_drawing(prompt) for prompt in prompts]
    assert contexts[0].text_free == ()
    drawing = replace(GUIDED, image_guidance=1.0, renormalisation="global", size=(48, 32))
    together = base.draw(contexts, drawing, [0, 0])
    assert {picture.pixels.shape for picture in together} == {(3, 48, 32)}
    assert pictures_differ(*together) > 2 * GREY_LEVEL
    for one_batch in (True, False):
        (alone,) = base.draw(contexts[1:], replace(drawing, branches_in_one_batch=one_batch), [0])
        assert pictures_differ(alone, together[1]) <= 1.01 * GREY_LEVEL


def test_guidance_between_equal_branches_changes_nothing(base, contexts):
    """Where leaving text or image out makes no difference, there is nothing to follow."""
    same = [DrawingContext(context.main, context.main, context.main) for context in contexts]
    noise, grids = noise_for(base, contexts), grids_of(contexts)
    guided = base.flow(same, replace(GUIDED, renormalisation="channel"), noise, grids)
    plain = base.flow(same, replace(GUIDED, text_guidance=1.0), noise, grids)
    torch.testing.assert_close(guided, plain, atol=1e-4, rtol=1e-4)


def test_a_flow_without_velocity_stays_where_it_is(base, contexts):
    """Euler steps along zero: what comes out is the noise."""
    model = copy.deepcopy(base)
    torch.nn.init.zeros_(model.llm2vae.weight)
    noise = noise_for(model, contexts)
    assert torch.equal(model.flow(contexts, GUIDED, noise, grids_of(contexts)), noise)


def test_a_constant_velocity_is_followed_from_one_to_zero(base, contexts):
    """x_0 = x_1 - v, whatever the grid of times: the steps add up to one."""
    model = copy.deepcopy(base)
    torch.nn.init.zeros_(model.llm2vae.weight)
    torch.nn.init.constant_(model.llm2vae.bias, 0.25)
    noise, grids = noise_for(model, contexts), grids_of(contexts)
    for drawing in (PLAIN, replace(PLAIN, num_timesteps=9, timestep_shift=1.0)):
        found = model.flow(contexts, drawing, noise, grids)
        torch.testing.assert_close(found, noise - 0.25, atol=1e-5, rtol=0)


def test_rounded_weights_draw_on_latents_that_are_not_rounded(base, contexts):
    """The official sampler keeps x in float32 from step to step; diffusers follows the velocity."""
    rounded = tiny.rounded(copy.deepcopy(base))
    drawing = Drawing(num_timesteps=4)
    width = base.config.latent.token_size
    noise = torch.randn(16, width, generator=torch.Generator().manual_seed(0))
    latents = rounded.flow(contexts[:1], drawing, noise, [(4, 4)])
    assert latents.dtype == torch.float32
    assert not torch.equal(latents, latents.to(torch.bfloat16).float())
    assert rounded.draw(contexts[:1], drawing, [0])[0].pixels.isfinite().all()


def test_rounded_weights_draw_through_an_autoencoder_in_float32(tokenizer, contexts):
    model = tiny.rounded(tiny.make_autoencoder_model(tokenizer))
    picture = model.draw(contexts[:1], Drawing(num_timesteps=3), [0])[0].pixels
    assert picture.isfinite().all()
    latents = torch.zeros(4, 8, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.codec.decode(latents).dtype == torch.float32
        assert model.codec.encode(picture.bfloat16()).dtype == torch.float32


def test_the_autoencoder_of_the_7b_draws_too(with_autoencoder, contexts, problems):
    model = with_autoencoder
    together = model.draw(contexts[:2], GUIDED, [0, 1])
    for picture, problem in zip(together, problems, strict=False):
        assert picture.pixels.shape == problem.image.pixels.shape
    (alone,) = model.draw(contexts[1:2], GUIDED, [1])
    assert pictures_differ(alone, together[1]) <= 1.01 * GREY_LEVEL


def test_a_sampled_posterior_is_the_same_for_sampling_and_scoring(with_autoencoder, contexts):
    """The autoencoder's latents have a spread; in a context it is a function of the picture."""
    model, sees = with_autoencoder, [context.main for context in contexts]
    completions = model.sample(sees, Sampling(max_tokens=6), range(len(sees)))
    assert rescoring_error(model, sees, completions) <= 1e-4


def test_what_cannot_be_drawn_is_an_error_that_says_why(base, contexts):
    blind = copy.deepcopy(base)
    blind.codec = None
    with pytest.raises(ValueError, match="loaded without a codec: it cannot draw"):
        blind.draw(contexts, PLAIN, range(4))
    with pytest.raises(ValueError, match="without a codec: it cannot see latents"):
        blind.sample([contexts[0].main], Sampling(), [0])
    wordy = DrawingContext((Text((5,)),), (Text((5,)),), (Text((5,)),))
    with pytest.raises(ValueError, match=r"needs drawing\.size, or an image in its context"):
        base.draw([wordy], PLAIN, [0])
    for size in ((48, 40), (48, 80)):
        with pytest.raises(
            ValueError, match=rf"{size[1]} px must be multiples of 16 px, at most 64"
        ):
            base.draw([wordy], replace(PLAIN, size=size), [0])
    with pytest.raises(ValueError, match=r"size must be at least 1 x 1 pixels, got \(0, 64\)"):
        Drawing(size=(0, 64))
    with pytest.raises(ValueError, match="num_timesteps must be >= 2, got 1"):
        Drawing(num_timesteps=1)
    with pytest.raises(ValueError, match="timestep_shift must be > 0, got 0"):
        Drawing(timestep_shift=0)


@pytest.mark.parametrize("drawing", [PLAIN, GUIDED], ids=["plain", "guided"])
def test_who_watches_sees_every_step_come_closer_and_changes_nothing(base, contexts, drawing):
    seen = []
    watched = base.draw(contexts, drawing, [3, 1, 4, 1], lambda *step: seen.append(step))
    unwatched = base.draw(contexts, drawing, [3, 1, 4, 1])
    times, forecasts = zip(*seen, strict=True)
    assert times[0] == 1.0
    assert list(times) == sorted(times, reverse=True)
    assert len(times) == drawing.num_timesteps - 1
    for row, image in enumerate(unwatched):
        assert torch.equal(watched[row].pixels, image.pixels)
        # Euler's last step goes where the forecast points.
        assert pictures_differ(forecasts[-1][row], image) <= 1.01 * GREY_LEVEL
        assert pictures_differ(forecasts[0][row], image) > 10 * GREY_LEVEL
