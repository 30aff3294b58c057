"""When a run is saved, which checkpoints stay, and how it leaves when it is told to."""

import json
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What SLURM sends before it takes a machine away."""
SCORES = "scores.json"
BYTES_A_WEIGHT = 16
"""Float32 weights, two moments and a teacher: the size of a first checkpoint, roughly."""


class SavePoints(Checkpoint):
    """Saves behind whole optimiser steps: every so many, and when a signal asks to leave.

    A checkpoint gets its name when all of it is written, so whatever has a name can be gone on
    from. Signals only raise a flag: saving inside a handler deadlocks between ranks.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        *,
        keep_last: int = 1,
        keep_best: int = 0,
        score: Callable[[], float | None] = lambda: None,
        on_full_disk: Literal["go_on", "stop"] = "go_on",
    ) -> None:
        """``score`` is what the last look at held-out problems found, the same on every rank."""
        self.folder = folder
        self.every = every
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.score = score
        self.on_full_disk = on_full_disk
        self.is_told_to_leave = False
        self.is_full = False
        self.why_left: str | None = None
        """Why the run ended before its last step, if it did."""
        self._last_step = 0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen, in place of Lightning, whose handlers communicate."""
        self._last_step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._hear) for number in SIGNALS}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen no more; what was heard behind the last step is heeded too, on all ranks alike."""
        self._stop_listening()
        asked = trainer.strategy.reduce_boolean_decision(self.is_told_to_leave, all=False)
        if asked and self.why_left is None:
            self.why_left = f"told to leave behind step {trainer.global_step}, the last; the same "
            self.why_left += "command goes on"
            rank_zero_info(self.why_left)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: Any
    ) -> None:
        """Listen no more."""
        self._stop_listening()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Behind an optimiser step: between two there are gradients that nobody saves."""
        step = trainer.global_step
        if step == self._last_step:
            return
        self._last_step = step
        asked = trainer.strategy.reduce_boolean_decision(self.is_told_to_leave, all=False)
        is_last = step == trainer.max_steps or trainer.should_stop
        if asked or step % self.every == 0 or is_last:
            self.save(trainer, pl_module)
        if asked and step < trainer.max_steps:
            if not self.is_full:
                self.why_left = f"told to leave: saved at step {step}; the same command goes on"
            rank_zero_info(self.why_left or "told to leave")
            trainer.should_stop = True

    def save(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write under another name, rename, then let go of what is not to be kept."""
        whole = self.folder / f"step={trainer.global_step}.ckpt"
        partial = whole.with_suffix(".tmp")
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            _remove(partial)
        trainer.strategy.barrier()
        if self._is_full(trainer, pl_module):
            return
        try:
            trainer.save_checkpoint(partial)  # ends with a barrier
        except (OSError, RuntimeError) as error:  # the latter from torch's own writer
            why = f"{partial} could not be written ({error})"
            if trainer.world_size > 1 or isinstance(error, RuntimeError):
                # The other ranks wait for this one within the save: all have to leave.
                raise OSError(
                    f"no checkpoint at step {trainer.global_step}: {why}; the last good one stays, "
                    "and the same command goes on from there"
                ) from error
            _remove(partial)
            self.is_full = True
            self._do_without(trainer, why)
            return
        if trainer.is_global_zero:
            _remove(whole)
            partial.replace(whole)
            self._note_score(trainer.global_step)
            for path in self.superfluous(trainer.global_step):
                _remove(path)
        trainer.strategy.barrier()

    def superfluous(self, step: int) -> list[Path]:
        """All but the newest and the best up to ``step``; what lies beyond it is of another run."""
        steps = sorted((s for s in saved_steps(self.folder)), reverse=True)
        scores = self._scores()
        scored = sorted((s for s in steps if s in scores), key=lambda s: (-scores[s], s))
        kept = {s for s in steps if s <= step}
        kept = set(sorted(kept, reverse=True)[: self.keep_last]) | set(scored[: self.keep_best])
        return [self.folder / f"step={s}.ckpt" for s in steps if s not in kept or s > step]

    def _is_full(self, trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
        """Whether there is room, asked before writing and on all ranks alike."""
        needed = max(map(_size, self.folder.glob("step=*.ckpt")), default=0) or sum(
            BYTES_A_WEIGHT * getattr(weight, "ds_numel", weight.numel())
            for weight in pl_module.parameters()
            if weight.requires_grad
        )
        free = shutil.disk_usage(self.folder).free
        self.is_full = trainer.strategy.reduce_boolean_decision(free < needed, all=False)
        if self.is_full:
            why = f"{self.folder} has {free / 1e9:.2f} GB free and one takes {needed / 1e9:.2f} GB"
            self._do_without(trainer, why)
        return self.is_full

    def _do_without(self, trainer: L.Trainer, why: str) -> None:
        """Say that there is no checkpoint, and go on or stop."""
        said = (
            f"no checkpoint at step {trainer.global_step}: {why}; the last good one stays, and the "
            f"run {'goes on' if self.on_full_disk == 'go_on' else 'stops'}"
        )
        rank_zero_warn(said)
        if self.on_full_disk == "stop" or self.is_told_to_leave:
            self.why_left = said
            trainer.should_stop = True

    def _note_score(self, step: int) -> None:
        score = self.score()
        if self.keep_best and score is not None:
            temporary = self.folder / f"{SCORES}.tmp"
            temporary.write_text(json.dumps({**self._scores(), step: score}))
            temporary.replace(self.folder / SCORES)

    def _scores(self) -> dict[int, float]:
        path = self.folder / SCORES
        found = json.loads(path.read_text()) if path.is_file() else {}
        return {int(step): float(score) for step, score in found.items()}

    def _hear(self, *_: Any) -> None:
        self.is_told_to_leave = True

    def _stop_listening(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def saved_steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint."""
    return [int(path.stem.partition("=")[2]) for path in folder.glob("step=*.ckpt")]


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
