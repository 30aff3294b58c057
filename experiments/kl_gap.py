"""K_gen (Eq. 4) on one fixed set of completions, with the cross terms of start and student."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from datamodules.frozen_lake import MazeSettings
from experiments import run_data
from experiments.schema import TINY_BASE
from visual_opsd.contexts import Problem, student_context, teacher_context
from visual_opsd.losses.divergence import DivergenceConfig, kl_divergence_per_token
from visual_opsd.metrics.divergence_audit import ClipLoss, TopKError
from visual_opsd.metrics.kl_gap import KLGap, KLGapClosure
from visual_opsd.metrics.token_classes import TOKEN_CLASSES, token_classes
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.interface import Completions, Sampling
from visual_opsd.rollouts.answering import in_batches
from visual_opsd.rollouts.trajectories import log_probs, rescoring_error, sample_trajectories
from visual_opsd.seeds import row_seed

BATCH_SIZE = 128
SAMPLED = Sampling(temperature=1.0, max_tokens=64)
"""How the completions are sampled that a gap is measured on."""


@dataclass(frozen=True, slots=True, eq=False)
class Trajectories:
    """Problems with one completion each, sampled once and scored by everybody."""

    problems: tuple[Problem, ...]
    completions: tuple[Completions, ...]
    """One batch each."""
    batches: tuple[tuple[int, ...], ...]
    max_rescore_error: float
    """Largest distance of re-scored from sampled log-probabilities."""

    def only(self, index: int) -> "Trajectories":
        """One of the problems with its completion."""
        for indices, found in zip(self.batches, self.completions, strict=True):
            if index in indices:
                row = indices.index(index)
                alone = Completions(
                    ids=(found.ids[row],),
                    is_sampled=(found.is_sampled[row],),
                    log_probs=(found.log_probs[row],),
                    is_cut=(found.is_cut[row],),
                )
                return Trajectories(
                    (self.problems[index],), (alone,), ((0,),), self.max_rescore_error
                )
        raise IndexError(f"no problem {index} among {len(self.problems)}")

    def tokens(self, tokenizer: Any, index: int) -> list[str]:
        """What was sampled for a problem, token by token: as long as its row of ``token_gaps``."""
        (ids,) = sampled_rows(self.only(index), "ids")
        return [tokenizer.decode([i]) or "[end]" for i in ids.tolist()]


@torch.no_grad()
def sample_fixed(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    sampling: Sampling,
    seed: int,
    batch_size: int = BATCH_SIZE,
) -> Trajectories:
    """Sample the completions a gap is measured on, and re-score them."""
    found, batches, error = [], list(in_batches(problems, batch_size)), 0.0
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
    """KL(teacher || student) a sampled token in nats, a tensor a problem, in the problems' order.

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
        rows = kl.split(list(completions.lengths))
        gaps |= {
            index: row[is_sampled].cpu()  # an injected delimiter is context
            for index, row, is_sampled in zip(indices, rows, completions.is_sampled, strict=True)
        }
    return [gaps[index] for index in range(len(shown))]


def sums_and_lengths(gaps: Sequence[Tensor]) -> tuple[list[float], list[int]]:
    """What intervals are made from: nats and tokens a completion."""
    return [float(gap.double().sum()) for gap in gaps], [len(gap) for gap in gaps]


def gap_record(prefix: str, gaps: Sequence[Tensor]) -> dict[str, Any]:
    """Sums, lengths and the mean over tokens, as results keep them: under ``<prefix>_...``."""
    sums, lengths = sums_and_lengths(gaps)
    return {
        f"{prefix}_sums": sums,
        f"{prefix}_lengths": lengths,
        f"{prefix}_mean": sum(sums) / sum(lengths),
    }


def sampled_rows(trajectories: Trajectories, of: Literal["ids", "log_probs"]) -> list[Tensor]:
    """The sampled tokens' ids or log-probabilities, a tensor a problem, in the problems' order."""
    found = {
        index: row[is_sampled].cpu()
        for indices, completions in zip(trajectories.batches, trajectories.completions, strict=True)
        for index, row, is_sampled in zip(
            indices, getattr(completions, of), completions.is_sampled, strict=True
        )
    }
    return [found[index] for index in range(len(trajectories.problems))]


def ids_digest(trajectories: Trajectories) -> str:
    """SHA-256 over the sampled tokens' ids: gaps with the same one are of the same completions."""
    ids = [row.tolist() for row in sampled_rows(trajectories, "ids")]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def other_completions(mine: dict[str, Any], its: dict[str, Any]) -> str | None:
    """How the completions of two gaps differ; those measured before ids were kept, by length."""
    lengths, others = mine["fixed_lengths"], its["fixed_lengths"]
    if len(lengths) != len(others):
        return f"{len(lengths)} against {len(others)}"
    if num_unlike := sum(a != b for a, b in zip(lengths, others, strict=True)):
        return f"{num_unlike} of {len(lengths)} have another length"
    digests = [gap.get("fixed_digest") for gap in (mine, its)]
    if None not in digests and digests[0] != digests[1]:
        return f"as long, of other tokens (digests {digests[0]} and {digests[1]})"
    return None


def sampled_classes(trajectories: Trajectories, tokenizer: Any) -> list[Tensor]:
    """The class of every sampled token, as an index into ``TOKEN_CLASSES``."""
    return [
        token_classes([tokenizer.decode([token]) for token in ids])
        for ids in map(Tensor.tolist, sampled_rows(trajectories, "ids"))
    ]


def class_sums(
    trajectories: Trajectories, gaps: Sequence[Tensor], tokenizer: Any
) -> dict[str, tuple[float, int]]:
    """Nats and tokens of every class of token, over all completions."""
    metric = KLGap(token_classes=TOKEN_CLASSES)
    classes = sampled_classes(trajectories, tokenizer)
    lengths = torch.tensor([len(gap) for gap in gaps])
    metric.update(torch.cat(list(gaps)), lengths, token_classes=torch.cat(classes))
    rows = metric.completions()
    return {
        name: (float(rows[f"kl_sum/{name}"].sum()), int(rows[f"num_tokens/{name}"].sum()))
        for name in TOKEN_CLASSES
    }


@torch.no_grad()
def stabiliser_costs(
    model: Any, tokenizer: Any, trajectories: Trajectories, config: DivergenceConfig
) -> dict[str, float]:
    """What top K and clip of a divergence change, the model its own teacher with the true VTs."""
    top_k, clip = TopKError(config), ClipLoss(config)
    for indices, completions in zip(trajectories.batches, trajectories.completions, strict=True):
        is_sampled = torch.cat(completions.is_sampled)
        student, teacher = (
            model.logits(
                model(
                    [sees(trajectories.problems[index], tokenizer.encode) for index in indices],
                    completions.ids,
                )
            )[is_sampled].float()
            for sees in (student_context, teacher_context)
        )
        top_k.update(student, teacher)
        clip.update(student, teacher)
    return {name: float(value) for name, value in (top_k.compute() | clip.compute()).items()}


def closure_of(
    base: Any, student: Any, tokenizer: Any, trajectories: Trajectories
) -> dict[str, float]:
    """Share of the gap on fixed completions that each side's move has closed, by class of token.

    The student's is closure as the glossary has it: the teacher is the frozen start.
    """
    gaps = [
        token_gaps(teacher, learnt, tokenizer, trajectories, description="closure")
        for teacher, learnt in ((base, base), (base, student), (student, student))
    ]
    metric = KLGapClosure(token_classes=TOKEN_CLASSES)
    lengths = torch.tensor([len(gap) for gap in gaps[0]])
    before, moved, after = (torch.cat(values) for values in gaps)
    classes = torch.cat(sampled_classes(trajectories, tokenizer))
    metric.update(before, moved, after, lengths, token_classes=classes)
    names = {
        "closure_student_moved": "closure (frozen start teacher)",
        "closure_teacher_moved": "by the teacher's move",
        "closure": "both",
    }
    return {
        f"{names[name]}{slash}{kind}": float(value)
        for key, value in metric.compute().items()
        for name, slash, kind in [key.partition("/")]
        if name in names
    }


def main() -> None:
    """``python -m experiments.kl_gap [MODEL=folder] [BASE=folder] [num_problems=n]``.

    K_gen of a model by category, and what the paper's stabilisers would cost there; with the base
    that it was trained from, on whose completions then, how much of the gap has closed.
    """
    options = {"MODEL": str(TINY_BASE), "BASE": "", "num_problems": "512", "seed": "0"}
    for argument in sys.argv[1:]:
        key, found, value = argument.partition("=")
        if not found or key not in options:
            raise SystemExit(f"unknown option {argument!r}; there are {sorted(options)}, key=value")
        options[key] = value
    model, tokenizer = checkpoints.load(options["MODEL"])
    problems = run_data.held_out(MazeSettings(), "test", int(options["num_problems"]))
    base = checkpoints.load(options["BASE"])[0] if options["BASE"] else model
    fixed = sample_fixed(base, tokenizer, problems, SAMPLED, int(options["seed"]))
    gaps = token_gaps(model, model, tokenizer, fixed, description="KL gap")

    metric = KLGap(sorted({problem.category for problem in problems}))
    lengths = torch.tensor([len(gap) for gap in gaps])
    metric.update(torch.cat(gaps), lengths, [problem.category for problem in problems])
    table = Table("", "nats/token", title=f"K_gen (Eq. 4) of {options['MODEL']}")
    for category, nats in metric.compute().items():
        table.add_row(category, f"{float(nats):.4f}")
    table.add_row("largest re-scoring error", f"{fixed.max_rescore_error:.1e}")
    console = Console()
    console.print(table)

    costs = stabiliser_costs(model, tokenizer, fixed, DivergenceConfig.PAPER)
    paper = DivergenceConfig.PAPER
    tables = {f"Top K {paper.top_k}, entries clipped at {paper.entry_clip} (paper)": costs}
    if options["BASE"]:
        tables[f"Share of the gap closed, from {options['BASE']}"] = closure_of(
            base, model, tokenizer, fixed
        )
    for title, numbers in tables.items():
        shown = Table("", "", title=title)
        for name, number in numbers.items():
            shown.add_row(name.replace("_", " "), f"{number:.4g}")
        console.print(shown)


if __name__ == "__main__":
    main()
