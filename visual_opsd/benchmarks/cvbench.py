"""CV-Bench: half the mean over the sources of its 2D questions, half its 3D questions.

Source: Cambrian-1, Tong et al. 2024, Appendix C (https://arxiv.org/abs/2406.16860).
"""

from collections.abc import Mapping
from typing import Any

from visual_opsd.benchmarks.benchmark import Benchmark, Tally
from visual_opsd.benchmarks.hub import letter_of, options_of, pictures_of
from visual_opsd.benchmarks.items import Item, Wording, choice_prompt


def _prompt(item: Item, wording: Wording) -> str:
    """The file's own prompt, verbatim."""
    return item.columns.get("prompt") or choice_prompt(item, wording)


def _strata(item: Item) -> tuple[str, ...]:
    is_2d = item.dataset == "CV-Bench-2D"
    return (item.dataset, item.columns.get("source", "")) if is_2d else (item.dataset,)


def _from_hub(row: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    """``nyu-visionx/CV-Bench``: ``test_2d.parquet`` and ``test_3d.parquet``."""
    return [
        {
            "index": str(row.get("idx", number)),
            "image": pictures_of(row, "image"),
            "question": row["question"],
            **options_of(row["choices"]),
            "answer": letter_of(row["answer"]),
            "category": row["task"],
            "prompt": row["prompt"],
            "source": row["source"],
        }
    ]


CV_BENCH = Benchmark(
    name="CV-Bench",
    files={"CV-Bench-2D": "a7cff4cc", "CV-Bench-3D": "bb94c0d5"},
    hub={
        "CV-Bench-2D": ("CV-Bench/**/test_2d*.parquet",),
        "CV-Bench-3D": ("CV-Bench/**/test_3d*.parquet",),
    },
    from_hub=_from_hub,
    prompt=_prompt,
    headline=Tally(strata=_strata),
    also={"micro": Tally()},
)
