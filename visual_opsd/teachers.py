"""Who the teacher is: the student's own weights, remembered at a chosen distance."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from visual_opsd.trainable import adapters, adapters_off
from visual_opsd.weights import WholeWeights


class WeightMemory:
    """A float32 copy of a module's trainable weights that follows them at a chosen distance.

    Decay 1 stays at the start (the fixed teacher), 0.995 is the paper's moving average, 0 is the
    current student and keeps no copy. Only what trains is remembered: all else is shared. Where
    weights are sharded, so is the memory, and following needs no communication.
    """

    def __init__(self, decay: float, place: WholeWeights | None = None) -> None:
        """Take the decay and where weights are; :meth:`remember` takes the weights."""
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must lie in [0, 1], got {decay}")
        self.decay = decay
        self.place = place or WholeWeights()
        self.weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def remember(self, module: nn.Module) -> None:
        """Start from the module's weights."""
        if self.decay > 0:
            self.weights = {
                name: self.place.stored(weight).detach().float().clone()
                for name, weight in _trainable(module)
            }

    @torch.no_grad()
    def follow(self, module: nn.Module) -> None:
        """Once an optimiser step: decay * memory + (1 - decay) * weight."""
        if 0 < self.decay < 1:
            for name, weight in _trainable(module):
                precise = self.place.precise(weight)
                self._here(name, precise).lerp_(precise, 1 - self.decay)

    @contextmanager
    def recalled(self, module: nn.Module) -> Iterator[None]:
        """The module with the remembered weights, for scoring without gradient.

        Must not span an optimiser step or a backward pass.
        """
        if not self.weights:
            yield
            return
        stored = {name: self.place.stored(weight) for name, weight in _trainable(module)}
        kept = {name: weight.data for name, weight in stored.items()}
        self.place.settle()
        try:
            for name, weight in stored.items():
                weight.data = self._here(name, weight).to(weight.dtype)
            yield
        finally:
            self.place.settle()
            for name, weight in stored.items():
                weight.data = kept[name]

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        return self.place.packed(self.weights)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up where a checkpoint left off; what does not fit is an error naming the weight."""
        for name, mine in self.weights.items():
            if name in state:
                weight = self.place.unpacked(state, name, mine)
                if mine.shape != weight.shape:
                    raise ValueError(_misfit(name))
                mine.copy_(weight)
        if unknown := sorted(state.keys() - self.weights.keys()):
            raise ValueError(_misfit(unknown[0]))
        if missing := sorted(self.weights.keys() - state.keys()):
            raise ValueError(f"the checkpoint's teacher lacks {missing}")

    def _here(self, name: str, weight: Tensor) -> Tensor:
        """A remembered weight, moved once to where the model went after it was built."""
        self.weights[name] = self.weights[name].to(weight.device)
        return self.weights[name]


def _misfit(name: str) -> str:
    return f"the checkpoint's teacher weight {name} does not fit this model"


class AdapterOff:
    """The start weights for nothing: the student's own, with its adapters switched off."""

    def remember(self, module: nn.Module) -> None:
        """Keep nothing; without adapters there would be nothing to switch off."""
        if not adapters(module):
            raise ValueError("the teacher 'adapter_off' needs a model with adapters")

    def follow(self, module: nn.Module) -> None:
        """It stays where it is."""

    @contextmanager
    def recalled(self, module: nn.Module) -> Iterator[None]:
        """The module without its adapters; must not span a backward pass."""
        with adapters_off(module):
            yield

    def state_dict(self) -> dict[str, Tensor]:
        """A checkpoint needs nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Refuse the memory of another kind of teacher."""
        if state:
            raise ValueError(f"the checkpoint's teacher has weights of its own: {sorted(state)}")


def _trainable(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)
