"""How a model is asked a question about pictures: the words around it, the decoding, the reply."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image as PILImage

from experiments.evaluation import FAST_DRAWING
from visual_opsd.benchmarks.items import Wording
from visual_opsd.benchmarks.maze_pictures import RENDERED_CELL, reduce_picture
from visual_opsd.contexts import (
    IMAGE_START,
    SYSTEM_PROMPT_EVAL,
    SYSTEM_PROMPT_TRAIN,
    Context,
    Image,
    Role,
    Text,
)
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.bagel.config import BagelConfig
from visual_opsd.models.bagel.preprocessing import (
    PROTOCOLS,
    ResizeRule,
    to_picture,
    to_pixels,
)
from visual_opsd.models.interface import Drawing, Sampling
from visual_opsd.models.vlm import loading as vlm
from visual_opsd.rollouts.answering import Tokenizer
from visual_opsd.rollouts.interleaved import Interleaving, Look, Outcome, reason, show_as_drawn

See = Callable[[Sequence[PILImage.Image]], list[Image]]
"""The pictures of one question as the model reads them."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How every model of a table is asked and answers."""

    system_prompt: str
    sampling: Sampling
    has_placeholders: bool = False
    """``<img><|image_1|></img>`` as plain text before the question, which no training text has."""


DECODINGS: dict[Wording, Decoding] = {
    "paper": Decoding(
        system_prompt=SYSTEM_PROMPT_TRAIN,
        sampling=Sampling(temperature=0, max_tokens=1024, max_drawings_skipped=0),
    ),
    "harness": Decoding(
        system_prompt=SYSTEM_PROMPT_EVAL,
        sampling=Sampling(temperature=0.3, max_tokens=4095, max_drawings_skipped=0),
        has_placeholders=True,
    ),
}
"""``paper``: greedy, 1,024 tokens, asked as in training. ``harness``: what the fork of VLMEvalKit
runs. Neither goes on after a drawing that was asked for and not made: such answers are lost there,
and counted here."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """One question."""

    pictures: tuple[PILImage.Image, ...]
    prompt: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a model wrote."""

    text: str
    num_tokens: int
    seconds: float
    """Preprocessing, reading and decoding of its batch, divided by the batch."""
    is_cut: bool
    """The budget ended it."""
    num_drawings: int = 0
    ended_at_image_start: bool = False
    """It asked for a drawing, got none, and ended."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Respondent:
    """A model with all that turns questions into replies."""

    model: Any
    tokenizer: Tokenizer
    see: See
    decoding: Decoding
    look: Look = show_as_drawn
    drawing: Drawing | None = None
    """None answers in text alone; else ThinkMorph's rounds of think, draw, look."""

    def limited(self, max_tokens: int) -> "Respondent":
        """The same with another budget of tokens a text."""
        sampling = replace(self.decoding.sampling, max_tokens=max_tokens)
        return replace(self, decoding=replace(self.decoding, sampling=sampling))

    def answer(self, asked: Sequence[Asked]) -> list[Reply]:
        """One reply a question, in one batch."""
        start = time.perf_counter()
        inputs = [self._inputs(each) for each in asked]
        seeds = [each.seed for each in asked]
        write = self._write if self.drawing is None else self._reason
        replies = write(inputs, seeds)
        seconds = (time.perf_counter() - start) / len(asked)
        return [replace(reply, seconds=seconds) for reply in replies]

    def _inputs(self, asked: Asked) -> Context:
        images = self.see(asked.pictures)
        prompt = asked.prompt
        if self.decoding.has_placeholders:
            marks = (f"<img><|image_{place}|></img>" for place in range(1, len(images) + 1))
            prompt = " ".join([*marks, prompt])
        return (*images, Text(self.tokenizer.encode(prompt)))

    def _write(self, inputs: Sequence[Context], seeds: Sequence[int]) -> list[Reply]:
        prompt = self.decoding.system_prompt
        system: Context = (Text(self.tokenizer.encode(prompt)),) if prompt else ()
        contexts = [(*system, *given) for given in inputs]
        written = self.model.sample(contexts, self.decoding.sampling, seeds)
        texts = [self.tokenizer.decode(ids.tolist()) for ids in written.ids]
        return [
            Reply(
                text=text,
                num_tokens=length,
                seconds=0.0,
                is_cut=is_cut,
                ended_at_image_start=text.rstrip().endswith(IMAGE_START),
            )
            for text, length, is_cut in zip(texts, written.lengths, written.is_cut, strict=True)
        ]

    def _reason(self, inputs: Sequence[Context], seeds: Sequence[int]) -> list[Reply]:
        assert self.drawing is not None
        how = Interleaving(
            sampling=self.decoding.sampling,
            drawing=self.drawing,
            system_prompt=self.decoding.system_prompt,
        )
        shown = [
            tuple(replace(s, with_latents=True) if isinstance(s, Image) else s for s in given)
            for given in inputs
        ]
        found = reason(self.model, self.tokenizer, shown, how, seeds, self.look)  # type: ignore[arg-type]
        return [
            Reply(
                text="".join(each.texts),
                num_tokens=each.num_tokens,
                seconds=0.0,
                is_cut=each.outcome is Outcome.CUT,
                num_drawings=len(each.images),
                ended_at_image_start=each.outcome is Outcome.OUT_OF_ROUNDS,
            )
            for each in found
        ]


def load(
    folder: Path | str, protocol: Wording, way: Literal["text_only", "drawn"] = "text_only"
) -> Respondent:
    """A checkpoint folder of BAGEL's family or of a vision-language model of transformers.

    Raises:
        ValueError: No such model, or one that cannot draw is to.
    """
    decoding = decoding_of(Path(folder), protocol)
    rank = torch.cuda.current_device() if torch.cuda.is_available() else None
    device = "cpu" if rank is None else f"cuda:{rank}"
    if vlm.is_vlm(Path(folder)):
        if way == "drawn":
            raise ValueError(f"{folder} holds a model that reads and cannot draw: way=text_only")
        reader, words = vlm.load(Path(folder), device)
        return Respondent(model=reader, tokenizer=words, see=_see_as_they_are, decoding=decoding)
    model, tokenizer = checkpoints.load(folder, device, reading_only=way == "text_only")
    config = model.config
    if is_tiny(config):
        return Respondent(
            model=model.eval(),
            tokenizer=tokenizer,
            see=_tiny_eyes(config),
            decoding=decoding,
            drawing=FAST_DRAWING if way == "drawn" else None,
        )
    return Respondent(
        model=model.eval(),
        tokenizer=tokenizer,
        see=_eyes(protocol),
        decoding=decoding,
        look=second_look(protocol),
        drawing=Drawing() if way == "drawn" else None,
    )


def decoding_of(folder: Path, protocol: Wording) -> Decoding:
    """The protocol's, less what would be foreign to the model."""
    decoding = DECODINGS[protocol]
    if vlm.is_vlm(folder):  # they know neither our system prompt nor the harness's placeholders
        return replace(decoding, system_prompt="", has_placeholders=False)
    if is_tiny(checkpoints.open_folder(folder).config):
        return replace(decoding, system_prompt=SYSTEM_PROMPT_TRAIN)
    return decoding


def is_tiny(config: BagelConfig) -> bool:
    """Sees 16 px a cell, and knows the training prompt alone."""
    return config.latent.codec == "patch_pca"


def _eyes(protocol: Wording) -> See:
    """Pictures as in training, which share a budget of pixels; or the harness's two resizings."""

    def see(pictures: Sequence[PILImage.Image]) -> list[Image]:
        sharing = len(pictures) if protocol == "paper" else 1
        return [PROTOCOLS[protocol].kept(picture, num_images=sharing) for picture in pictures]

    return see


def second_look(protocol: Wording) -> Look:
    """How a drawing is read again: as any picture is under the protocol, with its latents."""

    def look(image: Image) -> Image:
        return PROTOCOLS[protocol].image(
            to_picture(image.pixels), Role.VISUAL_THOUGHT, with_latents=True
        )

    return look


def _tiny_eyes(config: BagelConfig) -> See:
    """Whole cells: mazes of 64 px a cell are reduced, all else is made to fit the positions."""
    side = config.vision.patch_size
    most = side * config.vision.patches_per_side
    rule = ResizeRule(max_side=most, min_side=side, stride=side)

    def is_of_cells(picture: PILImage.Image) -> bool:
        fits = most < max(picture.size) <= RENDERED_CELL * config.vision.patches_per_side
        return fits and not any(length % RENDERED_CELL for length in picture.size)

    def see(pictures: Sequence[PILImage.Image]) -> list[Image]:
        return [
            Image(reduce_picture(each) if is_of_cells(each) else to_pixels(each, rule))
            for each in pictures
        ]

    return see


def _see_as_they_are(pictures: Sequence[PILImage.Image]) -> list[Image]:
    """The model's own image processor resizes them."""
    rule = ResizeRule(max_side=2**16, min_side=1, stride=1, max_pixels=2**40)
    return [Image(to_pixels(picture, rule)) for picture in pictures]
