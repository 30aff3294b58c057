"""Three ways to answer the same problems."""

from dataclasses import replace

import pytest
import torch

from tests import tiny
from visual_opsd.contexts import student_context, teacher_context
from visual_opsd.models.interface import Drawing, Sampling
from visual_opsd.rollouts.answering import answer, in_batches

SAMPLING = Sampling(max_tokens=16)
DRAWING = Drawing(num_timesteps=3, text_guidance=1.0)


@pytest.fixture
def asking(model, tokenizer, problems):
    """A model that asks for a drawing about every other time."""
    contexts = [student_context(problem, tokenizer.encode) for problem in problems]
    (asks,) = tokenizer.encode(tiny.ASKS)
    return tiny.inclined(model, contexts, {tokenizer.marks.end: 0.15, asks: 0.15})


def ask(way, model, tokenizer, problems, **changes):
    settings = {"sampling": SAMPLING, "drawing": DRAWING, "seeds": range(len(problems))}
    return answer(way, model, tokenizer, problems, **{**settings, **changes})


@pytest.mark.parametrize(
    ("way", "see"), [("text_only", student_context), ("privileged", teacher_context)]
)
def test_words_are_sampled_in_the_students_or_the_teachers_context(
    base, tokenizer, problems, way, see
):
    given = ask(way, base, tokenizer, problems)
    contexts = [see(problem, tokenizer.encode) for problem in problems]
    expected = base.sample(contexts, SAMPLING, range(len(problems)))
    for row, one in enumerate(given):
        assert one.problem_id == problems[row].problem_id
        assert one.text == tokenizer.decode(expected.ids[row].tolist())
        assert one.num_tokens == expected.lengths[row]
        assert one.is_cut == expected.is_cut[row]
        assert one.drawn is None
        assert not one.has_skipped_drawing
        assert one.seconds > 0


def test_only_who_asks_gets_a_drawing(asking, tokenizer, problems):
    given = ask("drawn", asking, tokenizer, problems)
    has_drawn = [one.drawn is not None for one in given]
    assert 0 < sum(has_drawn) < len(problems)
    for one, problem in zip(given, problems, strict=True):
        assert one.has_skipped_drawing == (one.drawn is None)
        if one.drawn is not None:
            assert "<image_start>" in one.text
            assert one.drawn.pixels.shape == problem.image.pixels.shape
            assert one.num_tokens > 1


@pytest.mark.parametrize("way", ["text_only", "privileged", "drawn"])
def test_an_answer_does_not_depend_on_its_batch(asking, tokenizer, problems, way):
    together = ask(way, asking, tokenizer, problems)
    for row, problem in enumerate(problems):
        (alone,) = ask(way, asking, tokenizer, [problem], seeds=[row])
        assert (alone.text, alone.num_tokens, alone.is_cut, alone.has_skipped_drawing) == (
            together[row].text,
            together[row].num_tokens,
            together[row].is_cut,
            together[row].has_skipped_drawing,
        )


@pytest.mark.parametrize("way", ["text_only", "drawn"])
def test_only_the_privileged_way_looks_at_the_given_visual_thought(
    asking, tokenizer, problems, way
):
    """Neither the student nor the drawer gains from a visual thought that the data set holds."""
    bare = [
        replace(problem, visual_thoughts=(), answer="", text_only_thought="")
        for problem in problems
    ]
    given, without = (ask(way, asking, tokenizer, p) for p in (problems, bare))
    assert [one.text for one in given] == [one.text for one in without]


def test_a_model_that_never_asks_is_counted_as_skipping(base, tokenizer, problems):
    given = ask("drawn", base, tokenizer, problems)
    assert all(one.has_skipped_drawing for one in given)


def test_batches_hold_one_size_and_every_problem_once(problems):
    batches = list(in_batches(problems, 3))
    assert sorted(index for batch in batches for index in batch) == list(range(8))
    assert [len(batch) for batch in batches] == [3, 1, 3, 1]
    sizes = [{tuple(problems[i].image.pixels.shape) for i in batch} for batch in batches]
    assert all(len(size) == 1 for size in sizes)
    areas = [torch.Size(size.pop()).numel() for size in sizes]
    assert areas == sorted(areas, reverse=True)


def test_what_is_looked_at_may_be_another_picture_than_the_one_drawn(asking, tokenizer, problems):
    """As where noise takes the drawing's place at inference: who drew nothing answers the same."""
    kept = ask("drawn", asking, tokenizer, problems)
    same = ask("drawn", asking, tokenizer, problems, show=lambda problem, drawn: drawn)
    blank = ask(
        "drawn",
        asking,
        tokenizer,
        problems,
        show=lambda problem, drawn: replace(drawn, pixels=torch.zeros_like(drawn.pixels)),
    )
    assert [one.text for one in same] == [one.text for one in kept]
    pairs = list(zip(kept, blank, strict=True))
    assert any(one.text != other.text for one, other in pairs)
    for one, other in pairs:
        assert (one.drawn is None) == (other.drawn is None)
        if one.drawn is None:
            assert one.text == other.text
        else:
            assert torch.equal(one.drawn.pixels, other.drawn.pixels)
