"""Before every step: the student answers, and the teacher gets its visual thoughts."""

from dataclasses import dataclass
from typing import Any

import lightning as L
import torch

from visual_opsd.contexts import Encode, ProblemBatch
from visual_opsd.interventions import intervention
from visual_opsd.models.interface import Completions, Sampling
from visual_opsd.rollouts.trajectories import Rollout, sample_trajectories, show
from visual_opsd.rollouts.visual_thoughts import Illustrator
from visual_opsd.seeds import row_seed


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """What is sampled and what the teacher sees; the defaults are the paper's run."""

    sampling: Sampling = Sampling()
    intervention: str = "true_vt"
    """What the visual thoughts are replaced by: a name of ``visual_opsd.interventions``."""
    seed: int | None = None
    """None: the run's."""

    def __post_init__(self) -> None:
        intervention(self.intervention)  # an unknown name is an error here, not in a step


class RolloutCallback(L.Callback):
    """Fills ``batch.rollout``; reaches weights only through the module.

    It stands here and not in ``training_step`` because gathering weights under ZeRO-3 is legal
    here and fails there from the second step on.
    """

    def __init__(
        self, config: RolloutConfig, encode: Encode, illustrator: Illustrator | None = None
    ) -> None:
        """``illustrator`` is needed for ``drawn_vt`` and ignored otherwise."""
        if config.intervention == "drawn_vt" and illustrator is None:
            raise ValueError("drawn_vt needs an illustrator to draw the visual thoughts")
        self.config = config
        self.encode = encode
        self.illustrator = illustrator

    @torch.no_grad()
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: ProblemBatch, batch_idx: int
    ) -> None:
        """Sample, illustrate, intervene."""
        config, problems = self.config, batch.problems
        step = (config.seed, trainer.global_step, batch_idx)
        seeds = [row_seed(*step, problem.problem_id) for problem in problems]
        phase = trainer.profiler.profile  # type: ignore[attr-defined]
        with phase("sampling"), pl_module.rollout_weights() as model:
            completions = sample_trajectories(model, problems, self.encode, config.sampling, seeds)
        if config.intervention == "drawn_vt" and self.illustrator is not None:
            with phase("drawing"):
                problems = self.illustrator.illustrate(problems)
        batch.rollout = Rollout(
            completions, show(config.intervention, problems, batch.donors, seeds)
        )
        pl_module.log_dict(
            {f"rollout/{name}": value for name, value in described(completions).items()},
            batch_size=len(problems),
            sync_dist=True,
        )


def described(completions: Completions) -> dict[str, float]:
    """Mean length; the share that the budget cut; the share that says nothing but its end."""
    lengths = completions.lengths
    is_empty = [n <= 1 and not cut for n, cut in zip(lengths, completions.is_cut, strict=True)]
    return {
        "num_tokens": sum(lengths) / len(lengths),
        "share_cut": sum(completions.is_cut) / len(lengths),
        "share_empty": sum(is_empty) / len(lengths),
    }
