"""What is thought in words about a twin: before the drawing what to look at, after it what it says.

As with mazes, nothing before the drawing holds the answer: a puzzle's ``subject`` and ``details``
never do, and its ``conclusion`` comes last.
"""

import numpy as np

from datamodules.thoughts import ThoughtLength, Thoughts
from visual_opsd.benchmarks.charts import CHART_TASK
from visual_opsd.benchmarks.jigsaw import JIGSAW_TASK
from visual_opsd.benchmarks.puzzles import Puzzle
from visual_opsd.benchmarks.visual_search import SEARCH_TASK

# Field: {it}, the subject of the puzzle.
LOOK = (
    "I look at {it}.",
    "I look for {it}.",
    "I need to see {it}.",
    "This is about {it}.",
    "What matters here is {it}.",
    "The question is about {it}.",
    "I have to examine {it}.",
    "My attention goes to {it}.",
)
DRAWN: dict[str, tuple[str, ...]] = {
    SEARCH_TASK: (
        "The red box shows it.",
        "The red box marks the place.",
        "I look into the red box.",
        "Now the red box tells where.",
        "It is in the red box.",
        "The drawing marks it in red.",
        "I read it off at the red box.",
        "What I need is framed in red.",
    ),
    JIGSAW_TASK: (
        "Now the whole picture is there.",
        "The drawing shows it put together.",
        "Put together, it looks natural.",
        "In the drawing the parts fit.",
        "The drawing shows the whole.",
        "I compare the parts with the drawing.",
        "The seams are gone in the drawing.",
        "This is the picture as it was.",
    ),
    CHART_TASK: (
        "The red mark shows what counts.",
        "I read the bars in red.",
        "The bars that matter are marked.",
        "The drawing marks them in red.",
        "Now I read what is marked.",
        "I look at what is red now.",
        "The red marking tells where to read.",
        "What I need is marked in red.",
    ),
}
OPENING = (
    "Before answering, I write down everything in the picture that may turn out to be useful here.",
    "Let me first describe what the picture shows, without drawing any conclusion from it yet.",
    "To start with, I go over the picture as a whole and note what can be seen in which place.",
    "I begin with a careful look at the picture and at what the question wants to know about it.",
    "First of all I collect what is plainly visible, so that nothing will be overlooked later on.",
    "I want an overview of the picture first, and only after that an answer to what is asked for.",
    "Let me turn the picture into words step by step, beginning with what is easy to make out.",
    "My first step is an inventory of the picture, my second one will be a drawing on top of it.",
)
CLOSING = (
    "A drawing that brings out what matters will make the rest easy to read off, so I make one.",
    "With so much in the picture it is safer to mark what counts than to guess at the answer now.",
    "From words alone this remains uncertain, and a drawing on the picture will make it certain.",
    "I will now draw what I have in mind and answer only when I have looked at the result closely.",
    "The next step is to make this visible in a drawing, in which the answer can then be read off.",
    "I do not decide anything yet: it takes a drawing to see clearly what the question asks about.",
    "So far this is only a description, and what settles the question is a drawing made from it.",
    "To be sure of the answer I produce a drawing first and then examine it as carefully as I can.",
)
CHECK = (
    "I have checked this against the picture once more, and nothing in it speaks against it.",
    "Looking back at the original picture, I find that this agrees with everything visible there.",
    "A second look at the picture confirms this, so I am confident that it is the right answer.",
    "Nothing else in the picture could be meant by the question, which settles what to answer.",
    "This follows directly from what can be seen, so there is no need to consider anything else.",
    "Compared with the picture as it was given, this is consistent in each and every respect.",
    "I went over it twice with the same result, and therefore I give this as the final answer.",
    "That is what the question asked for, and the picture supports it without any exception.",
)


def write_twin_thoughts(
    puzzle: Puzzle, rng: np.random.Generator, length: ThoughtLength = "tiny"
) -> Thoughts:
    """True thoughts about the puzzle in words drawn by ``rng``."""
    look = _say(LOOK, rng, puzzle.subject)
    drawn = _say(DRAWN[puzzle.task], rng)
    if length == "tiny":
        # What was found is said in words: from a picture straight to an option's letter, a tiny
        # model learnt nothing of a search.
        return Thoughts(
            text_thoughts=(look, f"{drawn} {puzzle.conclusion}"),
            text_only_thought=f"{look} {puzzle.conclusion}",
        )
    seen = " ".join((_say(OPENING, rng), *puzzle.details, look))
    concluded = f"{puzzle.conclusion} {_say(CHECK, rng)}"
    return Thoughts(
        text_thoughts=(f"{seen} {_say(CLOSING, rng)}", f"{drawn} {concluded}"),
        text_only_thought=f"{seen} {concluded}",
    )


def _say(templates: tuple[str, ...], rng: np.random.Generator, it: str = "") -> str:
    return templates[int(rng.integers(len(templates)))].format(it=it)
