"""Who sees whom, and the one attention that obeys it: SDPA, or flex attention on long GPU rows."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal, no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

Kernel = Literal["auto", "sdpa", "flex"]
"""A setting of the run, never of a checkpoint; decision record 0006 says why there is no flash."""
BLOCK = 128
"""Tokens a side of a mask block."""
FLEX_FROM = 2048
"""Keys from which on ``auto`` takes flex attention: a dense mask costs 4 MB there, and grows."""


class Mode(IntEnum):
    """Who sees a block of a row: see :class:`Visibility`."""

    CAUSAL = 0
    FULL = 1
    NOISE = 2


@dataclass(frozen=True, slots=True, eq=False)
class Visibility:
    """Who sees whom among new tokens, and that they see all that a row keeps in the cache.

    A query sees new keys up to its own index, and all of its own split where that is full or noise;
    never a noise split other than its own, never another sample. Padding (sample -1) sees the
    keys before it, so that no row is empty, and is seen by nobody. New keys lie behind a row's
    kept ones, so causal is aligned at the lower right. A key that was knocked out is seen by the
    splits up to its ``seen_until`` alone.
    """

    splits: Int[Tensor, "batch time"]
    """Number of the block that a token belongs to."""
    modes: Int[Tensor, "batch time"]
    samples: Int[Tensor, "batch time"]
    kept: Int[Tensor, " batch"] | None = None
    """Keys a row keeps in the cache; None without a cache."""
    longest: int = 0
    """The largest of ``kept``, or more: there are ``longest + time`` keys."""
    seen_until: Int[Tensor, "batch time"] | None = None
    """The last split that may look at a key; None where nothing was knocked out."""

    def to(self, device: torch.device) -> "Visibility":
        """The same on another device."""
        kept = None if self.kept is None else self.kept.to(device)
        until = None if self.seen_until is None else self.seen_until.to(device)
        splits, modes, samples = (x.to(device) for x in (self.splits, self.modes, self.samples))
        return Visibility(splits, modes, samples, kept, self.longest, until)

    def behind(self, kept: Int[Tensor, " batch"], longest: int) -> "Visibility":
        """The same tokens behind rows that keep ``kept`` keys, at most ``longest``."""
        return replace(self, kept=kept, longest=longest) if longest else self

    def mask(self, kernel: Kernel) -> Bool[Tensor, "batch 1 time keys"] | BlockMask:
        """In the form that the kernel reads."""
        num_keys = self.longest + self.splits.shape[1]
        if kernel == "auto":
            is_long_on_gpu = self.splits.device.type == "cuda" and num_keys >= FLEX_FROM
            kernel = "flex" if is_long_on_gpu else "sdpa"
        return self.blocks() if kernel == "flex" else self.dense()

    def dense(self) -> Bool[Tensor, "batch 1 time keys"]:
        """Every pair: quadratic in the time."""
        batch, time = self.splits.shape
        row = torch.arange(batch, device=self.splits.device)[:, None, None]
        query = torch.arange(time, device=self.splits.device)[:, None]
        key = torch.arange(self.longest + time, device=self.splits.device)
        return self.rule()(row, None, query, key)[:, None]

    def rule(self) -> Callable[[Tensor, Tensor | None, Tensor, Tensor], Tensor]:
        """May (row, head, query) see a key? On indices that broadcast, as flex attention asks.

        Flex attention traces it, which the tests' type checker around it would break.
        """
        splits, modes, samples, kept = self.splits, self.modes, self.samples, self.kept
        until = self.seen_until

        @no_type_check
        def among_new(row: Tensor, head: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
            del head
            is_same_split = splits[row, query] == splits[row, key]
            is_open = modes[row, query] != Mode.CAUSAL.value
            is_foreign_noise = (modes[row, key] == Mode.NOISE.value) & ~is_same_split
            of_query, of_key = samples[row, query], samples[row, key]
            is_visible = (of_key >= 0) & ((of_query == of_key) | (of_query < 0))
            if until is not None:
                is_visible = is_visible & (splits[row, query] <= until[row, key])
            return ((query >= key) | (is_same_split & is_open)) & ~is_foreign_noise & is_visible

        if kept is None:
            return among_new

        @no_type_check
        def behind_kept(row: Tensor, head: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
            new, time = key - kept[row], splits.shape[1]
            is_seen = among_new(row, head, query, new.clamp(0, time - 1))
            return (new < 0) | ((new < time) & is_seen)

        return behind_kept

    def blocks(self) -> BlockMask:
        """Which blocks hold a visible pair, from a few numbers a block; nothing is quadratic.

        torch's own ``create_block_mask`` looks at every pair. Here a pair of blocks is left out
        only where its extremes show that nothing is seen, and taken whole only where they show
        that everything is; :meth:`rule` decides inside the others.
        """
        batch, time = self.splits.shape
        sample, split = _Extremes.of(self.samples), _Extremes.of(self.splits)
        mode = _Extremes.of(self.modes)
        start = torch.arange(0, time, BLOCK, device=self.splits.device)
        last = (start + BLOCK - 1).clamp(max=time - 1)
        has_open = (mode.high > Mode.CAUSAL)[:, :, None]
        may_see = (start <= last[:, None]) | (has_open & split.may_meet())
        may_see &= sample.may_meet() | (sample.low < 0)[:, :, None]
        may_see &= (sample.high >= 0)[:, None, :]
        is_past = (last < start[:, None]) & (mode.high < Mode.NOISE)[:, None, :] & sample.are_one()
        is_inside = (mode.low > Mode.CAUSAL)[:, :, None] & split.are_one()
        is_whole = (is_past | is_inside) & (sample.low >= 0)[:, :, None]
        if self.seen_until is not None:
            is_whole &= split.high[:, :, None] <= _Extremes.of(self.seen_until).low[:, None]
        if self.kept is not None:  # a row's kept keys push its new ones behind: look at all pairs
            num_blocks = -(-(self.longest + time) // BLOCK)
            may_see = may_see.new_ones(batch, len(start), num_blocks)
            is_whole = torch.zeros_like(may_see)
        return BlockMask.from_kv_blocks(
            *_listed(may_see & ~is_whole),
            *_listed(is_whole),
            BLOCK_SIZE=BLOCK,
            mask_mod=self.rule(),
            seq_lengths=(time, self.longest + time),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Extremes:
    """Smallest and largest of some ids in every block of a row, [batch, blocks]."""

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, ids: Int[Tensor, "batch time"]) -> "_Extremes":
        time = ids.shape[1]
        whole_blocks = torch.arange(-(-time // BLOCK) * BLOCK, device=ids.device)
        padded = ids[:, whole_blocks.clamp(max=time - 1)]
        return cls(*padded.unflatten(1, (-1, BLOCK)).aminmax(dim=2))

    def may_meet(self) -> Bool[Tensor, "batch blocks keys"]:
        """Whether an id may be in both blocks."""
        low, high = self.low, self.high
        return (low[:, :, None] <= high[:, None]) & (low[:, None] <= high[:, :, None])

    def are_one(self) -> Bool[Tensor, "batch blocks keys"]:
        """Whether both blocks hold one id, the same."""
        is_one = self.low == self.high
        is_same = self.low[:, :, None] == self.low[:, None]
        return is_one[:, :, None] & is_one[:, None] & is_same


def _listed(blocks: Bool[Tensor, "batch queries keys"]) -> tuple[Tensor, Tensor]:
    """Count and indices, the chosen first: a block mask's own format, for all heads alike."""
    chosen = blocks[:, None].int()
    order = chosen.argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(dim=-1, dtype=torch.int32), order.int()


def attend(
    q: Float[Tensor, "batch time heads head"],
    k: Float[Tensor, "batch keys kv_heads head"],
    v: Float[Tensor, "batch keys kv_heads head"],
    mask: Bool[Tensor, "batch 1 time keys"] | BlockMask | None,
) -> Float[Tensor, "batch time heads head"]:
    """Softmax attention; an explicit mask, because a causal flag aligns top left when cached."""
    groups = q.shape[2] // k.shape[2]
    if isinstance(mask, BlockMask):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        y = _flex(q.device.type)(q, k, v, block_mask=mask, enable_gqa=groups > 1)
        return y.transpose(1, 2)
    if q.shape[1] == 1:  # decoding: the heads of a group are queries at one time, nothing is copied
        folded = q.unflatten(2, (-1, groups))[:, 0]
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(folded, k, v, attn_mask=mask)
        return y.flatten(1, 2)[:, None]
    if groups > 1:  # repeating is faster than enable_gqa on a CPU
        k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


@functools.cache
def _flex(device_type: str) -> Callable[..., Tensor]:
    """Compiled where it makes a kernel; its plain form, for tests, holds all scores."""
    plain: Callable[..., Tensor] = flex_attention
    return plain if device_type == "cpu" else torch.compile(plain)
