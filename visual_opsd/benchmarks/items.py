"""One row of a benchmark, whichever file it was read from, and what a model is asked about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Literal

OPTION_LETTERS = ascii_uppercase[:12]
# What pandas.read_csv takes for missing, and with it VLMEvalKit: such an option is not shown there.
READ_AS_MISSING = frozenset(
    "#N/A,#N/A N/A,#NA,-1.#IND,-1.#QNAN,-NaN,-nan,1.#IND,1.#QNAN,<NA>,N/A,NA,"  # noqa: SIM905
    "NULL,NaN,None,n/a,nan,null".split(",")
)

Wording = Literal["paper", "harness"]
"""``harness`` words a question byte for byte as VLMEvalKit does; ``paper`` shows every option."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """A question about pictures with its gold answer."""

    dataset: str
    """The file as VLMEvalKit names it: ``CV-Bench-2D``."""
    index: str
    row: int
    """Within the file, counted from zero."""
    question: str
    pictures: tuple[bytes, ...]
    """As they were encoded, in order."""
    answer: str
    """A letter where there are options."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Letter to text; none where the answer is free."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """All that only some benchmarks have: category, hint, split, source, g_index, maze_map."""

    @property
    def key(self) -> str:
        """Unique among all items of a run."""
        return f"{self.dataset}:{self.index}"

    def shown_options(self, wording: Wording) -> dict[str, str]:
        """The options of the prompt; the harness loses those that pandas reads as missing."""
        if wording == "paper":
            return dict(self.options)
        return {key: text for key, text in self.options.items() if text not in READ_AS_MISSING}


def choice_prompt(item: Item, wording: Wording) -> str:
    """Hint, question, options and the request, as VLMEvalKit's ``ImageMCQDataset`` words them."""
    hint = item.columns.get("hint", "")
    parts = [f"Hint: {hint}\n"] if hint else []
    parts.append(f"Question: {item.question}\n")
    options = item.shown_options(wording)
    if options:
        parts += ["Options:\n", *(f"{letter}. {text}\n" for letter, text in options.items())]
        parts.append("Please select the correct answer from the options above. \n")
    return "".join(parts)


def bare_prompt(item: Item, wording: Wording) -> str:
    """The question alone."""
    del wording
    return item.question
