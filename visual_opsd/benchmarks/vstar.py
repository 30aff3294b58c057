"""V*: an attribute of a small thing in a large picture (4 options), or where it lies (2)."""

from collections.abc import Mapping
from typing import Any

from visual_opsd.benchmarks.benchmark import Benchmark
from visual_opsd.benchmarks.hub import letter_of, options_of, pictures_of


def _from_hub(row: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    """``ohjoonhee/vstar_bench``; its answers are numbers that count from zero."""
    return [
        {
            "index": str(number),
            "image": pictures_of(row, "image"),
            "question": row["question"],
            **options_of(row["choices"]),
            "answer": letter_of(row["answer"]),
            "category": row["category"],
        }
    ]


VSTAR = Benchmark(
    name="VStarBench",
    files={"VStarBench": "b18854d7"},
    hub={"VStarBench": ("vstar_bench/**/*.parquet", "VStarBench/**/*.parquet")},
    from_hub=_from_hub,
)
