"""All nine benchmarks in their published formats, made of mazes and twins: no download, no photos.

They have the columns, the number of options and pictures, and the ways of counting of the real
ones. They are not the real ones: a score on them says that the machinery works, and no more.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from datamodules.frozen_lake import MazeSettings, generate
from datamodules.twin_files import maze_tsv_row, twin_tsv_row, write_tsv
from datamodules.twins import MISSING_CORNER, Twin, TwinSettings, generate_twin
from visual_opsd.benchmarks.charts import CHART_TASK, BarChart
from visual_opsd.benchmarks.hub import rotations
from visual_opsd.benchmarks.jigsaw import JIGSAW_TASK, LAYOUTS
from visual_opsd.benchmarks.puzzles import letter_of
from visual_opsd.benchmarks.visual_search import SEARCH_TASK, SIDES, Search

Rows = Iterable[dict[str, Any]]


def write_nine(
    folder: Path, num_questions: int, pixels: int = 64, difficulty: float = 0.5, seed: int = 0
) -> list[Path]:
    """A TSV for each data set, ``num_questions`` each (pairs and rotations count as one)."""
    search, jigsaw, chart = (
        TwinSettings(task=task, pixels=pixels, difficulty=difficulty, seed=seed)
        for task in (SEARCH_TASK, JIGSAW_TASK, CHART_TASK)
    )
    corners = replace(jigsaw, forms=(MISSING_CORNER,))
    sides = replace(search, forms=tuple(SIDES))
    beside = replace(search, forms=("left_right",))
    assembled = replace(jigsaw, forms=LAYOUTS)
    tables: dict[str, Rows] = {
        "VSP_maze_task_main_original": mazes(seed),
        "VisPuzzle": plain(assembled),
        "ChartQA_h_bar": bars(chart, "h_bar"),
        "ChartQA_v_bar": bars(chart, "v_bar"),
        "VStarBench": plain(search),
        "BLINK_Jigsaw": plain(corners),
        "MMVP": pairs(beside),
        "SAT_circular": circular(sides),
        "BLINK": in_turn({"Jigsaw": corners, "Spatial_Relation": sides, "Object": search}),
        "CV-Bench-2D": with_prompts(in_turn({"Relation": sides, "Attribute": search}), "2D"),
        "CV-Bench-3D": with_prompts(plain(replace(sides, seed=seed + 1)), "3D"),
    }
    per_question = {"MMVP": 2, "SAT_circular": 2}
    paths = []
    for name, rows in tables.items():
        paths.append(folder / f"{name}.tsv")
        write_tsv(paths[-1], islice(rows, num_questions * per_question.get(name, 1)))
    return paths


def mazes(seed: int = 0) -> Iterator[dict[str, Any]]:
    """Held-out mazes of sizes 3 to 6, at 64 px a cell."""
    settings = MazeSettings(sizes=(3, 4, 5, 6), seed=seed)
    return (maze_tsv_row(index, generate(settings, "test", index)) for index in count())


def twins(settings: TwinSettings) -> Iterator[Twin]:
    """Without end."""
    return (generate_twin(settings, "test", index) for index in count())


def plain(settings: TwinSettings) -> Iterator[dict[str, Any]]:
    """Rows as they are."""
    return (twin_tsv_row(index, twin) for index, twin in enumerate(twins(settings)))


def bars(settings: TwinSettings, kind: str) -> Iterator[dict[str, Any]]:
    """Charts whose bars lie, or stand."""
    kept = (
        twin
        for twin in twins(settings)
        if isinstance(twin.puzzle, BarChart) and twin.puzzle.kind == kind
    )
    return (twin_tsv_row(index, twin) for index, twin in enumerate(kept))


def pairs(settings: TwinSettings) -> Iterator[dict[str, Any]]:
    """One question about a scene and about its mirror image, with opposite answers (MMVP)."""
    for number, twin in enumerate(twins(settings)):
        puzzle = twin.puzzle
        assert isinstance(puzzle, Search)
        mirrored = tuple(
            replace(thing, left=puzzle.pixels - thing.left - thing.side) for thing in puzzle.things
        )
        for place, shown in enumerate((puzzle, replace(puzzle, things=mirrored))):
            row = twin_tsv_row(2 * number + place + 1, replace(twin, puzzle=shown))
            yield {key: value for key, value in row.items() if key != "category"}


def circular(settings: TwinSettings) -> Iterator[dict[str, Any]]:
    """Every question once for each rotation of its options (SAT)."""
    for number, twin in enumerate(twins(settings)):
        options = {letter_of(place): text for place, text in enumerate(twin.puzzle.options)}
        yield from rotations(twin_tsv_row(number, twin), options, number)


def in_turn(tasks: dict[str, TwinSettings]) -> Iterator[dict[str, Any]]:
    """Several kinds of questions, one after the other; ``category`` names the kind."""
    sources = {name: twins(settings) for name, settings in tasks.items()}
    names = list(sources)
    for index in count():
        name = names[index % len(names)]
        yield twin_tsv_row(index, next(sources[name])) | {"category": name}


def with_prompts(rows: Rows, half: str) -> Iterator[dict[str, Any]]:
    """CV-Bench's own columns: a prompt that is used as it is, where it comes from, which half."""
    for number, row in enumerate(rows):
        options = [f"({letter}) {row[letter]}" for letter in "ABCD" if row.get(letter)]
        listed = "\n".join([f"{row['question']} Select from the following choices.", *options])
        source = ("ADE20K", "COCO")[number // 2 % 2] if half == "2D" else "Omni3D"
        yield row | {"prompt": listed, "source": source, "split": half}
