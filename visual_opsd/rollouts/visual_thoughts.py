"""Visual thoughts drawn by the start weights, each drawn once and read from the cache after."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import torch

from visual_opsd.contexts import Image, Problem, Role, Text, drawing_context
from visual_opsd.models.interface import Drawing, Sampling
from visual_opsd.rollouts.answering import Tokenizer, UnifiedModel
from visual_opsd.rollouts.cache import DrawingCache, key_of
from visual_opsd.seeds import row_seed


class Illustrator:
    """Gives problems the visual thoughts that the start weights draw for them."""

    def __init__(
        self,
        load: Callable[[], UnifiedModel],
        tokenizer: Tokenizer,
        *,
        checkpoint: str,
        cache: DrawingCache,
        drawing: Drawing,
        sampling: Sampling,
        seed: int,
        look: Callable[[Image], Image] = lambda drawn: drawn,
    ) -> None:
        """Draw with the model that ``load`` gives.

        Args:
            load: Only called when something has to be drawn.
            tokenizer: Of that model.
            checkpoint: Its digest.
            cache: Where drawings are kept.
            drawing: How it draws.
            sampling: How it thinks before.
            seed: Of the drawings.
            look: A drawing as it is read: in another size, where that is not the size it has.
        """
        self._load = load
        self.tokenizer = tokenizer
        self.checkpoint = checkpoint
        self.cache = cache
        self.drawing = drawing
        self.sampling = replace(sampling, temperature=0, max_drawings_skipped=0)
        self.seed = seed
        self.look = look
        self.num_drawn = 0

    @cached_property
    def model(self) -> UnifiedModel:
        """The start weights, frozen, beside those in training."""
        return self._load()

    def illustrate(self, problems: Sequence[Problem], number: int = 0) -> tuple[Problem, ...]:
        """Every problem with its drawn visual thought, always as the cache holds it.

        Another ``number`` is another drawing of the same thought.
        """
        seeds = [self._seed_of(problem, number) for problem in problems]
        keys = [self._key(problem, seed) for problem, seed in zip(problems, seeds, strict=True)]
        missing = [i for i, key in enumerate(keys) if self.cache.get(key) is None]
        if missing:
            chosen = [problems[i] for i in missing], [keys[i] for i in missing]
            self._draw(*chosen, [seeds[i] for i in missing])
        return tuple(
            replace(problem, visual_thoughts=(self._read(key),))
            for problem, key in zip(problems, keys, strict=True)
        )

    def _seed_of(self, problem: Problem, number: int) -> int:
        # The first drawing's seed is as old as the caches that people have.
        parts = (self.seed, problem.problem_id, number)
        return row_seed(*(parts if number else parts[:2]))

    def _key(self, problem: Problem, seed: int) -> str:
        image = problem.image
        seen = (
            [image.pixels] if image.latent_pixels is None else [image.pixels, image.latent_pixels]
        )
        pixels = hashlib.sha256(b"".join(x.cpu().numpy().tobytes() for x in seen)).hexdigest()
        return key_of(
            checkpoint=self.checkpoint,
            problem=f"{pixels} {problem.question}",
            thought=(self.sampling.max_tokens,),  # the thought is greedy: its budget decides it
            drawing=self.drawing,
            seed=seed,
        )

    def _read(self, key: str) -> Image:
        pixels = self.cache.get(key)
        if pixels is None:
            raise OSError(f"{self.cache.path(key)} was written and cannot be read back")
        return self.look(Image(pixels, role=Role.VISUAL_THOUGHT))

    def _draw(self, problems: Sequence[Problem], keys: Sequence[str], seeds: Sequence[int]) -> None:
        """Think greedily, then draw; what was thought is context whether it asks or not."""
        encode = self.tokenizer.encode
        with torch.no_grad():
            starts = [drawing_context(problem, encode).main for problem in problems]
            thoughts = self.model.sample(starts, self.sampling, seeds)
            contexts = []
            for problem, ids, is_cut in zip(problems, thoughts.ids, thoughts.is_cut, strict=True):
                thought = Text(tuple((ids if is_cut else ids[:-1]).tolist()))
                contexts.append(drawing_context(problem, encode, thought))
            images = self.model.draw(contexts, self.drawing, seeds)
        for key, image in zip(keys, images, strict=True):
            self.cache.put(key, image.pixels)
        self.num_drawn += len(images)
