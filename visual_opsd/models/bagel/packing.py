"""Where every token of an interleaved context stands: order, position, and whom it may see.

A row is a list of blocks, each a *split* of the attention mask. Tokens live in streams sorted by
expert (text and image patches, then latents), so that no expert touches a token of the other or a
padding; ``order`` carries them into [batch, time] for attention and ``inverse`` back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from visual_opsd.contexts import Context, Image, Text
from visual_opsd.models.bagel.attention import Mode, Visibility
from visual_opsd.models.bagel.config import BagelConfig, SpecialTokens

NEVER_HIDDEN = 2**30
"""Behind every block."""


class Source(IntEnum):
    """The stream a token comes from."""

    TEXT = 0
    PATCH = 1
    LATENT = 2


@dataclass(frozen=True, slots=True)
class Block:
    """One split of a row: marks and text, or an image between its marks."""

    mode: Mode
    text: tuple[int, ...] = ()
    """Text block: all its ids. Image block: start and end mark."""
    image: int | None = None
    """Index of the image whose patches or latents stand between the marks."""
    source: Source = Source.TEXT
    num_tokens: int = 0
    """Patches or latents between the marks."""
    advance: int = 1
    """How far the position moves on after the block."""
    targets: tuple[int, ...] = ()
    """What each text token predicts; -1 for nothing."""
    segment: int = -1
    """Index in the context of what it shows; -1 for a completion."""
    seen_until: int = NEVER_HIDDEN
    """The last block of the row that may look at it."""

    def __len__(self) -> int:
        return len(self.text) + self.num_tokens


Row = list[Block]


def text_block(ids: Sequence[int], tokens: SpecialTokens, *, is_target: bool = False) -> Block:
    """``begin ids end``; as a target, each token predicts its successor, the end mark nothing."""
    text = (tokens.begin, *ids, tokens.end)
    targets = (*ids, tokens.end, -1) if is_target else (-1,) * len(text)
    return Block(Mode.CAUSAL, text=text, advance=len(text), targets=targets)


def completion_block(ids: Sequence[int], tokens: SpecialTokens) -> Block:
    """``begin ids[:-1]``: token t predicts ids[t]; the last id is predicted and never read."""
    text = (tokens.begin, *ids[:-1])
    return Block(Mode.CAUSAL, text=text, advance=len(text), targets=tuple(ids))


def image_block(
    mode: Mode, source: Source, image: int, num_tokens: int, tokens: SpecialTokens
) -> Block:
    """An image between its marks; all its tokens share one position.

    A noised image is a target that nobody else sees: it does not advance the position.
    """
    return Block(
        mode,
        text=(tokens.start_of_image, tokens.end_of_image),
        image=image,
        source=source,
        num_tokens=num_tokens,
        advance=0 if mode is Mode.NOISE else 1,
        targets=(-1, -1),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A batch of rows as index tensors; ``batch time`` is rows padded, or one long row."""

    text_ids: Int[Tensor, " text"]
    targets: Int[Tensor, " text"]
    order: Int[Tensor, "batch time"]
    """Index into the streams text, patches, latents, concatenated; 0 where padded."""
    inverse: Int[Tensor, " tokens"]
    """Index into the flattened [batch, time] of every token of the streams."""
    positions: Int[Tensor, "batch time"]
    visibility: Visibility
    lengths: Int[Tensor, " rows"]
    next_positions: tuple[int, ...]
    """Position after the last token, a row."""
    segments: Int[Tensor, "batch time"]
    """Index in its context of what a token shows; -1 for a completion, and where padded."""
    is_hidden: Bool[Tensor, "batch time"] | None
    """Knocked out: no completion sees it; None where nothing is."""

    @property
    def mask(self) -> Bool[Tensor, "batch time time"]:
        """Who sees whom, pair by pair; axes are query, key."""
        return self.visibility.dense()[:, 0]


def pack(
    rows: Sequence[Row], *, is_padded: bool = True, first_positions: Sequence[int] | None = None
) -> Packed:
    """Lay out ``rows``: padded to one length (fast on a CPU) or packed into one row.

    ``first_positions`` continues cached rows. Images must be numbered in the order in which their
    blocks appear, apart for patches and for latents.
    """
    blocks = [block for row in rows for block in row]
    sizes = np.array([len(block) for block in blocks])
    row_of_block = np.repeat(np.arange(len(rows)), [len(row) for row in rows])

    def of_tokens(values: Sequence[int] | np.ndarray) -> np.ndarray:
        """A value a block, for each of its tokens."""
        return np.repeat(values, sizes)

    within = np.arange(sizes.sum()) - of_tokens(sizes.cumsum() - sizes)
    is_end = (within == 0) | (within == of_tokens(sizes) - 1)
    source = np.where(is_end, Source.TEXT, of_tokens([block.source for block in blocks]))
    starts, next_positions = _positions(rows, first_positions or [0] * len(rows))
    is_text = of_tokens([block.image is None for block in blocks])

    samples = of_tokens(row_of_block)
    lengths = np.bincount(samples, minlength=len(rows))
    if is_padded:
        time, batch = int(lengths.max()), len(rows)
        place = samples * time + np.concatenate([np.arange(length) for length in lengths])
    else:
        time, batch = len(source), 1
        place = np.arange(time)
    inverse = place[np.argsort(source, kind="stable")]
    order = np.zeros(batch * time, dtype=np.int64)
    order[inverse] = np.arange(len(inverse))

    def spread(values: np.ndarray, fill: int) -> Tensor:
        out = np.full(batch * time, fill, dtype=np.int64)
        out[place] = values
        return torch.from_numpy(out.reshape(batch, time))

    first_split = row_of_block * (max(len(row) for row in rows) + 1)
    split = first_split + np.concatenate([np.arange(len(row)) for row in rows])
    until = np.array([block.seen_until for block in blocks])
    is_hidden = until < NEVER_HIDDEN
    return Packed(
        text_ids=torch.tensor([id_ for block in blocks for id_ in block.text], dtype=torch.long),
        targets=torch.tensor([id_ for block in blocks for id_ in block.targets], dtype=torch.long),
        order=torch.from_numpy(order.reshape(batch, time)),
        inverse=torch.from_numpy(inverse),
        positions=spread(of_tokens(starts) + within * is_text, 0),
        visibility=Visibility(
            spread(of_tokens(split), -1),
            spread(of_tokens([block.mode for block in blocks]), Mode.CAUSAL),
            spread(samples, -1),
            seen_until=spread(of_tokens(until + first_split), -1) if is_hidden.any() else None,
        ),
        lengths=torch.from_numpy(lengths),
        next_positions=tuple(next_positions),
        segments=spread(of_tokens([block.segment for block in blocks]), -1),
        is_hidden=spread(of_tokens(is_hidden), 0).bool() if is_hidden.any() else None,
    )


def _positions(rows: Sequence[Row], first: Sequence[int]) -> tuple[list[int], list[int]]:
    """Position at the start of every block, and behind the last one of every row."""
    starts, ends = [], []
    for row, start in zip(rows, first, strict=True):
        *row_starts, end = accumulate((block.advance for block in row), initial=start)
        starts += row_starts
        ends.append(end)
    return starts, ends


def attention_mask(
    splits: Int[Tensor, "batch time"],
    modes: Int[Tensor, "batch time"],
    samples: Int[Tensor, "batch time"],
) -> Bool[Tensor, "batch time time"]:
    """The rule of :class:`Visibility`, pair by pair; axes are query, key."""
    return Visibility(splits, modes, samples).dense()[:, 0]


@dataclass(slots=True, eq=False)
class Images:
    """What the blocks of a batch of rows refer to, in stream order."""

    read: list[Float[Tensor, "3 _height _width"]]
    """Pixels for the vision encoder."""
    drawn: list[Float[Tensor, "3 _height _width"]]
    """Pixels for the codec."""
    is_noised: list[bool]
    """Which of ``drawn`` are targets of the flow."""
    drawn_row: list[int]
    """The row each of ``drawn`` stands in."""


def context_rows(contexts: Sequence[Context], config: BagelConfig) -> tuple[list[Row], Images]:
    """Turn contexts into rows: a target image is noised, then clean, then read (ThinkMorph)."""
    images = Images(read=[], drawn=[], is_noised=[], drawn_row=[])
    rows = []
    for row_index, context in enumerate(contexts):
        parts = [_blocks(segment, row_index, images, config) for segment in context]
        ends = list(accumulate((len(part) for part in parts), initial=-1))[1:]
        row: Row = []
        for index, (segment, part, end) in enumerate(zip(context, parts, ends, strict=True)):
            last = {None: NEVER_HIDDEN, "all_behind": end, "completion": ends[-1]}
            until = last[segment.hidden_from]
            row.extend(replace(block, segment=index, seen_until=until) for block in part)
        rows.append(row or [Block(Mode.CAUSAL, advance=0)])
    return rows, images


def _blocks(segment: Text | Image, row: int, images: Images, config: BagelConfig) -> Row:
    if isinstance(segment, Text):
        return [text_block(segment.ids, config.tokens, is_target=segment.is_target)]
    return _image_blocks(segment, row, images, config)


def _image_blocks(image: Image, row: int, images: Images, config: BagelConfig) -> Row:
    """Noised and clean latents where asked for, then patches unless it is a target alone."""
    blocks = []
    modes = [Mode.NOISE] * image.num_noised + [Mode.FULL] * image.with_latents
    for mode in modes:
        tokens = num_tokens(image.drawn_pixels, config.latent.pixels_per_token, "latents")
        index = len(images.drawn)
        blocks.append(image_block(mode, Source.LATENT, index, tokens, config.tokens))
        images.drawn.append(image.drawn_pixels)
        images.is_noised.append(mode is Mode.NOISE)
        images.drawn_row.append(row)
    if image.with_patches:
        tokens = num_tokens(image.pixels, config.vision.patch_size, "patches")
        blocks.append(image_block(Mode.FULL, Source.PATCH, len(images.read), tokens, config.tokens))
        images.read.append(image.pixels)
    return blocks


def completed_rows(
    contexts: Sequence[Context],
    completions: Sequence[Int[Tensor, " _tokens"]],
    config: BagelConfig,
) -> tuple[list[Row], Images]:
    """Contexts, and behind each of them the completion that is scored."""
    if len(contexts) != len(completions):
        raise ValueError(f"{len(contexts)} contexts for {len(completions)} completions")
    rows, images = context_rows(contexts, config)
    for row, ids in zip(rows, completions, strict=True):
        row.append(completion_block(ids.tolist(), config.tokens))
    return rows, images


def segment_lengths(context: Context, config: BagelConfig) -> tuple[int, ...]:
    """Tokens of every segment, marks included."""
    lengths = [0] * len(context)
    for block in context_rows([context], config)[0][0]:
        lengths[block.segment] += len(block)
    return tuple(lengths)


def num_tokens(pixels: Float[Tensor, "3 height width"], side: int, what: str) -> int:
    """Tokens of an image; its sides must be multiples of ``side`` pixels."""
    height, width = pixels.shape[-2:]
    if height % side or width % side:
        raise ValueError(
            f"an image of {height} x {width} px does not divide into {what} of {side} px"
        )
    return (height // side) * (width // side)


def grid_ids(
    height: int, width: int, stride: int, *, interpolate: bool = False
) -> Int[Tensor, " cells"]:
    """Row-major position ids of a height x width grid inside a table of side ``stride``.

    The grid takes the table's top left corner; with ``interpolate`` it is spread over all of it
    (an option of the official code that no released model uses).
    """
    if interpolate:
        rows, columns = (
            torch.arange(height) * stride // height,
            torch.arange(width) * stride // width,
        )
        return (rows[:, None] * stride + columns).flatten()
    if height > stride or width > stride:
        raise ValueError(f"a grid of {height} x {width} exceeds the position table of {stride}")
    return (torch.arange(height)[:, None] * stride + torch.arange(width)).flatten()
