"""What the method asks of a unified multimodal model: read and write text; draw images."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from visual_opsd.contexts import Context, DrawingContext, Image


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are sampled; the defaults are the paper's rollouts."""

    temperature: float = 1.0
    """0 decodes greedily."""
    max_tokens: int = 1024
    """Budget of a completion, injected delimiters included."""
    max_drawings_skipped: int = 1
    """How often a completion may go on after it asked for a drawing and got none."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be >= 0, got {self.temperature}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be >= 1, got {self.max_tokens}")


@dataclass(frozen=True, kw_only=True)
class StepCache:
    """Some velocities are evaluated, those between foretold by a Taylor series over the steps.

    Source: TaylorSeer, Liu et al. 2025 (https://arxiv.org/abs/2503.06923), on velocities alone.
    """

    interval: int = 4
    """Steps from one evaluation to the next; 1 evaluates all."""
    order: int = 1
    """Of the series; 0 repeats the last velocity."""
    warm_up: int = 4
    """First steps, all evaluated: what an image becomes is decided there."""

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"interval must be >= 1, got {self.interval}")
        if self.order < 0:
            raise ValueError(f"order must be >= 0, got {self.order}")
        if self.warm_up < 1:
            raise ValueError(f"warm_up must be >= 1, got {self.warm_up}")

    def is_evaluated(self, step: int) -> bool:
        """Whether the model is asked at ``step``, counted from 0."""
        return step < self.warm_up or (step - self.warm_up + 1) % self.interval == 0


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How images are drawn; the defaults are the official interleaved protocol."""

    num_timesteps: int = 50
    """Points of the time grid: one more than there are evaluations of the velocity."""
    timestep_shift: float = 3.0
    text_guidance: float = 4.0
    image_guidance: float = 2.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Guidance acts where low < t <= high, t the shifted time."""
    renormalisation: Literal["global", "channel", "text_channel"] = "text_channel"
    renormalisation_min: float = 0.0
    branches_in_one_batch: bool = True
    """False evaluates the guidance branches one after another, as the official code does."""
    step_cache: StepCache | None = None
    """None evaluates every step, as the official protocol does."""
    size: tuple[int, int] | None = None
    """Height and width in pixels; None takes the last image's. Text to image needs it: BAGEL's is
    1024 x 1024."""

    def __post_init__(self) -> None:
        if self.num_timesteps < 2:
            raise ValueError(f"num_timesteps must be >= 2, got {self.num_timesteps}")
        if self.timestep_shift <= 0:
            raise ValueError(f"timestep_shift must be > 0, got {self.timestep_shift}")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size must be at least 1 x 1 pixels, got {self.size}")


@dataclass(frozen=True, slots=True, eq=False)
class Completions:
    """What was sampled, a tensor a row."""

    ids: tuple[Int[Tensor, " _tokens"], ...]
    """Token ids, the end mark included unless the budget cut the row."""
    is_sampled: tuple[Bool[Tensor, " _tokens"], ...]
    """False where a delimiter was injected: context, not loss."""
    log_probs: tuple[Float[Tensor, " _tokens"], ...]
    """Log-probability of every sampled token under the sampling distribution, 0 if injected."""
    is_cut: tuple[bool, ...]
    """The budget ended the row, not the model."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens a row."""
        return tuple(len(ids) for ids in self.ids)

    def to(self, device: torch.device) -> "Completions":
        """The same completions on another device."""
        return Completions(
            tuple(ids.to(device) for ids in self.ids),
            tuple(mask.to(device) for mask in self.is_sampled),
            tuple(log_probs.to(device) for log_probs in self.log_probs),
            self.is_cut,
        )


@runtime_checkable
class Reader(Protocol):
    """Reads interleaved text and images, scores and writes text."""

    @property
    def end(self) -> int:
        """Id of the mark that ends a completion."""

    def __call__(
        self, contexts: Sequence[Context], completions: Sequence[Int[Tensor, " _tokens"]]
    ) -> Float[Tensor, "tokens width"]:
        """The state that predicts each completion token, rows concatenated."""

    def logits(
        self,
        hidden: Float[Tensor, "tokens width"],
        reduce: Callable[[Tensor, slice], Any] | None = None,
    ) -> Any:
        """Next-token logits [tokens, vocabulary].

        Or what ``reduce(logits, rows)`` makes of chunk after chunk, put together: a tensor or a
        named tuple of tensors. The whole is never held then.
        """

    def sample(
        self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]
    ) -> Completions:
        """Sample one completion a context; the noise of a row depends on its seed alone."""


@runtime_checkable
class Attentive(Protocol):
    """Says where its attention goes: a diagnostic that not every reader can give."""

    def attention(
        self,
        contexts: Sequence[Context],
        completions: Sequence[Int[Tensor, " _tokens"]],
        *,
        by_head: bool = False,
    ) -> Float[Tensor, "layers *heads tokens segments"]:
        """What each completion token gives to every segment of its context, layer by layer.

        Shares that add up to 1; the last column is the completion so far, and what a shorter
        context lacks is 0. The mean over heads, or ``by_head`` every one of them.
        """

    def segment_lengths(self, context: Context) -> tuple[int, ...]:
        """Tokens of every segment, marks included."""


Watch = Callable[[float, list[Image]], None]
"""Told the time before every step of a drawing, 1 is noise, and what each image would become if its
velocity stayed as it is: x_t - t v (rectified flow, x_t = (1 - t) x_0 + t e)."""


@runtime_checkable
class Drawer(Protocol):
    """Draws images into its context."""

    def draw(
        self,
        contexts: Sequence[DrawingContext],
        drawing: Drawing,
        seeds: Sequence[int],
        watch: Watch | None = None,
    ) -> list[Image]:
        """Draw the next image of every context, as large as its problem image.

        Who watches changes nothing of it.
        """

    def interleaved_loss(
        self, contexts: Sequence[Context], seeds: Sequence[int]
    ) -> dict[str, Tensor]:
        """Losses of the segments marked as targets: text (nats a token) and drawing."""

    def drawing_parameters(self) -> Iterable[nn.Parameter]:
        """Weights that only drawings pass through: a loss on text gives them no gradient."""
