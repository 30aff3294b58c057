"""Hugging Face rows in the columns of a VLMEvalKit TSV: what the benchmarks' readers share."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from visual_opsd.benchmarks.items import OPTION_LETTERS

CIRCULAR_STEP = 1_000_000
"""From one rotation's index to the next, as VLMEvalKit numbers them."""
_OWN_LETTER = re.compile(r"\s*\(?([A-L])[).:]\s+")


def options_of(choices: Sequence[Any]) -> dict[str, str]:
    """Letter to choice, without a letter that the choice itself begins with."""
    if len(choices) > len(OPTION_LETTERS):
        raise ValueError(f"at most {len(OPTION_LETTERS)} options are read, got {len(choices)}")
    options = {}
    for letter, choice in zip(OPTION_LETTERS, map(str, choices), strict=False):
        match = _OWN_LETTER.match(choice)
        options[letter] = choice[match.end() :] if match and match[1] == letter else choice
    return options


def letter_of(answer: Any) -> str:
    """``(A)``, ``(a)`` and ``A`` as A; a number counts from zero."""
    if isinstance(answer, int):
        return OPTION_LETTERS[answer]
    return str(answer).strip().strip("().").upper()


def pictures_of(row: Mapping[str, Any], *columns: str) -> list[bytes]:
    """The encoded pictures of these columns, those that are there; a column may hold several."""
    cells = [row.get(column) for column in columns]
    flat = [each for cell in cells for each in (cell if isinstance(cell, list) else [cell])]
    return [each["bytes"] for each in flat if each and each.get("bytes")]


def rotations(
    row: Mapping[str, Any], options: Mapping[str, str], number: int
) -> Iterator[dict[str, Any]]:
    """The row once for every option, its options moved on by one place each time (circular)."""
    letters, texts = list(options), list(options.values())
    right = letters.index(row["answer"])
    for turn in range(len(letters)):
        moved = dict(zip(letters, texts[turn:] + texts[:turn], strict=True))
        yield {
            **row,
            **moved,
            "index": str(number + turn * CIRCULAR_STEP),
            "g_index": str(number),
            "answer": letters[(right - turn) % len(letters)],
        }
