"""Supervised fine-tuning on demonstrations: interleaved (it makes a base) or on text only."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from lightning_modules.optimisation import OptimiserConfig, configure
from visual_opsd import demonstrations
from visual_opsd.contexts import Context, Encode, Problem, ProblemBatch
from visual_opsd.interventions import intervene, intervention
from visual_opsd.seeds import row_seed
from visual_opsd.trainable import freeze_drawing
from visual_opsd.weights import WholeWeights


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """What is imitated, and how."""

    mix: dict[str, float] = field(default_factory=dict)
    """Share of each kind of row: ``interleaved``, ``text_only``, ``privileged`` (the teacher's
    context with the true visual thought), or ``privileged:<intervention>`` (with another)."""
    drawing_weight: float = 1.0
    num_noised: int = 1
    """Noised copies of every drawn image; they share one context."""
    latent_dropout: float = 0.3
    """How often a drawing's clean latents are left out of an interleaved row (ThinkMorph's 0.3)."""
    problem_latent_dropout: float = 0.0
    """The same for the problem's; such a row is not trained to ask for its drawing."""
    optimiser: OptimiserConfig = OptimiserConfig()
    seed: int | None = None
    """None: the run's."""

    def __post_init__(self) -> None:
        if self.mix and abs(sum(self.mix.values()) - 1) > 1e-6:
            raise ValueError(f"the shares of mix must sum to 1, got {dict(self.mix)}")
        known = ["interleaved", "text_only", "privileged", "privileged:<intervention>"]
        for kind, share in self.mix.items():
            row, colon, shown = kind.partition(":")
            if row not in known or (colon and row != "privileged"):
                raise ValueError(f"mix has an unknown kind of row: {kind!r} is none of {known}")
            if colon:
                intervention(shown)
            if share < 0:
                raise ValueError(f"mix has a negative share: {kind}: {share}")


class SupervisedFineTuning(L.LightningModule):
    """Cross-entropy on texts plus flow matching on drawings."""

    def __init__(
        self,
        build: Callable[[], torch.nn.Module],
        encode: Encode,
        config: SFTConfig,
        place: WholeWeights | None = None,
    ) -> None:
        """Take a factory: every strategy builds the model in ``configure_model``.

        ``place`` knows where weights are, if the strategy shards them.
        """
        super().__init__()
        if not config.mix:
            raise ValueError("sft.mix is empty: name the kinds of rows and their shares")
        self.build = build
        self.encode = encode
        self.config = config
        self.place = place or WholeWeights()
        self.model: Any = None

    def configure_model(self) -> None:
        """Build once."""
        if self.model is None:
            self.model = self.build()
            if not self.config.mix.get("interleaved"):
                freeze_drawing(self.model)

    def training_step(self, batch: ProblemBatch) -> Tensor:
        """Every problem becomes one demonstration of a kind drawn by its own seed."""
        seeds = [
            row_seed(self.config.seed, self.global_step, problem.problem_id)
            for problem in batch.problems
        ]
        donors: Sequence[Problem | None] = batch.donors or [None] * len(batch)
        rows = [
            self.demonstrate(problem, donor, seed)
            for problem, donor, seed in zip(batch.problems, donors, seeds, strict=True)
        ]
        losses = self._losses(rows, seeds)
        loss = losses["text"] + self.config.drawing_weight * losses["drawing"]
        shown: dict[str, Any] = {"prog_bar": True, "batch_size": len(batch), "sync_dist": True}
        self.log("train/text_loss", losses["text"], **shown)
        self.log("train/drawing_loss", losses["drawing"], **shown)
        return loss

    @contextmanager
    def rollout_weights(self) -> Iterator[Any]:
        """The model, to sample from."""
        with self.place.gathered(self.model) as model:
            yield model

    def _losses(self, rows: list[Context], seeds: list[int]) -> dict[str, Tensor]:
        """Of rows that draw and of those that do not, apart: padded together, short rows crawl."""
        text, drawing, num_tokens = torch.zeros(()), torch.zeros(()), 0
        for draws in (True, False):
            chosen = [i for i, row in enumerate(rows) if demonstrations.draws(row) is draws]
            if not chosen:
                continue
            part = [rows[i] for i in chosen]
            losses = self.model.interleaved_loss(part, [seeds[i] for i in chosen])
            count = sum(map(demonstrations.num_target_tokens, part))
            text = text.to(losses["text"]) + count * losses["text"]
            drawing = drawing.to(losses["drawing"]) + losses["drawing"]
            num_tokens += count
        return {"text": text / num_tokens, "drawing": drawing}

    def demonstrate(self, problem: Problem, donor: Problem | None, seed: int) -> Context:
        """The row this problem is today."""
        kinds = list(self.config.mix)
        shares = np.array([self.config.mix[kind] for kind in kinds])
        rng = np.random.default_rng(seed)
        kind = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
        if kind == "interleaved":
            has_latents = bool(rng.random() >= self.config.latent_dropout)
            has_problem_latents = bool(rng.random() >= self.config.problem_latent_dropout)
            return demonstrations.interleaved(
                problem,
                self.encode,
                self.config.num_noised,
                has_latents=has_latents,
                has_problem_latents=has_problem_latents,
            )
        if kind == "text_only":
            return demonstrations.text_only(problem, self.encode)
        _, _, name = kind.partition(":")
        shown = intervene(name or "true_vt", problem, donor, seed)
        return demonstrations.privileged(shown, self.encode)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over what trains, to the trainer's last step."""
        return configure(self, self.config.optimiser, self.trainer.max_steps)
