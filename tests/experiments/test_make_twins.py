import json

import pytest

from datamodules import benchmark_files
from datamodules.mazes import MazeData
from experiments.make_twins import main
from visual_opsd.benchmarks.nine import NINE


def test_one_command_makes_all_four_tasks_to_train_and_to_test_on(tmp_path, capsys):
    main(["--to", str(tmp_path), "--num", "10", "--pixels", "32", "--difficulty", "0.2"])
    assert capsys.readouterr().out.endswith(f"{tmp_path}/leaks.json\n")
    tasks = {"Spatial_Navigation", "Visual_Search", "Jigsaw_Assembly", "Chart_Refocus"}
    held_out = tmp_path / "test"  # in files that no benchmark read, before
    assert [benchmark.name for benchmark in benchmark_files.find(held_out)] == list(NINE)
    table = benchmark_files.read(held_out, NINE["VisPuzzle"])
    assert len(table.items) == 10
    assert not table.left_out
    leaks = json.loads((tmp_path / "leaks.json").read_text())
    assert set(leaks) == tasks
    assert all(found["canonical_overlap"] == {"train/test": 0} for found in leaks.values())
    data = MazeData.thinkmorph(tmp_path / "train", batch_size=1)
    problems = [problem for batch in data.train_dataloader() for problem in batch.problems]
    assert len(problems) == 40
    assert {problem.task for problem in problems} == tasks


def test_nonsense_is_an_error_that_names_it(tmp_path):
    with pytest.raises(SystemExit, match="difficulty: expected 0 to 1; got 3"):
        main(["--to", str(tmp_path), "--num", "1", "--difficulty", "3"])
