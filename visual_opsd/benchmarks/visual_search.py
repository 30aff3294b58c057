"""Find a small thing among many: ThinkMorph's Visual_Search, with the two questions of V*."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from scipy import ndimage

from visual_opsd.benchmarks.puzzles import PALETTE, Box, Puzzle, letter_of, outlined

SEARCH_TASK = "Visual_Search"
Asked = Literal["color", "shape", "left_right", "above_below"]
ASKED: tuple[Asked, ...] = ("color", "shape", "left_right", "above_below")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "frame", "saltire", "hourglass")

SIDES: dict[Asked, tuple[str, str]] = {
    "left_right": ("left", "right"),
    "above_below": ("above", "below"),
}


@dataclass(frozen=True, slots=True)
class Thing:
    """A coloured shape in a square box."""

    shape: str
    colour: str
    left: int
    top: int
    side: int
    """Pixels."""

    @property
    def box(self) -> Box:
        """Where it is."""
        return self.left, self.top, self.left + self.side, self.top + self.side

    @property
    def centre(self) -> tuple[float, float]:
        """Across and down."""
        return self.left + self.side / 2, self.top + self.side / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Search(Puzzle):
    """Things on a grey ground and a question about one or two of them."""

    things: tuple[Thing, ...]
    asked: Asked
    targets: tuple[int, ...]
    """One thing for its colour or shape, two for how they lie."""
    choices: tuple[str, ...]
    """Colours or shapes among the options; for the side questions their two words."""
    pixels: int
    """Width and height."""
    ground: int = 235
    """Grey level behind the things."""

    task: ClassVar[str] = SEARCH_TASK

    @property
    def category(self) -> str:
        """V*'s two."""
        return "relative_position" if self.asked in SIDES else "direct_attributes"

    @property
    def key(self) -> str:
        """Every thing in reading order, and the question; jitter of a few pixels tells nothing."""
        things = [
            f"{thing.shape} {thing.colour} {thing.left * 8 // self.pixels} "
            f"{thing.top * 8 // self.pixels}"
            for thing in self.things
        ]
        return f"{self.stem} {sorted(things)}"

    @property
    def stem(self) -> str:
        """Without the options."""
        first = self._name(0)
        if self.asked == "color":
            return f"What is the color of the {first}?"
        if self.asked == "shape":
            return f"What is the shape of the {first}?"
        if self.asked == "left_right":
            return f"Is the {first} on the left or right side of the {self._name(1)}?"
        return f"Is the {first} above or below the {self._name(1)}?"

    @property
    def question(self) -> str:
        """With the options."""
        listed = [f"{letter_of(index)}: {choice}" for index, choice in enumerate(self.choices)]
        return "\n".join((self.stem, *listed))

    @property
    def options(self) -> tuple[str, ...]:
        """The choices."""
        return self.choices

    @property
    def answer(self) -> str:
        """The letter of what the scene holds; empty where the question has no single answer."""
        fact = self._fact(self.things)
        return letter_of(self.choices.index(fact)) if fact else ""

    @property
    def subject(self) -> str:
        """The things that are asked for."""
        return " and ".join(f"the {self._name(number)}" for number in range(len(self.targets)))

    @property
    def details(self) -> tuple[str, ...]:
        """Where the other things are, in reading order, without a colour."""
        others = [t for index, t in enumerate(self.things) if index not in self.targets]
        cell = self.pixels / 8
        return tuple(
            f"There is something at row {math.ceil(thing.centre[1] / cell)}, "
            f"column {math.ceil(thing.centre[0] / cell)}."
            for thing in sorted(others, key=lambda thing: (thing.top, thing.left))[:8]
        )

    @property
    def conclusion(self) -> str:
        """The fact that was asked for."""
        fact = self._fact(self.things)
        if self.asked == "left_right":
            return f"The {self._name(0)} is on the {fact} side of the {self._name(1)}."
        if self.asked == "above_below":
            return f"The {self._name(0)} is {fact} the {self._name(1)}."
        return f"The {self.asked} of the {self._name(0)} is {fact}."

    def pictures(self) -> tuple[PILImage.Image]:
        """All things."""
        array = np.full((self.pixels, self.pixels, 3), self.ground, dtype=np.uint8)
        for thing in self.things:
            left, top, right, bottom = thing.box
            array[top:bottom, left:right][shape_mask(thing.shape, thing.side)] = PALETTE[
                thing.colour
            ]
        return (PILImage.fromarray(array),)

    def visual_thought(self) -> PILImage.Image:
        """The same picture, the targets framed in red."""
        return outlined(self.pictures()[0], [self.things[index].box for index in self.targets])

    def seen_answer(self) -> str | None:
        """By the things found in the picture; None where one that is asked for is not unique."""
        fact = self._fact(find_things(self.pictures()[0]))
        return letter_of(self.choices.index(fact)) if fact in self.choices else None

    def _name(self, number: int) -> str:
        thing = self.things[self.targets[number]]
        return f"{thing.colour} object" if self.asked == "shape" else thing.shape

    def _fact(self, things: Sequence[Thing]) -> str:
        """What is true among ``things``; empty where the question has no single answer there."""
        found = []
        for index in self.targets:
            wanted = self.things[index]
            called = "colour" if self.asked == "shape" else "shape"
            same = [t for t in things if getattr(t, called) == getattr(wanted, called)]
            if len(same) != 1:
                return ""
            found += same
        if self.asked == "color":
            return found[0].colour
        if self.asked == "shape":
            return found[0].shape
        axis = 0 if self.asked == "left_right" else 1
        first, second = (thing.centre[axis] for thing in found)
        is_close = abs(first - second) < max(thing.side for thing in found) / 2
        return "" if is_close else SIDES[self.asked][first > second]


@lru_cache(maxsize=4096)
def shape_mask(shape: str, side: int) -> NDArray[np.bool_]:
    """Which of ``side x side`` pixels belong to the shape; it touches all four borders."""
    across = np.abs(np.arange(side) - (side - 1) / 2)  # distance of pixel centres from the middle
    x, y = across[None, :], across[:, None]
    half, third = side / 2, max(side / 6, 0.5)
    masks = {
        "circle": x**2 + y**2 <= half**2,
        "square": (x <= half) & (y <= half),
        "triangle": x <= (np.arange(side)[:, None] + 1) / 2,
        "diamond": x + y <= half,
        "cross": (x <= third) | (y <= third),
        "frame": (np.maximum(x, y) <= half) & (np.maximum(x, y) > half - max(side // 5, 1)),
        "saltire": np.abs(x - y) <= third,
        "hourglass": x <= y + 0.5,
    }
    return masks[shape]


def find_things(picture: PILImage.Image) -> tuple[Thing, ...]:
    """The things that a picture shows, whatever it was drawn from.

    A connected patch that is not of the ground's colour is a thing; its colour is the nearest of
    the palette, its shape the one that covers it best.
    """
    array = np.asarray(picture.convert("RGB"))
    _, ground = max(picture.convert("RGB").getcolors(array.size) or ())  # the most frequent colour
    labels, _ = ndimage.label((array != ground).any(axis=2), structure=np.ones((3, 3)))
    colours = np.array(list(PALETTE.values()))
    found = []
    for number, place in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[place] == number
        side = max(mask.shape)
        mean = array[place][mask].mean(axis=0)
        colour = list(PALETTE)[int(np.abs(colours - mean).sum(axis=1).argmin())]
        square = np.zeros((side, side), dtype=bool)
        square[: mask.shape[0], : mask.shape[1]] = mask
        shape = max(SHAPES, key=lambda shape: (shape_mask(shape, side) == square).mean())
        found.append(Thing(shape, colour, place[1].start, place[0].start, side))
    return tuple(found)
