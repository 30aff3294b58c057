"""Where the time of a run goes, phase by phase; and which rank is stuck in which."""

import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import Profiler

PHASES = ("sampling", "drawing", "teacher", "student", "optimiser", "saving", "looking", "other")
ACTIONS = {
    ".training_step": "student",
    ".backward": "student",
    ".optimizer_step": "optimiser",
    "save_checkpoint": "saving",
    "Probe.on_train_batch_end": "looking",
    "CollapseMonitor.on_train_batch_start": "looking",
}
"""How Lightning's own actions end; the others are named where they happen."""


class PhaseClock(Profiler):
    """Seconds by phase, each second once: what starts within another phase interrupts it.

    Kernels run behind on a GPU; sampling waits for every token, the rest is as seen by the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.phase = "other"
        self.since = time.perf_counter()
        """When the clock was last turned or read: never long ago where steps are taken."""
        self._outer: list[str] = []

    def start(self, action_name: str) -> None:
        """Enter a phase, or stay in the one at hand."""
        self._outer.append(self.phase)
        self._turn_to(_phase_of(action_name) or self.phase)

    def stop(self, action_name: str) -> None:
        """Back to what was interrupted."""
        del action_name
        if self._outer:
            self._turn_to(self._outer.pop())

    def read(self) -> dict[str, float]:
        """Seconds up to now, the phase at hand included."""
        self._turn_to(self.phase)
        return dict(self.seconds)

    def _turn_to(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[self.phase] += now - self.since
        self.phase, self.since = phase, now


def _phase_of(action: str) -> str | None:
    if action in PHASES:
        return action
    return next((phase for end, phase in ACTIONS.items() if action.endswith(end)), None)


class Throughput(L.Callback):
    """Logs samples and tokens a second, shares of phases and each rank's peak memory.

    A rank that stays in one phase for ``patience_seconds`` says so, in the log and in
    ``folder/stuck_rank_<rank>.txt``: of ranks that wait for each other, the one in another phase
    than the rest is the one to look at.
    """

    def __init__(
        self, clock: PhaseClock, every: int, folder: Path, patience_seconds: float
    ) -> None:
        self.clock = clock
        self.every = every
        self.folder = folder
        self.patience_seconds = patience_seconds
        self._is_over = threading.Event()
        self._counted = {"samples": 0, "tokens": 0}
        self._started = 0.0
        self._last_step = 0
        self._seconds: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock and the watch."""
        self._last_step = trainer.global_step
        self._begin()
        self._is_over.clear()
        arguments = (trainer.global_rank, trainer)
        threading.Thread(target=self._watch, args=arguments, daemon=True).start()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Watch no more."""
        self._is_over.set()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: Any
    ) -> None:
        """Watch no more."""
        self._is_over.set()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count; report every ``every`` optimiser steps."""
        self._counted["samples"] += len(batch)
        if batch.rollout is not None:
            self._counted["tokens"] += sum(batch.rollout.completions.lengths)
        if trainer.global_step == self._last_step or trainer.global_step % self.every:
            return
        self._last_step = trainer.global_step
        found = self.clock.read()
        passed = time.perf_counter() - self._started
        ranks = trainer.world_size
        report = {f"speed/{k}_a_second": ranks * n / passed for k, n in self._counted.items()}
        for phase, seconds in found.items():
            report[f"share/{phase}"] = (seconds - self._seconds[phase]) / passed
        pl_module.log_dict(report, sync_dist=True, batch_size=1)
        peaks = pl_module.all_gather(torch.tensor(peak_memory(), device=pl_module.device))
        peaks = {f"peak_gb/rank_{rank}": peak for rank, peak in enumerate(peaks.flatten())}
        pl_module.log_dict(peaks, batch_size=1)
        self._begin()

    def _begin(self) -> None:
        self._counted = dict.fromkeys(self._counted, 0)
        self._started = time.perf_counter()
        self._seconds = self.clock.read()

    def _watch(self, rank: int, trainer: L.Trainer) -> None:
        reported = 0.0
        while not self._is_over.wait(self.patience_seconds / 10):
            since, phase = self.clock.since, self.clock.phase
            waited = time.perf_counter() - since
            if waited > self.patience_seconds and since != reported:
                reported = since
                text = f"rank {rank} has been in phase {phase!r} for {waited:.0f} s, step "
                text += f"{trainer.global_step}\n"
                sys.stderr.write(text)
                (self.folder / f"stuck_rank_{rank}.txt").write_text(text)


def peak_memory() -> float:
    """Of this rank so far, in GB: allocated on the GPU, or resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
