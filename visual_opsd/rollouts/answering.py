"""Three ways to answer: drawn (think, draw, look, answer), text-only, and given the drawing."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

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
from visual_opsd.models.interface import Drawer, Drawing, Reader, Sampling

Way = Literal["drawn", "text_only", "privileged"]
Show = Callable[[Problem, Image], Image]
"""From a problem and the drawing made for it to the picture that is looked at."""


@runtime_checkable
class UnifiedModel(Reader, Drawer, Protocol):
    """Reads and draws."""


@runtime_checkable
class Tokenizer(Protocol):
    """The two directions of a tokenizer."""

    encode: Encode

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What a model wrote, and drew, for one problem."""

    problem_id: str
    text: str
    num_tokens: int
    seconds: float
    """Wall time of its batch, divided by the batch."""
    is_cut: bool
    """The budget ended it: counted, never read as an ending."""
    drawn: Image | None = None
    has_skipped_drawing: bool = False
    """It was to draw and answered without."""


def answer(
    way: Way,
    model: UnifiedModel,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    *,
    sampling: Sampling,
    drawing: Drawing,
    seeds: Sequence[int],
    show: Show | None = None,
) -> list[Answer]:
    """Answer one batch of problems in one of the three ways.

    ``show`` puts another picture before the model than the one it drew (paper, Fig. 3a).
    """
    start = time.perf_counter()
    if way == "drawn":
        written, drawn, cut = _draw_and_answer(
            model, tokenizer, problems, sampling, drawing, seeds, show
        )
    else:
        see = student_context if way == "text_only" else teacher_context
        contexts = [see(problem, tokenizer.encode) for problem in problems]
        completions = model.sample(contexts, sampling, seeds)
        written, cut = [ids.tolist() for ids in completions.ids], completions.is_cut
        drawn = [None] * len(problems)
    seconds = (time.perf_counter() - start) / len(problems)
    return [
        Answer(
            problem_id=problem.problem_id,
            text=tokenizer.decode(ids),
            num_tokens=len(ids),
            seconds=seconds,
            is_cut=is_cut,
            drawn=image,
            has_skipped_drawing=way == "drawn" and image is None,
        )
        for problem, ids, is_cut, image in zip(problems, written, cut, drawn, strict=True)
    ]


def _draw_and_answer(
    model: UnifiedModel,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    sampling: Sampling,
    drawing: Drawing,
    seeds: Sequence[int],
    show: Show | None = None,
) -> tuple[list[list[int]], list[Image | None], Sequence[bool]]:
    """ThinkMorph's protocol with one drawing: the thought, the image, the rest.

    Returns all ids written, the image (None where none was asked for), and whether the budget
    ended the last round.
    """
    encode = tokenizer.encode
    once = replace(sampling, max_drawings_skipped=0)
    starts: list[Context] = [drawing_context(problem, encode).main for problem in problems]
    thoughts = model.sample(starts, once, seeds)
    written = [ids.tolist() for ids in thoughts.ids]
    # The end mark is the block's, not the thought's.
    texts = [
        Text(tuple(ids if is_cut else ids[:-1]))
        for ids, is_cut in zip(written, thoughts.is_cut, strict=True)
    ]
    asking = [row for row, text in enumerate(texts) if IMAGE_START in tokenizer.decode(text.ids)]
    drawn: list[Image | None] = [None] * len(problems)
    if not asking:
        return written, drawn, thoughts.is_cut

    contexts = [drawing_context(problems[row], encode, texts[row]) for row in asking]
    images = model.draw(contexts, drawing, [seeds[row] for row in asking])
    shown = [
        image if show is None else show(problems[row], image)
        for row, image in zip(asking, images, strict=True)
    ]
    looking = [
        (*context.main, replace(image, with_latents=True))
        for context, image in zip(contexts, shown, strict=True)
    ]
    rest = model.sample(looking, once, [seeds[row] + 1 for row in asking])
    is_cut = list(thoughts.is_cut)
    for index, row in enumerate(asking):
        drawn[row] = images[index]
        written[row] = written[row] + rest.ids[index].tolist()
        is_cut[row] |= rest.is_cut[index]
    return written, drawn, is_cut


def in_batches(problems: Sequence[Problem], batch_size: int) -> Iterator[list[int]]:
    """Indices of ``problems`` in batches of one image size, largest first."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, problem in enumerate(problems):
        by_size.setdefault(tuple(problem.image.pixels.shape), []).append(index)
    for size in sorted(by_size, reverse=True):
        indices = by_size[size]
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]
