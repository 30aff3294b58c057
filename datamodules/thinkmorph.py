"""ThinkMorph's parquet files, read a row group at a time, and written for the mazes made here."""

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as PILImage

from datamodules.columns import (
    ANSWER,
    PID,
    PROBLEM_IMAGE,
    QUESTION,
    TASK,
    TEXT_ONLY_THOUGHT,
    TEXT_THOUGHT,
    VISUAL_THOUGHT,
    published_schema,
)
from datamodules.frozen_lake import MazeSettings, generate, generate_problem
from datamodules.row_groups import ROWS_A_SLICE, Row, RowGroups
from datamodules.row_index import (
    RowIndex,
    Tolerated,
    drawn_columns,
    index_rows,
    kept_index,
    picture_bytes,
    picture_size,
)
from datamodules.splits import Split
from visual_opsd.benchmarks.answers import parse_moves
from visual_opsd.benchmarks.maze_pictures import (
    REDUCED_CELL,
    RENDERED_CELL,
    draw_path,
    read_maze,
    reduce_picture,
    render,
    to_pixels,
)
from visual_opsd.benchmarks.mazes import (
    NAVIGATION_ANSWER_TEMPLATE,
    NAVIGATION_TASK,
    Maze,
    wrong_path,
)
from visual_opsd.contexts import Image, Problem, Role
from visual_opsd.models.bagel.preprocessing import AsItIs, Protocol, open_picture

_LAYOUT = "<folder>/**/train-*.parquet, e.g. Spatial_Navigation/data/train-00000-of-00001.parquet"


class ThinkMorphFolder:
    """The rows of a folder of ThinkMorph parquet files as problems."""

    def __init__(
        self,
        folder: Path,
        cell: int | None = REDUCED_CELL,
        protocol: Protocol | None = None,
        *,
        tolerated: Tolerated = "rows",
        caps: Mapping[str, int] | None = None,
        index_folder: Path | None = None,
    ) -> None:
        """Open every file and a row of each; see ``preflight``.

        Args:
            folder: Of one task or of several; files are found below it at any depth.
            cell: Pictures of mazes are reduced to so many pixels a cell, those of other tasks are
                whole cells as they are; None keeps every picture as it is.
            protocol: How large pictures are read, and drawn from, where ``cell`` is None, as the 7B
                model wants it; None keeps their size.
            tolerated: What may be bad without an error.
            caps: Task to the most rows taken of it, the first ones; None takes all.
            index_folder: Where the index is kept for other ranks and runs; None makes it anew.

        Raises:
            ValueError: There is no such folder, no file with ``train`` in its name, or a file that
                cannot be read and is not tolerated.
        """
        if not folder.is_dir():
            raise ValueError(f"no ThinkMorph folder at {folder}; expected {_LAYOUT}")
        self.folder = folder
        self.cell = cell
        self.protocol = protocol
        self.tolerated: Tolerated = tolerated
        self.paths = sorted(
            path for path in folder.rglob("*.parquet") if "train" in path.name and path.is_file()
        )
        if not self.paths:
            raise ValueError(
                f"no parquet file with 'train' in its name below {folder}; expected {_LAYOUT}"
            )
        self._caps = dict(caps or {})
        self._index_folder = index_folder
        self._reader = RowGroups()
        if tolerated != "files":
            self.preflight()

    def preflight(self) -> None:
        """Open every file and the first row of each of them that has one: seconds, not minutes.

        Raises:
            ValueError: A file is cut off, lacks a column or is damaged; it is named.
        """
        for path in self.paths:
            metadata = self._reader.file(path).metadata
            if metadata.num_rows:
                groups = range(metadata.num_row_groups)
                first = next(group for group in groups if metadata.row_group(group).num_rows)
                self._reader.row(path, first, 0)

    @cached_property
    def num_rows(self) -> int:
        """Rows of all files that can be opened by their metadata, usable or not."""
        total = 0
        for path in self.paths:
            try:
                total += self._reader.file(path).metadata.num_rows
            except ValueError:
                if self.tolerated != "files":
                    raise
        return total

    @cached_property
    def index(self) -> RowIndex:
        """Made at the first look, or read where another process has made it."""
        if self._index_folder is None:
            index = index_rows(self.paths, self._reader, self.tolerated)
        else:
            index = kept_index(self.paths, self._reader, self.tolerated, self._index_folder)
        return index.capped(self._caps)

    def __len__(self) -> int:
        return len(self.index.rows)

    def __getitem__(self, index: int) -> Problem:
        """The usable row at ``index``.

        Raises:
            ValueError: A picture proves to be damaged inside, or is no whole number of cells;
                file, row and column are named.
        """
        return self._made(index, self._problem)

    def wrongly_solved(self, index: int) -> Problem:
        """The maze at ``index`` with a wrong path for its answer and visual thought.

        Raises:
            ValueError: The row is no maze that can be read; file and row are named.
        """
        return self._made(index, self._wrong_problem)

    def _made(self, index: int, make: Callable[[dict[str, Any]], Problem]) -> Problem:
        address = self.index.rows[index]
        values = self._reader.row(address.path, address.row_group, address.row)
        try:
            return make(values)
        except ValueError as error:
            raise ValueError(f"{address.path}, row {address.number}: {error}") from error

    def group(self, index: int) -> str:
        """Rows of one group may share a batch: the sizes of the pictures, where they count."""
        return "all" if self.cell is None else self.index.shapes[index]

    def _problem(self, values: Row) -> Problem:
        task = values[TASK] or ""
        is_maze = task == NAVIGATION_TASK
        answer = values[ANSWER]
        if is_maze:  # the index has left out what is no path
            answer = ",".join(parse_moves(answer) or ())
        width, _ = picture_size(values, PROBLEM_IMAGE)
        drawn = drawn_columns(values)
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

    def _wrong_problem(self, values: Row) -> Problem:
        if values[TASK] != NAVIGATION_TASK:
            raise ValueError(
                f"a wrong solution can be drawn for mazes only, not for {values[TASK]}"
            )
        picture = _picture(values, PROBLEM_IMAGE)
        maze = read_maze(picture)
        moves = wrong_path(maze)
        wrong = draw_path(picture, maze, moves)
        drawn = self._read(wrong, PROBLEM_IMAGE, Role.VISUAL_THOUGHT, is_maze=True)
        return replace(self._problem(values), answer=",".join(moves), visual_thoughts=(drawn,))

    def _image(self, values: Row, column: str, role: Role) -> Image:
        is_maze = values[TASK] == NAVIGATION_TASK
        return self._read(_picture(values, column), column, role, is_maze=is_maze)

    def _read(self, picture: PILImage.Image, column: str, role: Role, *, is_maze: bool) -> Image:
        if self.cell is None:
            if self.protocol is not None:
                return self.protocol.kept(picture, role)
            return Image(to_pixels(np.asarray(picture)), role)
        try:
            if is_maze:
                return Image(reduce_picture(picture, cell_to=self.cell), role)
            AsItIs(stride=self.cell).size(*picture.size)
        except ValueError as error:
            raise ValueError(f"column {column}: {error}") from error
        return Image(to_pixels(np.asarray(picture)), role)


def _picture(values: Row, column: str) -> PILImage.Image:
    return open_picture(picture_bytes(values, column) or b"", name=f"column {column}")


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
    schema = published_schema()
    # Else 1024 pictures may share a page, and a reader holds a page at least.
    with pq.ParquetWriter(path, schema, write_batch_size=ROWS_A_SLICE) as writer:
        group: list[dict[str, Any]] = []
        for row in rows:
            group.append(row)
            if len(group) == rows_per_group:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                group = []
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def png(picture: PILImage.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
