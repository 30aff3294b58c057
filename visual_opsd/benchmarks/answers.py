"""What a completion answers, and what a maze makes of it."""

import re
from dataclasses import dataclass
from typing import Literal

from visual_opsd.benchmarks.mazes import Maze, Moves

Rule = Literal["answer_tag", "boxed", "answer_is", "last_line", "none"]

_BOXED = re.compile(r"(?:\\{1,2}b|\x08)oxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_ANSWER_IS = re.compile(r"\banswer(?:\s+is\b|\s*:)\s*:?\s*([^\n]+)", re.IGNORECASE)
_WRAPPING = re.compile(r"\\(?:boxed|text\w*|mathrm)\s*\{([^{}]*)\}")
_RULES: tuple[tuple[Rule, re.Pattern[str]], ...] = (
    ("answer_tag", re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)),
    ("boxed", _BOXED),
    ("answer_is", _ANSWER_IS),
)
_MOVES = {"DOWN": "D", "RIGHT": "R", "UP": "U", "LEFT": "L", **{move: move for move in "DRUL"}}


@dataclass(frozen=True, slots=True)
class ExtractedAnswer:
    """What was found in a completion, and how."""

    value: str | None
    rule: Rule
    """The first rule of the chain that found something."""
    is_ambiguous: bool = False
    """That rule also found another value; the last one counts."""


@dataclass(frozen=True, slots=True)
class MazeScore:
    """How a completion did on one maze."""

    is_solved: bool
    """The strict rule: no step off the board or into a hole, the last cell is the goal."""
    is_solved_gymnasium: bool
    """FrozenLake's rule; long strings of random moves score high by it."""
    is_optimal: bool
    """Solved in as few moves as possible."""
    has_format_failure: bool
    """No moves between answer tags. A failure here may still be solved by a later rule."""


def extract_answer(text: str) -> ExtractedAnswer:
    r"""The answer by the first rule that finds one, the last match of it.

    Rules: ``<answer>``, ``\boxed``, "answer is X", the last line. No judge, no option is guessed.
    """
    for rule, pattern in _RULES:
        values = [_tidy(match) for match in pattern.findall(text)]
        values = [value for value in values if value]
        if values:
            return ExtractedAnswer(values[-1], rule, is_ambiguous=len(set(values)) > 1)
    lines = [line for line in map(_tidy, text.splitlines()) if line]
    return ExtractedAnswer(lines[-1], "last_line") if lines else ExtractedAnswer(None, "none")


def unwrapped(value: str) -> tuple[str, bool]:
    r"""A value without ``\boxed``, Markdown's stars and "the answer is"; whether it said that."""
    while _WRAPPING.search(value):
        value = _WRAPPING.sub(r"\1", value)
    value = _tidy(value.replace("**", "").replace("\\%", "%").replace("\\$", "$"))
    said = _ANSWER_IS.findall(value)
    return (_tidy(said[-1]), True) if said else (value, False)


def parse_moves(value: str) -> Moves | None:
    r"""Moves in letters or words, with or without ``\boxed``; None where there is anything else."""
    boxed = _BOXED.findall(value)
    inner = str(boxed[-1]) if boxed else value
    tokens = re.sub(r"[,;\s]|->|→", " ", inner.strip().strip("{}$.")).upper().split()
    if len(tokens) == 1 and re.fullmatch(r"[DRUL]+", tokens[0]):
        tokens = list(tokens[0])
    if not tokens or any(token not in _MOVES for token in tokens):
        return None
    return tuple(_MOVES[token] for token in tokens)


def score_maze(maze: Maze, completion_text: str) -> MazeScore:
    """Walks the moves that a completion answers."""
    extracted = extract_answer(completion_text)
    moves = None if extracted.value is None else parse_moves(extracted.value)
    if moves is None:
        return MazeScore(
            is_solved=False, is_solved_gymnasium=False, is_optimal=False, has_format_failure=True
        )
    return MazeScore(
        is_solved=maze.walk(moves),
        is_solved_gymnasium=maze.walk_as_gymnasium(moves),
        is_optimal=maze.is_shortest(moves),
        has_format_failure=extracted.rule != "answer_tag",
    )


def _tidy(value: str) -> str:
    return value.strip().strip("*").rstrip(".").strip()
