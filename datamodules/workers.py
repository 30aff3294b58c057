"""Things made ahead of time by other processes, in the order in which they are wanted."""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")


class _Made(Dataset[T], Generic[T]):
    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make

    def __getitem__(self, position: int) -> T:
        return self._make(position)


def made_ahead(make: Callable[[int], T], positions: range, num_workers: int) -> Iterable[T]:
    """``make`` of every position, by worker processes if there are any; the same either way."""
    if not num_workers:
        return map(make, positions)
    return DataLoader(
        _Made(make),
        batch_size=None,
        sampler=positions,
        num_workers=num_workers,
        generator=torch.Generator(),  # else it takes a number of the global one
    )
