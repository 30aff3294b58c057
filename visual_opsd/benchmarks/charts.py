"""Bars to be read: ThinkMorph's Chart_Refocus, with the bars that matter marked in red."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw

from visual_opsd.benchmarks.maze_pictures import RED
from visual_opsd.benchmarks.puzzles import PALETTE, Box, Puzzle, outlined

CHART_TASK = "Chart_Refocus"
Kind = Literal["v_bar", "h_bar"]
Asked = Literal["value", "highest", "lowest", "difference", "sum", "count_above", "above_average"]
ASKED: tuple[Asked, ...] = (
    "value",
    "highest",
    "lowest",
    "difference",
    "sum",
    "count_above",
    "above_average",
)
Marking = Literal["outline", "overlay"]
FIRST_LARGE = 256
"""Pixels a side from which matplotlib draws, with names and numbers at the axes."""
BAR_COLOURS = tuple(colour for colour in PALETTE if colour != "black")

_AXIS = (0, 0, 0)
_GRID = (221, 221, 221)
_OVERLAY_ALPHA = 50  # of 255, as in ReFocus
_NUM_NAMED: dict[Asked, int] = {"value": 1, "difference": 2, "sum": 2, "above_average": 1}


@dataclass(frozen=True, kw_only=True)
class BarChart(Puzzle):
    """Named bars of whole numbers, and a question about them."""

    values: tuple[tuple[str, int], ...]
    """Name and value of every bar, in the order of the axis."""
    colours: tuple[str, ...]
    kind: Kind
    asked: Asked
    named: tuple[str, ...] = ()
    """The bars that the question names."""
    threshold: int = 0
    """Of ``count_above``."""
    top: int
    """The last value of the axis; there is a grid line at every whole number."""
    marking: Marking = "outline"
    pixels: int
    """Width and height."""

    task: ClassVar[str] = CHART_TASK

    @property
    def category(self) -> str:
        """ReFocus's two."""
        return self.kind

    @property
    def key(self) -> str:
        """The table, whatever the order of its bars, and the kind of question."""
        return f"{sorted(self.values)} {self.asked}"

    @property
    def stem(self) -> str:
        """The question."""
        bars = [f"the {name} bar" for name in self.named]
        return {
            "value": "What is the value of {0}?",
            "highest": "Which bar has the highest value?",
            "lowest": "Which bar has the lowest value?",
            "difference": "What is the difference between {0} and {1}?",
            "sum": "What is the sum of {0} and {1}?",
            "count_above": f"How many bars have a value above {self.threshold}?",
            "above_average": "Is the value of {0} above the average of all bars?",
        }[self.asked].format(*bars)

    @property
    def question(self) -> str:
        """The same: there are no options."""
        return self.stem

    @property
    def options(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def answer(self) -> str:
        """A whole number, a name, or Yes or No."""
        return self.answer_for(dict(self.values))

    @property
    def subject(self) -> str:
        """The bars that the question names, or all."""
        return " and ".join(f"the {name} bar" for name in self.named) or "all bars"

    @property
    def details(self) -> tuple[str, ...]:
        """The names in order, without a value."""
        side = "from left to right" if self.kind == "v_bar" else "from top to bottom"
        names = ", ".join(sorted((name for name, _ in self.values), key=self._place))
        return (f"There are {len(self.values)} bars.", f"The bars {side} are {names}.")

    @property
    def conclusion(self) -> str:
        """What was asked for, with the values it comes from."""
        values = dict(self.values)
        read = " ".join(f"The {name} bar has {values[name]}." for name in self.marked)
        return f"{read} The answer is {self.answer}."

    @property
    def marked(self) -> tuple[str, ...]:
        """The bars that one has to look at, in the order of the axis."""
        if self.asked in ("highest", "lowest"):
            return (self.answer,)
        if self.asked == "count_above":
            return tuple(name for name, value in self.values if value > self.threshold)
        return tuple(name for name, _ in self.values if name in self.named)

    def answer_for(self, values: Mapping[str, int]) -> str:
        """The answer to the question if these were the bars."""
        if self.asked == "highest":
            return max(values, key=lambda name: values[name])
        if self.asked == "lowest":
            return min(values, key=lambda name: values[name])
        if self.asked == "count_above":
            return str(sum(value > self.threshold for value in values.values()))
        first, *rest = (values[name] for name in self.named)
        if self.asked == "above_average":
            return "Yes" if first > Fraction(sum(values.values()), len(values)) else "No"
        if self.asked == "value":
            return str(first)
        return str(first + rest[0] if self.asked == "sum" else abs(first - rest[0]))

    def pictures(self) -> tuple[PILImage.Image]:
        """The chart."""
        return (self._drawn[0].copy(),)

    def visual_thought(self) -> PILImage.Image:
        """The chart with the marked bars in a red frame or under red glass."""
        picture, boxes = self._drawn
        found = [boxes[name] for name in self.marked]
        if self.marking == "outline":
            return outlined(picture, found)
        glass = PILImage.new("RGBA", picture.size)
        draw = ImageDraw.Draw(glass)
        for left, top, right, bottom in found:
            draw.rectangle((left, top, right - 1, bottom - 1), fill=(*RED, _OVERLAY_ALPHA))
        return PILImage.alpha_composite(picture.convert("RGBA"), glass).convert("RGB")

    def seen_answer(self) -> str | None:
        """By the bars and grid lines of the picture."""
        by_colour = read_bars(self.pictures()[0])
        if set(by_colour) != set(self.colours):
            return None
        pairs = zip(self.values, self.colours, strict=True)
        return self.answer_for({name: by_colour[colour] for (name, _), colour in pairs})

    @cached_property
    def _drawn(self) -> tuple[PILImage.Image, dict[str, Box]]:
        return _draw_large(self) if self.pixels >= FIRST_LARGE else _draw_small(self)

    def _place(self, name: str) -> int:
        return [other for other, _ in self.values].index(name)


def num_named(asked: Asked) -> int:
    """How many bars the question names."""
    return _NUM_NAMED.get(asked, 0)


def top_of_axis(pixels: int) -> int:
    """How far the axis goes, so that a unit has four pixels at least."""
    return 20 if pixels >= FIRST_LARGE else min(10, (pixels - 3) // 4)


def read_bars(picture: PILImage.Image) -> dict[str, int]:
    """Colour to value, measured in the picture: a bar's length over the distance of grid lines.

    Knows nothing of how the picture was made but its palette and the grey of its grid.
    """
    array = np.asarray(picture.convert("RGB"))
    boxes: dict[str, Box] = {}
    for colour in BAR_COLOURS:
        rows, columns = np.nonzero((array == PALETTE[colour]).all(axis=2))
        if len(rows):
            boxes[colour] = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    if not boxes:
        return {}
    is_upright = len({box[3] for box in boxes.values()}) == 1  # they stand on one line
    lines = _lines((array == _GRID).all(axis=2).mean(axis=1 if is_upright else 0))
    if len(lines) < 2:
        return {}
    unit = float(np.diff(lines).mean())
    lengths = {c: box[3] - box[1] if is_upright else box[2] - box[0] for c, box in boxes.items()}
    return {colour: round(length / unit) for colour, length in lengths.items()}


def _lines(share: NDArray[np.float64]) -> list[float]:
    """Middles of the runs of rows that are a grid line for a tenth of their length."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], share > 0.1, [0])).astype(np.int8)))
    return [float(first + after) / 2 for first, after in zip(edges[::2], edges[1::2], strict=True)]


def _draw_small(chart: BarChart) -> tuple[PILImage.Image, dict[str, Box]]:
    """Without a letter: at this size none is legible, and bars are called by their colours."""
    side = chart.pixels
    unit = (side - 3) // chart.top
    base = 2 + unit * chart.top  # where the bars stand, measured from the far edge
    picture = PILImage.new("RGB", (side, side), "WHITE")
    draw = ImageDraw.Draw(picture)
    for value in range(1, chart.top + 1):
        draw.line((0, base - value * unit - 1, side, base - value * unit - 1), fill=_GRID)
    draw.line((0, base, side, base), fill=_AXIS)
    slot = side // len(chart.values)
    boxes = {}
    for place, ((name, value), colour) in enumerate(zip(chart.values, chart.colours, strict=True)):
        left = place * slot + max(slot // 6, 1)
        box = (left, base - value * unit, (place + 1) * slot - max(slot // 6, 1), base)
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=PALETTE[colour])
        boxes[name] = box
    if chart.kind == "v_bar":
        return picture, boxes
    # Lying bars are standing ones turned by a quarter, clockwise.
    turned = picture.transpose(PILImage.Transpose.ROTATE_270)
    return turned, {
        name: (side - bottom, left, side - top, right)
        for name, (left, top, right, bottom) in boxes.items()
    }


@lru_cache(maxsize=256)
def _draw_large(chart: BarChart) -> tuple[PILImage.Image, dict[str, Box]]:
    # Slow to import, and small charts do without.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(chart.pixels / 100, chart.pixels / 100), dpi=100)
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.17, 0.17, 0.8, 0.8))
    names, values = zip(*chart.values, strict=True)
    fills = [tuple(level / 255 for level in PALETTE[colour]) for colour in chart.colours]
    exact: dict[str, Any] = {"antialiased": False, "snap": True}
    is_upright = chart.kind == "v_bar"
    bars = (axes.bar if is_upright else axes.barh)(
        names, values, 0.7, color=fills, zorder=2, **exact
    )
    for value in range(1, chart.top + 1):
        line = axes.axhline if is_upright else axes.axvline
        line(value, color=tuple(level / 255 for level in _GRID), linewidth=0.72, zorder=1, **exact)
    (axes.set_ylim if is_upright else axes.set_xlim)(0, chart.top + 0.5)
    (axes.set_yticks if is_upright else axes.set_xticks)(range(0, chart.top + 1, 5))
    if not is_upright:
        axes.invert_yaxis()
    axes.tick_params(labelsize=5 + chart.pixels // 128)
    axes.tick_params(axis="x" if is_upright else "y", labelrotation=45)
    canvas.draw()
    picture = PILImage.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    boxes = {}
    for name, bar in zip(names, bars, strict=True):
        found = bar.get_window_extent()
        boxes[name] = (
            round(found.x0),
            chart.pixels - round(found.y1),
            round(found.x1),
            chart.pixels - round(found.y0),
        )
    return picture, boxes
