import re

import numpy as np
import pytest

from datamodules.frozen_lake import MazeSettings, generate
from datamodules.thoughts import CLAUSES, parse_facts, template_corpus, write_thoughts
from visual_opsd.benchmarks.mazes import NAVIGATION_QUESTION

MOVE_WORDS = re.compile(r"\b(up|down|left|right|[UDLR])\b")


@pytest.fixture(scope="module")
def mazes():
    settings = MazeSettings(sizes=(3, 4, 5, 6, 7, 8))
    return [generate(settings, "train", index) for index in range(120)]


def _thoughts(mazes, length):
    rng = np.random.default_rng(0)
    return [(maze, write_thoughts(maze, rng, length)) for maze in mazes]


@pytest.mark.parametrize("length", ["tiny", "faithful"])
def test_the_thought_before_the_drawing_never_says_where_to_go(mazes, length):
    for _, thoughts in _thoughts(mazes, length):
        before = thoughts.text_thoughts[0]
        assert not MOVE_WORDS.search(before)
        assert not parse_facts(before).moves


def test_tiny_thoughts_are_short_and_state_size_and_places(mazes):
    for maze, thoughts in _thoughts(mazes, "tiny"):
        before, after = thoughts.text_thoughts
        for text in (before, thoughts.text_only_thought):
            facts = parse_facts(text)
            assert (facts.size, facts.start, facts.goal) == (maze.size, maze.start, maze.goal)
            assert facts.clauses == ("size", "places")
        assert parse_facts(after).clauses == ("follow",)
        assert len(after.split()) <= 8
        assert not MOVE_WORDS.search(after)
        assert not re.search(r"\d", after)


def test_faithful_thoughts_are_true_and_as_long_as_those_of_thinkmorph(mazes):
    for maze, thoughts in _thoughts(mazes, "faithful"):
        before, after = thoughts.text_thoughts
        assert 300 <= len(before) <= 1500
        assert 200 <= len(after) <= 1900
        assert 436 <= len(thoughts.text_only_thought) <= 7600
        assert parse_facts(before).rows == maze.rows
        assert parse_facts(after).moves == maze.shortest_path()
        everything = parse_facts(thoughts.text_only_thought)
        assert everything.rows == maze.rows
        assert everything.moves == maze.shortest_path()
        assert (everything.start, everything.goal) == (maze.start, maze.goal)


def test_every_clause_has_eight_paraphrases_that_say_the_same():
    fields = {"n": 5, "a": 1, "b": 2, "c": 3, "d": 4, "r": 1, "cells": "ice, hole", "word": "up"}
    for kind, templates in CLAUSES.items():
        assert len(set(templates)) >= 8
        parsed = {parse_facts(template.format(**fields)) for template in templates}
        assert len(parsed) == 1
        assert parsed.pop().clauses == (kind,)


def test_a_text_beside_the_grammar_is_quoted():
    with pytest.raises(ValueError, match="lovely weather"):
        parse_facts("The grid is 3 by 3. What lovely weather")


def test_the_tokenizer_corpus_holds_questions_paraphrases_and_tags():
    corpus = "\n".join(template_corpus())
    assert NAVIGATION_QUESTION in corpus
    for piece in ("<answer>\\boxed{", "<image_start>", "jigsaw puzzle", "color of the cart"):
        assert piece in corpus
    assert template_corpus() == template_corpus()
    for template in CLAUSES["follow"]:
        assert template in corpus
