"""Studies with the files that their workers leave behind, by hand."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments import ablate_noise
from experiments.evaluation import Prediction, save_predictions
from experiments.study import BASE, Study, load_study

SMALL = ["study.num_problems=40", "study.num_drawn=10", "study.num_timed=2", "study.max_seeds=2"]
SMALL += ["study.num_resamples=100"]
SOLVED = {"true_vt": 34, "sft": 36, "matched_noise": 20, "blank": 20, "answer_text": 35}
"""Of 40, the first so many; the base solves 20."""
IMITATED = ("sft", "self_training")
CLOSED = {BASE: 0.0, "true_vt": 0.6, "sft": 0.1}


def study_in(folder: Path, *overrides: str, arms: Sequence[str] = tuple(SOLVED)) -> Study:
    """A study with small numbers and some of its arms."""
    config = load_study(ablate_noise.TABLE, [f"study.output_dir={folder}", *SMALL, *overrides])
    return Study(replace(config, arms={n: a for n, a in config.arms.items() if n in arms}))


def predictions(count: int, solved: int, way: str, offset: int = 0) -> list[Prediction]:
    return [
        Prediction(
            problem_id=f"maze_{offset + index}",
            category="size_3",
            way=way,
            text="",
            is_solved=index < solved,
            is_solved_gymnasium=index < solved,
            is_optimal=index < solved,
            has_format_failure=False,
            is_cut=False,
            has_skipped_drawing=False,
            has_exact_drawing=None,
            num_tokens=30 if way == "drawn" else 15,
            seconds=0.1,
        )
        for index in range(count)
    ]


def gap_of(arm: str) -> dict[str, Any]:
    """KL sums of three fixed completions."""
    left = 1 - CLOSED.get(arm, 0.0)
    gap = {"fixed_sums": [left, 3 * left, 2 * left], "fixed_lengths": [4, 6, 5], "fixed_mean": 0.4}
    gap |= {"fixed_digest": "ids", "max_rescore_error": 0.0}
    return gap | {"classes": {"thought": [left, 10], "answer": [5 * left, 5]}}


def put(study: Study, name: str, arm: str, base: str = BASE, **changes: Any) -> None:
    """The files that a worker leaves behind, by hand."""
    asked = [("test", "text_only", 40)]
    if name == base or study.is_compared(study.run(name)):
        asked += [("unseen_sizes", "text_only", 10), ("hard", "text_only", 10)]
        asked += [("test", "privileged", 10), ("test", "drawn", 10)]
    if name == base:
        asked += [(f"dose_{a}", "privileged", 10) for a in study.config.arms if a not in IMITATED]
    for on, way, count in asked:
        found = predictions(count, SOLVED.get(arm, 20) * count // 40, way)
        save_predictions(study.predictions(name, on, way), found)
    record = {"base": base, "base_digest": "abc", "scored": [a[:2] for a in asked]}
    record["gap"] = gap_of(arm)
    record |= {"calibration_error": 0.1, "measured_at": study.commit}
    if name != base:
        record["trained_at"] = [study.commit]
        record |= {"arm": arm, "number": int(name.rpartition("-")[2]), "steps": 600}
        record |= {"samples_a_step": 32, "cpu_seconds": 300.0}
        record["curve"] = {"steps": [0, 100, 200], "values": [0.6, 0.7, 0.8]}
    path = study.result(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record | changes))
