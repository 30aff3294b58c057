"""Where a model's weights are: here, whole. What shards them brings its own answers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


@runtime_checkable
class Computed(Protocol):
    """A module whose weights are a formula's."""

    def reset(self) -> None:
        """Compute them."""


class WholeWeights:
    """Every process holds every weight: one process, or replicas that take equal steps."""

    @contextmanager
    def building(self) -> Iterator[None]:
        """Stands around the making of modules whose weights are to have their place."""
        yield

    def built(self, build: Callable[[], M], dtype: torch.dtype, device: torch.device | str) -> M:
        """A module with room for weights, which :meth:`put` fills; computed ones are there."""
        with torch.device("meta"):
            model = build()
        model = model.to(dtype).to_empty(device=device)
        for module in model.modules():
            if isinstance(module, Computed):
                module.reset()
        return model

    @torch.no_grad()
    def put(self, weight: Tensor, value: Tensor) -> None:
        """Fill a parameter or buffer."""
        weight.copy_(value)

    def stored(self, parameter: Tensor) -> Tensor:
        """What the forward pass reads; its ``.data`` may be pointed elsewhere in between."""
        return parameter

    def precise(self, parameter: Tensor) -> Tensor:
        """The value that the optimiser keeps, float32, as :meth:`stored` is laid out."""
        return parameter.detach().float()

    def settle(self) -> None:
        """Forget copies of what is stored, before and after it points elsewhere."""

    @contextmanager
    def gathered(self, module: nn.Module) -> Iterator[Any]:
        """The module to sample with, for as long as it takes."""
        yield module

    def packed(self, memory: dict[str, Tensor]) -> dict[str, Tensor]:
        """Remembered weights on their way into a checkpoint."""
        return memory

    def unpacked(self, saved: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
        """A remembered weight on its way back, to take the place of ``like``."""
        del like
        return saved[name]
