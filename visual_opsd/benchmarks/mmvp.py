"""MMVP: one question about two pictures that CLIP takes for the same, answered differently.

The paper counts questions; the pairs, where both have to be right, are the stricter number.
"""

import re
from collections.abc import Mapping
from typing import Any

from visual_opsd.benchmarks.benchmark import Benchmark, Tally
from visual_opsd.benchmarks.hub import letter_of, options_of, pictures_of


def _from_hub(row: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    """``lmms-lab-eval/MMVP``, which mends two swapped pairs of ``MMVP/MMVP``."""
    choices = re.split(r"\s*\([a-z]\)\s*", row["Options"])[1:]
    return [
        {
            "index": str(row.get("Index", number + 1)),
            "image": pictures_of(row, "image"),
            "question": row["Question"],
            **options_of(choices),
            "answer": letter_of(row["Correct Answer"]),
        }
    ]


MMVP = Benchmark(
    name="MMVP",
    files={"MMVP": "8cb732b1"},
    hub={"MMVP": ("MMVP/**/*.parquet",)},
    from_hub=_from_hub,
    also={"pairs": Tally(unit=lambda item: f"pair {item.row // 2}", size=lambda _: 2)},
)
