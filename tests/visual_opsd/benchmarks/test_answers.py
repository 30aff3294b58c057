import pytest

from visual_opsd.benchmarks.answers import ExtractedAnswer, extract_answer, parse_moves, score_maze
from visual_opsd.benchmarks.mazes import Maze

MAZE = Maze(("SFH", "FFF", "HFG"))


@pytest.mark.parametrize(
    ("text", "value", "rule", "is_ambiguous"),
    [
        (r"<think>R</think><answer>\boxed{D,R}</answer>", r"\boxed{D,R}", "answer_tag", False),
        ("<answer>A</answer> no, <answer>B</answer>", "B", "answer_tag", True),
        ("<answer>B</answer> again <answer>B</answer>", "B", "answer_tag", False),
        ("<answer>A <answer>B</answer>", "B", "answer_tag", False),
        ("<think>option A </think><answer>B</answer>", "B", "answer_tag", False),
        ("<answer></answer> so \\boxed{L}", "L", "boxed", False),
        ("\\\\boxed{L,R}", "L,R", "boxed", False),
        ("\x08oxed{L,R}", "L,R", "boxed", False),
        ("The answer is D,R.", "D,R", "answer_is", False),
        ("**Answer:** 42", "42", "answer_is", False),
        ("I think\n\nD,R\n", "D,R", "last_line", False),
        ("", None, "none", False),
    ],
)
def test_the_first_rule_that_finds_something_gives_its_last_match(text, value, rule, is_ambiguous):
    assert extract_answer(text) == ExtractedAnswer(value, rule, is_ambiguous)


@pytest.mark.parametrize(
    "value", [r"\boxed{D,R}", "D,R", "d, r", "DR", "D,R,", "Down, Right", "D → R"]
)
def test_moves_are_read_in_every_common_spelling(value):
    assert parse_moves(value) == ("D", "R")


@pytest.mark.parametrize("value", ["", r"\boxed{}", "D,X", "go down", "A", "3"])
def test_what_is_no_path_is_none(value):
    assert parse_moves(value) is None


def test_a_solution_scores_by_the_strict_rule():
    score = score_maze(MAZE, r"<think></think><answer>\boxed{R,D,R,D}</answer>")
    assert (score.is_solved, score.is_optimal, score.has_format_failure) == (True, True, False)
    long = score_maze(MAZE, r"<answer>\boxed{R,L,R,D,R,D}</answer>")
    assert (long.is_solved, long.is_optimal) == (True, False)
    bumped = score_maze(MAZE, r"<answer>\boxed{U,R,D,R,D}</answer>")
    assert (bumped.is_solved, bumped.is_solved_gymnasium) == (False, True)


def test_a_format_failure_is_told_from_a_wrong_path():
    assert score_maze(MAZE, "<think> <image_start>").has_format_failure
    assert score_maze(MAZE, "").has_format_failure
    without_tag = score_maze(MAZE, r"So \boxed{D,R,D,R}")
    assert without_tag.has_format_failure
    assert without_tag.is_solved
    assert not score_maze(MAZE, "<answer>R</answer>").has_format_failure
