"""Where a drawing comes about: contexts read once, then one velocity after another."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from visual_opsd.contexts import Context
from visual_opsd.models.bagel.attention import Mode
from visual_opsd.models.bagel.decoder import GENERATION
from visual_opsd.models.bagel.latents import LatentImage
from visual_opsd.models.bagel.packing import Source, image_block, pack

if TYPE_CHECKING:
    from visual_opsd.models.bagel.model import BagelModel


class Canvas:
    """Contexts read once, and the velocity of images drawn behind them, never kept."""

    def __init__(
        self,
        model: "BagelModel",
        contexts: Sequence[Context],
        sizes: Sequence[tuple[int, int]],
    ) -> None:
        """Take one or several branches of contexts, each for all ``sizes``."""
        self.model = model
        self.num_branches = len(contexts) // len(sizes)
        self.grids = list(sizes) * self.num_branches
        longest = max(height * width for height, width in sizes)
        self.cache = model._prefill(contexts, room=longest + 2)  # noqa: SLF001 - its other half
        if self.cache.hidden is not None:
            raise ValueError("a drawing looks at its whole context: knock out nothing of it")
        rows = [
            [image_block(Mode.NOISE, Source.LATENT, index, h * w, model.config.tokens)]
            for index, (h, w) in enumerate(self.grids)
        ]
        self.packed = pack(rows, first_positions=self.cache.next_positions.tolist())
        self.layout = model._layout(self.packed, self.cache)  # noqa: SLF001

    def velocity(self, x: Float[Tensor, "tokens width"], time: float) -> Tensor:
        """Velocity [branches * tokens, width] of all branches at one time."""
        model, lengths = self.model, [height * width for height, width in self.grids]
        parts = x.repeat(self.num_branches, 1).split(lengths)
        latents = [
            LatentImage(part, grid, time) for part, grid in zip(parts, self.grids, strict=True)
        ]
        streams = model._embed(self.packed, (), latents)  # noqa: SLF001
        streams = model.language_model.model(streams, self.layout, self.cache)
        return model.llm2vae(streams[GENERATION])
