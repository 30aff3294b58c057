import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from datamodules.frozen_lake import (
    MazeSettings,
    donor_index,
    generate,
    generate_problem,
    overlap_report,
    size_of,
    split_of,
    vsp_keys,
)
from datamodules.splits import SPLITS
from visual_opsd.benchmarks.maze_pictures import read_maze_pixels, read_path
from visual_opsd.benchmarks.mazes import Maze

SETTINGS = MazeSettings()


def test_a_maze_depends_on_seed_split_and_index_alone():
    backwards = {index: generate(SETTINGS, "train", index) for index in reversed(range(20))}
    assert [backwards[index] for index in range(20)] == [
        generate(SETTINGS, "train", index) for index in range(20)
    ]
    other = [generate(replace(SETTINGS, seed=1), "train", index) for index in range(20)]
    assert other != [backwards[index] for index in range(20)]


def test_another_process_generates_the_same_mazes():
    code = (
        "from datamodules.frozen_lake import MazeSettings, generate;"
        "print([generate(MazeSettings(), 'train', i).rows for i in range(8)])"
    )
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=_root())
    assert out.stdout.strip() == str([generate(SETTINGS, "train", i).rows for i in range(8)])


def test_no_maze_nor_its_mirror_image_is_in_two_splits_or_in_training_and_vsp():
    report = overlap_report(SETTINGS, {"train": 1500, "validation": 300, "test": 300, "hard": 60})
    leaks = {name: count for name, count in report["canonical_overlap"].items() if count}
    assert set(leaks) <= {"test/hard"}, "hard is a part of test"
    assert report["splits"]["train"]["overlap_with_vsp"] == 0
    assert report["splits"]["validation"]["overlap_with_vsp"] == 0
    assert report["splits"]["hard"]["vertical_then_horizontal_accuracy"] == 0
    assert report["splits"]["train"]["best_constant_accuracy"] < 0.08


@pytest.mark.parametrize("split", SPLITS)
def test_every_maze_is_solvable_and_belongs_to_its_split(split):
    for index in range(40):
        maze = generate(SETTINGS, split, index)
        assert maze.walk(maze.shortest_path())
        assert maze.size == size_of(SETTINGS, index)
        assert split_of(maze) == ("test" if split == "hard" else split)
        assert split != "hard" or maze.detour >= 2
        assert split in {"test", "hard"} or maze.canonical_key not in vsp_keys()


def test_shortest_lengths_are_balanced():
    """Chi-squared against the uniform target for size 4: lengths 1 to 6 in a sixth each."""
    settings = replace(SETTINGS, sizes=(4,))
    lengths = [generate(settings, "train", index).shortest_length for index in range(1200)]
    counts = np.bincount(lengths, minlength=7)[1:]
    assert len(counts) == 6
    assert ((counts - 200) ** 2 / 200).sum() < 20.5  # 0.1 % point of 5 degrees of freedom


def test_settings_decide_size_holes_and_detours():
    settings = MazeSettings(sizes=(5,), hole_probability=0.35, min_detour=2)
    mazes = [generate(settings, "train", index) for index in range(30)]
    assert all(maze.size == 5 and maze.detour >= 2 for maze in mazes)
    unbalanced = MazeSettings(sizes=(3,), balance_lengths=False)
    lengths = [generate(unbalanced, "train", index).shortest_length for index in range(300)]
    assert 0.2 < lengths.count(1) / 300 < 0.45


def test_a_problem_is_in_the_format_of_thinkmorph():
    for index in range(12):
        problem = generate_problem(SETTINGS, "train", index)
        maze = generate(SETTINGS, "train", index)
        moves = maze.shortest_path()
        assert problem.tagged_answer == rf"<answer>\boxed{{{','.join(moves)}}}</answer>"
        assert problem.question.startswith("You are a maze solver.")
        assert r"wrapped in \boxed{{}}, such as \boxed{L,R,U,D}." in problem.question
        assert (problem.task, problem.category) == ("Spatial_Navigation", f"size_{maze.size}")
        assert problem.image.pixels.shape == (3, 16 * maze.size, 16 * maze.size)
        assert read_maze_pixels(problem.image.pixels) == maze
        (drawn,) = problem.visual_thoughts
        assert drawn.role == "visual_thought"
        assert read_path(drawn.pixels, maze) == moves
        assert len(problem.text_thoughts) == 2
        again = generate_problem(SETTINGS, "train", index)
        assert again.text_thoughts == problem.text_thoughts
        assert torch.equal(again.image.pixels, problem.image.pixels)


def test_a_donor_is_another_maze_of_the_same_size():
    for index in range(40):
        donor = donor_index(SETTINGS, "train", index, num_problems=100)
        assert donor < 100
        assert donor == donor_index(SETTINGS, "train", index, num_problems=100)
        assert size_of(SETTINGS, donor) == size_of(SETTINGS, index)
        assert generate(SETTINGS, "train", donor) != generate(SETTINGS, "train", index)
    with pytest.raises(ValueError, match="at least 8"):
        donor_index(SETTINGS, "train", 0, num_problems=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": ()}, "sizes"),
        ({"sizes": (1, 3)}, r"\(1, 3\)"),
        ({"hole_probability": 1.0}, "1.0"),
        ({"min_detour": -1}, "min_detour"),
    ],
)
def test_settings_refuse_nonsense_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        MazeSettings(**change)


def test_impossible_mazes_and_unknown_splits_say_so(monkeypatch):
    monkeypatch.setattr("datamodules.frozen_lake._TRIES_FOR_ANY", 50)
    with pytest.raises(ValueError, match="no maze of size 3"):
        generate(MazeSettings(sizes=(3,), min_detour=8), "train", 0)
    with pytest.raises(ValueError, match="index"):
        generate(SETTINGS, "train", -1)


def test_a_walk_along_the_canonical_path_never_jumps():
    maze = Maze(("SFF", "HHF", "GFF"))
    steps = pairwise(maze.cells(maze.shortest_path()))
    assert all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in steps)
    assert maze.detour == 4


def _root():
    from pathlib import Path

    return Path(__file__).parents[2]
