"""Where a drawing comes about: contexts read once, then one velocity after another."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from visual_opsd.contexts import Context
from visual_opsd.models.bagel.attention import Mode
from visual_opsd.models.bagel.decoder import GENERATION
from visual_opsd.models.bagel.latents import LatentImage
from visual_opsd.models.bagel.packing import Block, Source, image_block, pack

if TYPE_CHECKING:
    from visual_opsd.models.bagel.model import BagelModel

# With both, a drawing on a CPU has the same bits alone and in any batch. Without, sums are taken in
# other orders, and guidance makes 1e-5 of what rounding makes of that.
LANES = 16
"""Float32 numbers that a CPU adds at once: a sum over whole lanes of keys does not depend on how
many of them are padding (up to 192 keys, which MKL adds in one go)."""
FEWEST_ROWS = 4
"""From so many on, a row of a matrix product (MKL) does not depend on their number."""


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
        multiple = LANES if model.device.type == "cpu" else 1
        self.cache = model._prefill(  # noqa: SLF001 - its other half
            contexts, room=longest + FEWEST_ROWS, multiple=multiple
        )
        if self.cache.hidden is not None:
            raise ValueError("a drawing looks at its whole context: knock out nothing of it")
        marks = model.config.tokens
        missing = max(0, FEWEST_ROWS // len(contexts) - 2)
        unseen = Block(Mode.CAUSAL, text=(marks.end,) * missing, targets=(-1,) * missing)
        rows = [
            [image_block(Mode.NOISE, Source.LATENT, index, h * w, marks), unseen]
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
