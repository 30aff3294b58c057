"""K_gen (Eq. 4) on one fixed set of completions, with the cross terms of start and student."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from visual_opsd.contexts import Problem, student_context, teacher_context
from visual_opsd.losses.divergence import kl_divergence_per_token
from visual_opsd.models.interface import Completions, Sampling
from visual_opsd.rollouts.answering import in_batches
from visual_opsd.rollouts.trajectories import log_probs, rescoring_error, sample_trajectories
from visual_opsd.seeds import row_seed

BATCH_SIZE = 128


@dataclass(frozen=True, slots=True, eq=False)
class Trajectories:
    """Problems with one completion each, sampled once and scored by everybody."""

    problems: tuple[Problem, ...]
    completions: tuple[Completions, ...]
    """One batch each."""
    batches: tuple[tuple[int, ...], ...]
    max_rescore_error: float
    """Largest distance of re-scored from sampled log-probabilities."""


@torch.no_grad()
def sample_fixed(
    model: Any, tokenizer: Any, problems: Sequence[Problem], sampling: Sampling, seed: int
) -> Trajectories:
    """Sample the completions a gap is measured on, and re-score them."""
    found, batches, error = [], list(in_batches(problems, BATCH_SIZE)), 0.0
    for indices in batches:
        chosen = [problems[index] for index in indices]
        seeds = [row_seed(seed, "fixed", problem.problem_id) for problem in chosen]
        completions = sample_trajectories(model, chosen, tokenizer.encode, sampling, seeds)
        contexts = [student_context(problem, tokenizer.encode) for problem in chosen]
        error = max(error, rescoring_error(model, contexts, completions, sampling.temperature))
        found.append(completions)
    return Trajectories(tuple(problems), tuple(found), tuple(map(tuple, batches)), error)


@torch.no_grad()
def token_gaps(
    teacher: Any,
    student: Any,
    tokenizer: Any,
    trajectories: Trajectories,
    shown: Sequence[Problem] | None = None,
    description: str = "",
) -> list[Tensor]:
    """KL(teacher || student) a token in nats, a tensor a problem, in the order of the problems.

    The teacher sees the visual thoughts of ``shown`` (default: the true ones), the student none.
    """
    shown = trajectories.problems if shown is None else shown
    gaps: dict[int, Tensor] = {}
    pairs = list(zip(trajectories.batches, trajectories.completions, strict=True))
    for indices, completions in track(
        pairs, description=description, transient=True, disable=not description
    ):
        teacher_sees = [teacher_context(shown[index], tokenizer.encode) for index in indices]
        student_sees = [
            student_context(trajectories.problems[index], tokenizer.encode) for index in indices
        ]
        kl = kl_divergence_per_token(
            log_probs(teacher, teacher_sees, completions),
            log_probs(student, student_sees, completions),
        )
        gaps |= dict(zip(indices, kl.split(list(completions.lengths)), strict=True))
    return [gaps[index] for index in range(len(shown))]


def sums_and_lengths(gaps: Sequence[Tensor]) -> tuple[list[float], list[int]]:
    """What intervals are made from: nats and tokens a completion."""
    return [float(gap.double().sum()) for gap in gaps], [len(gap) for gap in gaps]
