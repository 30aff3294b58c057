"""ThinkMorph's interleaved reasoning: think, draw, look, as often as a drawing is asked for."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol, runtime_checkable

from visual_opsd.contexts import (
    IMAGE_START,
    SYSTEM_PROMPT_EVAL,
    Context,
    DrawingContext,
    Image,
    Text,
    start_drawing,
)
from visual_opsd.models.interface import Drawing, Sampling, Watch
from visual_opsd.rollouts.answering import Tokenizer, UnifiedModel
from visual_opsd.seeds import row_seed

Look = Callable[[Image], Image]
"""From an image as it was drawn to the one that its context shows."""


class Outcome(StrEnum):
    """How reasoning ended."""

    ANSWERED = "answered"
    """A text that asks for no drawing, ended by the model."""
    CUT = "cut"
    """A text that asks for no drawing, ended by the budget."""
    OUT_OF_ROUNDS = "out_of_rounds"
    """The last word was a wish to draw: there is no answer."""


@dataclass(frozen=True, kw_only=True)
class Interleaving:
    """How problems are reasoned about; the defaults are ThinkMorph's evaluation."""

    max_rounds: int = 3
    """Drawings, at most."""
    sampling: Sampling = Sampling(temperature=0.3, max_tokens=4095)
    """Of each text; the official limit of 4096 also counts its begin mark."""
    drawing: Drawing = Drawing()
    system_prompt: str = SYSTEM_PROMPT_EVAL
    """Empty for none."""
    mends_faults: bool = False
    """The official loop ends after its last drawing without an answer, and its guidance knows of
    the inputs alone. Mended, one more text follows, and the guidance contexts take up what was
    written and drawn as they take up inputs."""

    def __post_init__(self) -> None:
        if self.max_rounds < 1:
            raise ValueError(f"max_rounds must be >= 1, got {self.max_rounds}")


@runtime_checkable
class BlockTokenizer(Tokenizer, Protocol):
    """A tokenizer that knows where a block of text ends."""

    def first_block(self, ids: Sequence[int]) -> str:
        """Text up to the first begin or end mark."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reasoning:
    """What a model wrote and drew for one problem."""

    outputs: tuple[str | Image, ...]
    """In order."""
    outcome: Outcome
    context: DrawingContext
    """All that it has seen and made."""
    num_tokens: int
    """Sampled, end marks included."""
    seconds: float
    """Wall time of its batch, divided by the batch."""

    @property
    def texts(self) -> tuple[str, ...]:
        """What it wrote."""
        return tuple(output for output in self.outputs if isinstance(output, str))

    @property
    def images(self) -> tuple[Image, ...]:
        """What it drew."""
        return tuple(output for output in self.outputs if isinstance(output, Image))


def show_as_drawn(image: Image) -> Image:
    """The same pixels for latents and patches, where both sizes are one."""
    return replace(image, with_latents=True)


def reason(
    model: UnifiedModel,
    tokenizer: BlockTokenizer,
    inputs: Sequence[Context],
    how: Interleaving,
    seeds: Sequence[int],
    look: Look = show_as_drawn,
    watch: Watch | None = None,
) -> list[Reasoning]:
    """Reason about a batch of problems, each given as its images and texts in order.

    What a text says is tokenised anew before it becomes context, as in the official loop. A drawing
    is as large as the last image before it.
    """
    for given in inputs:
        if not any(isinstance(segment, Text) for segment in given):
            raise ValueError(f"a problem needs a question, got {len(given)} images and no text")
    start = time.perf_counter()
    system = Text(tokenizer.encode(how.system_prompt)) if how.system_prompt else None
    rows = [_Row(start_drawing(given, system)) for given in inputs]
    for round_index in range(how.max_rounds + how.mends_faults):
        going = [index for index, row in enumerate(rows) if row.outcome is None]
        if not going:
            break
        batch = [rows[index] for index in going]
        round_seeds = [row_seed(seeds[index], round_index) for index in going]
        asking = _write(model, tokenizer, batch, how, round_seeds)
        if asking and round_index < how.max_rounds:
            asking_seeds = [round_seeds[i] for i in asking]
            _draw(model, [batch[i] for i in asking], how, asking_seeds, look, watch)
    seconds = (time.perf_counter() - start) / max(len(rows), 1)
    return [
        Reasoning(
            outputs=tuple(row.outputs),
            outcome=row.outcome or Outcome.OUT_OF_ROUNDS,
            context=row.context,
            num_tokens=row.num_tokens,
            seconds=seconds,
        )
        for row in rows
    ]


@dataclass(slots=True)
class _Row:
    """One problem on its way."""

    context: DrawingContext
    outputs: list[str | Image] = field(default_factory=list)
    outcome: Outcome | None = None
    num_tokens: int = 0


def _write(
    model: UnifiedModel,
    tokenizer: BlockTokenizer,
    rows: Sequence[_Row],
    how: Interleaving,
    seeds: Sequence[int],
) -> list[int]:
    """A text for every row; which of them ask for a drawing."""
    sampling = replace(how.sampling, max_drawings_skipped=0)
    written = model.sample([row.context.main for row in rows], sampling, seeds)
    asking = []
    for index, (row, ids, is_cut) in enumerate(zip(rows, written.ids, written.is_cut, strict=True)):
        text = tokenizer.first_block(ids.tolist())
        row.outputs.append(text)
        row.num_tokens += len(ids)
        row.context = _extended(row.context, Text(tokenizer.encode(text)), how)
        if IMAGE_START in text:
            asking.append(index)
        else:
            row.outcome = Outcome.CUT if is_cut else Outcome.ANSWERED
    return asking


def _draw(
    model: UnifiedModel,
    rows: Sequence[_Row],
    how: Interleaving,
    seeds: Sequence[int],
    look: Look,
    watch: Watch | None,
) -> None:
    """An image for every row, and a look at it."""
    images = model.draw([row.context for row in rows], how.drawing, seeds, watch)
    for row, image in zip(rows, images, strict=True):
        row.outputs.append(image)
        row.context = _extended(row.context, look(image), how)


def _extended(context: DrawingContext, made: Text | Image, how: Interleaving) -> DrawingContext:
    return context.given(made) if how.mends_faults else context.written(made)
