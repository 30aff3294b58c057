"""Which rows can be used: looked through once without decoding a picture, then kept in a file."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from PIL import Image as PILImage

from datamodules.columns import (
    ANSWER,
    MAX_THOUGHTS,
    PID,
    PROBLEM_IMAGE,
    QUESTION,
    TASK,
    TEXT_ONLY_THOUGHT,
    TEXT_THOUGHT,
    VISUAL_THOUGHT,
)
from datamodules.row_groups import Row, RowGroups
from visual_opsd.benchmarks.answers import parse_moves
from visual_opsd.benchmarks.mazes import NAVIGATION_TASK
from visual_opsd.models.bagel.preprocessing import MAX_PICTURE_PIXELS

Tolerated = Literal["nothing", "rows", "files"]
"""What may be bad without stopping a run: nothing; rows, which are left out, counted and named
(the default); or whole files too."""
UNREADABLE_FILE = "unreadable file"

_FORMAT = 2  # of the index file, and of the rules by which rows are left out


@dataclass(frozen=True, slots=True)
class RowAddress:
    """Where a row lies."""

    path: Path
    row_group: int
    row: int
    """Within the row group."""
    number: int
    """Within the file, as errors name it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowIndex:
    """Which rows can be used, and which were left out and why."""

    rows: tuple[RowAddress, ...]
    shapes: tuple[str, ...]
    """Width x height of the problem picture and of those drawings that differ, one a row."""
    tasks: tuple[str, ...]
    """One a row."""
    left_out: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Reason to ``file:row (pid)``."""

    @property
    def num_left_out(self) -> dict[str, int]:
        """Reason to count."""
        return {reason: len(rows) for reason, rows in self.left_out.items()}

    def capped(self, caps: Mapping[str, int]) -> "RowIndex":
        """The first so many usable rows of each task that has a cap; the rest is left out.

        Raises:
            ValueError: A capped task has no row.
        """
        if unknown := sorted(set(caps) - set(self.tasks)):
            known = ", ".join(sorted(set(self.tasks)))
            raise ValueError(f"caps: no row of {', '.join(unknown)}; there are {known}")
        seen: Counter[str] = Counter()
        kept: list[int] = []
        beyond: list[int] = []
        for index, task in enumerate(self.tasks):
            seen[task] += 1
            is_kept = task not in caps or seen[task] <= caps[task]
            (kept if is_kept else beyond).append(index)
        if not beyond:
            return self
        names = tuple(f"{self.rows[i].path}:{self.rows[i].number}" for i in beyond)
        return RowIndex(
            rows=tuple(self.rows[i] for i in kept),
            shapes=tuple(self.shapes[i] for i in kept),
            tasks=tuple(self.tasks[i] for i in kept),
            left_out={**self.left_out, "beyond the cap of its task": names},
        )


def index_rows(paths: Sequence[Path], reader: RowGroups, tolerated: Tolerated = "rows") -> RowIndex:
    """One pass over all rows that looks at text, headers and ends of pictures.

    Raises:
        ValueError: More is bad than is tolerated; the first of it is named.
    """
    rows: list[RowAddress] = []
    shapes: list[str] = []
    tasks: list[str] = []
    left_out: dict[str, list[str]] = {}
    for path in paths:
        number = 0
        try:
            for row_group in range(reader.file(path).num_row_groups):
                for row, values in enumerate(reader.rows(path, row_group)):
                    reason = unusable(values)
                    if reason is None:
                        rows.append(RowAddress(path, row_group, row, number))
                        shapes.append(_shape(values))
                        tasks.append(values[TASK] or "")
                    elif tolerated == "nothing":
                        raise ValueError(f"{path}:{number} ({values[PID]}): {reason}")
                    else:
                        name = f"{path}:{number} ({values[PID]})"
                        left_out.setdefault(reason, []).append(name)
                    number += 1
        except ValueError as error:
            if tolerated != "files":
                raise
            left_out.setdefault(UNREADABLE_FILE, []).append(f"{path}:{number} and after: {error}")
    return RowIndex(
        rows=tuple(rows),
        shapes=tuple(shapes),
        tasks=tuple(tasks),
        left_out={reason: tuple(names) for reason, names in left_out.items()},
    )


def kept_index(
    paths: Sequence[Path], reader: RowGroups, tolerated: Tolerated, folder: Path
) -> RowIndex:
    """The index of these files from ``folder``, or made and kept there.

    The first process makes it, others wait for it: ranks of a node share one pass over the data.
    Files that have changed in size or time have another index.
    """
    facts = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    key = hashlib.sha256(json.dumps([_FORMAT, tolerated, facts]).encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{key}.json"
    with FileLock(folder / f"{key}.lock"):
        if kept.is_file():
            return _from_json(json.loads(kept.read_text(encoding="utf-8")), paths)
        index = index_rows(paths, reader, tolerated)
        written = kept.with_suffix(".part")
        written.write_text(json.dumps(_to_json(index, paths)), encoding="utf-8")
        written.replace(kept)
    return index


def unusable(values: Row) -> str | None:
    """Why a row is left out, or None; by the official reader's filter and a picture to teach by."""
    if reason := _of_another_type(values):
        return reason
    for column in (QUESTION, ANSWER):
        if not (values[column] or "").strip():
            return f"no {column}"
    if values[TASK] == NAVIGATION_TASK and parse_moves(values[ANSWER]) is None:
        return "answer that no rule parses"
    if not any(values.get(TEXT_THOUGHT.format(number)) for number in range(MAX_THOUGHTS)):
        return "no text thought"
    drawn = drawn_columns(values)
    if not picture_bytes(values, PROBLEM_IMAGE):
        return f"no {PROBLEM_IMAGE}"
    if not drawn:
        return "no visual thought"
    reasons = (_bad_picture(values, column) for column in (PROBLEM_IMAGE, *drawn))
    return next((reason for reason in reasons if reason), None)


def drawn_columns(values: Row) -> list[str]:
    """The columns of the row's visual thoughts."""
    columns = [VISUAL_THOUGHT.format(number) for number in range(MAX_THOUGHTS)]
    return [column for column in columns if picture_bytes(values, column)]


def picture_bytes(values: Row, column: str) -> bytes | None:
    """What a cell holds of a picture."""
    image = values.get(column)
    return image.get("bytes") if image else None


def picture_size(values: Row, column: str) -> tuple[int, int]:
    """Width and height by the header."""
    with PILImage.open(io.BytesIO(picture_bytes(values, column) or b"")) as picture:
        return picture.size


def _of_another_type(values: Row) -> str | None:
    """The first cell that is no text where one is wanted, or no picture as ``datasets`` has it."""
    thoughts = [TEXT_THOUGHT.format(number) for number in range(MAX_THOUGHTS)]
    for column in (PID, QUESTION, ANSWER, TASK, TEXT_ONLY_THOUGHT, *thoughts):
        if not isinstance(values.get(column), str | None):
            return f"{column} that is no text"
    drawings = [VISUAL_THOUGHT.format(number) for number in range(MAX_THOUGHTS)]
    for column in (PROBLEM_IMAGE, *drawings):
        cell = values.get(column) or {}
        if not isinstance(cell, dict) or not isinstance(cell.get("bytes"), bytes | None):
            return f"{column} that is no picture"
    return None


def _shape(values: Row) -> str:
    sizes = [picture_size(values, column) for column in (PROBLEM_IMAGE, *drawn_columns(values))]
    return " ".join(dict.fromkeys(f"{width}x{height}" for width, height in sizes))


def _bad_picture(values: Row, column: str) -> str | None:
    """Why a picture cannot be used, by its header and its end: it is not decoded."""
    try:
        width, height = picture_size(values, column)
    except PILImage.DecompressionBombError:
        return f"gigantic {column}"
    except (OSError, ValueError, SyntaxError):
        return f"undecodable {column}"
    if width * height > MAX_PICTURE_PIXELS:
        return f"gigantic {column}"
    return f"undecodable {column}" if _is_cut_off(picture_bytes(values, column) or b"") else None


def _is_cut_off(data: bytes) -> bool:
    """Whether the mark that ends a PNG, JPEG or WebP is missing; other formats may be cut."""
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-64:]
    if data.startswith(b"\xff\xd8"):
        return b"\xff\xd9" not in data[-4096:]
    if data.startswith(b"RIFF"):
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return False


def _to_json(index: RowIndex, paths: Sequence[Path]) -> dict[str, Any]:
    places = {path: place for place, path in enumerate(paths)}
    return {
        "rows": [[places[row.path], row.row_group, row.row, row.number] for row in index.rows],
        "shapes": index.shapes,
        "tasks": index.tasks,
        "left_out": index.left_out,
    }


def _from_json(kept: dict[str, Any], paths: Sequence[Path]) -> RowIndex:
    return RowIndex(
        rows=tuple(RowAddress(paths[place], *where) for place, *where in kept["rows"]),
        shapes=tuple(kept["shapes"]),
        tasks=tuple(kept["tasks"]),
        left_out={reason: tuple(names) for reason, names in kept["left_out"].items()},
    )
