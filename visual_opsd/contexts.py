"""What student and teacher see. The method is the difference between these two lists."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

# Quoted because their bytes matter (spec of the official release, training side): no newline at
# either end, and a space after "i.e.". The evaluation side uses SYSTEM_PROMPT_EVAL.
SYSTEM_PROMPT_TRAIN = (
    "Let's think step by step to answer the question. For text-based thinking, enclose the process "
    "within <think> </think>, e.g. <think> thinking process here </think>. For visual thinking, "
    "enclose the content within <image_start> </image_end>, e.g. <image_start> thinking image here "
    "</image_end>. Finally conclude with the final answer wrapped in <answer></answer> tags, i.e. "
    "<answer> answer here </answer>."
)
SYSTEM_PROMPT_EVAL = "\n" + SYSTEM_PROMPT_TRAIN.replace("i.e. <answer>", "i.e.<answer>") + "\n"
REFERENCE_INTRO = (
    "The following images are privileged visual references that depict the intermediate visual "
    "thoughts on the path to the correct answer. Use them silently as grounding context; do not "
    "describe or echo them."
)
TRANSITION = (
    "Now, using your own independent reasoning, answer the problem above. Think step by step."
)
IMAGE_START = "<image_start>"

Encode = Callable[[str], tuple[int, ...]]
"""Text to token ids, without begin and end marks: the model family adds those."""


HiddenFrom = Literal["completion", "all_behind"]
"""Who may not look at a segment that was knocked out: the completion alone, so that what texts
between have read of it still arrives, or all that stands behind it, so that nothing does."""


class Role(StrEnum):
    """What an image is to the reader; only diagnostics look at it."""

    PROBLEM = "problem"
    VISUAL_THOUGHT = "visual_thought"


@dataclass(frozen=True, slots=True)
class Text:
    """A span of text as token ids, without begin and end marks."""

    ids: tuple[int, ...]
    is_target: bool = False
    """The model is trained to write this text (interleaved SFT)."""
    hidden_from: HiddenFrom | None = None
    """Knocked out: it keeps its place, and its keys are masked."""


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """An image as RGB values in [-1, 1]."""

    pixels: Float[Tensor, "3 height width"]
    role: Role = Role.PROBLEM
    with_latents: bool = False
    """Also shown as clean latents, as everything is that a drawing starts from."""
    num_noised: int = 0
    """How many noised copies are targets of the flow (interleaved SFT): 1 in the official recipe;
    more share one context, and none sees another."""
    with_patches: bool = True
    """Also shown as patches; not where it is the target and the row's end (text to image)."""
    latent_pixels: Float[Tensor, "3 latent_height latent_width"] | None = None
    """The picture in the size for latents, where that is not the size for reading."""
    hidden_from: HiddenFrom | None = None
    """Knocked out: it keeps its place, and its keys are masked."""

    @property
    def drawn_pixels(self) -> Tensor:
        """What latents are made from."""
        return self.pixels if self.latent_pixels is None else self.latent_pixels

    def to(self, device: torch.device) -> "Image":
        """The same image on another device."""
        latents = None if self.latent_pixels is None else self.latent_pixels.to(device)
        return replace(self, pixels=self.pixels.to(device), latent_pixels=latents)


Context = tuple[Text | Image, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """A question about an image, with the thoughts that led to its answer."""

    problem_id: str
    image: Image
    question: str
    answer: str
    """As the data set writes it, without tags: ``D,R`` for a maze, ``A`` for a choice."""
    answer_template: str = "{answer}"
    r"""What stands between the answer tags: ``\boxed{{{answer}}}`` for a maze."""
    visual_thoughts: tuple[Image, ...] = ()
    hints: tuple[str, ...] = ()
    """What the teacher is told in words; no data set has any, only controls that tell set it."""
    text_thoughts: tuple[str, ...] = ()
    """One before each visual thought and one after the last; read by interleaved SFT only."""
    text_only_thought: str = ""
    """The solution without pictures; read by SFT on text only."""
    task: str = ""
    category: str = ""
    """A finer class for tables: the size of a maze, the layout of a jigsaw."""

    @property
    def tagged_answer(self) -> str:
        """The answer as a completion ends with it."""
        return f"<answer>{self.answer_template.format(answer=self.answer)}</answer>"

    @property
    def solution(self) -> str:
        """A whole completion without pictures: the thought, then the answer."""
        return f"<think>{self.text_only_thought}</think>{self.tagged_answer}"

    def to(self, device: torch.device) -> "Problem":
        """Every image on another device."""
        thoughts = tuple(thought.to(device) for thought in self.visual_thoughts)
        return replace(self, image=self.image.to(device), visual_thoughts=thoughts)


def student_context(problem: Problem, encode: Encode) -> Context:
    """The problem and nothing else (paper, Eq. 2)."""
    return (Text(encode(SYSTEM_PROMPT_TRAIN)), problem.image, Text(encode(problem.question)))


def teacher_context(problem: Problem, encode: Encode) -> Context:
    """What the student sees, then the visual thoughts; no text thought, no answer (Eq. 1).

    Unless a control has put one of them among the hints.
    """
    return (
        *student_context(problem, encode),
        Text(encode(REFERENCE_INTRO)),
        *problem.visual_thoughts,
        *(Text(encode(hint)) for hint in problem.hints),
        Text(encode(TRANSITION)),
    )


def knock_out(context: Context, segments: Collection[int], hidden_from: HiddenFrom) -> Context:
    """The same context with some segments hidden: attention cut, not the picture replaced."""
    unknown = sorted(set(segments) - set(range(len(context))))
    if unknown:
        raise ValueError(f"no segments {unknown} in a context of {len(context)} to knock out")
    return tuple(
        replace(segment, hidden_from=hidden_from) if index in segments else segment
        for index, segment in enumerate(context)
    )


def images_in(context: Context, role: Role) -> tuple[int, ...]:
    """The segments that are images of a role."""
    return tuple(
        index
        for index, segment in enumerate(context)
        if isinstance(segment, Image) and segment.role is role
    )


@dataclass(frozen=True, slots=True)
class DrawingContext:
    """What a drawing starts from, and what its two guidance branches see instead."""

    main: Context
    text_free: Context
    image_free: Context

    def given(self, segment: Text | Image) -> "DrawingContext":
        """With a segment that guidance knows of.

        The text-free branch stops before the last text, the image-free one never sees an image.
        """
        main = (*self.main, segment)
        if isinstance(segment, Image):
            return DrawingContext(main, main, self.image_free)
        return DrawingContext(main, self.main, (*self.image_free, segment))

    def written(self, segment: Text | Image) -> "DrawingContext":
        """With a segment of the model's own that guidance does not know of."""
        return replace(self, main=(*self.main, segment))


def drawing_context(
    problem: Problem, encode: Encode, thought: Text | None = None
) -> DrawingContext:
    """Problem, question and the thought just written; guidance keeps the start only.

    ThinkMorph's protocol: the text-free branch stops before the question, the image-free one never
    sees an image, and neither is updated with what the model has written since.
    """
    inputs = (replace(problem.image, with_latents=True), Text(encode(problem.question)))
    context = start_drawing(inputs, Text(encode(SYSTEM_PROMPT_TRAIN)))
    return context if thought is None else context.written(thought)


def start_drawing(inputs: Context, system: Text | None = None) -> DrawingContext:
    """The three contexts of what a problem shows, in its order (ThinkMorph)."""
    prompt = () if system is None else (system,)
    context = DrawingContext(main=prompt, text_free=(), image_free=prompt)
    for segment in inputs:
        context = context.given(segment)
    return context


class ProblemBatch:
    """Problems on their way through a training step; ``rollout`` is filled by the callback.

    An opaque class on purpose: Lightning and DeepSpeed walk into dataclasses and mappings.
    """

    def __init__(self, problems: Sequence[Problem], donors: Sequence[Problem] = ()) -> None:
        """Take ``problems`` and, for controls that need one, a donor for each of them."""
        self.problems = tuple(problems)
        self.donors = tuple(donors)
        self.rollout: Any = None

    def __len__(self) -> int:
        return len(self.problems)

    def to(self, device: torch.device) -> "ProblemBatch":
        """The same batch on another device."""
        moved = ProblemBatch(
            [problem.to(device) for problem in self.problems],
            [donor.to(device) for donor in self.donors],
        )
        moved.rollout = self.rollout
        return moved
