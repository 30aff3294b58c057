"""What gives an answer away is found, what does not is not, and copies are recognised."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from datamodules.frozen_lake import MazeSettings, generate_problem
from visual_opsd.benchmarks.maze_pictures import reduced_problem, to_pixels
from visual_opsd.benchmarks.mazes import Maze
from visual_opsd.benchmarks.vsp import maze_of
from visual_opsd.contexts import Image, Role
from visual_opsd.interventions import intervene
from visual_opsd.leaks import alone, hash_distances, is_read_off, overlap, perceptual_hash, probe


@pytest.fixture(scope="module")
def mazes():
    settings = MazeSettings(sizes=(4,))
    return [generate_problem(settings, "test", index) for index in range(12)]


def canonical(problem):
    return maze_of(problem).canonical_key


def test_a_true_visual_thought_gives_the_whole_answer_away(mazes):
    """The first release trains on such pictures: a program needs nothing else."""
    assert all(is_read_off(maze.visual_thoughts[0].pixels, maze_of(maze)) for maze in mazes)


@pytest.mark.parametrize("control", ["matched_noise", "blank", "problem_copy", "patch_shuffled"])
def test_a_control_gives_nothing_away(mazes, control):
    shown = [intervene(control, maze, None, seed=0) for maze in mazes]
    assert not any(is_read_off(alone(maze).image.pixels, maze_of(maze)) for maze in shown)


def test_alone_shows_the_thought_where_the_problem_was(mazes):
    shown = alone(mazes[0])
    assert torch.equal(shown.image.pixels, mazes[0].visual_thoughts[0].pixels)
    assert (shown.image.role, shown.visual_thoughts) == (Role.PROBLEM, ())
    with pytest.raises(ValueError, match=mazes[0].problem_id):
        alone(replace(mazes[0], visual_thoughts=()))


def test_a_probe_finds_what_is_linear_and_nothing_in_noise():
    generator = torch.Generator().manual_seed(0)
    pictures = list(torch.rand(60, 3, 32, 32, generator=generator))
    labels = ["ABC"[index] for index in torch.randint(3, (60,), generator=generator).tolist()]
    blind = probe(pictures, labels)
    for picture, label in zip(pictures, labels, strict=True):
        picture["ABC".index(label), :8, :8] += 1
    assert probe(pictures, labels).mean() > 0.95
    assert blind.mean() < 0.55  # chance is 1/3


def test_a_probe_is_never_fitted_on_what_it_is_asked():
    """Every picture has a mark of its own; a probe that had seen it would know its label."""
    pictures = list(torch.eye(20).reshape(20, 1, 4, 5).repeat_interleave(3, dim=1))
    labels = ["AB"[index % 2] for index in range(20)]
    assert probe(pictures, labels, num_folds=10).mean() <= 0.5


def test_a_probe_of_too_little_is_refused():
    with pytest.raises(ValueError, match="got 3 pictures and 3 labels"):
        probe([torch.zeros(3, 8, 8)] * 3, ["A", "B", "A"])


def test_a_hash_forgives_brightness_and_noise_and_tells_mazes_apart(mazes):
    pixels = mazes[0].image.pixels
    noisy = 0.8 * pixels + 0.1 + 0.02 * torch.randn(pixels.shape, generator=torch.manual_seed(0))
    assert (perceptual_hash(pixels) != perceptual_hash(noisy)).sum() <= 4
    distances = hash_distances(mazes, mazes)
    assert (np.diag(distances) == 0).all()
    assert np.median(distances[~np.eye(len(mazes), dtype=bool)]) > 8


def test_copies_turns_and_retouched_pictures_are_found(mazes):
    train = [replace(maze, problem_id=f"train_{maze.problem_id}") for maze in mazes[:3]]
    mirrored = Maze(maze_of(train[1]).rows[::-1])  # its sprites stay upright
    train[1] = replace(train[1], image=Image(to_pixels(reduced_problem(mirrored))))
    train[2] = replace(train[2], image=Image(train[2].image.pixels * 0.95))
    found = overlap(mazes, train, canonical, max_distance=2)
    ids = [maze.problem_id for maze in mazes]
    assert found.num_problems == 12
    assert found.same_pixels == (ids[0],)
    assert found.same_key == tuple(ids[:3])
    assert {ids[0], ids[2]} <= set(found.alike)
    nothing = overlap(mazes[3:6], mazes[6:9], canonical, max_distance=0)
    assert (nothing.same_pixels, nothing.same_key) == ((), ())
