"""The map of a study: what Visual-OPSD and plain SFT are better at, cell by cell, and cost."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.study import BASE
from experiments.study_claims import DRAWN, MARGIN, PRIVILEGED, has_seeds
from experiments.study_results import TEXT, Key, Numbers, Results
from visual_opsd.statistics import (
    Estimate,
    holm,
    mcnemar_exact,
    seeds_difference,
    welch,
    wins_and_losses,
)


def comparison(numbers: Numbers) -> tuple[list[dict[str, Any]], list[str]]:
    """The map: what either arm of a pair is better at, cell by cell; and what it lacks, and why."""
    results = numbers.results
    cells: list[dict[str, Any]] = []
    lacking: list[str] = []
    for one, other in results.study.pairs:
        if one not in results.arms or other not in results.arms:
            continue
        asked = []
        for question, key in {
            "held-out mazes, text-only": TEXT,
            "sizes 7 and 8, never trained on": Key("unseen_sizes", "text_only"),
            "the `hard` split": Key("hard", "text_only"),
            "drawing retained: drawn accuracy": DRAWN,
            "reading retained: accuracy with the true VT in sight": PRIVILEGED,
        }.items():
            if results.has(one, key) and results.has(other, key):
                base = numbers.accuracy("base", key) if results.has("base", key) else None
                asked.append(_cell(numbers, question, (one, other), key, base))
        costs, without = _costs(numbers, one, other)
        asked += costs
        adjusted = holm([cell["p"] for cell in asked])
        is_judged = all(has_seeds(numbers, arm) for arm in (one, other))
        cells += [
            _judged(cell, p if is_judged else None) for cell, p in zip(asked, adjusted, strict=True)
        ]
        lacking += without
    return cells, lacking


def _judged(cell: dict[str, Any], p_holm: float | None) -> dict[str, Any]:
    """Who is ahead, if both the interval and Holm over the cells of a pair say so."""
    difference, pair = cell["difference"], cell["arms"]
    # Of errors and costs less is better.
    pair = pair if cell["unit"] == "share" else pair[::-1]
    ahead = pair[0] if difference["low"] > 0 else pair[1] if difference["high"] < 0 else None
    is_sure = p_holm is not None and p_holm < 0.05
    return {**cell, "p_holm": p_holm, "decided_by": ahead if is_sure else None}


def _cell(
    numbers: Numbers, question: str, pair: tuple[str, str], key: Key, base: Estimate | None
) -> dict[str, Any]:
    one, other = (numbers.accuracy(arm, key) for arm in pair)
    solved = (numbers.results.matrix(arm, key) for arm in pair)
    return {
        "question": question,
        "unit": "share",
        "arms": list(pair),
        "values": [one.as_dict(), other.as_dict()],
        "base": None if base is None else base.as_dict(),
        "difference": numbers.between(*pair, key).as_dict(),
        "p": mcnemar_exact(*wins_and_losses(*solved)),
    }


def _costs(numbers: Numbers, one: str, other: str) -> tuple[list[dict[str, Any]], list[str]]:
    """What is better small: calibration error, and what it takes to the target accuracy.

    A number a run, so that seeds alone say how sure it is; second, what cannot be compared.
    """
    results = numbers.results
    records = {arm: [results.records[name] for name in results.arms[arm]] for arm in (one, other)}
    target = target_of([record for row in records.values() for record in row], results)
    until = f"until {target:.2f} of the validation mazes"
    asked: dict[str, Callable[[dict[str, Any]], float | None]] = {
        "calibration error": lambda record: record["calibration_error"],
        f"samples {until}": lambda record: cost_of(record, target)["samples"],
        f"CPU-seconds {until}": lambda record: cost_of(record, target)["cpu_seconds"],
    }
    cells: list[dict[str, Any]] = []
    lacking: list[str] = []
    for question, of in asked.items():
        found = {arm: [of(record) for record in row] for arm, row in records.items()}
        without = [
            f"{row.count(None)} of {len(row)} runs of `{a}`"
            for a, row in found.items()
            if None in row
        ]
        if without:
            why = "did not get there" + (", or were stopped" if "seconds" in question else "")
            lacking.append(f"{question}: {' and '.join(without)} {why}")
            continue
        if not all(has_seeds(numbers, arm) for arm in found):
            lacking.append(f"{question}, `{one}` against `{other}`: takes two seeds of both")
            continue
        a, b = (np.array(row, dtype=float) for row in found.values())
        values = [seeds_difference(row, np.zeros_like(row)) for row in (a, b)]
        base = results.records[BASE].get("calibration_error") if "error" in question else None
        cells.append(
            {
                "question": question,
                "unit": "error" if "error" in question else "count",
                "arms": [one, other],
                "values": [value.as_dict() for value in values],
                "base": None if base is None else Estimate(base, base, base).as_dict(),
                "difference": seeds_difference(a, b).as_dict(),
                "p": welch(a, b),
            }
        )
    return cells, lacking


def target_of(records: Sequence[dict[str, Any]], results: Results) -> float:
    """The study's target accuracy, or a lower one, in whole points, that all of these runs reach.

    Unless that is nearer to their start than counts as a change.
    """
    target = results.study.config.target_accuracy
    curves = [record["curve"]["values"] for record in records]
    if not all(curves):
        return target
    reached = math.floor(100 * min(map(max, curves))) / 100
    start = max(values[0] for values in curves)
    return min(target, reached) if reached >= start + MARGIN else target


def cost_of(record: dict[str, Any], target: float) -> dict[str, float | None]:
    """Samples and CPU-seconds at which a held-out curve first crosses ``target``, in a line.

    None where it does not, or where the seconds of the run are not known.
    """
    steps, values = record["curve"]["steps"], record["curve"]["values"]
    at: float | None = steps[0] if values and values[0] >= target else None
    for index in range(1, len(values)):
        if at is None and values[index] >= target:
            share = (target - values[index - 1]) / (values[index] - values[index - 1])
            at = steps[index - 1] + share * (steps[index] - steps[index - 1])
    if at is None:
        return {"samples": None, "cpu_seconds": None}
    seconds = record["cpu_seconds"]
    return {
        "samples": at * record["samples_a_step"],
        "cpu_seconds": None if seconds is None else at / record["steps"] * seconds,
    }
