"""Which option a completion chooses, read without a judge: what is in the tags decides."""

import re
from collections.abc import Mapping

from visual_opsd.benchmarks.answers import ExtractedAnswer, extract_answer, unwrapped

# The letter alone, before a mark that ends it, or called an option: (B), B., "B: red", "Option B is
# right". "A red car" names no option.
_LETTER = re.compile(
    r"(?:(?:option|choice|answer)\s+)?(?:\(([A-L])\)|\[([A-L])\]|([A-L])(?=\s*(?:$|[.:)\n])))"
    r"|(?:option|choice)\s+([A-L])(?=[\s,;])",
    re.IGNORECASE,
)
# Behind a letter: "or (C)", "/C", "and C", "C". Who names two options has chosen none.
_ANOTHER = re.compile(
    r"(?:(?:or\s|/)\s*(?:(?:option|choice)\s+)?[(\[]?([A-L])\b"
    r"|(?:(?:and|&)\s+)?(?:(?:option|choice)\s+)?[(\[]?([A-L])[)\].]?\s*$)"
)
_QUOTED = re.compile(r"([\"'`])(.+)\1")
# "The answer is B because"; a lone capital A may be an article, so it needs one of the marks above.
_LETTER_IN_SENTENCE = re.compile(r"(?:(?:option|choice)\s+)?([B-L])(?=[\s,;])")


def choose(text: str, options: Mapping[str, str]) -> ExtractedAnswer:
    """The chosen letter, None where the completion names none of the options.

    The value by the first rule of ``extract_answer`` is read as a letter, else as an option's whole
    text, else as the only option whose text it contains. A letter outside the options is no
    answer, nor are two letters; a letter together with another option's text counts as the letter
    and is ambiguous.
    """
    found = extract_answer(text)
    if found.value is None:
        return found
    letter, is_ambiguous = _read(found.value, options, is_sentence=found.rule == "answer_is")
    return ExtractedAnswer(letter, found.rule, found.is_ambiguous or is_ambiguous)


def _read(value: str, options: Mapping[str, str], *, is_sentence: bool) -> tuple[str | None, bool]:
    if _plain(value) not in map(_plain, options.values()):
        value, has_said = unwrapped(value)
        is_sentence = is_sentence or has_said
    value = value.strip("*$ .,;\n")
    if quoted := _QUOTED.fullmatch(value):
        value = quoted[2]
    match = _LETTER.match(value)
    if match is None and is_sentence:
        match = _LETTER_IN_SENTENCE.match(value)
    rest_as_it_is = value[match.end() :].lstrip(" .:),;-") if match else value
    rest = _plain(rest_as_it_is)
    same = [letter for letter, text in options.items() if _plain(text) in (rest, _plain(value))]
    if match and not (rest and _plain(value) in map(_plain, options.values())):
        letter = next(filter(None, match.groups())).upper()
        other = _ANOTHER.match(rest_as_it_is)
        if other and not same and next(filter(None, other.groups())) in {*options} - {letter}:
            return None, True
        return (letter if letter in options else None), bool(same) and same != [letter]
    if len(same) != 1:
        same = [letter for letter, text in options.items() if _contains(value, text)]
    return (same[0] if len(same) == 1 else None), len(same) > 1


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().rstrip(".").casefold()


def _contains(value: str, option: str) -> bool:
    words = _plain(option)
    return bool(words) and bool(re.search(rf"(?<!\w){re.escape(words)}(?!\w)", _plain(value)))
