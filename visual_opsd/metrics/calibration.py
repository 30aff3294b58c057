"""Whether a model knows when it is right: confidence against accuracy."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error


def answer_confidence(
    log_probs: Sequence[Float[Tensor, " _tokens"]], how: Literal["product", "mean"] = "product"
) -> Float[Tensor, " completions"]:
    """Confidence in 0..1 of completions decoded greedily, from their answer tokens.

    ``product``: the probability of the answer as a whole. ``mean``: the mean probability of its
    tokens, which does not fall with length. No answer is no confidence.
    """
    sure = [row.sum().exp() if how == "product" else row.exp().mean() for row in log_probs]
    is_answered = torch.tensor([len(row) > 0 for row in log_probs])
    return torch.stack(sure).where(is_answered.to(sure[0].device), 0)


def expected_calibration_error(
    confidence: Float[Tensor, " completions"],
    is_right: Bool[Tensor, " completions"],
    num_bins: int = 15,
) -> float:
    """Mean distance of accuracy from confidence, over bins of equal width weighted by size.

    Source: Guo et al. 2017, Eq. 3 (https://arxiv.org/abs/1706.04599).
    """
    return float(binary_calibration_error(confidence, is_right.long(), n_bins=num_bins, norm="l1"))
