"""VSP as a column of the table: the moves of a completion are walked through the row's maze."""

import re
from pathlib import Path
from typing import Any

from visual_opsd.benchmarks import harness
from visual_opsd.benchmarks.answers import extract_answer, score_maze
from visual_opsd.benchmarks.benchmark import Benchmark, Mark
from visual_opsd.benchmarks.items import Item, bare_prompt
from visual_opsd.benchmarks.maze_pictures import read_maze
from visual_opsd.benchmarks.mazes import NAVIGATION_ANSWER_TEMPLATE, NAVIGATION_QUESTION, Maze
from visual_opsd.benchmarks.vsp import vsp_pictures
from visual_opsd.models.bagel.preprocessing import open_picture

MAZE_COLUMN = "maze_map"


def maze_of_item(item: Item) -> Maze:
    """The maze of ``maze_map``, which is spelt as numpy prints a list: ``['SF' 'FG']``.

    Raises:
        ValueError: There is none, or it is no maze.
    """
    cell = item.columns.get(MAZE_COLUMN, "")
    try:
        return Maze(tuple(re.findall(r"'([^']+)'", cell)))
    except ValueError as error:
        raise ValueError(f"{MAZE_COLUMN} {cell[:80]!r}: {error}") from error


def mark_walk(item: Item, text: str) -> Mark:
    """The strict rule; ``also``: gymnasium's rule, and solved in as few moves as possible."""
    score = score_maze(maze_of_item(item), text)
    found = extract_answer(text)
    return Mark(
        is_right=score.is_solved,
        answer=found.value,
        rule=found.rule,
        has_format_failure=score.has_format_failure,
        is_ambiguous=found.is_ambiguous,
        also={"gymnasium": score.is_solved_gymnasium, "optimal": score.is_optimal},
    )


def _harness(item: Item, text: str, judge: harness.Judge | None) -> bool:
    del judge  # never asked there either
    moves = harness.moves(text)
    return moves is not None and maze_of_item(item).walk(moves)


def check_maze(item: Item) -> None:
    """ValueError where there is no maze, or no way through it."""
    maze_of_item(item).shortest_path()


def _from_picture(path: Path) -> dict[str, Any]:
    """A picture of VSP's own repository, with the maze that is read from it."""
    data = path.read_bytes()
    maze = read_maze(open_picture(data))
    return {
        "index": f"{path.parent.parent.name}_{path.stem}",
        "image": [data],
        "question": NAVIGATION_QUESTION,
        "answer": ",".join(maze.shortest_path()),
        MAZE_COLUMN: str([*maze.rows]).replace(",", ""),
    }


def _shortest(item: Item) -> str:
    answer = ",".join(maze_of_item(item).shortest_path())
    return NAVIGATION_ANSWER_TEMPLATE.format(answer=answer)


VSP = Benchmark(
    name="VSP",
    files={"VSP_maze_task_main_original": "d52eb0fa"},
    pictures_in=vsp_pictures,
    from_picture=_from_picture,
    check=check_maze,
    category=lambda item: f"level_{maze_of_item(item).size}",
    prompt=bare_prompt,
    mark=mark_walk,
    mark_as_harness=_harness,
    constant=_shortest,
)
