"""Self-training sees a model's own answers and nothing of the gold ones."""

from pathlib import Path

import pytest

from datamodules.frozen_lake import MazeSettings
from datamodules.mazes import BatchPlan, ProblemLoader
from datamodules.own_answers import OwnAnswers
from datamodules.sources import GeneratedMazes
from visual_opsd.rollouts.own_answers import OwnAnswer

BANK = GeneratedMazes(MazeSettings(sizes=(3, 4)), "train", 12)
PATH = Path("answers.jsonl")


def answers(failed=()):
    return [
        OwnAnswer(
            index=index,
            problem_id=BANK.problem(index).problem_id,
            thought=f"thought {index}",
            answer=None if index in failed else r"\boxed{U,U}",
        )
        for index in reversed(range(12))  # batches of a size are answered one after another
    ]


def test_the_target_is_the_models_own_and_nothing_gold_is_left():
    for problem in (p for batch in _batches(answers()) for p in batch.problems):
        number = problem.problem_id.rpartition("_")[2]
        assert problem.solution == (
            rf"<think>thought {number}</think><answer>\boxed{{U,U}}</answer>"
        )
        assert problem.text_thoughts == problem.visual_thoughts == problem.hints == ()


def test_what_is_out_of_form_is_left_out_and_counted():
    bank = OwnAnswers(BANK, answers(failed=(2, 5)), PATH)
    assert bank.num_left_out == 2
    names = {p.problem_id for batch in _batches(answers(failed=(2, 5))) for p in batch.problems}
    assert names == {BANK.problem(i).problem_id for i in range(12) if i not in (2, 5)}


def test_answers_that_do_not_belong_are_refused():
    with pytest.raises(ValueError, match=r"answers\.jsonl has own answers to 11 of 12 problems"):
        OwnAnswers(BANK, answers()[1:], PATH)
    with pytest.raises(ValueError, match="not one of 12 own answers is in form"):
        OwnAnswers(BANK, answers(failed=range(12)), PATH)
    other = GeneratedMazes(MazeSettings(sizes=(3, 4), seed=1), "train", 12)
    with pytest.raises(ValueError, match=r"answers frozenlake_train_r0_.* where the data has"):
        OwnAnswers(other, answers(), PATH).problem(0)


def _batches(own):
    return ProblemLoader(OwnAnswers(BANK, own, PATH), BatchPlan(batch_size=1))
