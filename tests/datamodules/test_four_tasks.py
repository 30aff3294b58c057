"""Mazes and twins as one bank."""

from collections import Counter

import pytest

from datamodules.four_tasks import four_tasks
from datamodules.frozen_lake import MazeSettings
from datamodules.mazes import BatchPlan, ProblemLoader

BANK = four_tasks(MazeSettings(sizes=(3, 4)), "train", 8)


def test_a_pass_shows_every_problem_of_every_task_once_and_a_batch_is_of_one_task():
    batches = list(ProblemLoader(BANK, BatchPlan(batch_size=4), donors=None))
    for batch in batches:
        assert len({(problem.task, problem.image.pixels.shape) for problem in batch.problems}) == 1
        assert len({p.visual_thoughts[0].pixels.shape for p in batch.problems}) == 1
    shown = [problem for batch in batches for problem in batch.problems]
    assert set(Counter(problem.task for problem in shown).values()) == {8}
    assert len({problem.problem_id for problem in shown}) == len(BANK) == 32


def test_tasks_are_weighted_by_name():
    plan = BatchPlan(batch_size=4, weights={"Chart_Refocus": 2, "Jigsaw_Assembly": 0})
    tasks = Counter(
        problem.task
        for batch in ProblemLoader(BANK, plan, donors=None)
        for problem in batch.problems
    )
    assert tasks == {"Spatial_Navigation": 8, "Visual_Search": 8, "Chart_Refocus": 16}


def test_a_donor_is_another_problem_of_the_same_task_and_form():
    bank = four_tasks(MazeSettings(sizes=(3, 4)), "train", 16)
    for index in range(len(bank)):
        problem, donor = bank.problem(index), bank.donor(index, "same")
        assert donor.problem_id != problem.problem_id
        assert donor.task == problem.task
        assert donor.visual_thoughts[0].pixels.shape == problem.visual_thoughts[0].pixels.shape
        if problem.task != "Spatial_Navigation":  # <task>_<form>_64px_d0.5_train_r0_<index>
            assert donor.problem_id.split("_64px")[0] == problem.problem_id.split("_64px")[0]


def test_what_twins_cannot_lend_is_said():
    with pytest.raises(ValueError, match="donors=wrong"):
        BANK.donor(8, "wrong")
    with pytest.raises(ValueError, match="the only one of its form"):
        four_tasks(MazeSettings(), "train", 4).donor(4)
