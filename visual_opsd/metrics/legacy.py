"""The first release's KL diagnostic, kept to show its bias; not the gap of the paper's Eq. 4."""

import torch
from jaxtyping import Float
from torch import Tensor

from visual_opsd.losses.divergence import kl_divergence_per_token
from visual_opsd.metrics.rows import RowsMetric


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


class EndAlignedKLGapLegacy(RowsMetric):
    """Mean over problems of :func:`end_aligned_kl_gap_legacy`, to be shown beside ``KLGap``."""

    higher_is_better = False

    def __init__(self) -> None:
        super().__init__(kl_gap=torch.float64)

    def update(
        self,
        teacher_logprobs: Float[Tensor, "teacher_tokens vocab"],
        student_logprobs: Float[Tensor, "student_tokens vocab"],
    ) -> None:
        """Take the texts of one problem, the teacher's and the student's."""
        self.append(kl_gap=end_aligned_kl_gap_legacy(teacher_logprobs, student_logprobs))

    def compute(self) -> Tensor:
        """In nats per token; NaN before the first pair."""
        return self.column("kl_gap").mean()
