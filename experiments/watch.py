"""What looks on while a run trains: held-out accuracy, a drifting teacher, signs of collapse."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L

from callbacks.monitor import CollapseMonitor
from callbacks.probe import Probe
from callbacks.stopping import EarlyStop
from experiments.evaluation import accuracy, evaluate
from experiments.schema import ExperimentConfig
from visual_opsd.contexts import Problem
from visual_opsd.models.bagel.tokenizer import Tokenizer
from visual_opsd.rollouts.answering import Way
from visual_opsd.teachers import WeightMemory

LOG_EVERY = 10
"""Optimiser steps."""
HELD_OUT = "held_out/text_only"
TEACHER = "held_out/teacher_privileged"


def watchers(
    config: ExperimentConfig,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    memory: WeightMemory,
    asked: dict[str, Any],
) -> list[L.Callback]:
    """They stand behind the rollout callback; the probe of the student comes first.

    A teacher that follows the student may forget how to read visual thoughts: it is watched too.
    ``asked`` goes to ``evaluate``.
    """
    found: list[L.Callback] = []
    every, is_distilled = config.held_out.every, config.method == "visual_opsd"
    if problems:
        probe = Probe(greedy(tokenizer, problems, "text_only", HELD_OUT, asked), every, memory)
        found.append(probe)
        if config.held_out.patience:
            found.append(EarlyStop(probe, HELD_OUT, config.held_out.patience))
        if is_distilled and config.visual_opsd.teacher in ("ema", "current"):
            measure = greedy(tokenizer, problems, "privileged", TEACHER, asked)
            found.append(Probe(measure, every, of_teacher=True))
    if is_distilled:
        temperature = config.rollout.sampling.temperature
        monitor = CollapseMonitor(tokenizer.encode, tokenizer.decode, LOG_EVERY, temperature)
        found.append(monitor)
    return found


def greedy(
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    way: Way,
    name: str,
    asked: dict[str, Any],
) -> Callable[[Any], dict[str, float]]:
    """Greedy accuracy on ``problems`` under that name."""

    def measure(model: Any) -> dict[str, float]:
        return {name: accuracy(evaluate(model, tokenizer, problems, way, **asked)).value}

    return measure
