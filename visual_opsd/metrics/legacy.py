"""The first release's KL diagnostic, kept to show its bias; not the gap of the paper's Eq. 4."""

from jaxtyping import Float
from torch import Tensor

from visual_opsd.losses.divergence import kl_divergence_per_token


def end_aligned_kl_gap_legacy(
    teacher_logprobs: Float[Tensor, "teacher_tokens vocab"],
    student_logprobs: Float[Tensor, "student_tokens vocab"],
) -> Float[Tensor, ""]:
    """Mean KL(teacher || student) over two *different* texts laid over each other from their ends.

    Only the answers at the end agree token for token; before them, states that predict different
    words are compared, which inflates the mean (``kl_diagnostic.py`` of the official release).
    """
    shared = min(len(teacher_logprobs), len(student_logprobs))
    if shared == 0:
        raise ValueError(
            f"no tokens to align: {len(teacher_logprobs)} and {len(student_logprobs)} came"
        )
    return kl_divergence_per_token(teacher_logprobs[-shared:], student_logprobs[-shared:]).mean()
