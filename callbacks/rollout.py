"""Before every step: the student answers, and the teacher gets its visual thoughts."""

from dataclasses import dataclass
from typing import Any

import lightning as L
import torch

from visual_opsd.contexts import Encode, ProblemBatch
from visual_opsd.interventions import INTERVENTIONS
from visual_opsd.models.interface import Sampling
from visual_opsd.rollouts.trajectories import Rollout, sample_trajectories, show
from visual_opsd.rollouts.visual_thoughts import Illustrator
from visual_opsd.seeds import row_seed


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """What is sampled and what the teacher sees; the defaults are the paper's run."""

    sampling: Sampling = Sampling()
    intervention: str = "true_vt"
    """What the visual thoughts are replaced by, in design.md's names."""
    seed: int | None = None
    """None: the run's."""

    def __post_init__(self) -> None:
        if self.intervention not in INTERVENTIONS:
            raise ValueError(
                f"intervention {self.intervention!r} is none of {sorted(INTERVENTIONS)}"
            )


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
        with pl_module.rollout_weights() as model:
            completions = sample_trajectories(model, problems, self.encode, config.sampling, seeds)
        if config.intervention == "drawn_vt" and self.illustrator is not None:
            problems = self.illustrator.illustrate(problems)
        batch.rollout = Rollout(
            completions, show(config.intervention, problems, batch.donors, seeds)
        )
        lengths = torch.tensor(completions.lengths, dtype=torch.float32)
        pl_module.log("rollout/num_tokens", lengths.mean(), batch_size=len(problems))
        cut = torch.tensor(completions.is_cut, dtype=torch.float32).mean()
        pl_module.log("rollout/share_cut", cut, batch_size=len(problems))
