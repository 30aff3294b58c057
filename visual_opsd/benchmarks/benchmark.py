"""What makes a benchmark: its files, its words, what is right, and how marks become a number."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal, TypeVar

from visual_opsd.benchmarks import harness
from visual_opsd.benchmarks.choices import choose
from visual_opsd.benchmarks.items import Item, Wording, choice_prompt
from visual_opsd.statistics import Estimate, weighted_rates, wilson

Value = TypeVar("Value")
Scoring = Literal["robust", "harness_compat"]
_MAX_CONSTANTS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What a completion answered, and whether that is right."""

    is_right: bool
    answer: str | None
    """As it was read out; None where nothing was."""
    rule: str
    """What found it."""
    has_format_failure: bool
    """No answer between answer tags. A failure here may still be right by a later rule."""
    is_ambiguous: bool = False
    also: Mapping[str, bool] = field(default_factory=dict)
    """Other rules of the same benchmark, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How marks are counted: right units, averaged over strata."""

    unit: Callable[[Item], str] = lambda item: item.key
    """Items of one unit are right together or not at all: a pair, the rotations of a question."""
    size: Callable[[Item], int] = lambda _: 1
    """Items of a whole unit; others are left out."""
    strata: Callable[[Item], tuple[str, ...]] = lambda _: ()
    """A path: the value is the mean over the first names of the means over the second ..."""

    def units(self, items: Sequence[Item]) -> list[list[int]]:
        """Indices of ``items``, those of a whole unit together, in order of appearance."""
        found: dict[str, list[int]] = {}
        for index, item in enumerate(items):
            found.setdefault(self.unit(item), []).append(index)
        return [rows for rows in found.values() if len(rows) == self.size(items[rows[0]])]

    def count(self, items: Sequence[Item], are_right: Sequence[bool]) -> tuple[Estimate, int]:
        """The value with its interval, and the number of units behind it.

        Raises:
            ValueError: There is no whole unit.
        """
        strata = self._by_stratum(items, lambda rows: all(are_right[row] for row in rows))
        if not strata:
            raise ValueError(f"{len(items)} items make no whole unit to count")
        rates = [wilson(sum(right), len(right)) for right in strata.values()]
        value = weighted_rates(rates, _weights(list(strata)))
        return value, sum(map(len, strata.values()))

    def expected(self, items: Sequence[Item], chance: Callable[[Item], float]) -> float:
        """The value of guessing every item by itself, right with probability ``chance``."""
        strata = self._by_stratum(items, lambda rows: prod(chance(items[row]) for row in rows))
        means = [sum(values) / len(values) for values in strata.values()]
        return sum(w * mean for w, mean in zip(_weights(list(strata)), means, strict=True))

    def _by_stratum(
        self, items: Sequence[Item], value_of: Callable[[list[int]], Value]
    ) -> dict[tuple[str, ...], list[Value]]:
        strata: dict[tuple[str, ...], list[Value]] = {}
        for rows in self.units(items):
            strata.setdefault(self.strata(items[rows[0]]), []).append(value_of(rows))
        return strata


Marker = Callable[[Item, str], Mark]
HarnessMarker = Callable[[Item, str, harness.Judge | None], bool]


def mark_choice(item: Item, text: str) -> Mark:
    """The chosen letter against the gold one, read without a judge."""
    found = choose(text, item.options)
    return Mark(
        is_right=found.value == item.answer,
        answer=found.value,
        rule=found.rule,
        has_format_failure=found.rule != "answer_tag" or found.value is None,
        is_ambiguous=found.is_ambiguous,
    )


def harness_choice(item: Item, text: str, judge: harness.Judge | None) -> bool:
    """The same by the harness's rules."""
    options = item.shown_options("harness")
    return harness.choose(text, options, item.question, judge) == item.answer


def guess_an_option(item: Item) -> float:
    """One of so many; 0 where the answer is free."""
    return 1 / len(item.options) if item.options else 0.0


def gold(item: Item) -> str:
    """The gold answer, as a constant guess would write it."""
    return item.answer


def check_choice(item: Item) -> None:
    """ValueError where the gold answer is none of the options."""
    if item.answer not in item.options:
        raise ValueError(f"answer {item.answer!r} is none of {', '.join(item.options) or 'none'}")


def check_free(item: Item) -> None:
    """ValueError where there is no gold answer."""
    if not item.answer.strip():
        raise ValueError("no answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One column of the table; what differs between benchmarks is here as data."""

    name: str
    files: Mapping[str, str]
    """Data set as VLMEvalKit names it, to the first digits of its file's md5; '' if unknown."""
    hub: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Data set to where the hub's parquet files lie below a data folder, as glob patterns."""
    from_hub: Callable[[Mapping[str, Any], int], Iterable[dict[str, Any]]] | None = None
    """A row of those, and its number, as rows with the columns of the TSV; pictures as bytes."""
    pictures_in: Callable[[Path], Iterable[Path]] | None = None
    """The pictures of a layout of the benchmark's own, in a folder of its name."""
    from_picture: Callable[[Path], dict[str, Any]] | None = None
    """One of those as a row with the columns of the TSV; a ValueError where it is unfit."""
    check: Callable[[Item], None] = check_choice
    """Says by a ValueError what makes an item unfit."""
    category: Callable[[Item], str] = lambda item: item.columns.get("category", "")
    """A finer class for tables, or nothing."""
    prompt: Callable[[Item, Wording], str] = choice_prompt
    mark: Marker = mark_choice
    mark_as_harness: HarnessMarker = harness_choice
    constant: Callable[[Item], str] = gold
    """What the best constant answer is looked for among."""
    headline: Tally = Tally()
    also: Mapping[str, Tally] = field(default_factory=dict)

    def marks(
        self,
        items: Sequence[Item],
        texts: Sequence[str],
        scoring: Scoring = "robust",
        judge: harness.Judge | None = None,
    ) -> list[Mark]:
        """A mark for every item; under ``harness_compat`` what is right is the harness's word."""
        marks = [self.mark(item, text) for item, text in zip(items, texts, strict=True)]
        if scoring == "robust":
            return marks
        return [
            Mark(
                is_right=self.mark_as_harness(item, text, judge),
                answer=mark.answer,
                rule="harness",
                has_format_failure=mark.has_format_failure,
            )
            for item, text, mark in zip(items, texts, marks, strict=True)
        ]

    def score(self, items: Sequence[Item], marks: Sequence[Mark]) -> dict[str, Any]:
        """The headline with its interval, and what has to be known beside it; fractions 0..1."""
        are_right = [mark.is_right for mark in marks]
        value, n = self.headline.count(items, are_right)
        of_category, of_file = map(self.category, items), (item.dataset for item in items)
        return {
            **value.as_dict(),
            "n": n,
            "num_items": len(items),
            "chance": self.headline.expected(items, guess_an_option),
            "best_constant": self.best_constant(items),
            "format_failures": sum(mark.has_format_failure for mark in marks),
            "ambiguous": sum(mark.is_ambiguous for mark in marks),
            "also": {
                **{name: _counted(tally, items, are_right) for name, tally in self.also.items()},
                **_other_rules(marks),
            },
            "files": _split(self.headline, of_file, items, are_right),
            "categories": _split(self.headline, of_category, items, are_right),
        }

    def best_constant(self, items: Sequence[Item]) -> dict[str, Any]:
        """The one answer to everything that scores most, among the most frequent gold answers."""
        frequent = Counter(self.constant(item) for item in items).most_common(_MAX_CONSTANTS)
        scores = {}
        for answer, _ in frequent:
            marks = [self.mark(item, f"<answer>{answer}</answer>") for item in items]
            scores[answer] = self.headline.count(items, [m.is_right for m in marks])[0].value
        best = max(scores, key=lambda answer: scores[answer])
        return {"answer": best, "value": scores[best]}


def _weights(paths: Sequence[tuple[str, ...]]) -> list[float]:
    """Of a mean of means: each name shares the weight of its path with its siblings."""
    children: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for path in paths:
        for depth in range(len(path)):
            children.setdefault(path[:depth], set()).add(path[: depth + 1])
    return [prod(1 / len(children[path[:depth]]) for depth in range(len(path))) for path in paths]


def _counted(tally: Tally, items: Sequence[Item], are_right: Sequence[bool]) -> dict[str, Any]:
    """A tally as JSON; with no whole unit, its n is 0 and it has no value."""
    if not tally.units(items):
        return {"n": 0}
    value, n = tally.count(items, are_right)
    return {**value.as_dict(), "n": n}


def _other_rules(marks: Sequence[Mark]) -> dict[str, Any]:
    names = sorted({name for mark in marks for name in mark.also})
    return {
        name: {**wilson(sum(m.also[name] for m in marks), len(marks)).as_dict(), "n": len(marks)}
        for name in names
    }


def _split(
    tally: Tally, names: Iterable[str], items: Sequence[Item], are_right: Sequence[bool]
) -> dict[str, Any]:
    """The same tally for the items of every name, but for the empty one."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return {
        name: _counted(tally, [items[row] for row in kept], [are_right[row] for row in kept])
        for name, kept in sorted(rows.items())
        if name
    }
