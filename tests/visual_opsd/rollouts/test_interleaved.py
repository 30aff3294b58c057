"""Think, draw, look, as often as a drawing is asked for."""

from dataclasses import replace

import pytest

from tests import tiny
from tests.oracle import ROOT
from visual_opsd.contexts import SYSTEM_PROMPT_TRAIN, Image, Text, start_drawing
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.interface import Drawing, Sampling
from visual_opsd.rollouts.answering import answer
from visual_opsd.rollouts.interleaved import Interleaving, Outcome, reason, show_as_drawn
from visual_opsd.seeds import row_seed

DRAWING = Drawing(num_timesteps=3)
HOW = Interleaving(
    max_rounds=2,
    sampling=Sampling(max_tokens=12),
    drawing=DRAWING,
    system_prompt=SYSTEM_PROMPT_TRAIN,
)


@pytest.fixture
def inputs(problems, tokenizer):
    return [
        (show_as_drawn(problem.image), Text(tokenizer.encode(problem.question)))
        for problem in problems
    ]


def asking(model, tokenizer, inputs, share):
    """A model that asks for a drawing with about every ``1 / share``-th token."""
    contexts = [
        start_drawing(given, Text(tokenizer.encode(SYSTEM_PROMPT_TRAIN))).main for given in inputs
    ]
    (asks,) = tokenizer.encode(tiny.ASKS)
    return tiny.inclined(model, contexts, {tokenizer.marks.end: 0.15, asks: share})


def test_it_goes_on_while_a_drawing_is_asked_for(model, tokenizer, inputs):
    model = asking(model, tokenizer, inputs, 0.15)
    found = reason(model, tokenizer, inputs, HOW, range(len(inputs)))
    assert {len(one.images) for one in found} == {0, 1, 2}
    for one in found:
        kinds = [isinstance(output, Image) for output in one.outputs]
        assert kinds == [index % 2 == 1 for index in range(len(kinds))]
        asked = ["<image_start>" in text for text in one.texts]
        assert asked == [index < len(one.images) for index in range(len(asked))]
        assert (one.outcome is Outcome.OUT_OF_ROUNDS) == (len(one.images) == 2)
        assert 0 < one.num_tokens <= 12 * len(one.texts)
        assert one.seconds > 0


def test_an_ending_says_whether_the_model_or_the_budget_made_it(base, tokenizer, inputs):
    outcomes = {}
    for max_tokens in (1, 40):
        how = replace(HOW, sampling=Sampling(max_tokens=max_tokens))
        outcomes[max_tokens] = [
            one.outcome for one in reason(base, tokenizer, inputs, how, range(len(inputs)))
        ]
    assert set(outcomes[1]) == {Outcome.CUT}
    assert Outcome.ANSWERED in outcomes[40]


@pytest.mark.parametrize("mends_faults", [False, True], ids=["official", "mended"])
def test_reasoning_depends_on_its_own_problem_and_seed_alone(
    model, tokenizer, inputs, mends_faults
):
    model = asking(model, tokenizer, inputs, 0.15)
    how = replace(HOW, mends_faults=mends_faults)
    together = reason(model, tokenizer, inputs, how, range(len(inputs)))
    for index, given in enumerate(inputs):
        (alone,) = reason(model, tokenizer, [given], how, [index])
        assert alone.texts == together[index].texts
        assert alone.outcome is together[index].outcome
        for one, other in zip(alone.images, together[index].images, strict=True):
            assert (one.pixels - other.pixels).abs().max() <= 1.01 * 2 / 255


def test_the_official_loop_guides_by_the_inputs_alone(model, tokenizer, inputs):
    model = asking(model, tokenizer, inputs, 0.9)
    (found,) = reason(model, tokenizer, inputs[:1], HOW, [0])
    start = start_drawing(inputs[0], Text(tokenizer.encode(SYSTEM_PROMPT_TRAIN)))
    assert found.outcome is Outcome.OUT_OF_ROUNDS
    assert found.context.text_free == start.text_free
    assert found.context.image_free == start.image_free
    assert len(found.context.main) == len(start.main) + 4


def test_mended_reasoning_has_a_last_word_and_guidance_that_follows(model, tokenizer, inputs):
    model = asking(model, tokenizer, inputs, 0.9)
    (found,) = reason(model, tokenizer, inputs[:1], replace(HOW, mends_faults=True), [0])
    (official,) = reason(model, tokenizer, inputs[:1], HOW, [0])
    assert len(found.images) == len(official.images) == 2
    assert len(found.texts) == len(official.texts) + 1
    assert isinstance(found.outputs[-1], str)
    main, text_free, image_free = (
        found.context.main,
        found.context.text_free,
        found.context.image_free,
    )
    assert text_free == main[:-1]  # all but what was written last
    assert image_free == tuple(segment for segment in main if isinstance(segment, Text))


def test_one_mended_round_is_the_drawn_way_of_answering(problems):
    """On the shipped base, unguided: the same words and the same drawings, to the bit."""
    shipped, tokenizer = checkpoints.load(ROOT / "experiments" / "bases" / "tiny")
    inputs = [
        (show_as_drawn(problem.image), Text(tokenizer.encode(problem.question)))
        for problem in problems
    ]
    greedy = Sampling(temperature=0, max_tokens=64)
    plain = Drawing(num_timesteps=3, text_guidance=1.0)
    how = replace(HOW, max_rounds=1, sampling=greedy, drawing=plain, mends_faults=True)
    loop = reason(shipped, tokenizer, inputs, how, range(len(inputs)))
    seeds = [row_seed(index, 0) for index in range(len(inputs))]
    given = answer(
        "drawn", shipped, tokenizer, problems, sampling=greedy, drawing=plain, seeds=seeds
    )
    assert sum(one.drawn is not None for one in given) > len(problems) / 2
    for one, other in zip(loop, given, strict=True):
        assert "".join(one.texts) == other.text
        assert one.num_tokens == other.num_tokens
        assert [image.pixels.tolist() for image in one.images] == (
            [] if other.drawn is None else [other.drawn.pixels.tolist()]
        )


def test_nonsense_is_refused_by_value(base, tokenizer, inputs):
    with pytest.raises(ValueError, match="max_rounds must be >= 1, got 0"):
        Interleaving(max_rounds=0)
    with pytest.raises(ValueError, match="needs a question, got 1 images and no text"):
        reason(base, tokenizer, [inputs[0][:1]], HOW, [0])
    assert reason(base, tokenizer, [], HOW, []) == []
