"""Twins and mazes as the files people have: ThinkMorph's parquet and VLMEvalKit's TSV."""

import base64
import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from datamodules.splits import Split
from datamodules.thinkmorph import png, problem_row, write_shards
from datamodules.twins import Twin, TwinSettings, generate_twin, side_by_side
from visual_opsd.benchmarks.maze_pictures import render
from visual_opsd.benchmarks.mazes import NAVIGATION_QUESTION, Maze
from visual_opsd.benchmarks.puzzles import letter_of

TSV_COLUMNS = ("index", "image", "question", "A", "B", "C", "D", "answer", "category")


def write_twins(
    folder: Path,
    settings: TwinSettings,
    split: Split,
    num_problems: int,
    num_shards: int = 1,
    rows_per_group: int = 256,
) -> list[Path]:
    """Twins as ThinkMorph publishes its tasks.

    Returns:
        The files, ``<folder>/<task>/data/train-*.parquet`` whatever the split.
    """

    def row(index: int) -> dict[str, Any]:
        twin = generate_twin(settings, split, index)
        picture = side_by_side(twin.puzzle.pictures())
        return problem_row(twin.problem(), picture, twin.puzzle.visual_thought())

    folder = folder / settings.task / "data"
    return write_shards(folder, row, num_problems, num_shards, rows_per_group)


def twin_tsv_row(index: int, twin: Twin) -> dict[str, Any]:
    """A twin as a row of VLMEvalKit: question and options apart, all pictures in one cell."""
    puzzle = twin.puzzle
    return {
        "index": index,
        "image": encoded(puzzle.pictures()),
        "question": puzzle.stem,
        **{letter_of(number): option for number, option in enumerate(puzzle.options)},
        "answer": puzzle.answer,
        "category": puzzle.category,
    }


def maze_tsv_row(index: int, maze: Maze) -> dict[str, Any]:
    """A maze as a row of VSP's TSV; the map is printed as numpy prints an array of strings."""
    return {
        "index": index,
        "image": encoded([render(maze)]),
        "question": NAVIGATION_QUESTION,
        "answer": ",".join(maze.shortest_path()),
        "category": f"size_{maze.size}",
        "maze_map": f"[{' '.join(repr(row) for row in maze.rows)}]",
        "maze_size": maze.size,
    }


def write_tsv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Rows as VLMEvalKit reads them; what a row lacks is an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = list(rows)
    columns = dict.fromkeys((*TSV_COLUMNS, *(name for row in found for name in row)))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


def encoded(pictures: Sequence[PILImage.Image]) -> str:
    """Base64 of one PNG, or a list of them as Python and JSON both write it."""
    texts = [base64.b64encode(png(picture)).decode() for picture in pictures]
    return texts[0] if len(texts) == 1 else json.dumps(texts)
