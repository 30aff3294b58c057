r"""How VLMEvalKit reads answers, rule for rule, with its faults; for numbers made with it.

Rules as in open-compass/VLMEvalKit e8e78f05 (``can_infer``) and in ThinkMorph's fork cddb6a3 of it
(tags, ChartQA, mazes), in words of our own. Their faults, each with a row in the tests' golden
table:

- A letter anywhere in the last four words of the *whole* text wins over the answer tag.
- The article "A" counts as option A.
- The first ``<answer>`` counts, not the last.
- Circular groups never look into tags unless a judge is there.
- Relative tolerance is 5 % of the prediction, not of the gold answer; 55 is not 55 %.
- Mazes need ``\boxed`` with capital letters and commas.
- Nothing but an exact spelling counts: "Yes." is not "Yes", "1,234" is not 1234.
"""

import ast
import re
from collections.abc import Callable, Mapping

Judge = Callable[[str, str, Mapping[str, str]], str]
"""From question, completion and options to what the completion answers, in the judge's words."""

NO_OPTION = "Z"
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_FAILED_CALL = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BOX = re.compile(r"\\boxed\{([^}]*)\}")
_BOXED_MOVES = re.compile(r"(?:\\{1,2}b|\x08)oxed\{([RLUD](?:\s*,\s*[RLUD])*)\}")


def infer(text: str, options: Mapping[str, str]) -> str | None:
    """The option that a text names by its letter, else by its words; Z for a refusal."""
    return _infer_letter(text, options) or _infer_words(text, options)


def _infer_letter(text: str, options: Mapping[str, str]) -> str | None:
    if _FAILED_CALL in text:
        return None
    if any(refusal in text for refusal in _REFUSALS):
        return NO_OPTION
    words = text.translate(_PUNCTUATION).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1:  # its first occurrence has to be among the last four words
        return named[0] if words.index(named[0]) > len(words) - 5 else None
    return NO_OPTION if not named and NO_OPTION in words else None


def _infer_words(text: str, options: Mapping[str, str]) -> str | None:
    if len(text) > 2 * sum(map(len, options.values())):
        return None
    named = [letter for letter, words in options.items() if words.lower() in text.lower()]
    return named[0] if len(named) == 1 else None


def choose(
    text: str, options: Mapping[str, str], question: str = "", judge: Judge | None = None
) -> str:
    """The whole text first, then the first tag, then the judge; Z where nothing is found.

    A judge that is not understood three times ends in Z here; there it ends in a random option.
    """
    found = infer(text, options)
    if found is None and (inner := _tagged(text)) is not None:
        found = infer(inner, options)
    for _ in range(3):
        if found is None and judge is not None:
            found = infer(judge(question, text, options), options)
    return found or NO_OPTION


def is_relaxed_match(text: str, gold: str) -> bool:
    """ChartQA: the first tag against the gold answer, or against each of a list of them."""
    match = _TAG.search(re.sub(r"Round_[01]:", "", text))
    if match is None:
        return False
    answers = [gold]
    if gold.startswith("["):
        try:
            answers = [str(answer) for answer in ast.literal_eval(gold)]
        except (ValueError, SyntaxError):
            answers = [gold]
    return any(_is_near(match[1].strip(), answer) for answer in answers)


def _is_near(prediction: str, gold: str) -> bool:
    """The standard rule with its arguments swapped: what is predicted sets the tolerance."""
    target, value = _number(prediction), _number(gold)
    if value is not None and target:
        return abs(value - target) / abs(target) <= 0.05
    return prediction.lower() == gold.lower()


def moves(text: str) -> tuple[str, ...] | None:
    r"""The last ``\boxed{D,R}`` of a text."""
    found = _BOXED_MOVES.findall(text)
    return tuple(re.sub(r"\s", "", found[-1]).split(",")) if found else None


def _tagged(text: str) -> str | None:
    match = _TAG.search(text) or _BOX.search(text)
    return match[1] if match else None


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None
