"""Where attention goes: one layer's probabilities at a time, added up over groups of keys at once.

What a text of the context looks at: give it as the completion of the segments before it. A causal
text is the same whatever comes behind it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visual_opsd.contexts import Context, Image
from visual_opsd.models.bagel.attention import Visibility
from visual_opsd.models.bagel.packing import Images, Packed, Source, completed_rows, pack

if TYPE_CHECKING:
    from visual_opsd.models.bagel.model import BagelModel

PROBABILITIES_AT_A_TIME = 2**26
"""256 MB in float32: 239 queries of the 7B model's 28 heads on 10,000 keys."""


@torch.no_grad()
def attention(
    model: "BagelModel",
    contexts: Sequence[Context],
    completions: Sequence[Int[Tensor, " _tokens"]],
    *,
    by_head: bool = False,
) -> Float[Tensor, "layers *heads tokens segments"]:
    """What the query that predicts a completion token gives to every segment of its context.

    Shares that add up to 1 over the segments: those of the context in order, and in the last
    column the completion so far; what a shorter context lacks is 0. Rows are concatenated as in
    scoring. The mean over heads, or ``by_head`` every one of them.
    """
    rows, images = completed_rows(contexts, completions, model.config)
    packed = pack(rows, is_padded=model.is_padded)
    num_groups = max(map(len, contexts)) + 1
    groups = packed.segments % num_groups  # a completion's -1 is the last
    return _observed(model, packed, images, groups, num_groups, by_head=by_head)


@torch.no_grad()
def attention_to_image(
    model: "BagelModel",
    context: Context,
    completion: Int[Tensor, " tokens"],
    segment: int,
    source: Source = Source.PATCH,
    *,
    by_head: bool = False,
) -> Float[Tensor, "layers *heads tokens rows columns"]:
    """What a completion token gives to every patch, or latent, of one image of its context."""
    image = context[segment]
    if not isinstance(image, Image):
        raise ValueError(f"segment {segment} of a context of {len(context)} is a text, no image")
    rows, images = completed_rows([context], [completion], model.config)
    starts = accumulate((len(block) for block in rows[0]), initial=0)
    shown = [
        start + 1  # behind the mark
        for start, block in zip(starts, rows[0], strict=False)
        if block.segment == segment and block.source is source
    ]
    if not shown:
        raise ValueError(f"the image of segment {segment} is not shown as {source.name.lower()}")
    if source is Source.PATCH:
        pixels, side = image.pixels, model.config.vision.patch_size
    else:
        pixels, side = image.drawn_pixels, model.config.latent.pixels_per_token
    grid = (pixels.shape[1] // side, pixels.shape[2] // side)
    num_cells = math.prod(grid)
    packed = pack(rows)
    groups = torch.full_like(packed.segments, num_cells)  # all that is no cell
    groups[0, shown[-1] : shown[-1] + num_cells] = torch.arange(num_cells)
    mass = _observed(model, packed, images, groups, num_cells + 1, by_head=by_head)
    return mass[..., :-1].unflatten(-1, grid)


def _observed(
    model: "BagelModel",
    packed: Packed,
    images: Images,
    groups: Int[Tensor, "batch time"],
    num_groups: int,
    *,
    by_head: bool,
) -> Float[Tensor, "layers *heads tokens groups"]:
    """One pass of rows with clean images, watched."""
    is_asked = packed.targets >= 0
    places = packed.inverse[: len(is_asked)][is_asked].to(model.device)  # texts come first
    observer = Observer(
        packed.visibility.to(model.device),
        places,
        groups.to(model.device),
        num_groups,
        by_head=by_head,
    )
    streams = model._embed(packed, images.read, model._encode(images.drawn))  # noqa: SLF001
    layout = replace(model._layout(packed), observe=observer)  # noqa: SLF001
    model.language_model.model(streams, layout)
    return torch.stack(observer.layers)


class Observer:
    """Is shown every layer's queries and keys; keeps what groups of keys got from some queries.

    The probabilities are the layer's own, softmax(q k / sqrt(head size)) under its mask, computed
    again for these queries in float32. One row's are held at a time, and no more of them than
    ``PROBABILITIES_AT_A_TIME``.
    """

    def __init__(
        self,
        visibility: Visibility,
        places: Int[Tensor, " queries"],
        groups: Int[Tensor, "batch time"],
        num_groups: int,
        *,
        by_head: bool,
    ) -> None:
        """Watch the queries at ``places`` in the flattened [batch, time]."""
        self.is_seen = visibility.rule()
        self.times = places % groups.shape[1]
        rows = places // groups.shape[1]
        self.by_row = [(int(row), (rows == row).nonzero()[:, 0]) for row in rows.unique()]
        self.groups = groups
        self.num_groups = num_groups
        self.by_head = by_head
        self.layers: list[Float[Tensor, "*heads queries groups"]] = []

    def __call__(
        self,
        q: Float[Tensor, "batch time heads head"],
        k: Float[Tensor, "batch time kv_heads head"],
    ) -> None:
        """Take one layer."""
        num_heads, num_keys = q.shape[2], k.shape[1]
        mass = torch.zeros(num_heads, len(self.times), self.num_groups, device=q.device)
        num_at_a_time = max(1, PROBABILITIES_AT_A_TIME // (num_heads * num_keys))
        for row, chosen in self.by_row:
            for part in chosen.split(num_at_a_time):
                given = self._probabilities(q[row, self.times[part]], k[row], row, part)
                empty = torch.zeros_like(mass[:, part])
                mass[:, part] = empty.index_add(2, self.groups[row], given)
        self.layers.append(mass if self.by_head else mass.mean(dim=0))

    def _probabilities(
        self,
        q: Float[Tensor, "queries heads head"],
        k: Float[Tensor, "keys kv_heads head"],
        row: int,
        chosen: Int[Tensor, " queries"],
    ) -> Float[Tensor, "heads queries keys"]:
        num_keys, num_groups, head = k.shape
        grouped = q.float().unflatten(1, (num_groups, -1))
        scores = torch.einsum("qgnd,kgd->gnqk", grouped, k.float()).flatten(0, 1) / math.sqrt(head)
        keys = torch.arange(num_keys, device=k.device)
        is_seen = self.is_seen(keys.new_tensor(row), None, self.times[chosen][:, None], keys)
        return scores.masked_fill(~is_seen, -torch.inf).softmax(dim=-1)
