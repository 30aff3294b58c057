"""Text to ids and back."""

import pytest

from tests import qwen, tiny
from visual_opsd.models.bagel.tokenizer import MARK_NAMES, Tokenizer, vars_of


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


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory):
    """The tokenizer files of a downloaded BAGEL."""
    folder = tmp_path_factory.mktemp("qwen")
    qwen.write_vocabulary(folder)
    return folder


def test_the_qwen_tokenizer_has_the_official_ids(qwen_folder, tmp_path):
    """Ids as two public code bases write them; ``<image_start>`` is no mark, but plain text."""
    fast = Tokenizer.load(qwen_folder)
    fast.save_official(tmp_path)
    again = Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    from_vocabulary = Tokenizer.load(tmp_path)
    for tokenizer in (fast, again, from_vocabulary):
        assert vars_of(tokenizer.marks) == (151_644, 151_645, 151_652, 151_653)
        assert tokenizer.encode("<image_start>") == (27, 1805, 4906, 29)
        assert tokenizer.encode("<|im_end|>") == (151_645,)
        text = "Row 12, na\u00efve \u2603 <think>\n\n x  = 3.5 , isn't it?</think>"
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encode(text) == fast.encode(text)
        assert len(tokenizer) <= 152_064
    assert (tmp_path / "merges.txt").read_text().count("\n") == 151_387 + 1


def test_every_merge_of_the_vocabulary_is_reached(qwen_folder):
    """A whole word of the vocabulary encodes to itself, as ranks say."""
    tokenizer = Tokenizer.load(qwen_folder)
    words = [token.decode() for token in list(qwen.ranks())[1000:60000:97] if token.isalpha()]
    assert len(words) > 100
    assert all(tokenizer.encode(word) == (qwen.ranks()[word.encode()],) for word in words)


def test_a_tokenizer_without_marks_names_the_file_and_the_marks(tmp_path):
    """Without its configuration the vocabulary has no marks; added ones would get other ids."""
    qwen.write_vocabulary(tmp_path, added=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    with pytest.raises(ValueError, match=r"vision_start.*vision_end") as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path / "vocab.json") in str(caught.value)
    assert MARK_NAMES["begin"] not in str(caught.value)


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer"):
        Tokenizer.load(tmp_path)
