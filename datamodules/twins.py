"""Puzzles without end for three more of ThinkMorph's tasks, in its format; mazes are the fourth.

A twin is a pure function of (settings, split, index). Its canonical key decides the split, and one
whose pictures do not tell its answer is never handed out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from PIL import Image as PILImage

from datamodules.splits import Split, split_of_key, split_rng
from datamodules.thoughts import ThoughtLength, Thoughts
from datamodules.twin_thoughts import write_twin_thoughts
from visual_opsd.benchmarks import charts, jigsaw, visual_search
from visual_opsd.benchmarks.charts import CHART_TASK, BarChart
from visual_opsd.benchmarks.jigsaw import JIGSAW_TASK, Jigsaw, MissingCorner, Picture
from visual_opsd.benchmarks.maze_pictures import to_pixels
from visual_opsd.benchmarks.puzzles import PALETTE, Puzzle
from visual_opsd.benchmarks.visual_search import SEARCH_TASK, Search, Thing
from visual_opsd.contexts import Image, Problem, Role

TWIN_TASKS = (SEARCH_TASK, JIGSAW_TASK, CHART_TASK)
MISSING_CORNER = "missing_corner"
FORMS: dict[str, tuple[str, ...]] = {
    SEARCH_TASK: visual_search.ASKED,
    JIGSAW_TASK: jigsaw.LAYOUTS,
    CHART_TASK: charts.ASKED,
}
"""What is asked, by task; BLINK's ``missing_corner`` has three pictures and is only in benchmarks.
"""

_TRIES = 2000
_PUZZLE, _WORDS = range(2)  # one random stream each
_NAMES = (
    *("Peru", "Kenya", "Japan", "Chile", "Norway", "Ghana", "Spain", "Nepal", "Fiji"),
    *("Oak", "Pine", "Birch", "Maple", "Cedar", "Tea", "Coffee", "Milk", "Juice", "Cocoa"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinSettings:
    """Which puzzles are generated."""

    task: str
    pixels: int = 64
    """Nominal width and height, 32 to 512; jigsaws have strips besides."""
    difficulty: float = 0.5
    """0 to 1. Search: how many things, and how many of them in the colours of the options. Jigsaw:
    how many pictures have their sky and light in an unusual place, and how many false corners are
    cut from the same picture. Chart: how many bars. Split ``hard`` has 1."""
    forms: tuple[str, ...] = ()
    """Index ``i`` has form ``forms[i % len(forms)]``; empty: all of ``FORMS[task]``."""
    seed: int = 0
    thought_length: ThoughtLength = "tiny"

    def __post_init__(self) -> None:
        if self.task not in TWIN_TASKS:
            raise ValueError(f"task: expected one of {', '.join(TWIN_TASKS)}; got {self.task!r}")
        if not 32 <= self.pixels <= 512 or self.pixels % 16:
            raise ValueError(f"pixels: expected a multiple of 16 from 32 to 512; got {self.pixels}")
        if not 0 <= self.difficulty <= 1:
            raise ValueError(f"difficulty: expected 0 to 1; got {self.difficulty}")
        known = (*FORMS[self.task], *((MISSING_CORNER,) if self.task == JIGSAW_TASK else ()))
        if unknown := sorted(set(self.forms) - set(known)):
            raise ValueError(f"forms of {self.task}: {unknown} are none of {', '.join(known)}")
        if self.seed < 0:
            raise ValueError(f"seed: expected at least 0; got {self.seed}")
        if self.thought_length not in ("tiny", "faithful"):
            raise ValueError(
                f"thought_length: expected 'tiny' or 'faithful'; got {self.thought_length!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """A puzzle with an id and words; ``puzzle.seen_answer()`` verifies it."""

    problem_id: str
    puzzle: Puzzle
    thoughts: Thoughts

    def problem(self) -> Problem:
        """As a reader of ThinkMorph's files makes it; several pictures stand side by side."""
        puzzle = self.puzzle
        drawn = Image(to_pixels(np.asarray(puzzle.visual_thought())), Role.VISUAL_THOUGHT)
        return Problem(
            problem_id=self.problem_id,
            image=Image(to_pixels(np.asarray(side_by_side(puzzle.pictures())))),
            question=puzzle.question,
            answer=puzzle.answer,
            visual_thoughts=(drawn,),
            text_thoughts=self.thoughts.text_thoughts,
            text_only_thought=self.thoughts.text_only_thought,
            task=puzzle.task,
            category=puzzle.category,
        )


def form_of(settings: TwinSettings, index: int) -> str:
    """What is asked at ``index``, known before it is generated: equal forms have equal sizes."""
    forms = settings.forms or FORMS[settings.task]
    return forms[index % len(forms)]


def generate_twin(settings: TwinSettings, split: Split, index: int) -> Twin:
    """The twin at ``index``, the same in every process.

    Raises:
        ValueError: The settings allow no puzzle whose pictures tell its answer.
    """
    rng = split_rng(settings.seed, split, index, _PUZZLE)
    form = form_of(settings, index)
    difficulty = 1.0 if split == "hard" else settings.difficulty
    wanted: Split = "test" if split == "hard" else split
    for _ in range(_TRIES):
        puzzle = _DRAW[settings.task](rng, form, settings.pixels, difficulty)
        if split_of_key(puzzle.key) == wanted and puzzle.seen_answer() == puzzle.answer:
            words = split_rng(settings.seed, split, index, _WORDS)
            return Twin(
                problem_id=f"{settings.task.lower()}_{form}_{settings.pixels}px_"
                f"d{settings.difficulty:g}_{split}_r{settings.seed}_{index}",
                puzzle=puzzle,
                thoughts=write_twin_thoughts(puzzle, words, settings.thought_length),
            )
    raise ValueError(f"no {form} puzzle in split {split!r} after {_TRIES} tries with {settings}")


def side_by_side(pictures: tuple[PILImage.Image, ...]) -> PILImage.Image:
    """One picture as it is; several in a row, top-aligned, on white, 16 px apart."""
    if len(pictures) == 1:
        return pictures[0]
    width = sum(picture.width for picture in pictures) + 16 * (len(pictures) - 1)
    row = PILImage.new("RGB", (width, max(picture.height for picture in pictures)), "WHITE")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + 16
    return row


def draw_jigsaw(rng: np.random.Generator, form: str, pixels: int, difficulty: float) -> Puzzle:
    """A random jigsaw; it may happen to be ambiguous."""
    layout = next((layout for layout in jigsaw.LAYOUTS if layout == form), None)
    quarters = max(32, pixels // 32 * 32)
    size = (quarters, quarters) if layout is None else jigsaw.picture_size(layout, pixels)
    picture, other = (
        Picture(
            seed=int(rng.integers(2**62)),
            width=size[0],
            height=size[1],
            is_turned=bool(rng.random() < difficulty),
        )
        for _ in range(2)
    )
    if layout is None:
        return MissingCorner(
            picture=picture,
            distractor=picture if rng.random() < difficulty else other,
            is_second=bool(rng.integers(2)),
        )
    orders = list(permutations(range(jigsaw.num_parts(layout))))
    offered = [orders[i] for i in rng.permutation(len(orders))[:4]]
    return Jigsaw(
        picture=picture,
        layout=layout,
        arrangement=offered[rng.integers(len(offered))],
        choices=tuple(orders if len(orders) == 2 else offered),
    )


def draw_search(rng: np.random.Generator, form: str, pixels: int, difficulty: float) -> Puzzle:
    """Random things, one a cell of a grid; the question may happen to have no single answer."""
    asked = next(asked for asked in visual_search.ASKED if asked == form)
    grid = 4 if pixels < 128 else 8
    cell = pixels // grid
    count = 3 + round(difficulty * (grid * grid // 2 - 3))
    # Things are called by one attribute, which no other thing shares with a target; the other
    # attribute is free, and perhaps asked for.
    names, facts = list(visual_search.SHAPES), list(PALETTE)
    if asked == "shape":
        names, facts = facts, names
    names = [names[i] for i in rng.permutation(len(names))]
    offered = [facts[i] for i in rng.permutation(len(facts))[:4]]
    targets = range(1 if asked in ("color", "shape") else 2)
    things = []
    for number, place in enumerate(rng.permutation(grid * grid)[:count].tolist()):
        is_target = number in targets
        name = names[number if is_target else int(rng.integers(len(targets), len(names)))]
        pool = offered if is_target or rng.random() < difficulty else facts
        fact = pool[int(rng.integers(len(pool)))]
        shape, colour = (fact, name) if asked == "shape" else (name, fact)
        side = int(rng.integers(max(5, cell // 2), cell - 1))
        row, column = divmod(place, grid)
        left = column * cell + int(rng.integers(cell - side))
        top = row * cell + int(rng.integers(cell - side))
        things.append(Thing(shape, colour, left, top, side))
    return Search(
        things=tuple(things),
        asked=asked,
        targets=tuple(targets),
        choices=visual_search.SIDES.get(asked, tuple(offered)),
        pixels=pixels,
        ground=int(rng.choice((215, 235, 250))),
    )


def draw_chart(rng: np.random.Generator, form: str, pixels: int, difficulty: float) -> Puzzle:
    """A random chart of different values; small ones are called by their colours."""
    asked = next(asked for asked in charts.ASKED if asked == form)
    is_large = pixels >= charts.FIRST_LARGE
    count = 3 + round(difficulty * (4 if is_large else 2))
    top = charts.top_of_axis(pixels)
    values = (1 + rng.permutation(top)[:count]).tolist()
    colours = tuple(charts.BAR_COLOURS[i] for i in rng.permutation(len(charts.BAR_COLOURS))[:count])
    called = colours
    if is_large:
        called = tuple(_NAMES[i] for i in rng.permutation(len(_NAMES))[:count])
    between = [value for value in range(1, max(values)) if value not in values] or [1]
    return BarChart(
        values=tuple(zip(called, values, strict=True)),
        colours=colours,
        kind="v_bar" if rng.integers(2) else "h_bar",
        asked=asked,
        named=tuple(called[i] for i in rng.permutation(count)[: charts.num_named(asked)]),
        threshold=int(rng.choice(between)) if asked == "count_above" else 0,
        top=top,
        marking="outline" if rng.integers(2) else "overlay",
        pixels=pixels,
    )


_DRAW: dict[str, Callable[[np.random.Generator, str, int, float], Puzzle]] = {
    SEARCH_TASK: draw_search,
    JIGSAW_TASK: draw_jigsaw,
    CHART_TASK: draw_chart,
}
