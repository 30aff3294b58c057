"""ChartQA's horizontal and vertical bars (ReFocus): a number within 5 %, or the same words.

Both halves weigh alike; how the paper weighs them is not known. The micro mean stands beside.
"""

import ast
import re
from collections.abc import Mapping
from typing import Any

from visual_opsd.benchmarks import harness
from visual_opsd.benchmarks.answers import extract_answer, unwrapped
from visual_opsd.benchmarks.benchmark import Benchmark, Mark, Tally, check_free
from visual_opsd.benchmarks.hub import pictures_of
from visual_opsd.benchmarks.items import Item, bare_prompt

TOLERANCE = 0.05
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?")
_UNIT = re.compile(r"^[\s$€£¥]*|[\s%.]*$")


def mark_chart(item: Item, text: str) -> Mark:
    """The relaxed rule, after units, thousands' commas and full stops are taken off.

    ``also``: the standard rule of pix2struct, which takes nothing off and divides percents by 100.
    Source: Masry et al. 2022, ChartQA, section 5.1 (https://arxiv.org/abs/2203.10244).
    """
    found = extract_answer(text)
    golds = gold_answers(item.answer)
    value = found.value or ""
    bare, _ = unwrapped(value)
    return Mark(
        is_right=any(is_near(bare, gold) for gold in golds),
        answer=found.value,
        rule=found.rule,
        has_format_failure=found.rule != "answer_tag",
        is_ambiguous=found.is_ambiguous,
        also={"standard": any(is_near_standard(value, gold) for gold in golds)},
    )


def gold_answers(cell: str) -> list[str]:
    """One answer, or a list of answers that are all right."""
    if cell.startswith("["):
        try:
            answers = ast.literal_eval(cell)
        except (ValueError, SyntaxError):
            return [cell]
        if isinstance(answers, list) and answers:
            return [str(answer) for answer in answers]
    return [cell]


def is_near(value: str, gold: str) -> bool:
    """Within 5 % of the gold number; equal where that is 0 or either is no number."""
    number, target = _number(value), _number(gold)
    if number is None or target is None:
        return _plain(value) == _plain(gold)
    if target == 0:
        return number == 0
    readings = [number]
    is_share, is_gold_share = (text.rstrip(" .").endswith("%") for text in (value, gold))
    if is_share != is_gold_share:  # 55 %, 55 and 0.55 are one answer; 0.55 % and 55 are not
        readings.append(number / 100 if is_share else number * 100)
    return any(abs(each - target) <= TOLERANCE * abs(target) for each in readings)


def is_near_standard(value: str, gold: str) -> bool:
    """The rule of pix2struct: percents are divided by 100, what is no number has to be equal."""
    number, target = _standard_number(value), _standard_number(gold)
    if number is None or not target:
        return value.lower() == gold.lower()
    return abs(number - target) / abs(target) <= TOLERANCE


def _number(text: str) -> float | None:
    bare = _UNIT.sub("", text.strip()).strip()
    return float(bare.replace(",", "")) if _NUMBER.fullmatch(bare.lower()) else None


def _standard_number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().strip(".\"'").casefold()


def _harness(item: Item, text: str, judge: harness.Judge | None) -> bool:
    del judge  # asked only where there is no tag, and then a call that works is taken for granted
    return harness.is_relaxed_match(text, item.answer)


def _from_hub(row: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    """ChartQA's columns: ``type``, ``question``, ``answer``, ``image``."""
    return [
        {
            "index": str(number),
            "image": pictures_of(row, "image"),
            "question": row["question"],
            "answer": str(row["answer"]),
            "category": row.get("type") or "",
        }
    ]


CHARTQA = Benchmark(
    name="ChartQA",
    files={"ChartQA_h_bar": "", "ChartQA_v_bar": ""},
    hub={name: (f"{name}/**/*.parquet",) for name in ("ChartQA_h_bar", "ChartQA_v_bar")},
    from_hub=_from_hub,
    check=check_free,
    prompt=bare_prompt,
    mark=mark_chart,
    mark_as_harness=_harness,
    headline=Tally(strata=lambda item: (item.dataset,)),
    also={"micro": Tally()},
)
