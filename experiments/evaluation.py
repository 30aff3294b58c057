"""Scores a model on mazes in three ways, a saved row a problem and way."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from visual_opsd.benchmarks.answers import extract_answer, parse_moves, score_maze
from visual_opsd.benchmarks.maze_pictures import read_path
from visual_opsd.benchmarks.mazes import (
    NAVIGATION_TASK,
    Maze,
    best_constant,
    vertical_then_horizontal,
)
from visual_opsd.benchmarks.vsp import maze_of
from visual_opsd.contexts import Image, Problem
from visual_opsd.models.interface import Drawing, Sampling
from visual_opsd.rollouts.answering import Answer, Show, Way, answer, in_batches
from visual_opsd.seeds import row_seed
from visual_opsd.statistics import Estimate, wilson

GREEDY = Sampling(temperature=0, max_tokens=64)
FAST_DRAWING = Drawing(num_timesteps=9, timestep_shift=4.0, text_guidance=1.0, image_guidance=1.0)
"""Eight evaluations of the tiny model, no guidance; a story measures the official 49 beside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One problem answered in one way."""

    problem_id: str
    category: str
    way: str
    text: str
    is_solved: bool
    is_solved_gymnasium: bool
    is_optimal: bool
    has_format_failure: bool
    is_cut: bool
    has_skipped_drawing: bool
    has_exact_drawing: bool | None
    """The drawn picture decodes to a shortest path; None where nothing was to be drawn."""
    num_tokens: int
    seconds: float


def evaluate(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    way: Way,
    *,
    sampling: Sampling = GREEDY,
    drawing: Drawing = FAST_DRAWING,
    seed: int = 0,
    batch_size: int = 256,
    description: str = "",
    on_answers: Callable[[list[Problem], list[Answer]], None] | None = None,
    show: Show | None = None,
) -> list[Prediction]:
    """Answer every problem and walk its answer by the strict rule, in the order of ``problems``."""
    predictions: dict[int, Prediction] = {}
    batches = list(in_batches(problems, batch_size))
    for indices in track(
        batches, description=description or way, transient=True, disable=not description
    ):
        chosen = [problems[index] for index in indices]
        seeds = [row_seed(seed, way, problem.problem_id) for problem in chosen]
        answers = answer(
            way,
            model,
            tokenizer,
            chosen,
            sampling=sampling,
            drawing=drawing,
            seeds=seeds,
            show=show,
        )
        for index, problem, given in zip(indices, chosen, answers, strict=True):
            predictions[index] = score_answer(problem, given, way)
        if on_answers is not None:
            on_answers(chosen, answers)
    return [predictions[index] for index in range(len(problems))]


def score_answer(problem: Problem, given: Answer, way: Way) -> Prediction:
    """Walk an answer through the maze that the problem's picture shows."""
    maze = maze_of(problem)
    # What the budget cut is no answer, unless it had come to an end by itself.
    has_ended = not given.is_cut or "</answer>" in given.text
    score = score_maze(maze, given.text if has_ended else "")
    return Prediction(
        problem_id=problem.problem_id,
        category=problem.category,
        way=way,
        text=given.text,
        **{key: getattr(score, key) for key in score.__dataclass_fields__},
        is_cut=given.is_cut,
        has_skipped_drawing=given.has_skipped_drawing,
        has_exact_drawing=is_exact(given.drawn, maze) if way == "drawn" else None,
        num_tokens=given.num_tokens,
        seconds=given.seconds,
    )


def answered(problem: Problem, text: str) -> tuple[str | None, bool]:
    """What a text answers by its own task, and whether that is right.

    A maze's path is walked by the strict rule; any other answer has to be the data's.
    """
    found = extract_answer(text).value
    if problem.task == NAVIGATION_TASK:
        moves = ",".join(parse_moves(found or "") or ())
        return moves or found, score_maze(maze_of(problem), text).is_solved
    return found, found is not None and found.strip().casefold() == problem.answer.casefold()


def is_exact(drawn: Image | None, maze: Maze) -> bool:
    """Whether a drawing, decoded back to a path, is a shortest one for the maze."""
    if drawn is None:
        return False
    moves = read_path(drawn.pixels, maze)
    return moves is not None and maze.is_shortest(moves)


def accuracy(predictions: Iterable[Prediction]) -> Estimate:
    """Share solved by the strict rule, with Wilson's interval."""
    return share(prediction.is_solved for prediction in predictions)


def share(are_true: Iterable[bool]) -> Estimate:
    """How many of them are true, with Wilson's interval."""
    found = list(are_true)
    return wilson(sum(found), len(found))


def by_category(predictions: Sequence[Prediction]) -> dict[str, Estimate]:
    """Accuracy a size or level."""
    categories = sorted({prediction.category for prediction in predictions})
    return {c: accuracy(p for p in predictions if p.category == c) for c in categories}


def trivial(problems: Sequence[Problem]) -> dict[str, Estimate]:
    """What answers that look for no path reach, by the strict rule."""
    mazes = list(map(maze_of, problems))
    constant, _ = best_constant(mazes)
    return {
        "vertical_then_horizontal": share(
            maze.walk(vertical_then_horizontal(maze)) for maze in mazes
        ),
        "best_constant": share(maze.walk(constant) for maze in mazes),
    }


def save_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """A JSON line a prediction, written whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text("".join(json.dumps(asdict(p)) + "\n" for p in predictions))
    temporary.replace(path)


def load_predictions(path: Path) -> list[Prediction]:
    """What :func:`save_predictions` wrote."""
    return [Prediction(**json.loads(line)) for line in path.read_text().splitlines()]


@torch.no_grad()
def three_ways(
    model: Any, tokenizer: Any, problems: Sequence[Problem], num_drawn: int, **settings: Any
) -> dict[Way, list[Prediction]]:
    """All problems text-only and privileged, the first ``num_drawn`` drawn."""
    return {
        "privileged": evaluate(model, tokenizer, problems, "privileged", **settings),
        "text_only": evaluate(model, tokenizer, problems, "text_only", **settings),
        "drawn": evaluate(model, tokenizer, problems[:num_drawn], "drawn", **settings),
    }


def donors_of(problems: Sequence[Problem]) -> list[Problem]:
    """For every problem the next of its size; the last of a size takes the first.

    Raises:
        ValueError: A size has one problem only.
    """
    of_size: dict[str, list[int]] = {}
    for index, problem in enumerate(problems):
        of_size.setdefault(problem.category, []).append(index)
    found: dict[int, Problem] = {}
    for size, indices in of_size.items():
        if len(indices) < 2:
            raise ValueError(f"{size} has one problem, which cannot be its own donor: take more")
        for index, other in zip(indices, (*indices[1:], indices[0]), strict=True):
            found[index] = problems[other]
    return [found[index] for index in range(len(problems))]
