"""The maze test set of Visual Spatial Planning, read from its repository's folders.

``levelN/img/I.png`` is the picture, ``levelN/pure_text/I.txt`` the map in words. Only pictures
become problems; the words check the reading. Test data: never train on it, never select by it.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from visual_opsd.benchmarks.maze_pictures import read_maze_pixels, reduce_picture
from visual_opsd.benchmarks.mazes import (
    NAVIGATION_ANSWER_TEMPLATE,
    NAVIGATION_QUESTION,
    NAVIGATION_TASK,
    Cell,
    Maze,
)
from visual_opsd.contexts import Image, Problem
from visual_opsd.models.bagel.preprocessing import open_picture

FOLDER_VARIABLE = "VISUAL_OPSD_VSP"
_DEFAULT_FOLDER = Path(__file__).resolve().parents[3] / "shared" / "vsp"
_LAYOUT = "levelN/img/I.png with N from 3 to 8, as in UCSB-NLP-Chang/Visual-Spatial-Planning"
_CELL_WORDS = re.compile(r"row\s+(\d+),\s*column\s+(\d+)", re.IGNORECASE)


def vsp_folder() -> Path | None:
    """Where VSP lies: ``VISUAL_OPSD_VSP``, else ../shared/vsp; None where there is none."""
    folder = Path(os.environ.get(FOLDER_VARIABLE) or _DEFAULT_FOLDER)
    return folder if folder.is_dir() else None


def vsp_pictures(folder: Path) -> list[Path]:
    """Every picture, by level and then by number.

    Raises:
        ValueError: There is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise ValueError(f"no VSP folder at {folder} (set {FOLDER_VARIABLE}); expected {_LAYOUT}")
    paths = [
        path for path in folder.glob("level*/img/*.png") if _level(path) and path.stem.isdigit()
    ]
    if not paths:
        raise ValueError(f"no VSP picture below {folder}; expected {_LAYOUT}")
    return sorted(paths, key=lambda path: (_level(path), int(path.stem)))


def vsp_problems(folder: Path, leave_out: Callable[[str], object] | None = None) -> list[Problem]:
    """The test mazes as problems without visual thoughts; the category is ``level_N``.

    Args:
        folder: Of VSP's repository.
        leave_out: Told of every picture that cannot be read, which is then left out; without it
            the first one is an error.

    Raises:
        ValueError: The folder is missing or empty, no picture can be read, or one cannot be read
            and is not to be left out; it is named.
    """
    problems = []
    for path in vsp_pictures(folder):
        try:
            problems.append(_problem(path))
        except ValueError as error:
            if leave_out is None:
                raise
            leave_out(str(error))
    if not problems:
        raise ValueError(f"no VSP picture below {folder} can be read")
    return problems


def maze_of(problem: Problem) -> Maze:
    """The maze that a problem's picture shows, at any size if its category ends in the cells."""
    size = problem.category.rpartition("_")[2]
    return read_maze_pixels(problem.image.pixels, int(size) if size.isdigit() else None)


def maze_from_text(text: str) -> Maze:
    """The maze that VSP describes in words; its rows and columns count from one.

    Raises:
        ValueError: The size, the player or the goal is not stated.
    """
    size = re.search(r"(\d+)x\d+ map", text)
    player, goal = (
        re.search(rf"{who} is at:([^;.]*)", text, re.IGNORECASE) for who in ("player", "goal")
    )
    holes = re.search(r"hole\(s\) are at:([^.]*?)\n", text, re.IGNORECASE)
    if size is None or player is None or goal is None:
        raise ValueError(f"expected a map, a player and a goal in words; got {text[:120]!r}")
    letters = [["F"] * int(size[1]) for _ in range(int(size[1]))]
    for letter, words in (("H", holes[1] if holes else ""), ("S", player[1]), ("G", goal[1])):
        for row, column in _cells(words):
            letters[row][column] = letter
    return Maze(tuple("".join(row) for row in letters))


def _problem(path: Path) -> Problem:
    try:
        pixels = reduce_picture(open_picture(path.read_bytes()))
        maze = read_maze_pixels(pixels)
        answer = ",".join(maze.shortest_path())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no picture of a maze: {error}") from error
    return Problem(
        problem_id=f"vsp_level{_level(path)}_{path.stem}",
        image=Image(pixels),
        question=NAVIGATION_QUESTION,
        answer=answer,
        answer_template=NAVIGATION_ANSWER_TEMPLATE,
        task=NAVIGATION_TASK,
        category=f"level_{_level(path)}",
    )


def _level(path: Path) -> int:
    name = path.parent.parent.name.removeprefix("level")
    return int(name) if name.isdigit() else 0


def _cells(words: str) -> list[Cell]:
    return [(int(row) - 1, int(column) - 1) for row, column in _CELL_WORDS.findall(words)]
