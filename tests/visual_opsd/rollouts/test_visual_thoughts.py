"""Drawn visual thoughts are drawn once."""

import copy
from dataclasses import replace

import pytest
import torch

from datamodules.frozen_lake import MazeSettings
from datamodules.thinkmorph import ThinkMorphFolder, write_mazes
from tests.tiny import make_autoencoder_model
from visual_opsd.contexts import Role, teacher_context
from visual_opsd.demonstrations import interleaved
from visual_opsd.models.bagel.preprocessing import Protocol, ResizeRule, to_picture
from visual_opsd.models.interface import Drawing, Sampling
from visual_opsd.rollouts.cache import DrawingCache
from visual_opsd.rollouts.visual_thoughts import Illustrator

DRAWING = Drawing(num_timesteps=3, text_guidance=1.0)


@pytest.fixture
def illustrator_of(base, tokenizer, tmp_path):
    def make(load=lambda: base, **changes):
        settings = {
            "checkpoint": "digest",
            "cache": DrawingCache(tmp_path),
            "drawing": DRAWING,
            "sampling": Sampling(max_tokens=6),
            "seed": 0,
        }
        return Illustrator(load, tokenizer, **{**settings, **changes})

    return make


def never():
    raise AssertionError("the start weights were loaded though nothing had to be drawn")


def pixels_of(problems):
    return [problem.visual_thoughts[0].pixels for problem in problems]


def assert_same(ones, others):
    assert all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def test_every_problem_gets_a_drawing_of_its_own_size(illustrator_of, problems):
    illustrator = illustrator_of()
    shown = illustrator.illustrate(problems)
    assert illustrator.num_drawn == len(problems)
    for before, after in zip(problems, shown, strict=True):
        (thought,) = after.visual_thoughts
        assert thought.role is Role.VISUAL_THOUGHT
        assert thought.pixels.shape == before.image.pixels.shape
        assert not torch.equal(thought.pixels, before.visual_thoughts[0].pixels)
        assert replace(after, visual_thoughts=before.visual_thoughts).answer == before.answer


def test_a_second_run_draws_nothing_and_shows_the_same(illustrator_of, problems):
    """It does not even load the start weights."""
    first = pixels_of(illustrator_of().illustrate(problems))
    again = illustrator_of(load=never)
    assert_same(pixels_of(again.illustrate(problems)), first)
    assert again.num_drawn == 0


def test_a_miss_shows_what_a_hit_would(illustrator_of, problems):
    """What is drawn is written, and what is shown is read: a resumed run sees the same bytes."""
    illustrator = illustrator_of()
    assert_same(
        pixels_of(illustrator.illustrate(problems)), pixels_of(illustrator.illustrate(problems))
    )
    assert illustrator.num_drawn == len(problems)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed"])
def test_a_damaged_entry_is_drawn_again(illustrator_of, problems, damage, tmp_path):
    first = pixels_of(illustrator_of().illustrate(problems))
    entry = sorted(tmp_path.rglob("*.png"))[3]
    content = bytearray(entry.read_bytes())
    if damage == "truncated":
        entry.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
        entry.write_bytes(content)
    else:
        entry.unlink()
    again = illustrator_of()
    shown = pixels_of(again.illustrate(problems))
    assert again.num_drawn == 1
    # Drawn alone this time: a value on the edge of two grey levels may fall on either side.
    for one, other in zip(shown, first, strict=True):
        torch.testing.assert_close(one, other, atol=2.1 / 255, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": "another"},
        {"drawing": replace(DRAWING, num_timesteps=4)},
        {"sampling": Sampling(max_tokens=7)},
        {"seed": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whoever_would_draw_something_else_draws_for_itself(illustrator_of, problems, change):
    illustrator_of().illustrate(problems[:2])
    other = illustrator_of(**change)
    other.illustrate(problems[:2])
    assert other.num_drawn == 2


def test_another_picture_or_question_is_another_entry(illustrator_of, problems):
    illustrator = illustrator_of()
    first, second = problems[0], problems[2]
    illustrator.illustrate([first])
    illustrator.illustrate([replace(first, question=f"{first.question} Why?")])
    illustrator.illustrate([replace(first, image=second.image)])
    illustrator.illustrate([replace(first, problem_id="another")])
    assert illustrator.num_drawn == 4


def test_what_the_data_set_says_beside_the_problem_changes_no_drawing(illustrator_of, problems):
    """The drawer sees neither the answer nor anybody's thoughts."""
    illustrator = illustrator_of()
    (first,) = pixels_of(illustrator.illustrate(problems[:1]))
    bare = replace(
        problems[0], answer="", visual_thoughts=(), text_thoughts=(), text_only_thought=""
    )
    (again,) = pixels_of(illustrator.illustrate([bare]))
    assert torch.equal(first, again)
    assert illustrator.num_drawn == 1


def test_how_rollouts_are_sampled_changes_no_drawing(illustrator_of, problems):
    """The thought before a drawing is greedy."""
    illustrator_of().illustrate(problems[:1])
    other = illustrator_of(sampling=Sampling(max_tokens=6, temperature=0.7), load=never)
    other.illustrate(problems[:1])


def test_drawing_needs_no_gradient_and_moves_no_weight(illustrator_of, base, problems):
    before = copy.deepcopy(base.state_dict())
    (shown,) = illustrator_of().illustrate(problems[:1])
    assert not shown.visual_thoughts[0].pixels.requires_grad
    assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())


def test_where_reading_and_drawing_differ_in_size_rows_are_drawn_for_read_and_imitated(
    tokenizer, illustrator_of, tmp_path
):
    """Patches of 14 px, latents of 16, as the 7B model has them, on rows of a folder."""
    protocol = Protocol(
        read=ResizeRule(max_side=56, min_side=28, stride=14),
        drawn=ResizeRule(max_side=64, min_side=32, stride=16),
    )
    write_mazes(tmp_path / "data", MazeSettings(sizes=(3,)), "train", 2)
    rows = ThinkMorphFolder(tmp_path / "data", cell=None, protocol=protocol)
    model = make_autoencoder_model(tokenizer, patch_size=14)
    illustrator = illustrator_of(
        load=lambda: model, look=lambda drawn: protocol.kept(to_picture(drawn.pixels), drawn.role)
    )
    shown = illustrator.illustrate([rows[0], rows[1]])
    assert illustrator.num_drawn == 2
    for problem in shown:
        (thought,) = problem.visual_thoughts
        assert thought.role is Role.VISUAL_THOUGHT
        assert not thought.with_latents
        assert thought.pixels.shape == problem.image.pixels.shape == (3, 56, 56)
        assert thought.latent_pixels.shape == problem.image.latent_pixels.shape == (3, 64, 64)
    completion = [torch.tensor(tokenizer.encode("a word"))]
    logits = model([teacher_context(shown[0], tokenizer.encode)], completion)
    assert logits.isfinite().all()
    losses = model.interleaved_loss([interleaved(rows[0], tokenizer.encode)], [0])
    assert losses["drawing"].isfinite()
    assert losses["drawing"] > 0
