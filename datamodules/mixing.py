"""How often a pass over a bank of several tasks shows the problems of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class Mixture(Protocol):
    """A bank of several tasks, to be mixed by weight."""

    def task(self, index: int) -> str:
        """The task of the problem at ``index``."""
        ...


@dataclass(frozen=True, slots=True)
class Share:
    """The problems of one task, and how often a pass shows each of them."""

    members: NDArray[np.int64]
    weight: float

    @property
    def count(self) -> int:
        """How many a pass shows, the same in every pass."""
        return round(self.weight * len(self.members))

    def drawn(self, rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """Those of one pass: all of them as often as goes, and a random part once more."""
        whole, rest = divmod(self.count, len(self.members))
        again = [rng.permutation(self.members)[:rest]] if rest else []
        return [self.members] * whole + again


def shares_of(source: Any, members: Sequence[int], weights: Mapping[str, float]) -> list[Share]:
    """One share a task among ``members`` of ``source``; a bank of one task is one share."""
    tasks: dict[str, list[int]] = {}
    for index in members:
        task = source.task(index) if weights and isinstance(source, Mixture) else ""
        tasks.setdefault(task, []).append(index)
    return [Share(np.array(rows), weights.get(task, 1.0)) for task, rows in tasks.items()]


def check_tasks(source: Any, weights: Mapping[str, float]) -> None:
    """Nothing is said of a bank that is not weighted.

    Raises:
        ValueError: A weighted task is absent.
    """
    indices = range(len(source)) if weights else range(0)
    known = sorted({source.task(index) for index in indices if isinstance(source, Mixture)})
    if absent := sorted(set(weights) - set(known)):
        raise ValueError(f"weights: no problem of {absent}; the tasks are {known}")


def mixed(shares: Sequence[Share], rng: np.random.Generator) -> NDArray[np.int64]:
    """What one pass shows, in random order."""
    drawn = [members for share in shares for members in share.drawn(rng)]
    return rng.permutation(np.sort(np.concatenate(drawn))) if drawn else np.array([], dtype=int)
