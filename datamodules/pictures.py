"""Your own problems: pictures and a JSONL file become a folder that every command reads."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.columns import (
    ANSWER,
    PID,
    PROBLEM_IMAGE,
    QUESTION,
    TASK,
    TEXT_ONLY_THOUGHT,
    TEXT_THOUGHT,
    VISUAL_THOUGHT,
)
from datamodules.frozen_lake import MazeSettings, generate, generate_problem
from datamodules.thinkmorph import write_rows
from visual_opsd.benchmarks.maze_pictures import draw_path, render

NEEDED = ("image", "question", "answer", "visual_thought")
OPTIONAL = ("id", "task", "thoughts", "text_only_thought")
IMPORTED = "train-imported.parquet"
"""No name of a published file: what somebody has downloaded is never written over."""
NO_THOUGHT = "<think></think>"
"""Of a problem that came without thoughts in words: readers want a first one."""


def prepare(jsonl: Path, folder: Path, num_problems: int) -> None:
    """Import a JSONL file, or an example of one where there is none, unless ``folder`` has data.

    Parquet files that were not imported here are read as they are, and nothing is put beside them.
    """
    if any(path.name != IMPORTED for path in folder.rglob("*.parquet")):
        return
    import_jsonl(jsonl if jsonl.is_file() else write_example(jsonl.parent, num_problems), folder)


def import_jsonl(jsonl: Path, folder: Path) -> Path:
    """Write the problems of a JSONL file as ThinkMorph's parquet below ``folder``.

    A line is an object with ``image``, ``question``, ``answer`` and ``visual_thought`` (pictures by
    their paths, relative to the file), and maybe ``id``, ``task``, ``thoughts`` (two texts, before
    and after the picture) and ``text_only_thought``.

    Raises:
        FileNotFoundError: No such file or picture.
        ValueError: A line that cannot be used; file, line and key are named.
    """
    if not jsonl.is_file():
        raise FileNotFoundError(f"no problems at {jsonl}: a JSON object a line, {NEEDED}")
    path = folder / IMPORTED
    write_rows(path, _rows(jsonl))
    return path


def _rows(jsonl: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(jsonl.read_text().splitlines(), start=1):
        if line.strip():
            yield _row(line, jsonl.parent, f"{jsonl}, line {number}", f"{jsonl.stem}-{number}")


def _row(line: str, folder: Path, where: str, name: str) -> dict[str, Any]:
    try:
        given = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no JSON: {error}") from error
    keys = set(given) if isinstance(given, dict) else set()
    if missing := [key for key in NEEDED if key not in keys]:
        advice = (
            " (the picture that the teacher sees: without one there is no KL gap)"
            if "visual_thought" in missing
            else ""
        )
        raise ValueError(f"{where}: missing {', '.join(missing)}{advice}")
    if unknown := sorted(keys - {*NEEDED, *OPTIONAL}):
        raise ValueError(f"{where}: unknown {unknown}; there are {(*NEEDED, *OPTIONAL)}")
    thoughts = given.get("thoughts") or [NO_THOUGHT]
    if len(thoughts) > 2:
        raise ValueError(f"{where}: thoughts has {len(thoughts)} texts, at most 2 are read")
    return {
        PID: str(given.get("id", name)),
        QUESTION: given["question"],
        ANSWER: given["answer"],
        PROBLEM_IMAGE: _picture(folder / given["image"], where),
        VISUAL_THOUGHT.format(0): _picture(folder / given["visual_thought"], where),
        **{TEXT_THOUGHT.format(number): text for number, text in enumerate(thoughts)},
        TASK: given.get("task", ""),
        TEXT_ONLY_THOUGHT: given.get("text_only_thought", ""),
    }


def _picture(path: Path, where: str) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{where}: no picture {path}")
    return {"bytes": path.read_bytes(), "path": None}


def write_example(folder: Path, num_problems: int) -> Path:
    """Mazes as somebody's own pictures, with the file that describes them; nothing written twice.

    Returns:
        The JSONL file.

    Raises:
        FileExistsError: The folder holds something else, which may be somebody's pictures.
    """
    jsonl = folder / "problems.jsonl"
    if jsonl.is_file():
        return jsonl
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} has no {jsonl.name} and is not empty: no example goes there"
        )
    folder.mkdir(parents=True, exist_ok=True)
    settings, lines = MazeSettings(), []
    for index in range(num_problems):
        maze = generate(settings, "train", index)
        problem = generate_problem(settings, "train", index)
        picture = render(maze)
        picture.save(folder / f"{index}.png")
        draw_path(picture, maze, maze.shortest_path()).save(folder / f"{index}-drawn.png")
        line = {
            "image": f"{index}.png",
            "question": problem.question,
            "answer": problem.answer,
            "visual_thought": f"{index}-drawn.png",
            "task": problem.task,
            "thoughts": list(problem.text_thoughts),
            "text_only_thought": problem.text_only_thought,
        }
        lines.append(json.dumps(line))
    jsonl.write_text("\n".join(lines) + "\n")
    return jsonl
