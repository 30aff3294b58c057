"""What supervised fine-tuning imitates: contexts whose segments are targets."""

from dataclasses import replace

from visual_opsd.contexts import (
    IMAGE_START,
    Context,
    Encode,
    Image,
    Problem,
    Text,
    drawing_context,
    student_context,
    teacher_context,
)


def interleaved(
    problem: Problem,
    encode: Encode,
    num_noised: int = 1,
    *,
    has_latents: bool = True,
    has_problem_latents: bool = True,
) -> Context:
    """Think, draw, look, answer: ThinkMorph's training sequence with one visual thought.

    Clean latents are sometimes left out (condition dropout), the drawing's so that it is also
    read through the vision encoder, the problem's so that it is also drawn from what is read
    there. Without the problem's latents the row starts as the student's context: its first
    thought is then no target, or the model would learn to ask for drawings in that context.
    """
    before, after = problem.text_thoughts
    (visual_thought,) = problem.visual_thoughts
    start = (
        drawing_context(problem, encode).main
        if has_problem_latents
        else student_context(problem, encode)
    )
    return (
        *start,
        Text(encode(f"<think>{before}</think>{IMAGE_START}"), is_target=has_problem_latents),
        replace(visual_thought, num_noised=num_noised, with_latents=has_latents),
        Text(encode(f"<image_end><think>{after}</think>{problem.tagged_answer}"), is_target=True),
    )


def text_only(problem: Problem, encode: Encode) -> Context:
    """The student's context, answered in words."""
    return (*student_context(problem, encode), _solution(problem, encode))


def privileged(problem: Problem, encode: Encode) -> Context:
    """The teacher's context, answered in the same words."""
    return (*teacher_context(problem, encode), _solution(problem, encode))


def draws(row: Context) -> bool:
    """Whether the row has an image to learn to draw."""
    return any(isinstance(segment, Image) and segment.num_noised for segment in row)


def num_target_tokens(row: Context) -> int:
    """Tokens the row is trained to write, end marks included."""
    return sum(len(s.ids) + 1 for s in row if isinstance(s, Text) and s.is_target)


def _solution(problem: Problem, encode: Encode) -> Text:
    return Text(encode(problem.solution), is_target=True)
