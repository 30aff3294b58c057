"""Seconds a sample at batch 1, every way in turn: a machine that slows down slows down all."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.evaluation import FAST_DRAWING, evaluate
from visual_opsd.contexts import Problem
from visual_opsd.models.interface import Drawing
from visual_opsd.rollouts.answering import Way

OFFICIAL_DRAWING = Drawing(branches_in_one_batch=False)
"""49 evaluations, text and image guidance, three calls a step: what the paper's latency counts."""
WARM_UP = 2


def time_in_turn(
    base: tuple[Any, Any],
    student: tuple[Any, Any],
    problems: Sequence[Problem],
    asked: Mapping[str, Any] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every problem: drawn as the official code does, drawn fast, in text.

    ``base`` and ``student`` are models with their tokenizers; the student answers in text alone.
    ``asked`` goes to ``evaluate``, but for the drawing and the batch, which are the ways' own.
    """
    ways: dict[str, tuple[tuple[Any, Any], Way, Drawing]] = {
        "drawn_official": (base, "drawn", OFFICIAL_DRAWING),
        "drawn_fast": (base, "drawn", FAST_DRAWING),
        "base_text_only": (base, "text_only", FAST_DRAWING),
        "student_text_only": (student, "text_only", FAST_DRAWING),
    }
    rest = {key: value for key, value in (asked or {}).items() if key != "drawing"}
    rest["batch_size"] = 1

    def seconds_of(key: str, problem: Problem) -> float:
        (model, tokenizer), way, drawing = ways[key]
        return evaluate(model, tokenizer, [problem], way, drawing=drawing, **rest)[0].seconds

    seconds: dict[str, list[float]] = {key: [] for key in ways}
    for problem in (*problems[:WARM_UP], *problems):
        for key in ways:
            seconds[key].append(seconds_of(key, problem))
    return {key: found[-len(problems) :] for key, found in seconds.items()}
