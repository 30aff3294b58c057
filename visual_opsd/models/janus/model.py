"""A second family over transformers: it reads and writes, so its visual thoughts are the data's.

Janus draws from text alone (its image mode ignores pixels), so it is a Reader and no Drawer.
A row is ``begin``, texts as they are, images between their marks; each round of a completion
starts with another ``begin``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, JanusForConditionalGeneration

from visual_opsd.contexts import IMAGE_START, Context, Image
from visual_opsd.models.chunks import joined
from visual_opsd.models.interface import Completions, Sampling
from visual_opsd.models.sampling import decode_rows

FORBIDDEN_LOGIT = -1e4
"""Finite: a probability of exactly 0, and no NaN where it is multiplied with its logarithm."""
CHUNK_SIZE = 512


class JanusReader(nn.Module):
    """Scores and writes text behind interleaved contexts; see ``models/interface.py``."""

    def __init__(
        self,
        janus: JanusForConditionalGeneration,
        *,
        begin: int,
        end: int,
        start_of_image: int,
        end_of_image: int,
        decode: Callable[[list[int]], str] | None = None,
    ) -> None:
        """Take the model and the ids of its marks; ``decode`` notices who asks for a drawing."""
        super().__init__()
        self.janus = janus
        self.begin = begin
        self.end = end
        self.image_marks = (start_of_image, end_of_image)
        self.decode = decode

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.janus.lm_head.weight.device

    def forward(
        self, contexts: Sequence[Context], completions: Sequence[Int[Tensor, " _tokens"]]
    ) -> Float[Tensor, "tokens width"]:
        """The state that predicts each completion token, rows concatenated."""
        if len(contexts) != len(completions):
            raise ValueError(f"{len(contexts)} contexts for {len(completions)} completions")
        starts = self._embed_contexts(contexts)
        rows = [
            torch.cat([start, self._embed((self.begin, *ids[:-1].tolist()))])
            for start, ids in zip(starts, completions, strict=True)
        ]
        # Padded at the right, where causal attention alone keeps the padding out.
        states = self.janus.model.language_model(
            inputs_embeds=pad_sequence(rows, batch_first=True), use_cache=False
        ).last_hidden_state
        pieces = [
            row[len(start) : len(start) + len(ids)]
            for row, start, ids in zip(states, starts, completions, strict=True)
        ]
        return torch.cat(pieces)

    def logits(
        self,
        hidden: Float[Tensor, "tokens width"],
        reduce: Callable[[Tensor, slice], Any] | None = None,
    ) -> Any:
        """Next-token logits, or what ``reduce(logits, rows)`` makes of chunk after chunk."""
        if reduce is None:
            forbidden = torch.tensor(self.image_marks, device=hidden.device)
            return self.janus.lm_head(hidden).index_fill(-1, forbidden, FORBIDDEN_LOGIT)
        parts = [
            slice(start, start + CHUNK_SIZE) for start in range(0, max(len(hidden), 1), CHUNK_SIZE)
        ]
        return joined([reduce(self.logits(hidden[part]), part) for part in parts])

    @torch.no_grad()
    def attention(
        self,
        contexts: Sequence[Context],
        completions: Sequence[Int[Tensor, " _tokens"]],
        *,
        by_head: bool = False,
    ) -> Float[Tensor, "layers *heads tokens segments"]:
        """What each completion token gives to every segment of its context, layer by layer.

        The first mark of a row counts to its first segment. One layer's whole matrix is held.
        """
        num_segments = max(map(len, contexts)) + 1
        rows = [
            (*self.segment_lengths(context), len(ids))
            for context, ids in zip(contexts, completions, strict=True)
        ]
        layers: list[Tensor] = []

        def reduce(_: nn.Module, __: Any, attended: tuple[Tensor, Tensor]) -> None:
            found = []
            for given, lengths in zip(attended[1], rows, strict=True):
                end = sum(lengths)
                parts = given[:, end - lengths[-1] : end, :end].split(lengths, dim=2)
                *shares, own = (part.sum(dim=2) for part in parts)
                lacking = [torch.zeros_like(own)] * (num_segments - len(lengths))
                found.append(torch.stack([*shares, *lacking, own], dim=2))
            mass = torch.cat(found, dim=1)
            layers.append(mass if by_head else mass.mean(dim=0))

        language_model = self.janus.model.language_model
        kernel = language_model.config._attn_implementation  # noqa: SLF001 - there is no getter
        hooks = [layer.self_attn.register_forward_hook(reduce) for layer in language_model.layers]
        language_model.set_attn_implementation("eager")  # alone returns its probabilities
        try:
            self(contexts, completions)
        finally:
            language_model.set_attn_implementation(kernel)
            for hook in hooks:
                hook.remove()
        return torch.stack(layers)

    def segment_lengths(self, context: Context) -> tuple[int, ...]:
        """Tokens of every segment, marks included; the row's first mark is the first one's."""
        per_image = self.janus.model.vision_model.config.num_image_tokens + len(self.image_marks)
        return tuple(
            (per_image if isinstance(part, Image) else len(part.ids)) + (index == 0)
            for index, part in enumerate(context)
        )

    @torch.no_grad()
    def sample(
        self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]
    ) -> Completions:
        """Sample one completion a context; the noise of a row depends on its seed alone."""
        if len(contexts) != len(seeds):
            raise ValueError(f"{len(contexts)} contexts for {len(seeds)} seeds")
        rows = _Rows(self, self._embed_contexts(contexts))
        return decode_rows(
            rows.step,
            rows.keep,
            begin=self.begin,
            end=self.end,
            sampling=sampling,
            seeds=seeds,
            asks_for_drawing=self._asks_for_drawing,
            device=self.device,
        )

    def _asks_for_drawing(self, ids: list[int]) -> bool:
        return self.decode is not None and IMAGE_START in self.decode(ids)

    def _embed(self, ids: Sequence[int]) -> Float[Tensor, "tokens width"]:
        return self.janus.get_input_embeddings()(torch.tensor(ids, device=self.device))

    def _embed_contexts(self, contexts: Sequence[Context]) -> list[Tensor]:
        """Every context as input states [tokens, width]; all images are read in one batch."""
        if any(part.hidden_from for context in contexts for part in context):
            raise ValueError("Janus attends through transformers, which hides no segment")
        images = [part for context in contexts for part in context if isinstance(part, Image)]
        features = iter(self._read(images))
        start_of_image, end_of_image = self.image_marks
        rows = []
        for context in contexts:
            parts = [self._embed((self.begin,))]
            for part in context:
                if isinstance(part, Image):
                    marks = self._embed((start_of_image, end_of_image))
                    parts += [marks[:1], next(features), marks[1:]]
                elif part.ids:
                    parts.append(self._embed(part.ids))
            rows.append(torch.cat(parts))
        return rows

    def _read(self, images: Sequence[Image]) -> Sequence[Tensor]:
        """Features of images at the one size that Janus reads; [-1, 1] is what it expects."""
        if not images:
            return ()
        side = self.janus.model.vision_model.config.image_size
        resized = [
            F.interpolate(
                image.pixels[None].to(self.device), (side, side), mode="bilinear", antialias=True
            )
            for image in images
        ]
        return self.janus.model.get_image_features(torch.cat(resized)).pooler_output.unbind()


class _Rows:
    """Contexts read once, padded at the left, and what is written behind them."""

    def __init__(self, reader: JanusReader, starts: Sequence[Tensor]) -> None:
        self.reader = reader
        self.cache = DynamicCache()
        padded = pad_sequence(list(starts), batch_first=True, padding_side="left")
        self.positions = torch.tensor([len(start) for start in starts], device=padded.device)
        index = torch.arange(padded.shape[1], device=padded.device)
        self.mask = (index >= padded.shape[1] - self.positions[:, None]).long()
        self._read(padded, (self.mask.cumsum(dim=1) - 1).clamp(min=0))

    def step(self, ids: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Append one token a row; the logits of the next."""
        self.mask = F.pad(self.mask, (0, 1), value=1)
        embedded = self.reader.janus.get_input_embeddings()(ids)[:, None]
        states = self._read(embedded, self.positions[:, None])
        self.positions = self.positions + 1
        return self.reader.logits(states[:, -1])

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Drop all other rows."""
        self.cache.batch_select_indices(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]

    def _read(self, embedded: Tensor, positions: Tensor) -> Tensor:
        return self.reader.janus.model.language_model(
            inputs_embeds=embedded,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
