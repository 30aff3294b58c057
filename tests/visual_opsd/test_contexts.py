"""The method is the difference between two lists; here is what may be in them."""

from dataclasses import replace

import pytest
import torch

from datamodules.frozen_lake import MazeSettings, generate_problem
from visual_opsd.contexts import (
    REFERENCE_INTRO,
    SYSTEM_PROMPT_EVAL,
    SYSTEM_PROMPT_TRAIN,
    TRANSITION,
    Image,
    ProblemBatch,
    Role,
    Text,
    drawing_context,
    start_drawing,
    student_context,
    teacher_context,
)


def words(context, tokenizer):
    """All text of a context."""
    return "\n".join(tokenizer.decode(part.ids) for part in context if isinstance(part, Text))


def pictures(context):
    return [part for part in context if isinstance(part, Image)]


@pytest.fixture(params=range(8))
def problem(problems, request):
    return problems[request.param]


def test_the_student_sees_the_problem_and_nothing_else(problem, tokenizer):
    context = student_context(problem, tokenizer.encode)
    assert words(context, tokenizer) == f"{SYSTEM_PROMPT_TRAIN}\n{problem.question}"
    assert pictures(context) == [problem.image]


def test_the_teachers_context_begins_with_the_students(problem, tokenizer):
    student = student_context(problem, tokenizer.encode)
    teacher = teacher_context(problem, tokenizer.encode)
    assert teacher[: len(student)] == student


def test_all_the_teacher_has_more_is_the_visual_thoughts(problem, tokenizer):
    """And the two sentences that announce them; each picture once, in order."""
    thoughts = (*problem.visual_thoughts, replace(problem.visual_thoughts[0]))
    problem = replace(problem, visual_thoughts=thoughts)
    more = teacher_context(problem, tokenizer.encode)[3:]
    assert [tokenizer.decode(part.ids) for part in (more[0], more[-1])] == [
        REFERENCE_INTRO,
        TRANSITION,
    ]
    assert more[1:-1] == thoughts
    assert all(image.role is Role.VISUAL_THOUGHT for image in more[1:-1])


def test_the_teacher_sees_neither_the_answer_nor_a_text_thought(problem, tokenizer):
    """Change both, and the teacher's context does not change."""
    told = teacher_context(problem, tokenizer.encode)
    other = replace(
        problem,
        answer="U,U,U",
        answer_template="{answer}!",
        text_thoughts=("a secret", "another"),
        text_only_thought="a third",
        problem_id="x",
        category="y",
    )
    assert teacher_context(other, tokenizer.encode) == told
    seen = words(told, tokenizer)
    for hidden in (*problem.text_thoughts, problem.text_only_thought, problem.tagged_answer):
        assert hidden
        assert hidden not in seen


def test_no_context_trains_anybody(problem, tokenizer):
    drawing = drawing_context(problem, tokenizer.encode)
    for context in (
        student_context(problem, tokenizer.encode),
        teacher_context(problem, tokenizer.encode),
        drawing.main,
    ):
        for part in context:
            assert not (part.is_target if isinstance(part, Text) else part.num_noised)


def test_guidance_leaves_out_the_question_or_the_picture(problem, tokenizer):
    """And never sees the thought that was written since (ThinkMorph's protocol)."""
    thought = Text((5, 6))
    context = drawing_context(problem, tokenizer.encode, thought)
    assert context.main[-1] == thought
    assert words(context.main[:3], tokenizer) == f"{SYSTEM_PROMPT_TRAIN}\n{problem.question}"
    assert words(context.text_free, tokenizer) == SYSTEM_PROMPT_TRAIN
    assert len(pictures(context.text_free)) == 1
    assert words(context.image_free, tokenizer) == f"{SYSTEM_PROMPT_TRAIN}\n{problem.question}"
    assert pictures(context.image_free) == []
    for image in pictures(context.main):
        assert image.with_latents
        assert torch.equal(image.pixels, problem.image.pixels)


def test_the_prompts_are_the_official_ones_byte_for_byte():
    assert SYSTEM_PROMPT_TRAIN.endswith("i.e. <answer> answer here </answer>.")
    assert SYSTEM_PROMPT_EVAL.startswith("\nLet's think step by step")
    assert SYSTEM_PROMPT_EVAL.endswith("i.e.<answer> answer here </answer>.\n")


def test_an_answer_is_tagged_as_a_completion_ends():
    problem = generate_problem(MazeSettings(), "train", 0)
    assert problem.tagged_answer == f"<answer>\\boxed{{{problem.answer}}}</answer>"


def test_a_batch_moves_as_a_whole(problems):
    batch = ProblemBatch(problems[:2], problems[2:4])
    batch.rollout = "kept"
    moved = batch.to(torch.device("meta"))
    assert len(moved) == 2
    assert moved.rollout == "kept"
    for problem in (*moved.problems, *moved.donors):
        for image in (problem.image, *problem.visual_thoughts):
            assert image.pixels.device.type == "meta"
    assert moved.problems[0].visual_thoughts[0].role is Role.VISUAL_THOUGHT
    small = replace(problems[0].image, latent_pixels=torch.zeros(3, 16, 16))
    assert small.to(torch.device("meta")).latent_pixels.device.type == "meta"


def test_guidance_takes_up_inputs_in_their_order():
    """The text-free branch stops before the last text; the image-free one never sees an image."""
    system, question, more = Text((1,)), Text((2,)), Text((3,))
    image = Image(torch.zeros(3, 2, 2))
    context = start_drawing((question, image, more), system)
    assert context.main == (system, question, image, more)
    assert context.text_free == (system, question, image)
    assert context.image_free == (system, question, more)
    assert start_drawing((question, image), system).text_free == (system, question, image)
    assert start_drawing((image, question)).image_free == (question,)
    written = context.written(Text((4,)))
    assert written.main == (*context.main, Text((4,)))
    assert (written.text_free, written.image_free) == (context.text_free, context.image_free)
