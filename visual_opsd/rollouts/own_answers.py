"""What a model answers after it has drawn, kept to be imitated where there are no gold answers."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from visual_opsd.benchmarks.answers import extract_answer, parse_moves
from visual_opsd.benchmarks.mazes import NAVIGATION_TASK
from visual_opsd.contexts import Problem
from visual_opsd.rollouts.answering import Answer

_THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnAnswer:
    """One problem answered by the model itself; nobody has looked whether it is right."""

    index: int
    """Of the problem in its bank."""
    problem_id: str
    thought: str = ""
    """Before the drawing."""
    answer: str | None = None
    """As it stood between the answer tags; None where the form was not kept."""


def own_answer(index: int, problem: Problem, given: Answer) -> OwnAnswer:
    """What a drawn answer says; the form is a drawing, a thought before it, and tags to the end."""
    found = extract_answer(given.text)
    thought = _THOUGHT.search(given.text)
    is_whole = thought is not None and not given.is_cut and not given.has_skipped_drawing
    if found.value is None or found.rule != "answer_tag" or not is_whole:
        return OwnAnswer(index=index, problem_id=problem.problem_id)
    if problem.task == NAVIGATION_TASK and parse_moves(found.value) is None:
        return OwnAnswer(index=index, problem_id=problem.problem_id)
    assert thought is not None
    return OwnAnswer(
        index=index, problem_id=problem.problem_id, thought=thought[1], answer=found.value
    )


def write_answers(path: Path, answers: Iterable[OwnAnswer]) -> None:
    """A JSON line each, behind those that are there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("".join(json.dumps(asdict(answer)) + "\n" for answer in answers))


def read_answers(path: Path) -> list[OwnAnswer]:
    """What is there; a last line that a kill has cut short is not.

    Raises:
        ValueError: Another line is no answer; file and line are named.
    """
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[:-1]  # what ends without a newline is unfinished
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(OwnAnswer(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: no answer: {line[:80]!r}") from error
    return found
