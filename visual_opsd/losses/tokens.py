"""How much each token of a completion counts, and how sure the student was of it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class TokenLosses(NamedTuple):
    """What a training step asks of every token."""

    divergence: Float[Tensor, " tokens"]
    entropy: Float[Tensor, " tokens"]


@torch.no_grad()
def entropy(logits: Float[Tensor, "tokens vocab"]) -> Float[Tensor, " tokens"]:
    """Of the next-token distribution, in nats, without gradient."""
    log_probs = logits.float().log_softmax(dim=-1)
    return -(log_probs.exp() * log_probs.clamp(min=-1e9)).sum(dim=-1)


def token_weights(counts: Sequence[Bool[Tensor, " _tokens"]]) -> Float[Tensor, " all_tokens"]:
    """Mean over a completion's tokens that count, then over completions (Eq. 7); sums to 1."""
    return torch.cat([mask.float() / (mask.sum().clamp(min=1) * len(counts)) for mask in counts])


def most_uncertain(
    is_sampled: Sequence[Bool[Tensor, " _tokens"]],
    entropies: Float[Tensor, " all_tokens"],
    share: float,
) -> tuple[Bool[Tensor, " _tokens"], ...]:
    """Of every completion's sampled tokens, the ``share`` with the highest entropy; 1 keeps all.

    "80/20" (Wang et al. 2025, https://arxiv.org/abs/2506.01939, share 0.2), within a completion
    where they take one threshold a batch: a row's loss then knows nothing of its batch.
    """
    if share == 1:
        return tuple(is_sampled)
    chosen = []
    lengths = [len(mask) for mask in is_sampled]
    for mask, of_row in zip(is_sampled, entropies.split(lengths), strict=True):
        count = math.ceil(share * int(mask.sum()))
        ranked = of_row.masked_fill(~mask, -1.0)  # below every entropy
        kept = torch.zeros_like(mask)
        kept[ranked.topk(count).indices] = True
        chosen.append(kept)
    return tuple(chosen)
