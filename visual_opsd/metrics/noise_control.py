"""What true visual thoughts teach beyond what a control teaches: its gain, paired over problems."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from numpy.typing import ArrayLike
from torch import Tensor

from visual_opsd.metrics.rows import RowsMetric
from visual_opsd.statistics import (
    Estimate,
    holm,
    mcnemar_exact,
    seeds_bootstrap_difference,
    wins_and_losses,
)


@dataclass(frozen=True, slots=True)
class Gain:
    """How far the arm with true visual thoughts is ahead of one control."""

    difference: Estimate
    """Share of problems solved, true minus control."""
    wins: int
    """Problems that the arm with true visual thoughts solves more often."""
    losses: int
    p_value: float
    """McNemar's exact test, over problems."""
    p_holm: float
    """Adjusted for all controls that were compared at once."""


def gains(real: ArrayLike, controls: Mapping[str, ArrayLike], seed: int) -> dict[str, Gain]:
    """The gain over each control; every side is solved or not, [problems] or [seeds, problems]."""
    counts = {name: wins_and_losses(real, control) for name, control in controls.items()}
    p_values = {name: mcnemar_exact(*count) for name, count in counts.items()}
    adjusted = holm(list(p_values.values()))
    return {
        name: Gain(
            seeds_bootstrap_difference(real, control, seed), *counts[name], p_values[name], p_holm
        )
        for (name, control), p_holm in zip(controls.items(), adjusted, strict=True)
    }


class NoiseControl(RowsMetric):
    """:func:`gains` over problems that come batch by batch.

    ``compute`` returns ``gain/<control>`` with ``_low`` and ``_high`` of the 95 % interval, and
    ``p/<control>``, ``p_holm/<control>``.
    """

    higher_is_better = True

    def __init__(self, controls: Sequence[str], seed: int = 0) -> None:
        """Name the controls; ``seed`` draws the resamples."""
        super().__init__(solved=torch.bool)
        self.controls = tuple(controls)
        self.seed = seed

    def update(
        self, real: Bool[Tensor, " problems"], **controls: Bool[Tensor, " _problems"]
    ) -> None:
        """Take whether each of some problems was solved by every arm, so that they stay paired."""
        if set(controls) != set(self.controls):
            raise ValueError(f"expected the controls {list(self.controls)}, got {list(controls)}")
        lengths = {name: len(control) for name, control in controls.items()}
        if set(lengths.values()) - {len(real)}:
            raise ValueError(f"{len(real)} problems with true visual thoughts, others {lengths}")
        arms = [real, *(controls[name] for name in self.controls)]
        self.append(solved=torch.stack([arm.to(self.device) for arm in arms], dim=1))

    def compute(self) -> dict[str, Tensor]:
        """Gains with intervals and p-values, as fractions."""
        real, *others = self.column("solved").view(-1, 1 + len(self.controls)).cpu().numpy().T
        found = gains(real, dict(zip(self.controls, others, strict=True)), self.seed)
        values: dict[str, float] = {}
        for name, gain in found.items():
            values |= {
                f"gain/{name}": gain.difference.value,
                f"gain/{name}_low": gain.difference.low,
                f"gain/{name}_high": gain.difference.high,
                f"p/{name}": gain.p_value,
                f"p_holm/{name}": gain.p_holm,
            }
        return {name: torch.tensor(value, device=self.device) for name, value in values.items()}
