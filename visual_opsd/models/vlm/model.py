"""Qwen3-VL and InternVL as Readers: a context is one turn of a user, a completion the reply.

The model's own chat template, tokenizer and image processor make the turn; rows are read one by
one, since positions and picture sizes differ between families. For rows of a table, not for speed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from visual_opsd.contexts import Context, Image
from visual_opsd.models.bagel.preprocessing import to_picture
from visual_opsd.models.chunks import joined
from visual_opsd.models.interface import Completions, Sampling
from visual_opsd.models.sampling import decode_rows

CHUNK_SIZE = 512


class VLMReader(nn.Module):
    """Scores and writes text behind interleaved contexts; see ``models/interface.py``."""

    def __init__(self, vlm: nn.Module, tokenizer: Any, see: "ImageProcessor") -> None:
        """Take a model for image-text-to-text, its tokenizer with a template, and its eyes."""
        super().__init__()
        self.vlm: Any = vlm
        self.tokenizer = tokenizer
        self.see = see
        if not tokenizer.chat_template:
            raise ValueError("the tokenizer of a vision-language model needs a chat template")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vlm.lm_head.weight.device

    @property
    def end(self) -> int:
        """The id that ends a reply."""
        return int(self.tokenizer.eos_token_id)

    def forward(
        self, contexts: Sequence[Context], completions: Sequence[Int[Tensor, " _tokens"]]
    ) -> Float[Tensor, "tokens width"]:
        """The state that predicts each completion token, rows concatenated."""
        if len(contexts) != len(completions):
            raise ValueError(f"{len(contexts)} contexts for {len(completions)} completions")
        pieces = []
        for context, ids in zip(contexts, completions, strict=True):
            inputs = self._inputs(context, ids[:-1])
            states = self._read(**inputs)[0]
            pieces.append(states[states.shape[0] - len(ids) :])
        return torch.cat(pieces)

    def logits(
        self,
        hidden: Float[Tensor, "tokens width"],
        reduce: Callable[[Tensor, slice], Any] | None = None,
    ) -> Any:
        """Next-token logits, or what ``reduce(logits, rows)`` makes of chunk after chunk."""
        if reduce is None:
            return self.vlm.lm_head(hidden)
        parts = [
            slice(start, start + CHUNK_SIZE) for start in range(0, max(len(hidden), 1), CHUNK_SIZE)
        ]
        return joined([reduce(self.logits(hidden[part]), part) for part in parts])

    @torch.no_grad()
    def sample(
        self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]
    ) -> Completions:
        """Sample one completion a context; the noise of a row depends on its seed alone."""
        rows = [
            self._sample_row(context, sampling, seed)
            for context, seed in zip(contexts, seeds, strict=True)
        ]
        return Completions(
            ids=tuple(row.ids[0] for row in rows),
            is_sampled=tuple(row.is_sampled[0] for row in rows),
            log_probs=tuple(row.log_probs[0] for row in rows),
            is_cut=tuple(row.is_cut[0] for row in rows),
        )

    def _sample_row(self, context: Context, sampling: Sampling, seed: int) -> Completions:
        cache = DynamicCache()
        first = self._read(**self._inputs(context), past_key_values=cache, use_cache=True)
        ahead: list[Tensor] = [first[:, -1]]

        def step(ids: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
            if ahead:  # the turn ends with the mark that begins the reply
                return self.logits(ahead.pop())
            states = self._read(input_ids=ids[:, None], past_key_values=cache, use_cache=True)
            return self.logits(states[:, -1])

        return decode_rows(
            step,
            lambda _: None,  # one row: nothing to drop before all is over
            begin=0,  # never read: the first step takes what the turn predicts
            end=self.end,
            sampling=sampling,
            seeds=[seed],
            asks_for_drawing=lambda _: False,
            device=self.device,
        )

    def _inputs(self, context: Context, reply: Sequence[int] | Tensor = ()) -> dict[str, Tensor]:
        """A turn as the model takes it, and the beginning of its reply."""
        content, pictures = [], []
        for segment in context:
            if isinstance(segment, Image):
                content.append({"type": "image"})
                pictures.append(to_picture(segment.pixels))
            else:
                content.append({"type": "text", "text": self.tokenizer.decode(segment.ids)})
        turn = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        seen, placeholders = self.see(pictures)
        before, *after = turn.split(self.see.placeholder)
        if len(after) != len(placeholders):
            raise ValueError(
                f"{len(pictures)} pictures, and {len(after)} places for them in {turn[:200]!r}"
            )
        text = before + "".join(p + rest for p, rest in zip(placeholders, after, strict=True))
        ids = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], *map(int, reply)]
        input_ids = torch.tensor([ids], device=self.device)
        inputs = {name: tensor.to(self.device) for name, tensor in seen.items()}
        if "image_grid_thw" in inputs:  # rotary positions follow rows and columns of pictures
            kinds = input_ids == self.vlm.config.image_token_id
            inputs["mm_token_type_ids"] = kinds.int()
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **inputs}

    def _read(self, **inputs: Any) -> Float[Tensor, "rows tokens width"]:
        if "past_key_values" not in inputs or inputs["input_ids"].shape[1] > 1:
            self.vlm.model.rope_deltas = None  # of the row before, in families that keep them
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.vlm.dtype)
        return self.vlm.model(**inputs).last_hidden_state


class ImageProcessor:
    """A family's image processor: tensors for the model, and the tokens that stand for pictures."""

    def __init__(
        self,
        process: Any,
        placeholder: str,
        count: Callable[[dict[str, Tensor]], list[int]],
        around: tuple[str, str] = ("", ""),
    ) -> None:
        """Take the processor, its token, how many tokens each picture takes, and their marks."""
        self.process = process
        self.placeholder = placeholder
        self.count = count
        self.around = around

    def __call__(self, pictures: Sequence[Any]) -> tuple[dict[str, Tensor], list[str]]:
        """Tensors of all pictures, and the text that stands for each of them."""
        if not pictures:
            return {}, []
        seen = dict(self.process(images=list(pictures), return_tensors="pt"))
        start, end = self.around
        texts = [f"{start}{self.placeholder * number}{end}" for number in self.count(seen)]
        seen.pop("num_patches", None)  # for the count alone
        return seen, texts
