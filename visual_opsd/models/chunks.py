"""What a model's ``logits`` put together from the chunks of a completion."""

from typing import Any

import torch
from torch import Tensor


def joined(pieces: list[Any]) -> Any:
    """Chunks of a tensor, or of a named tuple of tensors (or None), one behind another."""
    first = pieces[0]
    if isinstance(first, Tensor):
        return torch.cat(pieces)
    columns = zip(*pieces, strict=True)
    return type(first)(*(None if x[0] is None else torch.cat(x) for x in columns))
