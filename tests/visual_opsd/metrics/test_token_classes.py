"""Tokens know what they are for, however a tokenizer cuts the tags."""

import pytest

from visual_opsd.metrics.token_classes import TOKEN_CLASSES, token_classes


def named(texts):
    return [TOKEN_CLASSES[index] for index in token_classes(texts)]


def test_tags_of_one_token_each():
    texts = ["<think>", "Go", " down", "</think><answer>\\boxed{", "D", ",R", "}</answer>", ""]
    assert named(texts) == [
        "delimiter",
        "thought",
        "thought",
        "delimiter",
        "answer",
        "answer",
        "delimiter",
        "end",
    ]


def test_tags_of_several_tokens():
    texts = ["Yes", ".</", "think", ">", "<", "answer", "> A", " or", " B", "</", "answer>", ""]
    expected = ["thought", *["delimiter"] * 5, *["answer"] * 3, *["delimiter"] * 2, "end"]
    assert named(texts) == expected


def test_an_answer_that_the_budget_cut_is_an_answer():
    assert named(["<answer>", "D", ",", "R"]) == ["delimiter", *["answer"] * 3]


def test_a_brace_within_an_answer_is_part_of_it():
    assert named(["<answer>", "{", "1", "}", ",", "2", "}", "</answer>"])[3] == "answer"


@pytest.mark.parametrize("texts", [[], [""]])
def test_nothing_written(texts):
    assert named(texts) == ["end"] * len(texts)


def test_the_tiny_tokenizer_cuts_a_completion_into_all_classes(tokenizer):
    """Every token of the shipped format finds its class, and the answer is the moves alone."""
    text = "<think>The grid is 3 by 3.</think><answer>\\boxed{D,R}</answer>"
    ids = [*tokenizer.encode(text), tokenizer.marks.end]
    texts = [tokenizer.decode([i]) for i in ids]
    classes = named(texts)
    answer = "".join(t for t, name in zip(texts, classes, strict=True) if name == "answer")
    assert answer == "D,R"
    assert set(classes) == set(TOKEN_CLASSES)
