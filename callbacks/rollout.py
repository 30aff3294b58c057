"""Before every step: the student answers, and the teacher gets its visual thoughts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import lightning as L
import torch

from visual_opsd.contexts import Encode, Problem, ProblemBatch
from visual_opsd.interventions import intervention
from visual_opsd.models.interface import Completions, Sampling
from visual_opsd.rollouts.offline import OfflineCache, joined, replaced
from visual_opsd.rollouts.trajectories import (
    Rollout,
    gold_trajectories,
    sample_trajectories,
    show,
)
from visual_opsd.rollouts.visual_thoughts import Illustrator
from visual_opsd.seeds import row_seed


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """What is sampled and what the teacher sees; the defaults are the paper's run."""

    sampling: Sampling = Sampling()
    intervention: str = "true_vt"
    """What the visual thoughts are replaced by: a name of ``visual_opsd.interventions``."""
    policy: Literal["student", "start", "gold"] = "student"
    """Whose completions are scored: the student's own (on-policy); off-policy, what the start
    weights once answered, always the same for a problem; or the data set's solutions."""
    cache_scores: bool = False
    """Offline distillation: off-policy completions and the fixed teacher's scores of them are kept
    on disk, and read where they are there. A token is 4 bytes an entry of the vocabulary, or 12 an
    entry of ``divergence.top_k``; runs from several seeds share them by a ``seed`` set here."""
    num_drawings: int = 1
    """Drawings of ``drawn_vt`` a problem, each of its own seed, which the teacher sees in turn."""
    seed: int | None = None
    """None: the run's."""

    def __post_init__(self) -> None:
        if self.num_drawings < 1:
            raise ValueError(f"num_drawings must be at least 1, got {self.num_drawings}")
        if self.num_drawings > 1 and self.intervention != "drawn_vt":
            raise ValueError(
                f"num_drawings {self.num_drawings} is for drawn_vt; {self.intervention} has one "
                "picture a problem"
            )
        if self.cache_scores and self.policy == "student":
            raise ValueError(
                "cache_scores keeps what does not change, and the student's own completions do: "
                "set policy to start or gold"
            )
        intervention(self.intervention)  # an unknown name is an error here, not in a step


class RolloutCallback(L.Callback):
    """Fills ``batch.rollout``; reaches weights only through the module.

    It stands here and not in ``training_step`` because gathering weights under ZeRO-3 is legal
    here and fails there from the second step on.
    """

    def __init__(
        self,
        config: RolloutConfig,
        encode: Encode,
        illustrator: Illustrator | None = None,
        offline: OfflineCache | None = None,
    ) -> None:
        """``illustrator`` is needed for ``drawn_vt``, ``offline`` for ``cache_scores``."""
        if config.intervention == "drawn_vt" and illustrator is None:
            raise ValueError("drawn_vt needs an illustrator to draw the visual thoughts")
        if config.cache_scores and offline is None:
            raise ValueError("cache_scores needs an offline cache to keep them in")
        self.config = config
        self.encode = encode
        self.illustrator = illustrator
        self.offline = offline if config.cache_scores else None

    @torch.no_grad()
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: ProblemBatch, batch_idx: int
    ) -> None:
        """Illustrate, intervene, sample."""
        config, problems = self.config, batch.problems
        # Off-policy, nothing of a problem depends on the step.
        step = (trainer.global_step, batch_idx) if config.policy == "student" else ("start",)
        seeds = [row_seed(config.seed, *step, problem.problem_id) for problem in problems]
        phase = trainer.profiler.profile  # type: ignore[attr-defined]
        views = [problems]
        if config.intervention == "drawn_vt" and self.illustrator is not None:
            with phase("drawing"):
                views = [
                    self.illustrator.illustrate(problems, k) for k in range(config.num_drawings)
                ]
        shown, *others = (show(config.intervention, v, batch.donors, seeds) for v in views)
        with phase("sampling"):
            batch.rollout = self._rollout(trainer, pl_module, problems, seeds, (shown, *others))
        facts = described(batch.rollout.completions)
        pl_module.log_dict(
            {f"rollout/{name}": value for name, value in facts.items()},
            batch_size=len(problems),
            sync_dist=True,
        )

    def _rollout(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        problems: Sequence[Problem],
        seeds: Sequence[int],
        views: Sequence[tuple[Problem, ...]],
    ) -> Rollout:
        """Sampled; or read with the teacher's scores, where every rank has all of its batch."""
        shown, *others = views
        if self.offline is None:
            completions = self._completions(pl_module, problems, seeds)
            return Rollout(completions, shown, tuple(others))
        paths = [self.offline.path(*row) for row in zip(problems, *views, strict=True)]
        rows = self.offline.rows(paths, problems[0].image.pixels.device)
        there = [row for row in rows if row is not None]
        # Where weights are sharded, all ranks sample and score, or none does.
        if trainer.strategy.reduce_boolean_decision(len(there) == len(rows), all=True):
            completions, scores = joined(there)
            return Rollout(completions, shown, tuple(others), scores=scores)
        sampled = self._completions(pl_module, problems, seeds)
        completions = replaced(sampled, rows)
        keep = partial(self.offline.keep, paths, completions)
        return Rollout(completions, shown, tuple(others), keep=keep)

    def _completions(
        self, pl_module: Any, problems: Sequence[Problem], seeds: Sequence[int]
    ) -> Completions:
        """What the student is scored on."""
        policy, sampling = self.config.policy, self.config.sampling
        if policy == "gold":
            end = pl_module.model.end
            return gold_trajectories(problems, self.encode, end, sampling.max_tokens)
        with pl_module.rollout_weights(policy) as model:
            return sample_trajectories(model, problems, self.encode, sampling, seeds)


def described(completions: Completions) -> dict[str, float]:
    """Mean length; the share that the budget cut; the share that says nothing but its end."""
    lengths = completions.lengths
    is_empty = [n <= 1 and not cut for n, cut in zip(lengths, completions.is_cut, strict=True)]
    return {
        "num_tokens": sum(lengths) / len(lengths),
        "share_cut": sum(completions.is_cut) / len(lengths),
        "share_empty": sum(is_empty) / len(lengths),
    }
