"""The language model: one attention over all tokens, two experts for everything else.

Streams: a dict from the expert's name suffix ("" understands, "_moe_gen" draws) to its tokens
[tokens, width]. Weights carry the official names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers.models.qwen2.modeling_qwen2 import rotate_half

from visual_opsd.models.bagel.attention import Kernel, attend
from visual_opsd.models.bagel.config import DecoderConfig
from visual_opsd.models.chunks import joined

UNDERSTANDING, GENERATION = "", "_moe_gen"
Streams = dict[str, Tensor]
LOGITS_A_CHUNK = 2**26
"""256 MB in float32: 441 tokens of a vocabulary of 152,064."""


class RMSNorm(nn.Module):
    """Root mean square normalisation, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """Normalise the last axis."""
        y = F.rms_norm(x.float(), x.shape[-1:], eps=self.eps)
        return self.weight * y.to(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
        """Token by token."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """Holds modules once an expert: ``name`` for understanding, ``name_moe_gen`` for drawing."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.suffixes = (
            (UNDERSTANDING, GENERATION) if config.experts == "separate" else (UNDERSTANDING,)
        )

    def add(self, name: str, build: Callable[[], nn.Module]) -> None:
        """Give every expert its own module."""
        for suffix in self.suffixes:
            setattr(self, name + suffix, build())

    def expert(self, name: str, suffix: str) -> nn.Module:
        """The expert's module; with shared weights all have the same one."""
        return getattr(self, name + (suffix if suffix in self.suffixes else UNDERSTANDING))

    def each(self, name: str, streams: Streams) -> Streams:
        """Every stream through its own expert's module."""
        return {suffix: self.expert(name, suffix)(x) for suffix, x in streams.items()}


@dataclass(slots=True, eq=False)
class Layout:
    """How streams meet in attention: see ``packing.Packed``."""

    order: Int[Tensor, "batch time"]
    inverse: Int[Tensor, " tokens"]
    cos: Float[Tensor, "batch time 1 head"]
    sin: Float[Tensor, "batch time 1 head"]
    mask: Bool[Tensor, "batch 1 time keys"] | BlockMask | None
    """None where every query sees every key."""
    observe: Callable[[Tensor, Tensor], None] | None = None
    """Is shown the queries and keys of layer after layer."""

    def gather(self, streams: list[Tensor]) -> Float[Tensor, "batch time ..."]:
        """Streams to [batch, time]."""
        tokens = torch.cat(streams) if len(streams) > 1 else streams[0]
        return tokens[self.order]

    def scatter(self, x: Float[Tensor, "batch time width"], like: Streams) -> Streams:
        """[batch, time] to streams."""
        tokens = x.flatten(0, 1)[self.inverse]
        parts = tokens.split([len(stream) for stream in like.values()])
        return dict(zip(like, parts, strict=True))


class OneTokenLayout(Layout):
    """Decoding: a row is one token of the one stream, and nothing has to be moved."""

    def gather(self, streams: list[Tensor]) -> Float[Tensor, "batch 1 ..."]:
        """Tokens to [batch, 1]."""
        return streams[0][:, None]

    def scatter(self, x: Float[Tensor, "batch 1 width"], like: Streams) -> Streams:
        """[batch, 1] to tokens."""
        return dict.fromkeys(like, x[:, 0])


class KeyValueCache:
    """Keys and values of a batch of rows of different lengths.

    New keys are written behind a row's last kept one and seen at once; :meth:`keep` makes them
    part of the row. What is not kept (a velocity at some time of the flow) is overwritten next.
    """

    def __init__(
        self, config: DecoderConfig, like: Tensor, batch: int, capacity: int, multiple: int = 1
    ) -> None:
        """Room for ``capacity`` tokens a row; keys come in whole ``multiple``s, see ``Canvas``."""
        self.multiple = multiple
        capacity = -(-capacity // multiple) * multiple
        shape = (batch, capacity, config.num_key_value_heads, config.head_dim)
        self.keys = [like.new_zeros(shape) for _ in range(config.num_layers)]
        self.values = [like.new_zeros(shape) for _ in range(config.num_layers)]
        self.lengths = torch.zeros(batch, dtype=torch.long, device=like.device)
        self.next_positions = torch.zeros(batch, dtype=torch.long, device=like.device)
        self.longest = 0
        self.hidden: Bool[Tensor, "batch capacity"] | None = None
        """Kept keys that were knocked out; None for none."""
        self._places: Int[Tensor, "batch time"] | None = None
        """Where the next tokens go, in [batch * capacity]; the same for all layers."""

    def num_keys(self, num_new: int) -> int:
        """How many keys come back with ``num_new`` tokens a row; the last may be nobody's."""
        return -(-(self.longest + num_new) // self.multiple) * self.multiple

    def reserve(self, num_new: int) -> None:
        """Make sure that ``num_new`` tokens a row fit."""
        missing = self.num_keys(num_new) - self.keys[0].shape[1]
        if missing > 0:
            self.keys = [F.pad(keys, (0, 0, 0, 0, 0, missing)) for keys in self.keys]
            self.values = [F.pad(values, (0, 0, 0, 0, 0, missing)) for values in self.values]
            if self.hidden is not None:
                self.hidden = F.pad(self.hidden, (0, missing))
            self._places = None

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [batch, time, heads, head] behind the rows; all that may be seen comes back."""
        time = keys.shape[1]
        if self._places is None or self._places.shape[1] != time:
            rows = torch.arange(len(keys), device=keys.device)[:, None]
            offsets = torch.arange(time, device=keys.device)
            self._places = rows * self.keys[0].shape[1] + self.lengths[:, None] + offsets
        places, dtype = self._places.flatten(), self.keys[layer].dtype
        self.keys[layer].flatten(0, 1).index_copy_(0, places, keys.flatten(0, 1).to(dtype))
        self.values[layer].flatten(0, 1).index_copy_(0, places, values.flatten(0, 1).to(dtype))
        end = self.num_keys(time)
        return self.keys[layer][:, :end], self.values[layer][:, :end]

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep only ``rows``."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]
        self.hidden = None if self.hidden is None else self.hidden[rows]
        self.lengths = self.lengths[rows]
        self.next_positions = self.next_positions[rows]
        self.longest = int(self.lengths.max())
        self._places = None

    def keep(self, lengths: Tensor, next_positions: Tensor) -> None:
        """Make the first ``lengths`` tokens just written part of every row."""
        self.lengths = self.lengths + lengths
        self.next_positions = next_positions
        self.longest = int(self.lengths.max())
        self._places = None


class Attention(Experts):
    """Grouped-query attention with normalised queries and keys."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        width, head = config.hidden_size, config.head_dim
        inner, narrow = config.num_heads * head, config.num_key_value_heads * head
        self.add("q_proj", lambda: nn.Linear(width, inner))
        self.add("k_proj", lambda: nn.Linear(width, narrow))
        self.add("v_proj", lambda: nn.Linear(width, narrow))
        self.add("o_proj", lambda: nn.Linear(inner, width, bias=False))
        self.add("q_norm", lambda: RMSNorm(head, config.rms_norm_eps))
        self.add("k_norm", lambda: RMSNorm(head, config.rms_norm_eps))
        self.head = head

    def forward(
        self, streams: Streams, layout: Layout, cache: KeyValueCache | None, layer: int
    ) -> Streams:
        """All tokens look at each other as the layout's mask allows."""
        q, k, v = (self._heads(name, streams, layout) for name in ("q", "k", "v"))
        q = q * layout.cos + rotate_half(q) * layout.sin
        k = k * layout.cos + rotate_half(k) * layout.sin
        if cache is not None:
            k, v = cache.write(layer, k, v)
        q, k = q.to(v.dtype), k.to(v.dtype)  # norms are float32 in autocast
        if layout.observe is not None:
            layout.observe(q, k)
        y = attend(q, k, v, layout.mask)
        return self.each("o_proj", layout.scatter(y.flatten(2), streams))

    def _heads(self, name: str, streams: Streams, layout: Layout) -> Tensor:
        """Project, normalise (not the values) and lay out as [batch, time, heads, head]."""
        parts = []
        for suffix, x in streams.items():
            y = self.expert(f"{name}_proj", suffix)(x).unflatten(-1, (-1, self.head))
            parts.append(y if name == "v" else self.expert(f"{name}_norm", suffix)(y))
        return layout.gather(parts)


class DecoderLayer(Experts):
    """Attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config)
        self.add("mlp", lambda: SwiGLU(width, config.intermediate_size))
        self.add("input_layernorm", lambda: RMSNorm(width, eps))
        self.add("post_attention_layernorm", lambda: RMSNorm(width, eps))

    def forward(
        self, streams: Streams, layout: Layout, cache: KeyValueCache | None, layer: int
    ) -> Streams:
        """One layer on."""
        attended = self.self_attn(self.each("input_layernorm", streams), layout, cache, layer)
        streams = _add(streams, attended)
        return _add(streams, self.each("mlp", self.each("post_attention_layernorm", streams)))


class Decoder(Experts):
    """Token embeddings, layers, final norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.add("norm", lambda: RMSNorm(config.hidden_size, config.rms_norm_eps))
        self.config = config
        self.kernel: Kernel = "auto"
        self.recomputes_layers = False

    def rotary(self, positions: Int[Tensor, "batch time"]) -> tuple[Tensor, Tensor]:
        """Cosine and sine [batch, time, 1, head] in the half-split convention, float32."""
        config = self.config
        rates = _rotation_rates(config.head_dim // 2, config.rope_theta, positions.device)
        angles = positions[..., None].float() * rates
        angles = torch.cat([angles, angles], dim=-1)[:, :, None]
        dtype = self.embed_tokens.weight.dtype
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def forward(
        self, streams: Streams, layout: Layout, cache: KeyValueCache | None = None
    ) -> Streams:
        """Embedded streams to normalised final states."""
        for index, layer in enumerate(self.layers):
            if self.recomputes_layers and torch.is_grad_enabled():
                streams = torch.utils.checkpoint.checkpoint(
                    layer, streams, layout, cache, index, use_reentrant=False
                )
            else:
                streams = layer(streams, layout, cache, index)
        return self.each("norm", streams)


class LanguageModel(nn.Module):
    """Decoder and output projection, under their official names."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = OutputProjection(config.hidden_size, config.vocab_size)


class OutputProjection(nn.Linear):
    """States to logits; with ``reduce`` chunk by chunk, so that the whole is never held."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__(width, vocabulary, bias=False)

    def forward(
        self,
        hidden: Float[Tensor, "tokens width"],
        reduce: Callable[[Tensor, slice], Any] | None = None,
    ) -> Any:
        """Logits [tokens, vocabulary], or what ``reduce(logits, rows)`` makes of every chunk.

        The loop runs inside this one module call: under ZeRO-3, calls that differ in number
        between ranks hang. More than one chunk is computed again in the backward pass.
        """
        if reduce is None:
            return super().forward(hidden)
        chunk_size = max(1, LOGITS_A_CHUNK // self.out_features)
        if len(hidden) <= chunk_size:
            return reduce(super().forward(hidden), slice(0, len(hidden)))

        def piece(rows: slice) -> Any:
            return torch.utils.checkpoint.checkpoint(
                lambda states: reduce(F.linear(states, self.weight), rows),
                hidden[rows],
                use_reentrant=False,
            )

        starts = range(0, len(hidden), chunk_size)
        return joined([piece(slice(start, start + chunk_size)) for start in starts])


@lru_cache
def _rotation_rates(half: int, theta: float, device: torch.device) -> Float[Tensor, " half"]:
    exponent = torch.arange(half, dtype=torch.float32, device=device) / half
    return theta**-exponent


def _add(left: Streams, right: Streams) -> Streams:
    return {suffix: x + right[suffix] for suffix, x in left.items()}
