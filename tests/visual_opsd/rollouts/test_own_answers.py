"""What a model says itself counts by its form alone; whether it is right is not looked at."""

from dataclasses import replace

import pytest

from visual_opsd.contexts import Image
from visual_opsd.rollouts.answering import Answer
from visual_opsd.rollouts.own_answers import OwnAnswer, own_answer, read_answers, write_answers

WORDS = "<think>A 3 by 3 maze.</think><image_start><image_end><think>I follow.</think>"


def given(problem, text, **changes):
    found = {"num_tokens": 9, "seconds": 0.1, "is_cut": False, "drawn": problem.image, **changes}
    return Answer(problem_id=problem.problem_id, text=text, **found)


def test_a_wrong_answer_in_form_is_kept_as_it_was_written(problems):
    maze = problems[0]
    wrong = r"\boxed{U,U,U,U}"
    assert wrong != maze.answer_template.format(answer=maze.answer)
    found = own_answer(7, maze, given(maze, f"{WORDS}<answer>{wrong}</answer>"))
    assert found == OwnAnswer(
        index=7, problem_id=maze.problem_id, thought="A 3 by 3 maze.", answer=wrong
    )


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        (f"{WORDS}<answer>\\boxed{{D}}</answer>", {"is_cut": True}),
        ("<think>So.</think><answer>D</answer>", {"has_skipped_drawing": True, "drawn": None}),
        (f"{WORDS}D,R", {}),
        (f"{WORDS}<answer>somewhere</answer>", {}),
        ("<answer>\\boxed{D}</answer>", {}),
        ("", {}),
    ],
    ids=["cut", "no drawing", "no tags", "no moves", "no thought", "nothing"],
)
def test_what_is_out_of_form_has_no_answer(problems, text, changes):
    assert own_answer(0, problems[0], given(problems[0], text, **changes)).answer is None


def test_another_task_may_answer_anything(problems):
    other = replace(problems[0], task="Visual_Search")
    assert isinstance(other.image, Image)
    assert own_answer(0, other, given(other, f"{WORDS}<answer>red</answer>")).answer == "red"


def test_a_file_is_read_up_to_where_a_kill_has_cut_it(tmp_path):
    path = tmp_path / "deep" / "answers.jsonl"
    assert read_answers(path) == []
    answers = [OwnAnswer(index=i, problem_id=str(i), thought="a\nb", answer="D") for i in range(3)]
    write_answers(path, answers[:2])
    write_answers(path, answers[2:])
    assert read_answers(path) == answers
    path.write_text(path.read_text()[:-9])
    assert read_answers(path) == answers[:2]
    path.write_text('{"index": 0}\n')
    with pytest.raises(ValueError, match=r"answers\.jsonl, line 1: no answer"):
        read_answers(path)
