"""The student's own completions, and what the teacher is shown about the same problems."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from visual_opsd.contexts import Context, Encode, Problem, student_context
from visual_opsd.interventions import intervene
from visual_opsd.losses.divergence import TeacherScores
from visual_opsd.models.interface import Completions, Reader, Sampling


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """What a training step scores."""

    completions: Completions
    shown: tuple[Problem, ...]
    """The problems with the visual thoughts that the teacher sees."""
    also_shown: tuple[tuple[Problem, ...], ...] = ()
    """The same problems with other visual thoughts, which the teacher sees in their turn."""
    scores: TeacherScores | None = None
    """The teacher's of the completions, where an offline cache has them."""
    keep: Callable[[TeacherScores], TeacherScores] = lambda scores: scores
    """Takes them, where one wants them, and gives back those to train on."""

    @property
    def views(self) -> tuple[tuple[Problem, ...], ...]:
        """All that the teacher is shown, one after the other."""
        return (self.shown, *self.also_shown)


def sample_trajectories(
    model: Reader,
    problems: Sequence[Problem],
    encode: Encode,
    sampling: Sampling,
    seeds: Sequence[int],
) -> Completions:
    """Ask the student, in its own context."""
    contexts = [student_context(problem, encode) for problem in problems]
    return model.sample(contexts, sampling, seeds)


def gold_trajectories(
    problems: Sequence[Problem], encode: Encode, end: int, max_tokens: int
) -> Completions:
    """The data set's own solutions as completions: off-policy, and nobody's log-probabilities.

    ``end`` is the mark that ends a completion; what goes beyond the budget is cut as sampling is.
    """
    device = problems[0].image.pixels.device
    whole = [(*encode(problem.solution), end) for problem in problems]
    ids = tuple(torch.tensor(row[:max_tokens], device=device) for row in whole)
    return Completions(
        ids,
        tuple(torch.ones_like(row, dtype=torch.bool) for row in ids),
        tuple(torch.full(row.shape, torch.nan, device=device) for row in ids),
        tuple(len(row) > max_tokens for row in whole),
    )


def show(
    name: str, problems: Sequence[Problem], donors: Sequence[Problem], seeds: Sequence[int]
) -> tuple[Problem, ...]:
    """Replace the visual thoughts of every problem as the intervention ``name`` says."""
    padded: list[Problem | None] = list(donors) or [None] * len(problems)
    return tuple(
        intervene(name, problem, donor, seed)
        for problem, donor, seed in zip(problems, padded, seeds, strict=True)
    )


@torch.no_grad()
def log_probs(
    model: Reader, contexts: Sequence[Context], completions: Completions
) -> Float[Tensor, "tokens vocabulary"]:
    """Log-probabilities of every token of the vocabulary along completions, float32."""
    return model.logits(model(contexts, completions.ids)).float().log_softmax(dim=-1)


def rescoring_error(
    model: Reader, contexts: Sequence[Context], completions: Completions, temperature: float = 1.0
) -> float:
    """Largest distance between sampled and re-scored log-probabilities; on-policy means about 0."""
    with torch.no_grad():
        logits = model.logits(model(contexts, completions.ids)).float() / (temperature or 1.0)
    scored = logits.log_softmax(dim=-1).gather(-1, torch.cat(completions.ids)[:, None])[:, 0]
    error = (scored - torch.cat(completions.log_probs)).abs()
    return float(error[torch.cat(completions.is_sampled)].max())
