"""Mazes for training, one size a batch: batch ``k`` is a pure function of the seed and of ``k``."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import numpy as np

from datamodules.frozen_lake import (
    MazeSettings,
    donor_index,
    generate,
    maze_problem,
    problem_id,
    size_of,
    words_rng,
)
from datamodules.splits import Split
from datamodules.thinkmorph import ThinkMorphFolder
from visual_opsd.benchmarks.maze_pictures import REDUCED_CELL
from visual_opsd.benchmarks.mazes import Maze
from visual_opsd.contexts import Problem, ProblemBatch
from visual_opsd.models.bagel import preprocessing


@runtime_checkable
class ProblemSource(Protocol):
    """A bank of problems that can be asked for any of them."""

    def __len__(self) -> int: ...

    def problem(self, index: int) -> Problem:
        """The problem at ``index``, always the same."""
        ...

    def donor(self, index: int) -> int:
        """The index of another problem of the same size."""
        ...

    def group(self, index: int) -> str:
        """Problems of one group share batches."""
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
        self._donors: dict[int, int] = {}

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

    def donor(self, index: int) -> int:
        """Another maze of the same size, from the same bank."""
        if index not in self._donors:
            self._donors[index] = donor_index(self.settings, self.split, index, self._num_problems)
        return self._donors[index]

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
    ) -> None:
        """See ``ThinkMorphFolder``; ``seed`` draws the donors."""
        self.rows = ThinkMorphFolder(folder, cell, protocol)
        self._seed = seed
        self._members = lru_cache(maxsize=None)(self._find_members)

    def __len__(self) -> int:
        return len(self.rows)

    def problem(self, index: int) -> Problem:
        """The row at ``index``."""
        return self.rows[index]

    def donor(self, index: int) -> int:
        """Another row with a picture of the same size."""
        others = self._members(self.group(index))
        if len(others) < 2:
            raise ValueError(f"row {index} of {self.rows.folder} is the only {self.group(index)}")
        rng = np.random.default_rng([self._seed, index])
        position = int(np.searchsorted(others, index))
        shift = int(rng.integers(1, len(others)))
        return int(others[(position + shift) % len(others)])

    def group(self, index: int) -> str:
        """Width and height of the problem picture."""
        return self.rows.index.groups[index]

    def _find_members(self, group: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array([i for i, other in enumerate(self.rows.index.groups) if other == group])


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """Which rows go into which batch, on which rank."""

    batch_size: int
    """Problems a rank and batch."""
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1
    """Batches an optimiser step: a pass over the bank does not end within one."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1; got {self.batch_size}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank: expected 0 <= rank < {self.world_size}; got {self.rank}")


class ProblemLoader:
    """An endless stream of batches that Lightning can stop and resume anywhere.

    One pass of ``__iter__`` ends with the bank, the next goes on with batch ``len(self)`` in a new
    order; ``position`` counts batches since the start of training. A loader with a length is not
    prefetched by Lightning, so the position that it saves is that of the batch it trained on.
    """

    def __init__(
        self, source: ProblemSource, plan: BatchPlan, *, with_donors: bool = True, position: int = 0
    ) -> None:
        """Group the bank by size.

        Raises:
            ValueError: A group is smaller than a batch of all ranks.
        """
        self.source = source
        self.plan = plan
        self.with_donors = with_donors
        self.position = position
        groups: dict[str, list[int]] = {}
        for index in range(len(source)):
            groups.setdefault(source.group(index), []).append(index)
        self._rows = plan.batch_size * plan.world_size
        self._groups = [np.array(groups[name]) for name in sorted(groups)]
        self._num_batches = sum(len(members) // self._rows for members in self._groups)
        small = {name: len(rows) for name, rows in groups.items() if len(rows) < self._rows}
        if small:
            raise ValueError(
                f"a batch takes {self._rows} problems of one size (batch_size {plan.batch_size} x "
                f"world_size {plan.world_size}); the bank of {len(source)} has {small}"
            )
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def __len__(self) -> int:
        """Batches a pass: the bank, as often as it takes to end with an optimiser step."""
        return math.lcm(self._num_batches, self.plan.accumulate)

    def __iter__(self) -> Iterator[ProblemBatch]:
        for _ in range(len(self) - self.position % len(self)):
            self.position += 1  # before the yield: what is saved is where to go on
            yield self.batch(self.position - 1)

    def indices(self, position: int) -> tuple[int, ...]:
        """This rank's problems in batch ``position``, of any pass."""
        epoch, step = divmod(position, self._num_batches)
        rows = self._order(epoch)[step]
        first = self.plan.rank * self.plan.batch_size
        return tuple(rows[first : first + self.plan.batch_size])

    def batch(self, position: int) -> ProblemBatch:
        """Batch ``position`` of this rank."""
        indices = self.indices(position)
        donors = [self.source.donor(index) for index in indices] if self.with_donors else []
        return ProblemBatch(
            [self.source.problem(index) for index in indices],
            [self.source.problem(index) for index in donors],
        )

    def state_dict(self) -> dict[str, Any]:
        """Where to go on, and what the position is worth only with."""
        return {"position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken.

        Raises:
            ValueError: The stream is another one: its rows, batch or seed have changed.
        """
        mine = self._identity()
        saved = {name: state.get(name) for name in mine}
        if saved != mine:
            raise ValueError(f"cannot resume another stream: saved {saved}, this one is {mine}")
        self.position = int(state["position"])

    def _identity(self) -> dict[str, int]:
        return {
            "num_problems": len(self.source),
            "global_batch_size": self._rows,
            "seed": self.plan.seed,
        }

    def _draw_order(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng([self.plan.seed, epoch])
        batches: list[list[int]] = []
        for members in self._groups:
            mixed = rng.permutation(members)
            # What does not fill a batch waits for another epoch's order.
            num_full = len(mixed) // self._rows * self._rows
            batches += mixed[:num_full].reshape(-1, self._rows).tolist()
        return [batches[index] for index in rng.permutation(len(batches))]


class FixedBatches:
    """The same problems in the same order every time, one size a batch, for validation."""

    def __init__(self, source: ProblemSource, plan: BatchPlan, *, with_donors: bool = True) -> None:
        """Every problem is in one batch of one rank.

        Ranks take the same number of batches, so where the last of a size has fewer problems than
        there are ranks, the spare ranks see its first problem again.
        """
        self.source = source
        self.with_donors = with_donors
        groups: dict[str, list[int]] = {}
        for index in range(len(source)):
            groups.setdefault(source.group(index), []).append(index)
        rows = plan.batch_size * plan.world_size
        self._batches: list[Sequence[int]] = []
        for name in sorted(groups):
            members = groups[name]
            for first in range(0, len(members), rows):
                whole = members[first : first + rows]
                self._batches.append(whole[plan.rank :: plan.world_size] or whole[:1])

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[ProblemBatch]:
        for indices in self._batches:
            donors = [self.source.donor(index) for index in indices] if self.with_donors else []
            yield ProblemBatch(
                [self.source.problem(index) for index in indices],
                [self.source.problem(index) for index in donors],
            )


class MazeData(L.LightningDataModule):
    """Problems and donors for training, and a held-out part for validation."""

    def __init__(
        self,
        train: ProblemSource,
        validation: ProblemSource | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        with_donors: bool = True,
    ) -> None:
        """Take the banks.

        Args:
            train: Trained on without end.
            validation: Looked at in full every time; None for no validation.
            batch_size: Problems a rank and batch.
            seed: Of the order of the batches.
            rank: This process among ``world_size``; None asks the trainer.
            world_size: Number of processes; None asks the trainer.
            with_donors: Give every problem a donor, for controls that need one.
        """
        super().__init__()
        self.train = train
        self.validation = validation
        self.batch_size = batch_size
        self.seed = seed
        self.with_donors = with_donors
        self._rank = rank
        self._world_size = world_size
        self._loader: ProblemLoader | None = None
        self._state: dict[str, Any] | None = None

    @classmethod
    def generated(
        cls,
        settings: MazeSettings,
        *,
        batch_size: int,
        num_problems: int,
        num_validation_problems: int = 0,
        seed: int = 0,
        with_donors: bool = True,
    ) -> "MazeData":
        """Mazes made here: the train split, and the validation split beside it."""
        count = num_validation_problems
        return cls(
            GeneratedMazes(settings, "train", num_problems),
            GeneratedMazes(settings, "validation", count) if count else None,
            batch_size=batch_size,
            seed=seed,
            with_donors=with_donors,
        )

    @classmethod
    def thinkmorph(
        cls,
        folder: Path,
        *,
        batch_size: int,
        cell: int | None = REDUCED_CELL,
        protocol: preprocessing.Protocol | None = None,
        validation: ProblemSource | None = None,
        seed: int = 0,
        with_donors: bool = True,
    ) -> "MazeData":
        """Rows of ThinkMorph parquet files; ``cell`` and ``protocol`` as its reader says."""
        return cls(
            ThinkMorphRows(folder, cell, seed, protocol),
            validation,
            batch_size=batch_size,
            seed=seed,
            with_donors=with_donors,
        )

    def train_dataloader(self) -> ProblemLoader:
        """The endless stream, from where a checkpoint left it."""
        self._loader = ProblemLoader(self.train, self._plan(), with_donors=self.with_donors)
        if self._state is not None:
            self._loader.load_state_dict(self._state)
            self._state = None
        return self._loader

    def val_dataloader(self) -> FixedBatches | list[ProblemBatch]:
        """The validation bank in full."""
        if self.validation is None:
            return []
        return FixedBatches(self.validation, self._plan(), with_donors=self.with_donors)

    def state_dict(self) -> dict[str, Any]:
        """The stream's position: Lightning's own copy is not restored at the end of an epoch."""
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the position for the loader that is to be built."""
        self._state = dict(state_dict) or None

    def _plan(self) -> BatchPlan:
        trainer = self.trainer
        rank = trainer.global_rank if trainer is not None else 0
        world_size = trainer.world_size if trainer is not None else 1
        return BatchPlan(
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank if self._rank is None else self._rank,
            world_size=world_size if self._world_size is None else self._world_size,
            accumulate=trainer.accumulate_grad_batches if trainer is not None else 1,
        )
