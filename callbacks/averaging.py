"""A moving average of the weights, for scoring and shipping; training never sees it."""

from typing import Any

import lightning as L
from torch import Tensor

from visual_opsd.teachers import WeightMemory
from visual_opsd.weights import WholeWeights


class AveragedWeights(L.Callback):
    """Follows the module's model once an optimiser step."""

    def __init__(self, decay: float, place: WholeWeights | None = None) -> None:
        """``decay`` of the average; ``place`` knows where weights are, if they are sharded."""
        self.memory = WeightMemory(decay, place)
        self._loaded: dict[str, Tensor] | None = None
        self._followed_step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Start from the module's weights, or where a checkpoint left off.

        Not with the first step: a run that goes on behind its last one has none.
        """
        self.memory.remember(pl_module.model)
        if self._loaded is not None:
            self.memory.load_state_dict(self._loaded)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Count optimiser steps from here."""
        self._followed_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        """Average in the step just taken."""
        if trainer.global_step != self._followed_step:
            self._followed_step = trainer.global_step
            self.memory.follow(pl_module.model)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return self.memory.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the module's model exists; ZeRO-3 loads when it does."""
        self._loaded = state_dict
        if self.memory.weights:
            self.memory.load_state_dict(state_dict)
