"""How many problems are solved, and how sure that is."""

import torch
from jaxtyping import Bool
from torch import Tensor
from torchmetrics import Metric

from visual_opsd.statistics import wilson


class SolvedRate(Metric):
    """Share of solved problems with its Wilson 95 % interval, as fractions 0..1.

    ``compute`` returns ``solved_rate``, ``solved_rate_low`` and ``solved_rate_high``.
    """

    higher_is_better = True
    full_state_update = False
    num_solved: Tensor
    num_problems: Tensor

    def __init__(self) -> None:
        super().__init__()
        for state in ("num_solved", "num_problems"):
            self.add_state(state, default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, solved: Bool[Tensor, " problems"]) -> None:
        """Take whether each of some problems was solved."""
        self.num_solved += solved.sum()
        self.num_problems += solved.numel()

    def compute(self) -> dict[str, Tensor]:
        """The rate over all ranks; NaN and the whole range before the first problem."""
        if self.num_problems == 0:
            value, low, high = float("nan"), 0.0, 1.0
        else:
            rate = wilson(int(self.num_solved), int(self.num_problems))
            value, low, high = rate.value, rate.low, rate.high
        return {
            "solved_rate": torch.tensor(value, device=self.device),
            "solved_rate_low": torch.tensor(low, device=self.device),
            "solved_rate_high": torch.tensor(high, device=self.device),
        }
