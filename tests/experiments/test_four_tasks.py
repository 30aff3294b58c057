"""A base for all four tasks: trained, measured task by task, resumable."""

import json
from dataclasses import replace
from itertools import pairwise

import pandas as pd
import pytest
from rich.console import Console

from datamodules.frozen_lake import MazeSettings
from experiments import run_files
from experiments.four_tasks import (
    SCORED_AS,
    FourTasksConfig,
    counted,
    held_out,
    make_start,
    run,
    stages,
    with_means,
)
from experiments.train import train
from visual_opsd.models.bagel import checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:.*")
SMALL = FourTasksConfig(num_problems=4, num_drawn=2, num_trajectories=3, max_tokens=6)


@pytest.mark.parametrize("task", SCORED_AS)
def test_the_true_solutions_are_all_right_and_a_constant_answer_is_not_above_chance(task):
    problems, items = held_out(task, MazeSettings(), 24)
    true = counted(SCORED_AS[task], items, lambda: [problem.solution for problem in problems])
    assert (true["value"], true["n"], true["format_failures"]) == (1, 24, 0)
    assert true["is_above_chance"]
    best = f"<answer>{true['best_constant']['answer']}</answer>"
    constant = counted(SCORED_AS[task], items, lambda: [best] * 24)
    assert constant["value"] == constant["without_looking"] >= constant["chance"]
    assert not constant["is_above_chance"]


def test_the_gap_is_a_mean_over_tokens_of_a_category_and_of_all():
    found = {
        "short": {"gap_sums": [1.0, 3.0], "gap_lengths": [1, 1], "max_rescore_error": 1e-6},
        "long": {"gap_sums": [6.0], "gap_lengths": [8], "max_rescore_error": 1e-5},
    }
    gaps = with_means(found, seed=0)
    assert [gaps[name]["value"] for name in ("short", "long", "overall")] == [2, 0.75, 1]
    assert (gaps["overall"]["n"], gaps["overall"]["max_rescore_error"]) == (3, 1e-5)
    assert gaps["short"]["low"] <= 2 <= gaps["short"]["high"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two steps from the shipped base, grown, and twice two more from there."""
    folder = tmp_path_factory.mktemp("four")
    make_start(folder / "start", num_examples=16)
    small = ["data.num_problems=64", "data.batch_size=2", "data.num_workers=0"]
    small += ["trainer.max_steps=2", "held_out.num_problems=0"]
    of_base = [f"output_dir={folder}", f"model={folder / 'start'}", *small]
    arguments = [f"base.{key}" for key in of_base]
    arguments += [f"{name}.{key}" for name in ("search", "last") for key in small]
    trainings, rest = stages([*arguments, "seed=1"])
    assert rest == ["seed=1"]
    assert [one.name for one in trainings] == ["base", "search", "last"]
    for before, after in pairwise(trainings):
        assert after.model == str(before.folder / "model")
    for one in trainings:
        train(one)
    return trainings


def test_every_task_has_its_rows_and_what_is_measured_is_not_measured_again(trained):
    folder = run(trained, SMALL, Console(quiet=True))
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["accuracy"]) == set(SCORED_AS)
    assert set(summary["kl_gap"]) == {*SCORED_AS, "overall"}
    assert summary["steps"] == 6
    assert set(summary["commits"]) == {"base", "search", "last"}
    measured = trained[-1].folder / "measured"
    claimed = json.loads(measured.with_suffix(".json").read_text())
    assert claimed["model_digest"] == run_files.digest(trained[-1].folder / "model")
    assert all(gap["value"] > 0 for gap in summary["kl_gap"].values())
    assert summary["kl_gap"]["overall"]["max_rescore_error"] < 1e-4
    table = pd.read_csv(folder / "table.csv")
    assert len(table) == 4 * 3 + 5
    assert (table.low <= table.value).all()
    assert (table.value <= table.high).all()
    report = (folder / "report.md").read_text()
    assert all(task.replace("_", " ") in report for task in SCORED_AS)

    before = {path: path.stat().st_mtime_ns for path in measured.iterdir()}
    lost = measured / "Chart_Refocus-drawn.json"
    lost.unlink()  # as if it had been killed there
    run(trained, SMALL, Console(quiet=True))
    after = {path: path.stat().st_mtime_ns for path in measured.iterdir()}
    assert {path for path in before if before[path] != after[path]} == {lost}
    assert json.loads((folder / "summary.json").read_text()) == summary
    with pytest.raises(ValueError, match="num_problems: 4 -> 5"):
        run(trained, replace(SMALL, num_problems=5), Console(quiet=True))


def test_the_start_spells_mazes_as_the_shipped_base_does_and_jigsaws_in_a_token(trained):
    tokenizer = checkpoints.open_folder(trained[0].model).tokenizer
    shipped = checkpoints.open_folder("experiments/bases/tiny").tokenizer
    mazes, _ = held_out("Spatial_Navigation", MazeSettings(), 32)
    for problem in mazes:
        for text in (problem.question, problem.solution, *problem.text_thoughts):
            assert tokenizer.encode(text) == shipped.encode(text)
    jigsaws, _ = held_out("Jigsaw_Assembly", MazeSettings(), 4)
    assert {len(tokenizer.encode(problem.question)) for problem in jigsaws} == {1}
