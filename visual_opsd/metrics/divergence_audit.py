"""What the stabilisers of Eq. 7 cost: top K against the whole vocabulary, and clips."""

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from visual_opsd.losses.divergence import DivergenceConfig, generalized_jsd


class TopKAgreement(NamedTuple):
    """A top-K divergence beside the exact one, per token."""

    error: Float[Tensor, " tokens"]
    """Top K minus exact, in nats."""
    teacher_outside: Float[Tensor, " tokens"]
    """Probability that the teacher gives to what is outside its top K."""
    student_outside: Float[Tensor, " tokens"]
    """The same of the student, whose mass there a renormalised top K does not see."""


class ClipEffect(NamedTuple):
    """A clipped divergence beside the unclipped one, per token."""

    is_clipped: Float[Tensor, " tokens"]
    """1 where the clip changed the value."""
    gradient: Float[Tensor, " tokens"]
    """L1 norm of the unclipped gradient to the student's logits."""
    lost: Float[Tensor, " tokens"]
    """L1 norm of what the clip changed in it."""


@torch.no_grad()
def top_k_agreement(
    student_logits: Float[Tensor, "tokens vocab"],
    teacher_logits: Float[Tensor, "tokens vocab"],
    config: DivergenceConfig,
) -> TopKAgreement:
    """Compare ``config`` with itself over the whole vocabulary."""
    if config.top_k is None:
        raise ValueError("top_k_agreement needs a configuration with top_k, got None")
    exact = replace(config, top_k=None)
    error = generalized_jsd(student_logits, teacher_logits, config) - generalized_jsd(
        student_logits, teacher_logits, exact
    )
    kept = teacher_logits.topk(min(config.top_k, teacher_logits.shape[-1]), dim=-1).indices
    outside = [
        (logits.float() / config.temperature).softmax(dim=-1).scatter(-1, kept, 0).sum(dim=-1)
        for logits in (teacher_logits, student_logits)
    ]
    return TopKAgreement(error, *outside)


def clip_effect(
    student_logits: Float[Tensor, "tokens vocab"],
    teacher_logits: Float[Tensor, "tokens vocab"],
    config: DivergenceConfig,
) -> ClipEffect:
    """Compare ``config`` with itself without clips, in value and in gradient."""
    if config.entry_clip is None and config.token_clip is None:
        raise ValueError("clip_effect needs a configuration with a clip, got none")

    def value_and_gradient(with_config: DivergenceConfig) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            student = student_logits.detach().requires_grad_()
            value = generalized_jsd(student, teacher_logits, with_config)
            (gradient,) = torch.autograd.grad(value.sum(), student)
        return value.detach(), gradient

    clipped, clipped_gradient = value_and_gradient(config)
    whole, gradient = value_and_gradient(replace(config, entry_clip=None, token_clip=None))
    return ClipEffect(
        (clipped != whole).float(),
        gradient.abs().sum(dim=-1),
        (gradient - clipped_gradient).abs().sum(dim=-1),
    )


class _Audit(Metric):
    """Sums over tokens of what a pure function above says of each."""

    full_state_update = False
    sums: Tensor
    num_tokens: Tensor

    def __init__(self, config: DivergenceConfig) -> None:
        """Take the configuration to be audited."""
        super().__init__()
        self.config = config
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_tokens", torch.tensor(0), dist_reduce_fx="sum")

    def _add(self, found: Float[Tensor, "3 tokens"]) -> None:
        self.sums += found.double().sum(dim=1)
        self.num_tokens += found.shape[1]


class TopKError(_Audit):
    """:func:`top_k_agreement` over many tokens.

    ``compute`` returns ``top_k_error`` (mean of absolute values, nats), ``top_k_max_error``, and
    the mean ``teacher_outside`` and ``student_outside``.
    """

    largest: Tensor

    def __init__(self, config: DivergenceConfig) -> None:
        """Take the configuration to be audited."""
        super().__init__(config)
        self.add_state("largest", torch.tensor(0.0), dist_reduce_fx="max")

    def update(
        self,
        student_logits: Float[Tensor, "tokens vocab"],
        teacher_logits: Float[Tensor, "tokens vocab"],
    ) -> None:
        """Take both sides' logits of some tokens."""
        found = torch.stack(top_k_agreement(student_logits, teacher_logits, self.config)).abs()
        self._add(found)
        if found.numel():
            self.largest = torch.maximum(self.largest, found[0].max())

    def compute(self) -> dict[str, Tensor]:
        """Means over tokens; NaN before the first."""
        error, teacher, student = self.sums / self.num_tokens
        return {
            "top_k_error": error,
            "top_k_max_error": self.largest,
            "teacher_outside": teacher,
            "student_outside": student,
        }


class ClipLoss(_Audit):
    """:func:`clip_effect` over many tokens.

    ``compute`` returns ``clip_fraction`` of tokens, and ``gradient_lost``: what the clip changed in
    the gradients to the student's logits, as a share of their L1 norm.
    """

    def update(
        self,
        student_logits: Float[Tensor, "tokens vocab"],
        teacher_logits: Float[Tensor, "tokens vocab"],
    ) -> None:
        """Take both sides' logits of some tokens."""
        self._add(torch.stack(clip_effect(student_logits, teacher_logits, self.config)))

    def compute(self) -> dict[str, Tensor]:
        """Shares over all tokens; NaN before the first."""
        clipped, gradient, lost = self.sums
        return {"clip_fraction": clipped / self.num_tokens, "gradient_lost": lost / gradient}
