"""What supervised fine-tuning imitates."""

import pytest

from visual_opsd.contexts import Image, Text, drawing_context, student_context, teacher_context
from visual_opsd.demonstrations import interleaved, privileged, text_only


def targets(context, tokenizer):
    """What the model is trained to write, a string a segment."""
    return [
        tokenizer.decode(part.ids) for part in context if isinstance(part, Text) and part.is_target
    ]


def test_interleaved_rows_think_draw_look_and_answer(problems, tokenizer):
    for problem in problems:
        row = interleaved(problem, tokenizer.encode, num_noised=3)
        start = drawing_context(problem, tokenizer.encode).main
        assert [type(part) for part in row] == [Text, Image, Text, Text, Image, Text]
        assert (row[0], row[2]) == (start[0], start[2])
        assert row[1].with_latents
        before, after = problem.text_thoughts
        assert targets(row, tokenizer) == [
            f"<think>{before}</think><image_start>",
            f"<image_end><think>{after}</think>{problem.tagged_answer}",
        ]
        assert row[4].num_noised == 3
        assert row[4].pixels is problem.visual_thoughts[0].pixels


def test_clean_latents_can_be_left_out(problems, tokenizer):
    """So that what is drawn is also read through the vision encoder alone."""
    row = interleaved(problems[0], tokenizer.encode, has_latents=False)
    assert row[1].with_latents  # else the row would start as the student's context
    assert not row[4].with_latents
    assert row[4].num_noised == 1


def test_nobody_learns_to_ask_for_a_drawing_in_the_students_context(problems, tokenizer):
    """A base whose rows without the problem's latents were trained to ask asked in every answer."""
    row = interleaved(problems[0], tokenizer.encode, has_problem_latents=False)
    assert row[:3] == student_context(problems[0], tokenizer.encode)
    (after,) = targets(row, tokenizer)
    assert after.startswith("<image_end>")
    assert row[4].num_noised == 1


@pytest.mark.parametrize(
    ("demonstrate", "see"), [(text_only, student_context), (privileged, teacher_context)]
)
def test_the_same_solution_is_written_with_and_without_the_visual_thought(
    problems, tokenizer, demonstrate, see
):
    for problem in problems:
        row = demonstrate(problem, tokenizer.encode)
        assert row[:-1] == see(problem, tokenizer.encode)
        solution = f"<think>{problem.text_only_thought}</think>{problem.tagged_answer}"
        assert targets(row, tokenizer) == [solution]
