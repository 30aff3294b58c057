"""Every problem answered, walked by the strict rule, and kept."""

from dataclasses import replace

import pytest

from experiments import evaluation
from experiments.evaluation import (
    Prediction,
    accuracy,
    by_category,
    evaluate,
    load_predictions,
    save_predictions,
    three_ways,
)
from visual_opsd.models.interface import Drawing, Sampling
from visual_opsd.rollouts.answering import Answer

SAMPLING = Sampling(temperature=0, max_tokens=6)
DRAWING = Drawing(num_timesteps=2, text_guidance=1.0)


def prediction(index=0, **changes):
    settings = {
        "problem_id": f"p{index}",
        "category": "size_3",
        "way": "text_only",
        "text": "<answer>R</answer>",
        "is_solved": True,
        "is_solved_gymnasium": True,
        "is_optimal": True,
        "has_format_failure": False,
        "is_cut": False,
        "has_skipped_drawing": False,
        "has_exact_drawing": None,
        "num_tokens": 3,
        "seconds": 0.5,
    }
    return Prediction(**{**settings, **changes})


def test_predictions_come_in_the_order_of_the_problems(base, tokenizer, problems):
    for way in ("text_only", "privileged", "drawn"):
        found = evaluate(
            base, tokenizer, problems, way, sampling=SAMPLING, drawing=DRAWING, batch_size=3
        )
        assert [p.problem_id for p in found] == [p.problem_id for p in problems]
        assert {p.way for p in found} == {way}
        # An untrained model asks for no drawing: counted as skipped, and never as exact.
        assert all(p.has_exact_drawing is (None if way != "drawn" else False) for p in found)


def test_the_size_of_a_batch_changes_no_answer(base, tokenizer, problems):
    one, other = (
        evaluate(base, tokenizer, problems, "text_only", sampling=SAMPLING, batch_size=size)
        for size in (2, 8)
    )
    assert [p.text for p in one] == [p.text for p in other]


def test_the_drawn_way_is_asked_of_the_first_few(base, tokenizer, problems):
    found = three_ways(base, tokenizer, problems, 3, sampling=SAMPLING, drawing=DRAWING)
    assert {way: len(rows) for way, rows in found.items()} == {
        "privileged": 8,
        "text_only": 8,
        "drawn": 3,
    }


def test_accuracy_counts_what_is_solved_by_size():
    rows = [
        prediction(0),
        prediction(1, is_solved=False),
        prediction(2, category="size_4"),
        prediction(3, category="size_4"),
    ]
    assert accuracy(rows).value == pytest.approx(0.75)
    assert {size: found.value for size, found in by_category(rows).items()} == {
        "size_3": 0.5,
        "size_4": 1.0,
    }
    assert accuracy(rows).low < 0.75 < accuracy(rows).high


def test_predictions_are_read_back_as_they_were(tmp_path):
    rows = [prediction(0, text="naïve\n☃"), prediction(1, has_exact_drawing=True)]
    path = tmp_path / "deep" / "predictions.jsonl"
    save_predictions(path, rows)
    assert load_predictions(path) == rows
    assert [p.name for p in path.parent.iterdir()] == ["predictions.jsonl"]


def test_answers_can_be_looked_at_batch_by_batch(base, tokenizer, problems):
    seen = []
    evaluate(
        base,
        tokenizer,
        problems,
        "text_only",
        sampling=SAMPLING,
        batch_size=3,
        on_answers=lambda chosen, answers: seen.append((len(chosen), len(answers))),
    )
    assert seen == [(3, 3), (1, 1), (3, 3), (1, 1)]


def test_headlines_are_greedy():
    assert evaluation.GREEDY.temperature == 0


def test_the_gold_answer_and_the_true_drawing_are_found_right(problems):
    """Read from the pictures alone: the maze, the path, and whether one solves the other."""
    for problem, donor in zip(problems, problems[2:] + problems[:2], strict=True):
        gold = Answer(
            problem_id=problem.problem_id,
            text=f"<think>So.</think>{problem.tagged_answer}",
            num_tokens=9,
            seconds=0.1,
            is_cut=False,
            drawn=problem.visual_thoughts[0],
        )
        found = evaluation.score_answer(problem, gold, "drawn")
        assert found.is_solved
        assert found.is_optimal
        assert not found.has_format_failure
        assert found.has_exact_drawing
        wrong = replace(gold, text="I give up", drawn=donor.visual_thoughts[0])
        found = evaluation.score_answer(problem, wrong, "drawn")
        assert not found.is_solved
        assert found.has_format_failure
        assert not found.has_exact_drawing
