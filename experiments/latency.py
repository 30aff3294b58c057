"""Seconds a sample at batch 1, every way in turn: a machine that slows down slows down all."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from experiments.evaluation import FAST_DRAWING, evaluate
from visual_opsd.contexts import Problem
from visual_opsd.models.interface import Drawing
from visual_opsd.rollouts.answering import Way

OFFICIAL_DRAWING = Drawing(branches_in_one_batch=False)
"""49 evaluations, text and image guidance, three calls a step: what the paper's latency counts."""
WARM_UP = 2


def time_in_turn(
    base: tuple[Any, Any], student: tuple[Any, Any], problems: Sequence[Problem]
) -> dict[str, list[float]]:
    """Seconds of every problem: drawn as the official code does, drawn fast, in text.

    ``base`` and ``student`` are models with their tokenizers; the student answers in text alone.
    """
    ways: dict[str, tuple[tuple[Any, Any], Way, Drawing]] = {
        "drawn_official": (base, "drawn", OFFICIAL_DRAWING),
        "drawn_fast": (base, "drawn", FAST_DRAWING),
        "base_text_only": (base, "text_only", FAST_DRAWING),
        "student_text_only": (student, "text_only", FAST_DRAWING),
    }
    timed = {
        key: partial(evaluate, *model, way=way, drawing=drawing, batch_size=1)
        for key, (model, way, drawing) in ways.items()
    }
    seconds: dict[str, list[float]] = {key: [] for key in ways}
    for problem in (*problems[:WARM_UP], *problems):
        for key in ways:
            seconds[key].append(timed[key]([problem])[0].seconds)
    return {key: found[-len(problems) :] for key, found in seconds.items()}
