"""Mazes for training, one size a batch: batch ``k`` is a pure function of the seed and of ``k``."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from datamodules.frozen_lake import Donors, MazeSettings
from datamodules.mixing import check_tasks, mixed, shares_of
from datamodules.sources import (
    DamageNoted,
    GeneratedMazes,
    ProblemSource,
    ThinkMorphRows,
    groups_of,
)
from datamodules.workers import made_ahead
from visual_opsd.benchmarks.maze_pictures import REDUCED_CELL
from visual_opsd.contexts import ProblemBatch
from visual_opsd.models.bagel import preprocessing


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
    weights: Mapping[str, float] = field(default_factory=dict)
    """Task to how often a pass shows each of its rows: 0.5 shows half of them, others every time,
    2 all of them twice. A task that is not named has 1."""
    num_workers: int = 0
    """Processes that make batches ahead of time; the stream is the same without."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1; got {self.batch_size}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank: expected 0 <= rank < {self.world_size}; got {self.rank}")
        if any(weight < 0 for weight in self.weights.values()) or self.num_workers < 0:
            raise ValueError(
                f"weights and num_workers: expected at least 0; got {dict(self.weights)}, "
                f"{self.num_workers}"
            )


class ProblemLoader:
    """An endless stream of batches that Lightning can stop and resume anywhere.

    One pass of ``__iter__`` ends with the bank, the next goes on with batch ``len(self)`` in a new
    order; ``position`` counts batches since the start of training. A loader with a length is not
    prefetched by Lightning, so the position that it saves is that of the batch it trained on.
    """

    def __init__(
        self,
        source: ProblemSource,
        plan: BatchPlan,
        *,
        donors: Donors | None = "same",
        position: int = 0,
    ) -> None:
        """Group the bank by size.

        Raises:
            ValueError: A group is smaller than a batch of all ranks, or a weighted task is absent.
        """
        self.source = source
        self.plan = plan
        self.donors = donors
        self.position = position
        groups = groups_of(source)
        self._rows = plan.batch_size * plan.world_size
        check_tasks(source, plan.weights)
        self._groups = [shares_of(source, groups[name], plan.weights) for name in sorted(groups)]
        counts = [sum(share.count for share in shares) for shares in self._groups]
        self._num_batches = sum(count // self._rows for count in counts)
        named = dict(zip(sorted(groups), counts, strict=True))
        small = {name: count for name, count in named.items() if 0 < count < self._rows}
        if small or not self._num_batches:
            raise ValueError(
                f"a batch takes {self._rows} problems of one size (batch_size {plan.batch_size} x "
                f"world_size {plan.world_size}); the bank of {len(source)} has {small}"
            )
        self.waiting = {name: n % self._rows for name, n in named.items() if n % self._rows}
        """Group to how many of its problems fill no batch and wait for another pass, which leaves
        out others."""
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def __len__(self) -> int:
        """Batches a pass: the bank, as often as it takes to end with an optimiser step."""
        return math.lcm(self._num_batches, self.plan.accumulate)

    def __iter__(self) -> Iterator[ProblemBatch]:
        last = self.position + len(self) - self.position % len(self)
        ahead = range(self.position, last)
        for batch, failed in made_ahead(self._made, ahead, self.plan.num_workers):
            if isinstance(self.source, DamageNoted):
                self.source.note_failed(failed)
            self.position += 1  # before the yield: what is saved is where to go on
            yield batch

    def indices(self, position: int) -> tuple[int, ...]:
        """This rank's problems in batch ``position``, of any pass."""
        epoch, step = divmod(position, self._num_batches)
        rows = self._order(epoch)[step]
        first = self.plan.rank * self.plan.batch_size
        return tuple(rows[first : first + self.plan.batch_size])

    def batch(self, position: int) -> ProblemBatch:
        """Batch ``position`` of this rank."""
        indices = self.indices(position)
        return _batch(self.source, indices, self.donors)

    def _made(self, position: int) -> tuple[ProblemBatch, dict[int, str]]:
        """A batch, and the rows that the process which made it knows to be damaged."""
        batch, source = self.batch(position), self.source
        return batch, dict(source.failed) if isinstance(source, DamageNoted) else {}

    def state_dict(self) -> dict[str, Any]:
        """Where to go on, and what the position is worth only with."""
        return {"position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken.

        Raises:
            ValueError: The stream is another one: its rows, batch or seed have changed.
        """
        mine = self._identity()
        before = {"weights": {}, **state}  # an early checkpoint has none
        saved = {name: before.get(name) for name in mine}
        if saved != mine:
            raise ValueError(f"cannot resume another stream: saved {saved}, this one is {mine}")
        self.position = int(state["position"])

    def _identity(self) -> dict[str, Any]:
        return {
            "num_problems": len(self.source),
            "global_batch_size": self._rows,
            "seed": self.plan.seed,
            "weights": dict(self.plan.weights),
        }

    def _draw_order(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng([self.plan.seed, epoch])
        batches: list[list[int]] = []
        for shares in self._groups:
            order = mixed(shares, rng)
            # What does not fill a batch waits for another epoch's order: ``waiting``.
            num_full = len(order) // self._rows * self._rows
            batches += order[:num_full].reshape(-1, self._rows).tolist()
        return [batches[index] for index in rng.permutation(len(batches))]


class FixedBatches:
    """The same problems in the same order every time, one size a batch, for validation."""

    def __init__(
        self, source: ProblemSource, plan: BatchPlan, *, donors: Donors | None = "same"
    ) -> None:
        """Every problem is in one batch of one rank.

        Ranks take the same number of batches, so where the last of a size has fewer problems than
        there are ranks, the spare ranks see its first problem again.
        """
        self.source = source
        self.donors = donors
        groups = groups_of(source)
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
            yield _batch(self.source, indices, self.donors)


def _batch(source: ProblemSource, indices: Sequence[int], donors: Donors | None) -> ProblemBatch:
    """Problems, and a donor for each where a kind is named."""
    return ProblemBatch(
        [source.problem(index) for index in indices],
        [source.donor(index, donors) for index in indices] if donors else [],
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
        donors: Donors | None = "same",
        weights: Mapping[str, float] | None = None,
        num_workers: int = 0,
    ) -> None:
        """Take the banks.

        Args:
            train: Trained on without end.
            validation: Looked at in full every time; None for no validation.
            batch_size: Problems a rank and batch.
            seed: Of the order of the batches.
            rank: This process among ``world_size``; None asks the trainer.
            world_size: Number of processes; None asks the trainer.
            donors: Give every problem a donor of this kind, for controls that need one.
            weights: Task to how often a pass shows each of its problems; see ``BatchPlan``.
            num_workers: Processes that make batches ahead of time.
        """
        super().__init__()
        self.train = train
        self.validation = validation
        self.batch_size = batch_size
        self.seed = seed
        self.donors = donors
        self.weights = dict(weights or {})
        self.num_workers = num_workers
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
        donors: Donors | None = "same",
    ) -> "MazeData":
        """Mazes made here: the train split, and the validation split beside it."""
        count = num_validation_problems
        return cls(
            GeneratedMazes(settings, "train", num_problems),
            GeneratedMazes(settings, "validation", count) if count else None,
            batch_size=batch_size,
            seed=seed,
            donors=donors,
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
        donors: Donors | None = "same",
        weights: Mapping[str, float] | None = None,
        num_workers: int = 0,
        **options: Any,
    ) -> "MazeData":
        """Rows of ThinkMorph parquet files; the rest as their reader says."""
        return cls(
            ThinkMorphRows(folder, cell, seed, protocol, **options),
            validation,
            batch_size=batch_size,
            seed=seed,
            donors=donors,
            weights=weights,
            num_workers=num_workers,
        )

    def train_dataloader(self) -> ProblemLoader:
        """The endless stream, from where a checkpoint left it; what a pass leaves out is said."""
        self._loader = ProblemLoader(self.train, self._plan(), donors=self.donors)
        if waiting := self._loader.waiting:
            rank_zero_info(
                f"{sum(waiting.values())} of {len(self.train)} problems wait for another pass, in "
                f"each pass others, since they fill no batch of all ranks: {waiting}"
            )
        if self._state is not None:
            self._loader.load_state_dict(self._state)
            self._state = None
        return self._loader

    def val_dataloader(self) -> FixedBatches | list[ProblemBatch]:
        """The validation bank in full."""
        if self.validation is None:
            return []
        return FixedBatches(self.validation, self._plan(), donors=self.donors)

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
            weights=self.weights,
            num_workers=self.num_workers,
        )
