"""Visual-OPSD: the student learns from what it would have said, had it seen the visual thoughts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from lightning_modules.optimisation import OptimiserConfig, configure
from visual_opsd.contexts import Encode, ProblemBatch, student_context, teacher_context
from visual_opsd.losses.divergence import (
    DivergenceConfig,
    Pooling,
    TeacherScores,
    divergence,
    pooled,
    teacher_scores,
)
from visual_opsd.losses.tokens import TokenLosses, entropy, most_uncertain, token_weights
from visual_opsd.rollouts.trajectories import Rollout
from visual_opsd.teachers import AdapterOff, WeightMemory
from visual_opsd.trainable import LoRAConfig, adapt, freeze_drawing
from visual_opsd.weights import WholeWeights


@dataclass(frozen=True, kw_only=True)
class VisualOPSDConfig:
    """The method's knobs."""

    divergence: DivergenceConfig = DivergenceConfig()
    teacher: Literal["fixed", "ema", "current", "adapter_off"] = "fixed"
    """The start weights, their moving average (the paper), the student itself; or the start weights
    without a copy, as the student without its adapters.

    Fixed by default: nothing trains the teacher's context, so a teacher that follows the student
    forgets how to read visual thoughts (decision record 0003)."""
    pooling: Pooling = "mean"
    """How the teacher's distributions become one where it sees several drawings in turn."""
    uncertain_share: float = 1.0
    """Of a completion's tokens, those that the student was least sure of; only they count."""
    ema_decay: float = 0.995
    """Of the moving average, once an optimiser step; 0 would be ``current``, 1 ``fixed``."""
    lora: LoRAConfig | None = None
    """Train low-rank adapters alone; None trains everything that reads and writes."""
    optimiser: OptimiserConfig = OptimiserConfig()

    def __post_init__(self) -> None:
        if not 0 < self.uncertain_share <= 1:
            raise ValueError(f"uncertain_share must lie in (0, 1], got {self.uncertain_share}")
        if self.teacher == "adapter_off" and self.lora is None:
            raise ValueError(
                "visual_opsd.teacher=adapter_off switches adapters off, and visual_opsd.lora is "
                "null: set visual_opsd.lora, or visual_opsd.teacher=fixed"
            )

    @property
    def teacher_decay(self) -> float:
        """Teachers that remember weights are one number."""
        return {"fixed": 1.0, "ema": self.ema_decay, "current": 0.0, "adapter_off": 1.0}[
            self.teacher
        ]


class VisualOPSD(L.LightningModule):
    """Distil the visually informed teacher into the text-only student, on the student's tokens."""

    def __init__(
        self,
        build: Callable[[], torch.nn.Module],
        encode: Encode,
        config: VisualOPSDConfig,
        place: WholeWeights | None = None,
    ) -> None:
        """Take a factory: every strategy builds the model in ``configure_model``.

        ``place`` knows where weights are, if the strategy shards them.
        """
        super().__init__()
        self.build = build
        self.encode = encode
        self.config = config
        self.model: Any = None
        self.place = place or WholeWeights()
        self.teacher = (
            AdapterOff()
            if config.teacher == "adapter_off"
            else WeightMemory(config.teacher_decay, self.place)
        )
        self._followed_step = 0

    def configure_model(self) -> None:
        """Build once; the teacher starts where the student does."""
        if self.model is None:
            self.model = self.build()
            freeze_drawing(self.model)
            if self.config.lora is not None:
                adapt(self.model, self.config.lora, self.place)
            self.teacher.remember(self.model)

    def training_step(self, batch: ProblemBatch) -> Tensor:
        """Algorithm 1: score the student's completions under both contexts, pull it over."""
        if batch.rollout is None:
            raise RuntimeError(
                "the batch has no rollout: train VisualOPSD with callbacks.rollout.RolloutCallback"
            )
        completions, config = batch.rollout.completions, self.config.divergence
        student_sees = [student_context(problem, self.encode) for problem in batch.problems]

        scores = self._teacher_scores(batch.rollout)
        per_token = self.model.logits(
            self.model(student_sees, completions.ids),
            lambda logits, rows: TokenLosses(
                divergence(logits, scores.rows(rows), config), entropy(logits)
            ),
        )
        counts = most_uncertain(
            completions.is_sampled, per_token.entropy, self.config.uncertain_share
        )
        loss = (per_token.divergence * token_weights(counts)).sum()
        self.log("train/divergence", loss, prog_bar=True, batch_size=len(batch), sync_dist=True)
        mean_entropy = (per_token.entropy * token_weights(completions.is_sampled)).sum()
        self.log("train/entropy", mean_entropy, batch_size=len(batch), sync_dist=True)
        return loss

    def _teacher_scores(self, rollout: Rollout) -> TeacherScores:
        """The teacher's of the same completions; of several drawings one after the other."""
        if rollout.scores is not None:
            return rollout.scores
        config, ids = self.config.divergence, rollout.completions.ids
        whole = config if len(rollout.views) == 1 else replace(config, top_k=None)
        with torch.no_grad(), self.teacher_weights() as teacher:
            found = []
            for shown in rollout.views:
                sees = [teacher_context(problem, self.encode) for problem in shown]
                hidden = teacher(sees, ids)
                found.append(
                    teacher.logits(hidden, lambda logits, _: teacher_scores(logits, whole))
                )
            return rollout.keep(pooled(found, self.config.pooling, config))

    @contextmanager
    def rollout_weights(self, policy: Literal["student", "start"] = "student") -> Iterator[Any]:
        """The student, to sample from in the precision that it is scored in; or what it started as.

        The start weights are those of the teacher that stays there: no other keeps them.
        """
        assert policy == "student" or self.config.teacher_decay == 1, "the schema refuses it"
        is_training = self._trainer is not None
        with (
            self.trainer.precision_plugin.forward_context() if is_training else nullcontext(),
            self.teacher.recalled(self.model) if policy == "start" else nullcontext(),
            self.place.gathered(self.model) as student,
        ):
            yield student

    @contextmanager
    def teacher_weights(self) -> Iterator[Any]:
        """The same model with the teacher's weights; score inside, no gradient."""
        profiler = getattr(self._trainer, "profiler", None)  # names the phase, if there is a run
        with (
            profiler.profile("teacher") if profiler else nullcontext(),
            self.teacher.recalled(self.model),
        ):
            yield self.model

    def on_train_start(self) -> None:
        """Count optimiser steps from here (a resumed run goes on counting)."""
        self._followed_step = self.trainer.global_step

    def on_train_batch_end(self, *_: Any) -> None:
        """Once an optimiser step, however many batches it took, the teacher follows."""
        self._follow()

    def _follow(self) -> None:
        if self.trainer.global_step != self._followed_step:
            self._followed_step = self.trainer.global_step
            self.teacher.follow(self.model)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The teacher's weights travel with the student's, both of the same step.

        Callbacks, and ModelCheckpoint is one, come before the hook above. What does not train is
        in the folder that the run starts from.
        """
        self._follow()
        checkpoint["teacher"] = self.teacher.state_dict()
        if "state_dict" in checkpoint:
            trained = {name for name, p in self.named_parameters() if p.requires_grad}
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: state[name] for name in state if name in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the teacher where it was, and the student with what never moved."""
        self.teacher.load_state_dict(checkpoint["teacher"])
        if "state_dict" in checkpoint:
            checkpoint["state_dict"] = self.state_dict() | checkpoint["state_dict"]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over what trains, to the trainer's last step."""
        return configure(self, self.config.optimiser, self.trainer.max_steps)
