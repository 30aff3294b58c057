"""A metric that keeps what it saw row by row: what intervals are made from, of all ranks."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


class RowsMetric(Metric):
    """Named columns of numbers that grow with every update, joined over ranks.

    A column is flat: ranks may hold different numbers of rows. And it starts with an empty tensor
    of its own type, because torchmetrics sends float32 for a rank that saw nothing, whatever the
    others send.
    """

    full_state_update = False

    def __init__(self, **columns: torch.dtype) -> None:
        """Name the columns and the type of each."""
        super().__init__()
        self._types = columns
        for name in columns:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        for name, dtype in self._types.items():
            getattr(self, name).append(torch.zeros(0, dtype=dtype, device=self.device))

    def append(self, **values: Tensor) -> None:
        """Add rows, a tensor for every column."""
        assert values.keys() == self._types.keys(), "an update fills every column"
        for name, value in values.items():
            flat = value.detach().to(self.device, self._types[name]).flatten()
            getattr(self, name).append(flat)

    def column(self, name: str) -> Tensor:
        """All of a column: this rank's, within a synchronised context every rank's."""
        return dim_zero_cat(getattr(self, name))

    def gathered(self) -> dict[str, Any]:
        """Every column, of all ranks."""
        with self.sync_context():
            return {name: self.column(name) for name in self._types}
