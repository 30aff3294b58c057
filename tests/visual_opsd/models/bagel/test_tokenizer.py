"""Text to ids and back."""

import pytest

from tests import tiny
from visual_opsd.models.bagel.tokenizer import Tokenizer, vars_of


def test_text_comes_back_as_it_was(tokenizer, problems):
    for problem in problems:
        for text in (problem.text_only_thought, problem.tagged_answer, "naïve ☃ <think>\n\t"):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_constant_sentences_are_single_tokens(tokenizer):
    for sentence in tiny.CONSTANT_SENTENCES:
        assert len(tokenizer.encode(sentence)) == 1


def test_digits_and_moves_stand_alone(tokenizer):
    assert tokenizer.decode(tokenizer.encode("row 12")[-1:]) == "2"
    moves = [tokenizer.decode((token,)) for token in tokenizer.encode("R,D,D}")]
    assert moves == ["R", ",D", ",D", "}"]


def test_marks_are_no_text(tokenizer):
    ids = tokenizer.encode("ice")
    marks = vars_of(tokenizer.marks)
    assert len(set(marks)) == 4
    assert tokenizer.decode((*marks, *ids, *marks)) == "ice"


def test_a_folder_without_tokenizer_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_block_ends_at_the_first_begin_or_end_mark_and_spells_other_marks(tokenizer):
    ice, fire = tokenizer.encode("ice"), tokenizer.encode("fire")
    marks = tokenizer.marks
    for stop in (marks.begin, marks.end):
        assert tokenizer.first_block((*ice, stop, *fire)) == "ice"
        assert tokenizer.first_block((stop,)) == ""
    assert tokenizer.first_block((*ice, marks.start_of_image)) == "ice<|vision_start|>"
