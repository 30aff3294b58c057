"""VisPuzzle: which arrangement puts a cut picture together, with two or four options."""

from collections.abc import Mapping
from typing import Any

from visual_opsd.benchmarks.benchmark import Benchmark
from visual_opsd.benchmarks.hub import letter_of, options_of, pictures_of


def _from_hub(row: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    """``ThinkMorph/VisPuzzle``, split test."""
    return [
        {
            "index": str(row.get("pid", number)),
            "image": pictures_of(row, "problem_image"),
            "question": row["question"],
            **options_of(row["options"]),
            "answer": letter_of(row["answer"]),
        }
    ]


VISPUZZLE = Benchmark(
    name="VisPuzzle",
    files={"VisPuzzle": "349834f8"},
    hub={"VisPuzzle": ("VisPuzzle/**/test*.parquet",)},
    from_hub=_from_hub,
)
