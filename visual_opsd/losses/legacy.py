"""The first release's sampled-token loss, kept to compare with; not the divergence of Eq. 7."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def sampled_token_loss_legacy(
    student_logits: Float[Tensor, "tokens vocab"],
    teacher_logits: Float[Tensor, "tokens vocab"],
    ids: Int[Tensor, " tokens"],
) -> Float[Tensor, " tokens"]:
    """A policy gradient on the sampled tokens, with log p_T - log p_S as the reward of each.

    Only its gradient means something. ``loss_kind=tinker`` of the official release, whose trainer
    passes no ids and therefore cannot reach it.
    """
    student = -F.cross_entropy(student_logits.float(), ids, reduction="none")
    teacher = -F.cross_entropy(teacher_logits.float(), ids, reduction="none")
    return -(teacher - student).detach() * student
