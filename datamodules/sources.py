"""Banks of problems, asked by number: mazes made here, rows of ThinkMorph's files."""

import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch.utils.data import get_worker_info

from datamodules.frozen_lake import (
    Donors,
    MazeSettings,
    donor_index,
    generate,
    maze_problem,
    problem_id,
    size_of,
    words_rng,
    wrongly_solved,
)
from datamodules.splits import Split
from datamodules.thinkmorph import ThinkMorphFolder
from visual_opsd.benchmarks.maze_pictures import REDUCED_CELL
from visual_opsd.benchmarks.mazes import Maze
from visual_opsd.contexts import Problem
from visual_opsd.models.bagel import preprocessing


@runtime_checkable
class ProblemSource(Protocol):
    """A bank of problems that can be asked for any of them."""

    def __len__(self) -> int: ...

    def problem(self, index: int) -> Problem:
        """The problem at ``index``, always the same."""
        ...

    def donor(self, index: int, kind: Donors) -> Problem:
        """The problem whose visual thoughts controls show in place of those at ``index``."""
        ...

    def group(self, index: int) -> str:
        """Problems of one group share batches."""
        ...


@runtime_checkable
class DamageNoted(Protocol):
    """A bank whose problems may prove to be damaged when they are read."""

    @property
    def failed(self) -> Mapping[int, str]:
        """Rows of the files that proved to be damaged, and how."""
        ...

    def note_failed(self, failed: Mapping[int, str]) -> None:
        """Count rows that proved to be damaged, here or in a worker process, and say each once."""
        ...


class GeneratedMazes:
    """A bank of generated mazes; kept as rows of letters, drawn anew in a tenth of a ms."""

    def __init__(self, settings: MazeSettings, split: Split, num_problems: int) -> None:
        """Nothing is generated before it is asked for."""
        if num_problems < 1:
            raise ValueError(f"num_problems: expected at least 1; got {num_problems}")
        self.settings = settings
        self.split: Split = split
        self._num_problems = num_problems
        self._mazes: dict[int, Maze] = {}
        self._donors: dict[tuple[int, Donors], int] = {}

    def __len__(self) -> int:
        return self._num_problems

    def maze(self, index: int) -> Maze:
        """The maze at ``index``."""
        if index not in self._mazes:
            self._mazes[index] = generate(self.settings, self.split, index)
        return self._mazes[index]

    def problem(self, index: int) -> Problem:
        """The problem at ``index``, words included."""
        name = problem_id(self.settings, self.split, index)
        rng = words_rng(self.settings, self.split, index)
        return maze_problem(self.maze(index), name, rng, self.settings.thought_length)

    def donor(self, index: int, kind: Donors = "same") -> Problem:
        """Another maze from the same bank, or this one with a wrong path."""
        if kind == "wrong":
            return wrongly_solved(self.problem(index), self.maze(index))
        if (index, kind) not in self._donors:
            self._donors[index, kind] = donor_index(
                self.settings, self.split, index, self._num_problems, kind
            )
        return self.problem(self._donors[index, kind])

    def group(self, index: int) -> str:
        """The size."""
        return f"size_{size_of(self.settings, index)}"


class ThinkMorphRows:
    """The usable rows of ThinkMorph parquet files as a bank."""

    def __init__(
        self,
        folder: Path,
        cell: int | None = REDUCED_CELL,
        seed: int = 0,
        protocol: preprocessing.Protocol | None = None,
        **options: Any,
    ) -> None:
        """See ``ThinkMorphFolder``; ``seed`` draws the donors."""
        self.rows = ThinkMorphFolder(folder, cell, protocol, **options)
        self.failed: dict[int, str] = {}
        """Rows whose pictures proved to be damaged when they were read, and how."""
        self._seed = seed
        self._pool = lru_cache(maxsize=None)(self._find_pool)

    def __len__(self) -> int:
        return len(self.rows)

    def problem(self, index: int) -> Problem:
        """The row at ``index``; the next one of its kind where it proves to be damaged.

        Raises:
            ValueError: That is not tolerated, or there is no other row.
        """
        tried: set[int] = set()
        while True:
            try:
                return self.rows[index]
            except ValueError as error:
                tried.add(index)
                self.note_failed({index: str(error)})
                index = self._following(index)
                if self.rows.tolerated == "nothing" or index in tried:
                    raise

    def note_failed(self, failed: Mapping[int, str]) -> None:
        """Count rows that proved to be damaged, here or in a worker process, and say each once."""
        for index, why in failed.items():
            if index in self.failed:
                continue
            self.failed[index] = why
            # A worker does not know of the others: the process that asked for the batch speaks.
            if self.rows.tolerated != "nothing" and get_worker_info() is None:
                warnings.warn(
                    f"{why}; the next row of the same kind is taken in its place "
                    f"({len(self.failed)} so far)",
                    stacklevel=2,
                )

    def donor(self, index: int, kind: Donors = "same") -> Problem:
        """Another row, or this one with a wrong path if it is a maze."""
        if kind == "wrong":
            return self.rows.wrongly_solved(index)
        pool = self._pool(self.category(index), kind)
        is_in_pool = kind != "other"
        if len(pool) < 1 + is_in_pool:
            raise ValueError(
                f"row {index} of {self.rows.folder}, of category {self.category(index)}, has no "
                f"donor (data.donors={kind})"
            )
        rng = np.random.default_rng([self._seed, index])
        position = int(np.searchsorted(pool, index)) if is_in_pool else 0
        shift = int(rng.integers(int(is_in_pool), len(pool)))
        return self.problem(int(pool[(position + shift) % len(pool)]))

    def group(self, index: int) -> str:
        """Width and height of the problem picture, where they count."""
        return self.rows.group(index)

    def task(self, index: int) -> str:
        """The task, as mixture weights name it."""
        return self.rows.index.tasks[index]

    def category(self, index: int) -> str:
        """Its task and the size of its picture, where that counts: what tells donors apart."""
        return f"{self.task(index)} {self.group(index)}"

    def _find_pool(self, category: str, kind: Donors) -> np.ndarray[Any, np.dtype[np.int64]]:
        is_same = np.array([self.category(i) == category for i in range(len(self))])
        fits = {"same": is_same, "other": ~is_same, "any": np.ones_like(is_same)}
        return np.flatnonzero(fits[kind])

    def _following(self, index: int) -> int:
        others = ((index + step) % len(self) for step in range(1, len(self) + 1))
        kind = self.task(index), self.group(index)
        return next(other for other in others if (self.task(other), self.group(other)) == kind)


def groups_of(source: ProblemSource) -> dict[str, list[int]]:
    """The indices of every group, in order."""
    groups: dict[str, list[int]] = {}
    for index in range(len(source)):
        groups.setdefault(source.group(index), []).append(index)
    return groups
