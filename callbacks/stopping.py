"""Ends a run that no longer gets better on held-out problems."""

from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from callbacks.probe import Probe


class EarlyStop(L.Callback):
    """Stops when what a probe looks at has not risen for ``patience`` looks; stands behind it."""

    def __init__(self, probe: Probe, name: str, patience: int) -> None:
        """``name`` is the probe's value, the higher the better."""
        self.probe = probe
        self.name = name
        self.patience = patience
        self.best = float("-inf")
        self.num_worse = 0
        self._seen: int | None = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Once a look."""
        if self.probe.looked_at == self._seen:
            return
        self._seen = self.probe.looked_at
        score = self.probe.found[self.name]
        self.num_worse = 0 if score > self.best else self.num_worse + 1
        self.best = max(self.best, score)
        is_over = self.num_worse >= self.patience
        if trainer.strategy.reduce_boolean_decision(is_over, all=False):
            rank_zero_info(
                f"step {trainer.global_step}: {self.name} has not risen above {self.best:.3f} for "
                f"{self.num_worse} looks; the run ends here"
            )
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {"best": self.best, "num_worse": self.num_worse}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where a checkpoint left off."""
        self.best, self.num_worse = state_dict["best"], state_dict["num_worse"]
