"""SAT, circular: every question once for each rotation of its options; all have to be right."""

from collections.abc import Mapping
from typing import Any

from visual_opsd.benchmarks import harness
from visual_opsd.benchmarks.benchmark import Benchmark, Tally, check_choice, harness_choice
from visual_opsd.benchmarks.hub import CIRCULAR_STEP, options_of, pictures_of, rotations
from visual_opsd.benchmarks.items import Item


def _group(item: Item) -> str:
    """The rotations of one question share ``g_index``, else their index modulo a million."""
    return item.columns.get("g_index") or str(int(item.index) % CIRCULAR_STEP)


def _check(item: Item) -> None:
    """Besides its letter, an item needs to say which question it is a rotation of."""
    check_choice(item)
    if not item.columns.get("g_index") and not item.index.isdecimal():
        raise ValueError(f"neither g_index nor a number as index, {item.index!r}: whose rotation?")


def _harness(item: Item, text: str, judge: harness.Judge | None) -> bool:
    """Without a judge the harness never looks into the tags of a rotation."""
    if judge is not None:
        return harness_choice(item, text, judge)
    return harness.infer(text, item.shown_options("harness")) == item.answer


def _from_hub(row: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    """``array/SAT``, split test, whose options are not rotated yet."""
    options = options_of(row["answers"])
    texts = list(options.values())
    if row["correct_answer"] not in texts:
        raise ValueError(f"answer {row['correct_answer']!r} is none of {', '.join(texts)}")
    plain = {
        "image": pictures_of(row, "image_bytes"),
        "question": row["question"],
        "answer": list(options)[texts.index(row["correct_answer"])],
        "category": row.get("question_type") or "",
    }
    return list(rotations(plain, options, number))


SAT = Benchmark(
    name="SAT_circular",
    files={"SAT_circular": "3853dc9e"},
    hub={"SAT_circular": ("SAT/**/*test*.parquet", "SAT_circular/**/*test*.parquet")},
    from_hub=_from_hub,
    check=_check,
    mark_as_harness=_harness,
    headline=Tally(unit=_group, size=lambda item: len(item.options)),
)
