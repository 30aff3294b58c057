"""Looks at the model in training every so many steps; removing it changes no bit of the run."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch

from visual_opsd.teachers import WeightMemory


class Probe(L.Callback):
    """Logs what ``measure(model)`` finds, at the first step and every ``every`` steps."""

    def __init__(
        self,
        measure: Callable[[Any], dict[str, float]],
        every: int,
        memory: WeightMemory | None = None,
        *,
        of_teacher: bool = False,
    ) -> None:
        """``measure`` brings its own seeds, ``memory`` the weights to look at (default: the last).

        ``of_teacher`` looks at the teacher's instead. Global random state is put back.
        """
        self.measure = measure
        self.every = every
        self.memory = memory or WeightMemory(0.0)
        self.of_teacher = of_teacher
        self.found: dict[str, float] = {}
        self.looked_at: int | None = None
        """Step of the last look."""
        self._last_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Where the run starts from."""
        self._last_step = trainer.global_step
        if trainer.global_step == 0:
            self._look(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        """Every ``every`` optimiser steps."""
        if trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            if self._last_step % self.every == 0:
                self._look(trainer, pl_module)

    @torch.no_grad()
    def _look(self, trainer: L.Trainer, pl_module: Any) -> None:
        memory = pl_module.teacher if self.of_teacher else self.memory
        with (
            memory.recalled(pl_module.model),
            pl_module.rollout_weights() as model,
            torch.random.fork_rng(devices=[]),
        ):
            self.found = self.measure(model)
        self.looked_at = trainer.global_step
        for logger in trainer.loggers:
            logger.log_metrics(self.found, step=trainer.global_step)
            logger.save()
