"""A student that repeats itself, or loses the form of an answer, is seen."""

import pytest

from visual_opsd.rollouts.collapse import distinct_ngrams, format_rate


def test_distinct_ngrams_by_hand():
    rows = [[1, 2, 1, 2], [1, 2]]
    assert distinct_ngrams(rows, 1) == pytest.approx(2 / 6)
    assert distinct_ngrams(rows, 2) == pytest.approx(2 / 4)
    assert distinct_ngrams([[1, 2, 3]], 2) == 1
    assert distinct_ngrams([[1], []], 2) == 1


def test_an_answer_is_in_form_between_its_tags():
    texts = ["<think>so</think><answer>A</answer>", "The answer is A", "", "<answer>A"]
    assert format_rate(texts) == pytest.approx(1 / 4)
