"""Watches the student's completions for collapse; removing it changes no bit of the run."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch

from visual_opsd.contexts import Encode, ProblemBatch, student_context
from visual_opsd.models.interface import Completions
from visual_opsd.rollouts.collapse import distinct_ngrams, format_rate
from visual_opsd.rollouts.trajectories import rescoring_error

NUM_RESCORED = 4
"""Rows of a batch that are scored again, to see that they are the student's own."""


class CollapseMonitor(L.Callback):
    """Every so many steps: variety, form, and distance of sampled and scored log-probabilities.

    Stands behind the rollout callback. Length and entropy are logged with every step.
    """

    def __init__(
        self,
        encode: Encode,
        decode: Callable[[Sequence[int]], str],
        every: int,
        temperature: float = 1.0,
    ) -> None:
        """``every`` as often as the trainer logs, ``temperature`` as completions are sampled."""
        self.encode = encode
        self.decode = decode
        self.every = every
        self.temperature = temperature

    @torch.no_grad()
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: ProblemBatch, batch_idx: int
    ) -> None:
        """In the step whose values the trainer logs, which is the last of ``every``."""
        if (trainer.global_step + 1) % self.every:
            return
        completions = batch.rollout.completions
        rows = [ids.tolist() for ids in completions.ids]
        found = {
            "monitor/distinct_2": distinct_ngrams(rows, 2),
            "monitor/format_rate": format_rate([self.decode(ids) for ids in rows]),
        }
        if not torch.cat(completions.log_probs).isnan().any():  # gold ones nobody has sampled
            contexts = [student_context(p, self.encode) for p in batch.problems[:NUM_RESCORED]]
            with pl_module.rollout_weights() as model:
                found["monitor/rescoring_error"] = rescoring_error(
                    model, contexts, _first(completions, NUM_RESCORED), self.temperature
                )
        pl_module.log_dict(found, batch_size=len(batch), sync_dist=True)


def _first(completions: Completions, count: int) -> Completions:
    return Completions(
        completions.ids[:count],
        completions.is_sampled[:count],
        completions.log_probs[:count],
        completions.is_cut[:count],
    )
