"""Pictures cut and shuffled: ThinkMorph's Jigsaw_Assembly, VisPuzzle's form and BLINK's."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from visual_opsd.benchmarks.puzzles import Puzzle, letter_of

JIGSAW_TASK = "Jigsaw_Assembly"
Layout = Literal["1x2", "2x1", "1x3", "3x1", "2x2"]
"""Rows x columns."""
LAYOUTS: tuple[Layout, ...] = ("1x2", "2x1", "1x3", "3x1", "2x2")
Arrangement = tuple[int, ...]
"""The part that belongs to each place; both count from zero, row by row."""
MIN_MARGIN = 3.0
"""Grey levels by which the true arrangement must fit better than any other."""

_STRIP = 0.064  # of the width, as in the published pictures
_MULTIPLE = 16  # sides and strips are whole patches of the tiny model
_MIN_LABELLED = 32  # a numeral on a smaller part would hide it
_Array = NDArray[np.float32]

# Published: 1x2 and 2x2. The other three follow their pattern.
_STEMS: dict[Layout, str] = {
    "1x2": "The image below is divided vertically into two parts by a white strip, forming a 1×2 "  # noqa: RUF001
    'jigsaw puzzle. The left part is labeled "1" and the right part is labeled "2". These two '
    "parts are shuffled and may not be in their original order. Your task is to determine the "
    "correct arrangement of the two parts to reconstruct a natural-looking image.",
    "2x1": "The image below is divided horizontally into two parts by a white strip, forming a 2×1 "  # noqa: RUF001
    'jigsaw puzzle. The top part is labeled "1" and the bottom part is labeled "2". These two '
    "parts are shuffled and may not be in their original order. Your task is to determine the "
    "correct arrangement of the two parts to reconstruct a natural-looking image.",
    "1x3": "The image below is divided vertically into three parts by white strips, forming a 1×3 "  # noqa: RUF001
    'jigsaw puzzle. The parts are labeled "1" (left), "2" (middle), and "3" (right). These parts '
    "are from a single original image but have been shuffled. Your task is to determine the "
    "correct arrangement of the physically labeled parts to reconstruct the natural image.",
    "3x1": "The image below is divided horizontally into three parts by white strips, forming a "
    '3×1 jigsaw puzzle. The parts are labeled "1" (top), "2" (middle), and "3" (bottom). These '  # noqa: RUF001
    "parts are from a single original image but have been shuffled. Your task is to determine the "
    "correct arrangement of the physically labeled parts to reconstruct the natural image.",
    "2x2": "The image below is divided into four parts by white strips, forming a 2×2 jigsaw "  # noqa: RUF001
    'puzzle. The parts are labeled "1" (top-left), "2" (top-right), "3" (bottom-left), and "4" '
    "(bottom-right). These parts are from a single original image but have been shuffled. Your "
    "task is to determine the correct arrangement of the physically labeled parts to reconstruct "
    "the natural image.",
}
_PLACES: dict[Layout, tuple[str, ...]] = {
    "1x2": ("left", "right"),
    "2x1": ("top", "bottom"),
    "1x3": ("left", "middle", "right"),
    "3x1": ("top", "middle", "bottom"),
    "2x2": ("top-left", "top-right", "bottom-left", "bottom-right"),
}
_BLINK_STEM = (
    "Given the first image with the lower right corner missing, can you tell which one of the "
    "second image or the third image is the missing part? Imagine which image would be more "
    "appropriate to place in the missing spot. You can also carefully observe and compare the "
    "edges of the images."
)
_BLINK_OPTIONS = ("the second image", "the third image")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A scene made from a seed: sky and ground, light from one side, things in front."""

    seed: int
    width: int
    height: int
    is_turned: bool = False
    """Mirrored at random, so that neither the sky nor the light tells what is where."""

    def array(self) -> _Array:
        """Grey levels [height, width, 3]; never pure white or black, those are strips and gaps."""
        return _paint(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Jigsaw(Puzzle):
    """A picture in two to four parts, shuffled."""

    picture: Picture
    layout: Layout
    arrangement: Arrangement
    choices: tuple[Arrangement, ...]
    """What the options say, the true one among them."""

    task: ClassVar[str] = JIGSAW_TASK

    @property
    def category(self) -> str:
        """The layout."""
        return self.layout

    @property
    def key(self) -> str:
        """The scene: no two splits share one, whatever the cut."""
        return f"scene {self.picture.seed}"

    @property
    def stem(self) -> str:
        """Without the options."""
        return _STEMS[self.layout]

    @property
    def question(self) -> str:
        """With the options."""
        return jigsaw_question(self.layout, self.choices)

    @property
    def options(self) -> tuple[str, ...]:
        """One statement a choice."""
        return tuple(statement(self.layout, choice) for choice in self.choices)

    @property
    def answer(self) -> str:
        """The letter of the true arrangement."""
        return letter_of(self.choices.index(self.arrangement))

    @property
    def subject(self) -> str:
        """All parts."""
        return f"the {len(self.arrangement)} parts"

    @property
    def details(self) -> tuple[str, ...]:
        """Which part is shown where, which is no hint of where it belongs."""
        return tuple(
            f"Part {part} is shown at the {place}."
            for part, place in enumerate(_PLACES[self.layout], start=1)
        )

    @property
    def conclusion(self) -> str:
        """The true statement."""
        return f"{statement(self.layout, self.arrangement).rstrip('.')}."

    def pictures(self) -> tuple[PILImage.Image]:
        """Parts in the order in which they are shown, white strips between, numerals on top."""
        tiles = _cut(self.picture.array(), self.layout)
        shown = [tiles[self.arrangement.index(part)] for part in range(len(tiles))]
        return (_show(shown, self.layout),)

    def visual_thought(self) -> PILImage.Image:
        """The picture put together, without strips and numerals."""
        return _to_image(self.picture.array())

    def seen_answer(self) -> str | None:
        """By the cheapest seams between the parts in the picture."""
        found, margin = cheapest_arrangement(self.pictures()[0], self.layout)
        is_clear = margin >= MIN_MARGIN and found in self.choices
        return letter_of(self.choices.index(found)) if is_clear else None


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingCorner(Puzzle):
    """BLINK's form: which of two candidates is the lower right quarter of a picture."""

    picture: Picture
    distractor: Picture
    """A scene whose upper left quarter is the false candidate; the same one makes it hard."""
    is_second: bool
    """The second image is right, else the third."""

    task: ClassVar[str] = JIGSAW_TASK

    @property
    def category(self) -> str:
        """Of its own."""
        return "missing_corner"

    @property
    def key(self) -> str:
        """The scene of the first image."""
        return f"scene {self.picture.seed}"

    @property
    def stem(self) -> str:
        """Without the options."""
        return _BLINK_STEM

    @property
    def question(self) -> str:
        """With the options."""
        return f"{_BLINK_STEM}\nSelect from the following choices.\n{_listed(_BLINK_OPTIONS)}"

    @property
    def options(self) -> tuple[str, ...]:
        """Which image."""
        return _BLINK_OPTIONS

    @property
    def answer(self) -> str:
        """A letter."""
        return "A" if self.is_second else "B"

    @property
    def subject(self) -> str:
        """The gap."""
        return "the missing corner"

    @property
    def details(self) -> tuple[str, ...]:
        """What is the same in every puzzle of this form."""
        return ("The first image lacks its lower right corner.", "Two candidates are given.")

    @property
    def conclusion(self) -> str:
        """Which candidate."""
        return f"The missing part is {_BLINK_OPTIONS[not self.is_second]}."

    def pictures(self) -> tuple[PILImage.Image, ...]:
        """The picture with a black corner, then the two candidates."""
        whole = self.picture.array()
        top, left = self.picture.height // 2, self.picture.width // 2
        corner, other = whole[top:, left:], self.distractor.array()[:top, :left]
        gap = whole.copy()
        gap[top:, left:] = 0
        candidates = (corner, other) if self.is_second else (other, corner)
        return tuple(_to_image(array) for array in (gap, *candidates))

    def visual_thought(self) -> PILImage.Image:
        """The picture with its corner."""
        return _to_image(self.picture.array())

    def seen_answer(self) -> str | None:
        """By the seams of either candidate in the gap."""
        whole, *candidates = (_to_array(picture) for picture in self.pictures())
        top, left = whole.shape[0] // 2, whole.shape[1] // 2
        second, third = (
            float(
                np.abs(whole[top:, left - 1] - candidate[:, 0]).mean()
                + np.abs(whole[top - 1, left:] - candidate[0]).mean()
            )
            / 2
            for candidate in candidates
        )
        if abs(second - third) < MIN_MARGIN:
            return None
        return "A" if second < third else "B"


def jigsaw_question(layout: Layout, choices: Sequence[Arrangement]) -> str:
    """ThinkMorph's wording, options included."""
    listed = _listed([statement(layout, choice) for choice in choices])
    if len(_PLACES[layout]) == 2:
        ask = "\nSelect the correct answer from the following 2 choices:\n"
    else:
        ask = "\n\nSelect the correct statement from the following choices:\n\n"
    return f"{_STEMS[layout]}{ask}{listed}"


def statement(layout: Layout, arrangement: Arrangement) -> str:
    """An arrangement in words; parts count from one there."""
    if layout == "1x2":
        side = "left" if arrangement == (0, 1) else "right"
        return f"Part 1 should be to the {side} of Part 2"
    if layout == "2x1":
        return f"Part 1 should be {'above' if arrangement == (0, 1) else 'below'} Part 2"
    *first, last = (
        f"the {place} part should be Part {part + 1}"
        for place, part in zip(_PLACES[layout], arrangement, strict=True)
    )
    return f"T{'; '.join(first)[1:]}; and {last}."


def picture_size(layout: Layout, pixels: int) -> tuple[int, int]:
    """Width and height of a picture of nominally ``pixels`` a side that is cut into whole parts."""
    rows, columns = _grid(layout)
    return columns * _multiple(pixels / columns), rows * _multiple(pixels / rows)


def num_parts(layout: Layout) -> int:
    """Into how many parts the picture is cut."""
    return len(_PLACES[layout])


def cheapest_arrangement(picture: PILImage.Image, layout: Layout) -> tuple[Arrangement, float]:
    """The arrangement whose seams differ least, and by how much it is better than the next.

    Knows nothing but the picture: the white strips say where the parts are.

    Returns:
        The arrangement and its margin, in grey levels a pixel of seam.
    """
    rows, columns = _grid(layout)
    array = _to_array(picture)
    bands = [_dark_runs(array, axis) for axis in (0, 1)]
    if (len(bands[0]), len(bands[1])) != (rows, columns):
        return tuple(range(rows * columns)), 0.0
    tiles = [array[r0:r1, c0:c1] for r0, r1 in bands[0] for c0, c1 in bands[1]]
    beside = [[np.abs(a[:, -1] - b[:, 0]).mean() for b in tiles] for a in tiles]
    below = [[np.abs(a[-1] - b[0]).mean() for b in tiles] for a in tiles]
    pairs = [(place, place + 1, beside) for place in range(len(tiles)) if (place + 1) % columns]
    pairs += [(place, place + columns, below) for place in range(len(tiles) - columns)]
    costs = sorted(
        (float(np.mean([cost[order[a]][order[b]] for a, b, cost in pairs])), order)
        for order in permutations(range(len(tiles)))
    )
    return costs[0][1], costs[1][0] - costs[0][0]


def _dark_runs(array: _Array, axis: int) -> list[tuple[int, int]]:
    """Where lines along ``axis`` are not all white, as (first, after the last)."""
    is_strip = (array == 255).all(axis=(1 - axis, 2))
    edges = np.flatnonzero(np.diff(np.concatenate(([True], is_strip, [True])).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _cut(array: _Array, layout: Layout) -> list[_Array]:
    rows, columns = _grid(layout)
    return [
        tile for band in np.split(array, rows, axis=0) for tile in np.split(band, columns, axis=1)
    ]


def _show(tiles: Sequence[_Array], layout: Layout) -> PILImage.Image:
    rows, columns = _grid(layout)
    height, width = tiles[0].shape[:2]
    strip = _multiple(_STRIP * columns * width)
    size = (columns * (width + strip) - strip, rows * (height + strip) - strip)
    shown = PILImage.new("RGB", size, "WHITE")
    draw = ImageDraw.Draw(shown)
    side = min(width, height)
    for part, tile in enumerate(tiles):
        row, column = divmod(part, columns)
        left, top = column * (width + strip), row * (height + strip)
        shown.paste(_to_image(tile), (left, top))
        if side >= _MIN_LABELLED:
            middle = (left + width // 2, top + height // 2)
            font = ImageFont.load_default(side // 3)
            draw.text(
                middle,
                str(part + 1),
                fill="yellow",
                font=font,
                anchor="mm",
                stroke_width=max(1, side // 32),
                stroke_fill="black",
            )
    return shown


@lru_cache(maxsize=64)
def _paint(picture: Picture) -> _Array:
    rng = np.random.default_rng(picture.seed)
    width, height = picture.width, picture.height
    sky, ground, *colours = rng.integers(20, 225, size=(14, 3))
    canvas = PILImage.new("RGB", (width, height), _colour(sky))
    draw = ImageDraw.Draw(canvas)
    horizon = height * rng.uniform(0.3, 0.7)
    draw.rectangle((0, horizon, width, height), fill=_colour(ground))
    for colour in colours[: rng.integers(6, 13)]:
        x, y = rng.uniform(-0.1, 1.0, size=2) * (width, height)
        right, bottom = (x, y) + rng.uniform(0.1, 0.6, size=2) * (width, height)
        kind = rng.integers(3)
        if kind == 0:
            draw.ellipse((x, y, right, bottom), fill=_colour(colour))
        elif kind == 1:
            draw.rectangle((x, y, right, bottom), fill=_colour(colour))
        else:
            draw.line((x, y, right, bottom), fill=_colour(colour), width=1 + width // 16)
    array = np.asarray(canvas, dtype=np.float32)
    coarse = PILImage.fromarray(rng.normal(0, 18, size=(5, 5)).astype(np.float32))
    haze = np.asarray(coarse.resize((width, height), PILImage.Resampling.BICUBIC))
    light = np.linspace(1.2, 0.7, width, dtype=np.float32)  # the sun is on the left
    shade = np.linspace(1.1, 0.8, height, dtype=np.float32)  # and high
    array = array * light[None, :, None] * shade[:, None, None] + haze[:, :, None]
    if picture.is_turned:
        across, down = rng.integers(2, size=2)
        array = array[:: -1 if down else 1, :: -1 if across else 1]
    array = array.clip(5, 245).round()
    array.setflags(write=False)
    return array


def _listed(options: Sequence[str]) -> str:
    return "\n".join(f"({letter_of(i)}) {option}" for i, option in enumerate(options))


def _grid(layout: Layout) -> tuple[int, int]:
    rows, columns = layout.split("x")
    return int(rows), int(columns)


def _multiple(length: float) -> int:
    return max(_MULTIPLE, round(length / _MULTIPLE) * _MULTIPLE)


def _colour(values: NDArray[Any]) -> tuple[int, int, int]:
    red, green, blue = values.tolist()
    return red, green, blue


def _to_image(array: _Array) -> PILImage.Image:
    return PILImage.fromarray(array.astype(np.uint8))


def _to_array(picture: PILImage.Image) -> _Array:
    return np.asarray(picture.convert("RGB"), dtype=np.float32)
