import re
from collections import Counter

import numpy as np
import pytest
import torch

from datamodules.splits import split_of_key
from datamodules.twins import (
    FORMS,
    MISSING_CORNER,
    TWIN_TASKS,
    TwinSettings,
    form_of,
    generate_twin,
)
from visual_opsd.benchmarks.charts import CHART_TASK
from visual_opsd.benchmarks.jigsaw import JIGSAW_TASK
from visual_opsd.benchmarks.visual_search import SEARCH_TASK


def _twins(task, count=40, split="train", **settings):
    chosen = TwinSettings(task=task, **settings)
    return [generate_twin(chosen, split, index) for index in range(count)]


def _words(text):
    return re.findall(r"\w+", text.lower())


@pytest.fixture(scope="module", params=TWIN_TASKS)
def twins(request):
    forms = FORMS[request.param]
    if request.param == JIGSAW_TASK:
        forms += (MISSING_CORNER,)
    return _twins(request.param, 48, forms=forms, thought_length="faithful")


def test_the_pictures_alone_tell_the_answer(twins):
    for twin in twins:
        assert twin.puzzle.seen_answer() == twin.puzzle.answer


def test_a_twin_depends_on_settings_split_and_index_alone(twins):
    again = generate_twin(TwinSettings(task=twins[0].puzzle.task), "train", 7).problem()
    same = generate_twin(TwinSettings(task=twins[0].puzzle.task), "train", 7).problem()
    assert torch.equal(again.image.pixels, same.image.pixels)
    assert (again.question, again.text_thoughts) == (same.question, same.text_thoughts)
    other = generate_twin(TwinSettings(task=twins[0].puzzle.task, seed=1), "train", 7).problem()
    assert other.image.pixels.shape != again.image.pixels.shape or not torch.equal(
        other.image.pixels, again.image.pixels
    )


def test_sides_are_whole_patches_of_the_tiny_model(twins):
    for twin in twins:
        problem = twin.problem()
        for image in (problem.image, *problem.visual_thoughts):
            assert not any(side % 16 for side in image.pixels.shape[1:])


def test_the_thought_before_the_drawing_never_states_the_answer(twins):
    for twin in twins:
        puzzle = twin.puzzle
        options = puzzle.options or (puzzle.answer,)
        said = dict(zip("ABCD", options, strict=False)).get(puzzle.answer, puzzle.answer)
        before, after = twin.thoughts.text_thoughts
        assert puzzle.conclusion not in before
        assert puzzle.conclusion in after
        if puzzle.task == SEARCH_TASK:
            assert said not in _words(before.replace(puzzle.subject, ""))
        if puzzle.task == JIGSAW_TASK:
            assert "should" not in before
        if puzzle.task == CHART_TASK:
            bars = {"There are 3 bars.", "There are 4 bars.", "There are 5 bars."}
            assert not re.search(r"\d", before.replace(next(b for b in bars if b in before), ""))


@pytest.mark.parametrize("task", TWIN_TASKS)
def test_no_key_is_in_two_splits(task):
    for split in ("validation", "test", "hard"):
        wanted = "test" if split == "hard" else split
        assert {split_of_key(t.puzzle.key) for t in _twins(task, 5, split, pixels=32)} == {wanted}


@pytest.mark.parametrize("task", [SEARCH_TASK, JIGSAW_TASK])
def test_the_right_letter_is_no_habit(task):
    """Chi-squared of four letters, and of two, against chance: 0.1 % points."""
    twins = _twins(task, 120, pixels=32)
    for num_options, limit in ((2, 10.8), (4, 16.3)):
        letters = Counter(t.puzzle.answer for t in twins if len(t.puzzle.options) == num_options)
        expected = letters.total() / num_options
        counts = [letters[letter] for letter in "ABCD"[:num_options]]
        assert sum((count - expected) ** 2 / expected for count in counts) < limit


@pytest.mark.parametrize("pixels", [32, 48, 128])
@pytest.mark.parametrize("task", TWIN_TASKS)
def test_other_sizes_are_told_by_their_pictures_too(task, pixels):
    for twin in _twins(task, 5, "hard", pixels=pixels):
        assert twin.puzzle.seen_answer() == twin.puzzle.answer


def test_a_large_chart_has_names_and_numbers_at_its_axes():
    for index in (0, 4):
        twin = generate_twin(TwinSettings(task=CHART_TASK, pixels=256), "train", index)
        picture = np.asarray(twin.puzzle.pictures()[0])
        assert picture.shape == (256, 256, 3)
        assert (picture[-40:, 60:].min(axis=(0, 2)) < 128).any(), "ink below the axis"
        assert twin.puzzle.seen_answer() == twin.puzzle.answer


def test_a_drawing_differs_from_the_problem_where_it_is_drawn_on_it():
    for task in (SEARCH_TASK, CHART_TASK):
        for twin in _twins(task, 7):
            before = np.asarray(twin.puzzle.pictures()[0], dtype=int)
            after = np.asarray(twin.puzzle.visual_thought(), dtype=int)
            changed = (before != after).any(axis=2)
            assert 0 < changed.mean() < 0.6
            assert (after - before)[changed][:, 1:].max() <= 0, "red only takes green and blue"


def test_the_form_goes_round():
    settings = TwinSettings(task=JIGSAW_TASK)
    categories = [generate_twin(settings, "train", index).puzzle.category for index in range(6)]
    assert categories == [form_of(settings, index) for index in range(6)]
    assert categories == ["1x2", "2x1", "1x3", "3x1", "2x2", "1x2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "Spatial"}, "'Spatial'"),
        ({"pixels": 40}, "40"),
        ({"difficulty": 2}, "difficulty"),
        ({"forms": ("4x4",)}, "4x4"),
        ({"seed": -1}, "-1"),
    ],
)
def test_settings_refuse_nonsense_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        TwinSettings(**{"task": JIGSAW_TASK, **change})
