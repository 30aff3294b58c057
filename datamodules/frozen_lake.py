"""Mazes without end, in ThinkMorph's format, and never one of the test set.

A maze is a pure function of (seed, split, index). The split is written in the maze itself, in its
canonical form, so no maze, rotation or mirror image is in two splits whatever the seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.splits import Split, split_of_key, split_rng
from datamodules.thoughts import ThoughtLength, write_thoughts
from visual_opsd.benchmarks.maze_pictures import (
    reduced_problem,
    reduced_visual_thought,
    to_pixels,
)
from visual_opsd.benchmarks.mazes import (
    NAVIGATION_ANSWER_TEMPLATE,
    NAVIGATION_QUESTION,
    NAVIGATION_TASK,
    Cell,
    Maze,
    best_constant,
    distances,
    vertical_then_horizontal,
)
from visual_opsd.contexts import Image, Problem, Role

HARD_MIN_DETOUR = 2
"""Moves that holes force beyond the Manhattan distance in split ``hard``."""
VSP_KEYS_PATH = Path(__file__).parent / "resources" / "vsp_keys.txt"

_TRIES_FOR_LENGTH = 300
_TRIES_FOR_ANY = 50_000
_MAZE, _WORDS, _DONOR = range(3)  # one random stream each


@dataclass(frozen=True, slots=True)
class MazeSettings:
    """Which mazes are generated."""

    sizes: tuple[int, ...] = (3, 4, 5, 6)
    """Cells a side. Index ``i`` has size ``sizes[i % len(sizes)]``."""
    hole_probability: float = 0.2
    """Of every cell; VSP has 0.14 at 3x3 to 0.19 at 8x8."""
    min_detour: int = 0
    """Moves that holes must force beyond the Manhattan distance; 2 makes planning necessary."""
    seed: int = 0
    balance_lengths: bool = True
    """Aim at shortest paths of 1 to 2 (size - 1) moves equally often; else start and goal are
    uniform, and a third of the small mazes is solved by one move."""
    thought_length: ThoughtLength = "tiny"

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 2:
            raise ValueError(f"sizes: expected one or more sizes of at least 2; got {self.sizes}")
        if not 0 <= self.hole_probability < 1:
            raise ValueError(f"hole_probability: expected 0 <= p < 1; got {self.hole_probability}")
        if self.min_detour < 0 or self.seed < 0:
            raise ValueError(
                f"min_detour and seed: expected at least 0; got {self.min_detour}, {self.seed}"
            )
        if self.thought_length not in ("tiny", "faithful"):
            raise ValueError(
                f"thought_length: expected 'tiny' or 'faithful'; got {self.thought_length!r}"
            )


def size_of(settings: MazeSettings, index: int) -> int:
    """The size of a maze before it is generated, so that a sampler can group by it."""
    return settings.sizes[index % len(settings.sizes)]


def split_of(maze: Maze) -> Split:
    """The split that a maze belongs to, with all its rotations and mirror images."""
    return split_of_key(maze.canonical_key)


def generate(settings: MazeSettings, split: Split, index: int) -> Maze:
    """The maze at ``index``, the same in every process.

    Raises:
        ValueError: The settings allow no maze.
    """
    rng = _rng(settings, split, index, _MAZE)
    size = size_of(settings, index)
    min_detour = max(settings.min_detour, HARD_MIN_DETOUR if split == "hard" else 0)
    target = 0
    if settings.balance_lengths:
        # A detour needs a straight line of two moves at least, with a hole on it.
        shortest = 2 + min_detour if min_detour else 1
        target = int(rng.integers(shortest, max(2 * (size - 1), shortest) + 1))
    nearest: tuple[int, Maze] | None = None
    for attempt in range(_TRIES_FOR_ANY):
        if nearest is not None and attempt >= _TRIES_FOR_LENGTH:
            break
        drawn = _draw(rng, settings.hole_probability, size, target, min_detour)
        if drawn is None:
            continue
        miss, maze = drawn
        if (nearest is None or miss < nearest[0]) and _is_admitted(maze, split):
            nearest = (miss, maze)
            if miss == 0:
                break
    if nearest is None:
        raise ValueError(
            f"no maze of size {size} in split {split!r} after {_TRIES_FOR_ANY} tries with "
            f"hole_probability {settings.hole_probability} and a detour of {min_detour} or more"
        )
    return nearest[1]


def generate_problem(settings: MazeSettings, split: Split, index: int) -> Problem:
    """The maze at ``index`` as a problem, words included."""
    maze = generate(settings, split, index)
    rng = words_rng(settings, split, index)
    return maze_problem(maze, problem_id(settings, split, index), rng, settings.thought_length)


def words_rng(settings: MazeSettings, split: Split, index: int) -> np.random.Generator:
    """What draws the words of the problem at ``index``."""
    return _rng(settings, split, index, _WORDS)


def problem_id(settings: MazeSettings, split: Split, index: int) -> str:
    """Seed, split, size and index: what it takes to generate the problem again."""
    return f"frozenlake_{split}_r{settings.seed}_s{size_of(settings, index)}_{index}"


def maze_problem(
    maze: Maze,
    problem_id: str,
    rng: np.random.Generator,
    thought_length: ThoughtLength = "tiny",
) -> Problem:
    """A maze in ThinkMorph's Spatial_Navigation format: the red line is the visual thought."""
    moves = maze.shortest_path()
    thoughts = write_thoughts(maze, rng, thought_length)
    drawn = to_pixels(reduced_visual_thought(maze, moves))
    return Problem(
        problem_id=problem_id,
        image=Image(to_pixels(reduced_problem(maze))),
        question=NAVIGATION_QUESTION,
        answer=",".join(moves),
        answer_template=NAVIGATION_ANSWER_TEMPLATE,
        visual_thoughts=(Image(drawn, role=Role.VISUAL_THOUGHT),),
        text_thoughts=thoughts.text_thoughts,
        text_only_thought=thoughts.text_only_thought,
        task=NAVIGATION_TASK,
        category=f"size_{maze.size}",
    )


def donor_index(
    settings: MazeSettings, split: Split, index: int, num_problems: int | None = None
) -> int:
    """Another index with a maze of the same size, for controls that swap visual thoughts.

    Args:
        settings: Of the problems and their donors.
        split: Of the problems and their donors.
        index: Whose donor is wanted.
        num_problems: The donor's index is below it; None for no bound.

    Raises:
        ValueError: No other maze of that size is below the bound.
    """
    stride = len(settings.sizes)
    first = index % stride
    count = 2**20 if num_problems is None else len(range(first, num_problems, stride))
    rng = _rng(settings, split, index, _DONOR)
    own = generate(settings, split, index)
    for _ in range(64):
        candidate = first + stride * int(rng.integers(max(count, 1)))
        if candidate != index and generate(settings, split, candidate) != own:
            return candidate
    raise ValueError(
        f"no other maze of size {size_of(settings, index)} among {num_problems} problems of split "
        f"{split!r}; a donor needs at least {2 * stride}"
    )


def overlap_report(settings: MazeSettings, num_problems: Mapping[Split, int]) -> dict[str, Any]:
    """How far the splits are apart and how far guessing gets, ready for JSON.

    ``hard`` is a part of ``test``: an overlap of these two is no leak.
    """
    mazes = {
        split: [generate(settings, split, index) for index in range(count)]
        for split, count in num_problems.items()
    }
    exact = {split: {maze.rows for maze in found} for split, found in mazes.items()}
    keys = {split: {maze.canonical_key for maze in found} for split, found in mazes.items()}
    report: dict[str, Any] = {"splits": {}, "exact_overlap": {}, "canonical_overlap": {}}
    for split, found in mazes.items():
        constant, score = best_constant(found)
        solved = sum(maze.walk(vertical_then_horizontal(maze)) for maze in found)
        report["splits"][split] = {
            "num_problems": len(found),
            "num_unique": len(exact[split]),
            "num_unique_canonical": len(keys[split]),
            "overlap_with_vsp": len(keys[split] & vsp_keys()),
            "mean_shortest_length": sum(maze.shortest_length for maze in found) / len(found),
            "best_constant": ",".join(constant),
            "best_constant_accuracy": score,
            "vertical_then_horizontal_accuracy": solved / len(found),
        }
    for one, other in combinations(num_problems, 2):
        report["exact_overlap"][f"{one}/{other}"] = len(exact[one] & exact[other])
        report["canonical_overlap"][f"{one}/{other}"] = len(keys[one] & keys[other])
    return report


@lru_cache(maxsize=1)
def vsp_keys() -> frozenset[str]:
    """The canonical keys of all 600 mazes of VSP."""
    lines = VSP_KEYS_PATH.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


def _draw(
    rng: np.random.Generator, hole_probability: float, size: int, target: int, min_detour: int
) -> tuple[int, Maze] | None:
    """A random maze and by how much its shortest path misses the target; 0 is no target."""
    *values, at_start, at_goal = rng.random(size * size + 2).tolist()
    row, column = start = divmod(int(at_start * size * size), size)
    letters = ["H" if value < hole_probability else "F" for value in values]
    letters[row * size + column] = "S"
    rows = ["".join(letters[line * size : (line + 1) * size]) for line in range(size)]
    ends: dict[int, list[Cell]] = {}
    for cell, length in distances(rows, start).items():
        if length and length - abs(cell[0] - row) - abs(cell[1] - column) >= min_detour:
            ends.setdefault(length if target else 0, []).append(cell)
    if not ends:
        return None
    length = min(ends, key=lambda length: abs(length - target))
    goal_row, goal_column = ends[length][int(at_goal * len(ends[length]))]
    goal_letters = rows[goal_row]
    rows[goal_row] = goal_letters[:goal_column] + "G" + goal_letters[goal_column + 1 :]
    return abs(length - target), Maze(tuple(rows))


def _is_admitted(maze: Maze, split: Split) -> bool:
    key = maze.canonical_key
    wanted = "test" if split == "hard" else split
    return split_of_key(key) == wanted and (wanted == "test" or key not in vsp_keys())


def _rng(settings: MazeSettings, split: Split, index: int, stream: int) -> np.random.Generator:
    return split_rng(settings.seed, split, index, stream)
