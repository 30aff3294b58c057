"""How velocities become an image: guidance with renormalisation, on diffusers' Euler grid."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.hooks.taylorseer_cache import TaylorSeerState
from jaxtyping import Float
from torch import Tensor

from visual_opsd.models.interface import Drawing, StepCache


def scheduler(drawing: Drawing) -> FlowMatchEulerDiscreteScheduler:
    """Euler on linspace(1, 0, N), shifted: N - 1 steps; its timesteps are times x 1000."""
    euler = FlowMatchEulerDiscreteScheduler(shift=drawing.timestep_shift)
    euler.set_timesteps(sigmas=np.linspace(1, 0, drawing.num_timesteps)[:-1].tolist())
    return euler


class VelocitySeries:
    """Velocities step after step, evaluated or foretold."""

    def __init__(self, cache: StepCache | None) -> None:
        self.cache = cache
        self._taylor = TaylorSeerState(torch.float32, max_order=0 if cache is None else cache.order)
        self._num_canvases = 0

    def at(
        self, step: int, num_canvases: int, evaluate: Callable[[], Float[Tensor, "tokens width"]]
    ) -> Float[Tensor, "tokens width"]:
        """The velocity of all branches; where guidance comes or goes, the series starts anew."""
        if self.cache is None:
            return evaluate()
        is_known = num_canvases == self._num_canvases
        if not is_known:
            self._taylor.reset()
            self._num_canvases = num_canvases
        self._taylor.current_step = step
        if is_known and not self.cache.is_evaluated(step):
            return self._taylor.predict()[0]
        velocity = evaluate()
        self._taylor.update((velocity,))
        return velocity


def is_guided(drawing: Drawing, time: float) -> bool:
    """Text guidance above 1 switches guidance on; image guidance alone is ignored (official)."""
    low, high = drawing.guidance_interval
    return drawing.text_guidance > 1 and low < time <= high


def guide(
    velocity: Float[Tensor, "tokens width"],
    text_free: Float[Tensor, "tokens width"],
    image_free: Float[Tensor, "tokens width"] | None,
    drawing: Drawing,
    lengths: Sequence[int],
) -> Float[Tensor, "tokens width"]:
    """Mix the branches; ``lengths`` tokens an image, because ``global`` norms are an image's own.

    ``text_channel`` renormalises between text and image guidance, the other two after both.
    """
    guided = text_free + drawing.text_guidance * (velocity - text_free)
    if drawing.renormalisation == "text_channel":
        guided = guided * _shrink(velocity, guided, drawing.renormalisation_min)
    if drawing.image_guidance > 1:
        assert image_free is not None
        guided = image_free + drawing.image_guidance * (guided - image_free)
    if drawing.renormalisation == "channel":
        guided = guided * _shrink(velocity, guided, drawing.renormalisation_min)
    elif drawing.renormalisation == "global":
        factors = [
            _shrink(v.flatten(), g.flatten(), drawing.renormalisation_min).expand(len(v))
            for v, g in zip(velocity.split(list(lengths)), guided.split(list(lengths)), strict=True)
        ]
        guided = guided * torch.cat(factors)[:, None]
    return guided


def _shrink(velocity: Tensor, guided: Tensor, minimum: float) -> Tensor:
    """Norm of the unguided over the guided velocity, in [minimum, 1], along the last axis."""
    norm = velocity.norm(dim=-1, keepdim=True)
    return (norm / (guided.norm(dim=-1, keepdim=True) + 1e-8)).clamp(min=minimum, max=1.0)
