"""BLINK: fourteen tasks that people solve within a blink; and its Jigsaw, a column of its own.

The paper's number is the micro mean, BLINK's own the macro mean over its tasks; both are reported.
"""

from collections.abc import Mapping
from typing import Any

from visual_opsd.benchmarks.benchmark import Benchmark, Tally
from visual_opsd.benchmarks.hub import letter_of, options_of, pictures_of


def from_hub(row: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    """``BLINK-Benchmark/BLINK``, one folder a task, split val."""
    return [
        {
            "index": str(row.get("idx", number)),
            "image": pictures_of(row, *(f"image_{place}" for place in range(1, 5))),
            "question": row["question"],
            **options_of(row["choices"]),
            "answer": letter_of(row["answer"]),
            "category": row["sub_task"],
        }
    ]


BLINK = Benchmark(
    name="BLINK",
    files={"BLINK": "3b6649b6"},
    hub={"BLINK": ("BLINK/*/val*.parquet",)},
    from_hub=from_hub,
    also={"macro": Tally(strata=lambda item: (item.columns.get("category", ""),))},
)
BLINK_JIGSAW = Benchmark(
    name="BLINK_Jigsaw",
    files={"BLINK_Jigsaw": "174fc5d2"},
    hub={"BLINK_Jigsaw": ("BLINK_Jigsaw/**/val*.parquet", "BLINK/Jigsaw/val*.parquet")},
    from_hub=from_hub,
)
