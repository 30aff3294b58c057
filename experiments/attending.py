"""What a model's own texts look at, and what they would say without: one text, several contexts.

A text stays the same while its visual thoughts are replaced or hidden, so that contexts are
compared on the same tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from experiments.kl_gap import sample_fixed
from experiments.looking import readable
from experiments.respond import is_tiny
from visual_opsd.contexts import (
    SYSTEM_PROMPT_EVAL,
    SYSTEM_PROMPT_TRAIN,
    Context,
    HiddenFrom,
    Image,
    Problem,
    Role,
    Text,
    images_in,
    knock_out,
    teacher_context,
)
from visual_opsd.interventions import intervene
from visual_opsd.losses.divergence import kl_divergence_per_token
from visual_opsd.metrics.attention_share import AttentionShare
from visual_opsd.models.bagel.observing import attention_to_image
from visual_opsd.models.interface import Drawing, Sampling
from visual_opsd.rollouts.answering import in_batches
from visual_opsd.rollouts.interleaved import Interleaving, reason
from visual_opsd.seeds import row_seed

T = TypeVar("T")
TARGETS = ("problem_image", "visual_thought", "text", "itself")
"""What attention goes to: the two pictures, all other text of the context, the text at hand."""
BATCH_SIZE = 64


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """A text of a model's own, and the contexts that it is read behind."""

    problem: Problem
    ids: Int[Tensor, " tokens"]
    """Its end mark included."""
    contexts: Mapping[str, Context]
    """By intervention."""


@torch.no_grad()
def teachers_view(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    interventions: Sequence[str],
    sampling: Sampling,
    seed: int,
) -> list[Written]:
    """The student's completions, each behind the teacher's context under every intervention."""
    fixed = sample_fixed(model, tokenizer, problems, sampling, seed)
    return [
        Written(
            problem,
            fixed.only(index).completions[0].ids[0],
            {
                name: teacher_context(intervene(name, problem, None, seed), tokenizer.encode)
                for name in interventions
                if name != "drawn_vt"
            },
        )
        for index, problem in enumerate(problems)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Reasoned:
    """The texts of interleaved reasoning (Fig. 3b)."""

    before: list[Written]
    """The thought that ends with the wish to draw."""
    after: list[Written]
    """What was written behind the last drawing."""
    num_left_out: int
    """Problems that were not drawn for as often as the data set has visual thoughts."""


@torch.no_grad()
def reasoners_view(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    interventions: Sequence[str],
    sampling: Sampling,
    drawing: Drawing,
    seed: int,
) -> Reasoned:
    """Think, draw, look, answer; then the same answer behind what every intervention shows.

    Raises:
        ValueError: The model cannot draw.
    """
    if getattr(model, "codec", None) is None:
        raise ValueError(
            "interleaved reasoning needs a model that draws, and this one has no codec"
        )
    prompt = SYSTEM_PROMPT_TRAIN if is_tiny(model.config) else SYSTEM_PROMPT_EVAL
    how = Interleaving(max_rounds=2, sampling=sampling, drawing=drawing, system_prompt=prompt)

    def look(drawn: Image) -> Image:
        return replace(readable(model.config, drawn), with_latents=True)

    pairs: dict[int, tuple[Written, Written]] = {}
    for indices in in_batches(problems, BATCH_SIZE):
        chosen = [problems[index] for index in indices]
        inputs = [_as_input(problem, tokenizer) for problem in chosen]
        seeds = [row_seed(seed, "reason", problem.problem_id) for problem in chosen]
        reasonings = reason(model, tokenizer, inputs, how, seeds, look)
        for index, problem, found in zip(indices, chosen, reasonings, strict=True):
            context = found.context.main
            drawn = images_in(context, Role.VISUAL_THOUGHT)
            if len(drawn) != len(problem.visual_thoughts) or drawn[-1] + 1 == len(context):
                continue
            first, seen = context[: drawn[0] - 1], context[: drawn[-1] + 1]
            shown = {
                name: intervene(name, problem, None, seed).visual_thoughts
                for name in interventions
                if name != "drawn_vt"
            }
            views = {name: with_thoughts(seen, thoughts) for name, thoughts in shown.items()}
            pairs[index] = (
                _written(problem, context[len(first)], {"drawn_vt": first}, tokenizer),
                _written(problem, context[len(seen)], {"drawn_vt": seen, **views}, tokenizer),
            )
    found_pairs = [pairs[index] for index in sorted(pairs)]
    before, after = map(list, zip(*found_pairs, strict=True)) if found_pairs else ([], [])
    return Reasoned(before, after, len(problems) - len(pairs))


def _as_input(problem: Problem, tokenizer: Any) -> Context:
    return (
        replace(problem.image, with_latents=True),
        Text(tokenizer.encode(problem.question)),
    )


def _written(
    problem: Problem, text: Text | Image, contexts: Mapping[str, Context], tokenizer: Any
) -> Written:
    assert isinstance(text, Text), "a drawing has a text on either side"
    return Written(problem, torch.tensor([*text.ids, tokenizer.marks.end]), contexts)


def with_thoughts(context: Context, thoughts: Sequence[Image]) -> Context:
    """The context with other visual thoughts in the places of its own, or with none at all."""
    places = images_in(context, Role.VISUAL_THOUGHT)
    if not thoughts:
        return tuple(part for index, part in enumerate(context) if index not in places)
    parts = list(context)
    for place, thought in zip(places, thoughts, strict=True):
        shown = context[place]
        assert isinstance(shown, Image)
        parts[place] = replace(thought, with_latents=shown.with_latents)
    return tuple(parts)


# What they look at


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """What the tokens of texts give to each of ``TARGETS``, a mean a text."""

    share: Float[Tensor, "texts layers heads targets"]
    per_token: Float[Tensor, "texts layers heads targets"]
    """Divided by the target's tokens: a picture's patches, latents and marks."""
    num_tokens: Int[Tensor, " texts"]


def shares(model: Any, written: Sequence[Written], name: str) -> Shares:
    """What texts look at behind the context that the intervention ``name`` shows."""

    def look(batch: list[Written]) -> list[dict[str, Tensor]]:
        contexts, ids = [text.contexts[name] for text in batch], [text.ids for text in batch]
        rows = model.attention(contexts, ids, by_head=True).split([len(row) for row in ids], dim=2)
        found = []
        for context, row in zip(contexts, rows, strict=True):
            num_layers, num_heads, num_tokens = row.shape[:3]
            metric = AttentionShare(num_layers * num_heads, ["text"], TARGETS)
            metric.update(
                torch.cat([row[..., : len(context)], row[..., -1:]], dim=-1).flatten(0, 1).cpu(),
                [*map(_target, context), "itself"],
                torch.tensor([[*model.segment_lengths(context), num_tokens]]),
                torch.tensor([num_tokens]),
                torch.zeros(num_tokens, dtype=torch.long),
            )
            shape = (num_layers, num_heads, len(TARGETS))
            found.append({key: x.view(shape) for key, x in metric.compute().items()})
        return found

    found = in_turn(written, look)
    return Shares(
        torch.stack([text["share"] for text in found]),
        torch.stack([text["per_token"] for text in found]),
        torch.tensor([len(text.ids) for text in written]),
    )


def _target(segment: Text | Image) -> str:
    if isinstance(segment, Text):
        return "text"
    return "problem_image" if segment.role is Role.PROBLEM else "visual_thought"


def over_pictures(
    model: Any, text: Written, name: str, layer: int
) -> tuple[list[Image], list[Float[Tensor, "rows columns"]]]:
    """The pictures of a text's context, and what its tokens give to each of their cells.

    In one layer, the mean over tokens and heads.
    """
    context = text.contexts[name]
    segments = [index for index, part in enumerate(context) if isinstance(part, Image)]
    masses = [
        attention_to_image(model, context, text.ids, segment)[layer].mean(dim=0).cpu()
        for segment in segments
    ]
    return [part for part in context if isinstance(part, Image)], masses


# What they would say without


CUTS = ("shown", "completion", "all_behind", "removed")
"""A context as it is; with its visual thoughts hidden, from the text alone or from all that stands
behind them; and without them."""


def cuts(context: Context, removed: Context) -> dict[str, Context]:
    """The context by the names in ``CUTS``."""
    places = images_in(context, Role.VISUAL_THOUGHT)
    if not places:
        raise ValueError(f"no visual thought to knock out among {len(context)} segments")
    hidden = (knock_out(context, places, who) for who in get_args(HiddenFrom))
    return dict(zip(CUTS, (context, *hidden, removed), strict=True))


def knock_out_kl(model: Any, written: Sequence[Written], name: str) -> list[dict[str, float]]:
    """KL(shown || cut) in nats, added up over a text's tokens, for every cut of :func:`cuts`."""

    @torch.no_grad()
    def score(batch: list[Written]) -> list[dict[str, float]]:
        ids = [text.ids for text in batch]
        views = [cuts(text.contexts[name], text.contexts["no_vt"]) for text in batch]
        scored = {
            cut: model.logits(model([view[cut] for view in views], ids)).float().log_softmax(dim=-1)
            for cut in CUTS
        }
        rows = {
            cut: kl_divergence_per_token(scored["shown"], log_probs).split(list(map(len, ids)))
            for cut, log_probs in scored.items()
        }
        return [{cut: float(rows[cut][row].sum()) for cut in CUTS} for row in range(len(batch))]

    return in_turn(written, score)


def answers(
    model: Any, tokenizer: Any, written: Sequence[Written], name: str, sampling: Sampling, seed: int
) -> list[dict[str, str]]:
    """What the model writes by itself behind every cut of :func:`cuts`."""

    def write(batch: list[Written]) -> list[dict[str, str]]:
        views = [cuts(text.contexts[name], text.contexts["no_vt"]) for text in batch]
        seeds = [row_seed(seed, "cut", text.problem.problem_id) for text in batch]
        ids = {
            cut: model.sample([view[cut] for view in views], sampling, seeds).ids for cut in CUTS
        }
        return [
            {cut: tokenizer.decode(ids[cut][row].tolist()) for cut in CUTS}
            for row in range(len(batch))
        ]

    return in_turn(written, write)


def in_turn(written: Sequence[Written], work: Callable[[list[Written]], list[T]]) -> list[T]:
    """What ``work`` makes of batches of texts, in the order of the texts."""
    found: dict[int, T] = {}
    for indices in in_batches([text.problem for text in written], BATCH_SIZE):
        found |= zip(indices, work([written[index] for index in indices]), strict=True)
    return [found[index] for index in range(len(written))]
