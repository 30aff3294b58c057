"""ThinkMorph's parquet files, read a row group at a time, and written for the mazes made here."""

import io
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as PILImage

from datamodules.frozen_lake import MazeSettings, generate, generate_problem
from datamodules.splits import Split
from visual_opsd.benchmarks.answers import parse_moves
from visual_opsd.benchmarks.maze_pictures import (
    REDUCED_CELL,
    RENDERED_CELL,
    draw_path,
    reduce_picture,
    render,
    to_pixels,
)
from visual_opsd.benchmarks.mazes import NAVIGATION_ANSWER_TEMPLATE, NAVIGATION_TASK, Maze
from visual_opsd.contexts import Image, Problem, Role
from visual_opsd.models.bagel.preprocessing import Protocol, open_picture

PID = "pid"
QUESTION = "question"
ANSWER = "answer"
PROBLEM_IMAGE = "problem_image_0"
# The published column is misspelt; that of the images is not.
TEXT_THOUGHT = "resoning_thought_{}"
VISUAL_THOUGHT = "reasoning_image_{}"
TASK = "task"
TEXT_ONLY_THOUGHT = "full_text_only_thought"
COLUMNS = (
    PID,
    QUESTION,
    ANSWER,
    PROBLEM_IMAGE,
    TEXT_THOUGHT.format(0),
    VISUAL_THOUGHT.format(0),
    TEXT_THOUGHT.format(1),
    TASK,
    TEXT_ONLY_THOUGHT,
)
MAX_THOUGHTS = 8
"""Rows may have thoughts numbered 0 to 7; the published ones have one visual, two in text."""

_IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_LAYOUT = "<folder>/**/train-*.parquet, e.g. Spatial_Navigation/data/train-00000-of-00001.parquet"


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
    groups: tuple[str, ...]
    """One a row: rows of one group may share a batch (task and picture size)."""
    left_out: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Reason to ``file:row (pid)``."""

    @property
    def num_left_out(self) -> dict[str, int]:
        """Reason to count."""
        return {reason: len(rows) for reason, rows in self.left_out.items()}


class ThinkMorphFolder:
    """The rows of a folder of ThinkMorph parquet files as problems."""

    def __init__(
        self,
        folder: Path,
        cell: int | None = REDUCED_CELL,
        protocol: Protocol | None = None,
        num_cached_row_groups: int = 32,
    ) -> None:
        """Look for files; no row is read yet.

        Args:
            folder: Of one task or of several; files are found below it at any depth.
            cell: Pictures of mazes are reduced to so many pixels a cell; None keeps every picture
                as it is, which is what other tasks need.
            protocol: How large pictures are read, and drawn from, where ``cell`` is None, as the 7B
                model wants it; None keeps their size.
            num_cached_row_groups: Kept in memory as they are on disk, the oldest go first.

        Raises:
            ValueError: There is no such folder, or no file with ``train`` in its name.
        """
        if not folder.is_dir():
            raise ValueError(f"no ThinkMorph folder at {folder}; expected {_LAYOUT}")
        self.folder = folder
        self.cell = cell
        self.protocol = protocol
        self.paths = sorted(
            path for path in folder.rglob("*.parquet") if "train" in path.name and path.is_file()
        )
        if not self.paths:
            raise ValueError(
                f"no parquet file with 'train' in its name below {folder}; expected {_LAYOUT}"
            )
        self._num_cached = num_cached_row_groups
        self._cache: OrderedDict[tuple[Path, int], pa.Table] = OrderedDict()

    @cached_property
    def num_rows(self) -> int:
        """Rows in all files by their metadata, usable or not."""
        return sum(pq.ParquetFile(path).metadata.num_rows for path in self.paths)

    @cached_property
    def index(self) -> RowIndex:
        """One pass over all rows, a row group at a time; every picture is decoded once."""
        rows, groups = [], []
        left_out: dict[str, list[str]] = {}
        for path in self.paths:
            file = _open(path)
            number = 0
            for row_group in range(file.num_row_groups):
                table = file.read_row_group(row_group, columns=_columns_of(file))
                for row, values in enumerate(_rows(table)):
                    reason = _unusable(values)
                    if reason is None:
                        rows.append(RowAddress(path, row_group, row, number))
                        groups.append(self._group(values))
                    else:
                        name = f"{path}:{number} ({values[PID]})"
                        left_out.setdefault(reason, []).append(name)
                    number += 1
        return RowIndex(
            rows=tuple(rows),
            groups=tuple(groups),
            left_out={reason: tuple(names) for reason, names in left_out.items()},
        )

    def __len__(self) -> int:
        return len(self.index.rows)

    def __getitem__(self, index: int) -> Problem:
        """The usable row at ``index``.

        Raises:
            ValueError: The picture of a maze is no whole number of cells; file, row and column are
                named.
        """
        address = self.index.rows[index]
        table = self._row_group(address.path, address.row_group)
        values = _rows(table.slice(address.row, 1))[0]
        try:
            return self._problem(values)
        except ValueError as error:
            raise ValueError(f"{address.path}, row {address.number}: {error}") from error

    def _problem(self, values: dict[str, Any]) -> Problem:
        task = values[TASK] or ""
        is_maze = task == NAVIGATION_TASK
        answer = values[ANSWER]
        if is_maze:  # the index has left out what is no path
            answer = ",".join(parse_moves(answer) or ())
        width, _ = _size(values, PROBLEM_IMAGE)
        drawn = _drawn_columns(values)
        # One text before each picture and one after the last, whatever is empty.
        texts = [values.get(TEXT_THOUGHT.format(number)) for number in range(len(drawn) + 1)]
        return Problem(
            problem_id=values[PID],
            image=self._image(values, PROBLEM_IMAGE, Role.PROBLEM),
            question=values[QUESTION],
            answer=answer,
            answer_template=NAVIGATION_ANSWER_TEMPLATE if is_maze else "{answer}",
            visual_thoughts=tuple(
                self._image(values, column, Role.VISUAL_THOUGHT) for column in drawn
            ),
            text_thoughts=tuple(text or "" for text in texts),
            text_only_thought=values[TEXT_ONLY_THOUGHT] or "",
            task=task,
            category=f"size_{width // RENDERED_CELL}" if is_maze else "",
        )

    def _image(self, values: dict[str, Any], column: str, role: Role) -> Image:
        picture = _picture(values, column)
        if self.cell is None:
            if self.protocol is not None:
                return self.protocol.kept(picture, role)
            return Image(to_pixels(np.asarray(picture)), role)
        try:
            return Image(reduce_picture(picture, cell_to=self.cell), role)
        except ValueError as error:
            raise ValueError(f"column {column}: {error}") from error

    def _group(self, values: dict[str, Any]) -> str:
        if self.cell is None:
            return "all"
        width, height = _size(values, PROBLEM_IMAGE)
        return f"{width}x{height}"

    def _row_group(self, path: Path, row_group: int) -> pa.Table:
        key = (path, row_group)
        if key not in self._cache:
            file = _open(path)
            self._cache[key] = file.read_row_group(row_group, columns=_columns_of(file))
            while len(self._cache) > self._num_cached:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]


def write_mazes(
    folder: Path,
    settings: MazeSettings,
    split: Split,
    num_problems: int,
    num_shards: int = 1,
    rows_per_group: int = 256,
) -> list[Path]:
    """Generated mazes as ThinkMorph publishes its own: PNG at 64 px a cell, all the words.

    Returns:
        The files, ``<folder>/Spatial_Navigation/data/train-*.parquet`` whatever the split: readers
        look for ``train`` in the name.
    """

    def row(index: int) -> dict[str, Any]:
        maze, problem = generate(settings, split, index), generate_problem(settings, split, index)
        return maze_row(maze, problem)

    folder = folder / NAVIGATION_TASK / "data"
    return write_shards(folder, row, num_problems, num_shards, rows_per_group)


def maze_row(maze: Maze, problem: Problem) -> dict[str, Any]:
    """One row of ``COLUMNS`` for a maze and the problem made of it."""
    picture = render(maze)
    return problem_row(problem, picture, draw_path(picture, maze, maze.shortest_path()))


def problem_row(problem: Problem, picture: PILImage.Image, drawn: PILImage.Image) -> dict[str, Any]:
    """One row of ``COLUMNS`` for a problem whose pictures are as given."""
    before, after = problem.text_thoughts
    return {
        PID: problem.problem_id,
        QUESTION: problem.question,
        ANSWER: problem.answer,
        PROBLEM_IMAGE: {"bytes": png(picture), "path": None},
        TEXT_THOUGHT.format(0): before,
        VISUAL_THOUGHT.format(0): {"bytes": png(drawn), "path": None},
        TEXT_THOUGHT.format(1): after,
        TASK: problem.task,
        TEXT_ONLY_THOUGHT: problem.text_only_thought,
    }


def write_shards(
    folder: Path,
    row: Callable[[int], dict[str, Any]],
    num_rows: int,
    num_shards: int = 1,
    rows_per_group: int = 256,
) -> list[Path]:
    """Rows dealt out to ``train-*.parquet`` files, each made when its turn comes."""
    paths = []
    for shard in range(num_shards):
        path = folder / f"train-{shard:05d}-of-{num_shards:05d}.parquet"
        write_rows(path, map(row, range(shard, num_rows, num_shards)), rows_per_group)
        paths.append(path)
    return paths


def write_rows(path: Path, rows: Iterable[dict[str, Any]], rows_per_group: int = 256) -> None:
    """Rows in the published schema, with the metadata that makes ``datasets`` decode pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = _schema()
    with pq.ParquetWriter(path, schema) as writer:
        group: list[dict[str, Any]] = []
        for row in rows:
            group.append(row)
            if len(group) == rows_per_group:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                group = []
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def _schema() -> pa.Schema:
    is_image = {column: "image" in column for column in COLUMNS}
    features = {
        column: {"_type": "Image"} if image else {"dtype": "string", "_type": "Value"}
        for column, image in is_image.items()
    }
    fields = [(column, _IMAGE_TYPE if image else pa.string()) for column, image in is_image.items()]
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema(fields, metadata=metadata)


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: no parquet file: {error}") from error
    # A row may lack a thought or a picture, a file may not lack what every row needs.
    missing = [
        column
        for column in (PID, QUESTION, ANSWER, PROBLEM_IMAGE, TEXT_THOUGHT.format(0))
        if column not in file.schema_arrow.names
    ]
    if missing:
        raise ValueError(
            f"{path}: missing columns {', '.join(missing)}; expected {', '.join(COLUMNS)} "
            "(sic: the thoughts are spelt resoning)"
        )
    return file


def _columns_of(file: pq.ParquetFile) -> list[str]:
    thoughts = [
        template.format(number)
        for number in range(MAX_THOUGHTS)
        for template in (TEXT_THOUGHT, VISUAL_THOUGHT)
    ]
    wanted = dict.fromkeys((*COLUMNS, *thoughts))
    return [column for column in wanted if column in file.schema_arrow.names]


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    defaults: dict[str, Any] = dict.fromkeys(COLUMNS)
    return [{**defaults, **row} for row in table.to_pylist()]


def _unusable(values: dict[str, Any]) -> str | None:
    """Why a row is left out, or None; by the official reader's filter and a picture to teach by."""
    for column in (QUESTION, ANSWER):
        if not (values[column] or "").strip():
            return f"no {column}"
    if values[TASK] == NAVIGATION_TASK and parse_moves(values[ANSWER]) is None:
        return "answer that no rule parses"
    if not any(values.get(TEXT_THOUGHT.format(number)) for number in range(MAX_THOUGHTS)):
        return "no text thought"
    drawn = _drawn_columns(values)
    if not _bytes(values, PROBLEM_IMAGE):
        return f"no {PROBLEM_IMAGE}"
    if not drawn:
        return "no visual thought"
    for column in (PROBLEM_IMAGE, *drawn):
        try:
            _picture(values, column)
        except ValueError:
            return f"undecodable {column}"
    return None


def _drawn_columns(values: dict[str, Any]) -> list[str]:
    columns = [VISUAL_THOUGHT.format(number) for number in range(MAX_THOUGHTS)]
    return [column for column in columns if _bytes(values, column)]


def _bytes(values: dict[str, Any], column: str) -> bytes | None:
    image = values.get(column)
    return image["bytes"] if image else None


def _picture(values: dict[str, Any], column: str) -> PILImage.Image:
    """The picture of a cell, decoded and on white."""
    return open_picture(_bytes(values, column) or b"", name=f"column {column}")


def _size(values: dict[str, Any], column: str) -> tuple[int, int]:
    """Width and height by the header of a picture that can be read."""
    with PILImage.open(io.BytesIO(_bytes(values, column) or b"")) as picture:
        return picture.size


def png(picture: PILImage.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
