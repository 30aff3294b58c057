"""Drawings as they come about, and what is answered with and without them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image as PILImage

from experiments.answer import ask
from experiments.evaluation import FAST_DRAWING, answered
from experiments.exhibits import SEED
from experiments.looking import draw_pictures, open_model
from visual_opsd.benchmarks.maze_pictures import read_maze_pixels, render
from visual_opsd.benchmarks.mazes import NAVIGATION_TASK
from visual_opsd.contexts import Image, Problem
from visual_opsd.models.bagel.preprocessing import to_picture
from visual_opsd.models.interface import Drawing, Sampling
from visual_opsd.rollouts.interleaved import Interleaving, Reasoning

WHO_DRAWS = "A base draws: MODEL names one, such as experiments/bases/tiny (make pretrain-tiny)"
"""What to do where a model did not; a student that learnt to answer in text seldom does."""


@dataclass(frozen=True, slots=True, eq=False)
class Watched:
    """An answer with the drawing that led to it, step by step."""

    reasoning: Reasoning
    forecasts: tuple[tuple[float, Image], ...]
    """Time before each step, 1 is noise, and what the drawing would become from there."""


def watch(
    model: Any, tokenizer: Any, problem: Problem, drawing: Drawing, max_tokens: int = 64
) -> Watched:
    """Think, draw, look and answer (ThinkMorph's loop, greedy), watching the drawing.

    Raises:
        ValueError: The model cannot draw, or answered without asking for a drawing.
    """
    forecasts: list[tuple[float, Image]] = []
    how = Interleaving(sampling=Sampling(temperature=0, max_tokens=max_tokens), drawing=drawing)
    found = ask(
        model,
        tokenizer,
        picture_of(problem),
        problem.question,
        (how, SEED),
        draw=True,
        watch=lambda time, images: forecasts.append((time, images[0])),
    )
    if not forecasts:
        raise ValueError(f"the model answered {problem.problem_id} without asking for a drawing")
    return Watched(found, tuple(forecasts))


def answer_in_text(model: Any, tokenizer: Any, problem: Problem, max_tokens: int = 64) -> Reasoning:
    """Answer without drawing, greedily."""
    how = Interleaving(sampling=Sampling(temperature=0, max_tokens=max_tokens))
    picture, question = picture_of(problem), problem.question
    return ask(model, tokenizer, picture, question, (how, SEED), draw=False)


def picture_of(problem: Problem) -> PILImage.Image:
    """The problem's picture as a user has it: a maze at 64 px a cell."""
    if problem.task == NAVIGATION_TASK:
        return render(read_maze_pixels(problem.image.pixels))
    return to_picture(problem.image.pixels)


def verdict(problem: Problem, text: str) -> str:
    """What a text answers, and whether that is right."""
    found, is_right = answered(problem, text)
    return f"{found or 'no answer'} ({'right' if is_right else 'wrong'})"


def draw_forecasts(watched: Watched, num_shown: int = 8) -> Figure:
    """A film of the drawing: evenly chosen steps, then the picture that was drawn."""
    last = len(watched.forecasts) - 1
    count = min(num_shown, last + 1)
    chosen = sorted({round(number * last / max(count - 1, 1)) for number in range(count)})
    frames = [(f"t = {time:.2f}", image) for time, image in (watched.forecasts[i] for i in chosen)]
    return draw_pictures([*frames, ("drawn", watched.reasoning.images[-1])], inches=1.2)


def student_or_base(folder: Path | str, base: Any) -> tuple[Any, str]:
    """The student of a run, or the base and what is missing."""
    if Path(folder).is_dir():
        return open_model(folder)[0], "the student"
    return base, f"the base itself, for there is no student at {folder}: make demo trains one"


def side_by_side(problem: Problem, found: Mapping[str, Reasoning]) -> pd.DataFrame:
    """What everybody answers, and what it costs."""
    return pd.DataFrame(
        {
            who: {
                "answer": verdict(problem, reasoning.texts[-1]),
                "drawings": len(reasoning.images),
                "tokens": reasoning.num_tokens,
                "milliseconds": round(1000 * reasoning.seconds),
            }
            for who, reasoning in found.items()
        }
    ).T


def seen(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    student: tuple[Any, str],
    max_tokens: int = 64,
) -> str:
    """The last words on drawings: some problems answered drawn (fast protocol) and in text."""
    found: dict[str, list[tuple[bool, float]]] = {"drawing first": [], student[1]: []}
    missing: list[str] = []
    for problem in problems:
        answers = {student[1]: answer_in_text(student[0], tokenizer, problem, max_tokens)}
        try:
            watched = watch(model, tokenizer, problem, FAST_DRAWING, max_tokens)
            answers["drawing first"] = watched.reasoning
        except ValueError as error:
            missing.append(str(error))
        for who, reasoning in answers.items():
            is_right = answered(problem, reasoning.texts[-1])[1]
            found[who].append((is_right, reasoning.seconds))
    said = [
        f"{who}: {sum(right for right, _ in rows)} of {len(rows)} right, "
        f"{1000 * median(seconds for _, seconds in rows):.0f} ms in the median"
        for who, rows in found.items()
        if rows
    ]
    if missing:
        said.append(f"{len(missing)} not drawn, the first because {missing[0]}. {WHO_DRAWS}")
    return (
        "; ".join(said)
        + ". So few problems say nothing of accuracy: that is in the controls' notebook."
    )
