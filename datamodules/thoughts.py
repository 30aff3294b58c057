"""What is thought in words about a maze: a template grammar whose every clause can be parsed back.

The thought before the drawing describes what is there and never says where to go: with the answer
in it the drawing would add nothing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from visual_opsd.benchmarks.jigsaw import jigsaw_question
from visual_opsd.benchmarks.mazes import (
    DIRECTIONS,
    NAVIGATION_QUESTION,
    Cell,
    Maze,
    Moves,
)
from visual_opsd.contexts import (
    IMAGE_START,
    REFERENCE_INTRO,
    SYSTEM_PROMPT_EVAL,
    SYSTEM_PROMPT_TRAIN,
    TRANSITION,
)

ThoughtLength = Literal["tiny", "faithful"]
"""``tiny`` fits a model of a few million weights, ``faithful`` is as long as ThinkMorph's."""

_MOVE_WORDS = {"D": "down", "R": "right", "U": "up", "L": "left"}
_MOVE_LETTERS = {word: letter for letter, word in _MOVE_WORDS.items()}
_CELL_WORDS = {"S": "start", "G": "goal", "H": "hole", "F": "ice"}
_CELL_LETTERS = {word: letter for letter, word in _CELL_WORDS.items()}

# Fields: {n} a size, {a} {b} row and column of the start, {c} {d} of the goal, counted from one.
CLAUSES: dict[str, tuple[str, ...]] = {
    "size": (
        "The grid is {n} by {n}.",
        "This is a {n} by {n} grid.",
        "The maze is {n} by {n}.",
        "I see a {n} by {n} grid.",
        "A {n} by {n} frozen lake.",
        "It is a {n} by {n} maze.",
        "The lake is {n} by {n}.",
        "There are {n} by {n} squares.",
    ),
    "places": (
        "The start is at row {a}, column {b}, the goal is at row {c}, column {d}.",
        "Start: row {a}, column {b}. Goal: row {c}, column {d}.",
        "The player is at row {a}, column {b}, the gift is at row {c}, column {d}.",
        "From row {a}, column {b} I must reach row {c}, column {d}.",
        "The goal is at row {c}, column {d}, the start is at row {a}, column {b}.",
        "Goal: row {c}, column {d}. Start: row {a}, column {b}.",
        "The gift is at row {c}, column {d}, the player is at row {a}, column {b}.",
        "I must reach row {c}, column {d} from row {a}, column {b}.",
    ),
    "follow": (
        "I follow the red line.",
        "The red line shows the way.",
        "Now I follow the red line.",
        "The red line leads to the goal.",
        "I trace the red line.",
        "Following the red line.",
        "The way is the red line.",
        "I read the red line.",
    ),
    "opening": (
        "I'll begin by laying out the structure of this maze, square by square.",
        "Let me first describe everything that I can see in this picture.",
        "Before planning anything, I write out what every square of the lake holds.",
        "To start with, I read the picture carefully and note what is where.",
        "First I look at the whole picture and record the squares in order.",
        "I want a precise description of the map before I think about a solution.",
        "Let me turn the picture into words so that nothing is overlooked.",
        "I begin with the layout of the frozen lake as the picture shows it.",
    ),
    "row": (
        "Row {r} reads {cells}.",
        "Row {r} holds {cells}.",
        "In row {r} I see {cells}.",
        "Row {r} consists of {cells}.",
        "Row {r}, square by square: {cells}.",
        "Row {r} contains {cells}.",
        "Row number {r} is {cells}.",
        "Across row {r} there are {cells}.",
    ),
    "closing": (
        "Every hole has to be avoided, and all the other squares are safe for the player.",
        "The holes end the game at once, while the ice itself carries the player safely.",
        "The holes are forbidden; any other square of the lake may be entered by the player.",
        "I have to keep the player clear of the holes and may use all of the remaining squares.",
        "Stepping into a hole means failure, so only the other squares are allowed on the way.",
        "With this layout of the squares in mind, a drawing will make a safe plan easy to see.",
        "Now that the whole layout is known, I can look for a plan that avoids all of the holes.",
        "None of the holes may be touched, and the edge of the lake must not be crossed either.",
    ),
    "examine": (
        "Now, examining my drawing, I see the red line that runs from the start to the goal.",
        "The drawing now shows a red line, and I go along it one arrow at a time.",
        "With the red line drawn, I can read the solution from it step by step.",
        "Looking at the picture with the red line, I follow the arrows in their order.",
        "The red line in the picture connects start and goal, so I describe it arrow by arrow.",
        "I now trace the red line of the drawing and note where every arrow points.",
        "In the new picture the plan is visible as a red line, which I spell out here.",
        "Let me go through the arrows of the red line from the first to the last one.",
    ),
    "plan": (
        "I now work out a plan by moving from square to square in my head.",
        "Without a drawing I search for the shortest safe plan step by step.",
        "Let me think about where the player can go next without meeting a hole.",
        "From this description I derive a plan, checking every square on the way.",
        "I look for the quickest plan and make sure that each step stays on the lake.",
        "Knowing the squares, I plan the walk of the player one step after another.",
        "Let me reason about the squares that separate the player from the goal.",
        "I search among the safe squares for the shortest connection to the goal.",
    ),
    "move": (
        "From row {a}, column {b} the player goes {word} to row {c}, column {d}.",
        "The next step is {word}, from row {a}, column {b} to row {c}, column {d}.",
        "Then it is {word} from row {a}, column {b} to row {c}, column {d}.",
        "Going {word} from row {a}, column {b} leads to row {c}, column {d}.",
        "At row {a}, column {b} the way is {word}, to row {c}, column {d}.",
        "A step {word} takes the player from row {a}, column {b} to row {c}, column {d}.",
        "Leaving row {a}, column {b}, we move {word} to row {c}, column {d}.",
        "One square {word} of row {a}, column {b} lies row {c}, column {d}.",
    ),
    "check": (
        "No square on this way is a hole and no step leaves the board, so the goal is reached.",
        "I check the squares once more: all of them are safe, and the last one is the goal.",
        "All of these squares carry the player, and the walk ends exactly at the goal.",
        "The walk avoids every hole, stays on the lake and finishes where the gift lies.",
        "This brings the player to the goal without touching a hole or crossing the edge.",
        "Since every square used is free of holes, this is a valid solution of the maze.",
        "The last square is the goal and none of the earlier ones is a hole, as required.",
        "Verifying the result, I find no hole on the way and the goal at its end.",
    ),
}

# The templates of the other three ThinkMorph tasks, so that one tokenizer serves all four.
_OTHER_QUESTIONS = (
    jigsaw_question("1x2", ((0, 1), (1, 0))),
    jigsaw_question("2x2", ((0, 1, 3, 2),)),
    "What is the color of the cart?\nA: red\nB: white\nC: black\nD: green",
    "Which attitude represent the smallest gap between women and men?",
)


@dataclass(frozen=True, slots=True)
class Thoughts:
    """The words around one visual thought, and those that do without it."""

    text_thoughts: tuple[str, str]
    """Before and after the visual thought."""
    text_only_thought: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What a text says about a maze; cells count from zero, as everywhere in the code."""

    size: int | None = None
    start: Cell | None = None
    goal: Cell | None = None
    rows: tuple[str, ...] = ()
    moves: Moves = ()
    clauses: tuple[str, ...] = ()
    """The kinds of clauses, in order."""


def write_thoughts(
    maze: Maze, rng: np.random.Generator, length: ThoughtLength = "tiny"
) -> Thoughts:
    """True thoughts about the maze in words drawn by ``rng``."""
    if length == "tiny":
        return Thoughts(
            text_thoughts=(_describe_briefly(maze, rng), _say("follow", rng)),
            text_only_thought=_describe_briefly(maze, rng),
        )
    if length != "faithful":
        raise ValueError(f"length of thoughts: expected 'tiny' or 'faithful'; got {length!r}")
    walked = " ".join(_walk(maze, rng))
    return Thoughts(
        text_thoughts=(
            _describe_rows(maze, rng),
            f"{_say('examine', rng)} {walked} {_say('check', rng)}",
        ),
        text_only_thought=(
            f"{_describe_rows(maze, rng)} {_say('plan', rng)} {' '.join(_walk(maze, rng))} "
            f"{_say('check', rng)}"
        ),
    )


def parse_facts(text: str) -> Facts:
    """The facts that a text states, clause by clause.

    Raises:
        ValueError: A piece of the text is no clause of the grammar; it is quoted.
    """
    facts = Facts()
    position = 0
    while position < len(text):
        matches = [
            (match.end(), kind, match)
            for kind, pattern in _patterns()
            if (match := pattern.match(text, position))
        ]
        if not matches:
            raise ValueError(f"no clause of the grammar: {text[position : position + 80]!r}")
        position, kind, match = max(matches, key=lambda found: found[0])
        facts = _with_clause(facts, kind, match.groupdict())
    return facts


def template_corpus() -> list[str]:
    """Text to train a tokenizer on: prompts, questions, every paraphrase, answers, tags."""
    corpus = [SYSTEM_PROMPT_TRAIN, SYSTEM_PROMPT_EVAL, REFERENCE_INTRO, TRANSITION] * 4
    corpus += [NAVIGATION_QUESTION] * 8
    corpus += list(_OTHER_QUESTIONS) * 2
    rng = np.random.default_rng(0)
    for kind, templates in CLAUSES.items():
        for template in templates:
            for _ in range(24 if kind in {"size", "places", "follow"} else 4):
                corpus.append(template.format(**_example_fields(rng)))
    letters = list(DIRECTIONS)
    for length in range(1, 13):
        for _ in range(24):
            answer = ",".join(letters[index] for index in rng.integers(4, size=length))
            corpus.append(f"</think><answer>\\boxed{{{answer}}}</answer>")
    for choice in "ABCD":
        corpus += [f"<think>So it is {choice}.</think><answer>{choice}</answer>"] * 4
    corpus += [f"<think>{IMAGE_START}<image_end><think></think><answer>0.5</answer>"] * 16
    corpus += [f"<answer>{number}</answer>" for number in range(0, 100, 3)]
    return corpus


def _describe_briefly(maze: Maze, rng: np.random.Generator) -> str:
    return f"{_say('size', rng, n=maze.size)} {_say_places(maze, rng)}"


def _describe_rows(maze: Maze, rng: np.random.Generator) -> str:
    sentences = [_say("opening", rng), _say("size", rng, n=maze.size), _say_places(maze, rng)]
    for number, letters in enumerate(maze.rows, start=1):
        cells = ", ".join(_CELL_WORDS[letter] for letter in letters)
        sentences.append(_say("row", rng, r=number, cells=cells))
    sentences.append(_say("closing", rng))
    return " ".join(sentences)


def _walk(maze: Maze, rng: np.random.Generator) -> Iterator[str]:
    moves = maze.shortest_path()
    cells = maze.cells(moves)
    for move, before, after in zip(moves, cells, cells[1:], strict=False):
        yield _say("move", rng, word=_MOVE_WORDS[move], **_pair(before, after))


def _say_places(maze: Maze, rng: np.random.Generator) -> str:
    return _say("places", rng, **_pair(maze.start, maze.goal))


def _say(kind: str, rng: np.random.Generator, **fields: int | str) -> str:
    templates = CLAUSES[kind]
    return templates[int(rng.integers(len(templates)))].format(**fields)


def _pair(first: Cell, second: Cell) -> dict[str, int]:
    return {"a": first[0] + 1, "b": first[1] + 1, "c": second[0] + 1, "d": second[1] + 1}


def _example_fields(rng: np.random.Generator) -> dict[str, int | str]:
    size = int(rng.integers(3, 9))
    places = {name: int(rng.integers(1, size + 1)) for name in "abcdr"}
    words = list(_CELL_LETTERS)
    cells = ", ".join(words[index] for index in rng.integers(4, size=size))
    move = list(_MOVE_LETTERS)[int(rng.integers(4))]
    return {**places, "n": size, "cells": cells, "word": move}


def _with_clause(facts: Facts, kind: str, fields: dict[str, str]) -> Facts:
    facts = replace(facts, clauses=(*facts.clauses, kind))
    if kind == "size":
        return replace(facts, size=int(fields["n"]))
    if kind == "places":
        return replace(
            facts,
            start=(int(fields["a"]) - 1, int(fields["b"]) - 1),
            goal=(int(fields["c"]) - 1, int(fields["d"]) - 1),
        )
    if kind == "row":
        row = "".join(_CELL_LETTERS[word] for word in fields["cells"].split(", "))
        return replace(facts, rows=(*facts.rows, row))
    if kind == "move":
        return replace(facts, moves=(*facts.moves, _MOVE_LETTERS[fields["word"]]))
    return facts


@lru_cache(maxsize=1)
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple(
        (kind, _pattern(template)) for kind, templates in CLAUSES.items() for template in templates
    )


def _pattern(template: str) -> re.Pattern[str]:
    values = {
        "word": "|".join(_MOVE_LETTERS),
        "cells": rf"(?:{'|'.join(_CELL_LETTERS)})(?:, (?:{'|'.join(_CELL_LETTERS)}))*",
    }
    seen: set[str] = set()

    def group(match: re.Match[str]) -> str:
        name = match[1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>{values.get(name, '[0-9]+')})"

    escaped = re.sub(r"\\\{(\w+)\\\}", group, re.escape(template))
    return re.compile(escaped + r"\s*")
