import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.frozen_lake import MazeSettings, generate
from visual_opsd.benchmarks.maze_pictures import (
    draw_path,
    read_maze,
    read_path,
    reduce_picture,
    reduced_problem,
    reduced_visual_thought,
    render,
    to_pixels,
)
from visual_opsd.benchmarks.mazes import Maze


@pytest.fixture(scope="module")
def mazes():
    settings = MazeSettings(sizes=(3, 4, 5, 6, 7, 8))
    return [generate(settings, "test", index) for index in range(120)]


def test_a_picture_says_which_maze_it_shows(mazes):
    assert all(read_maze(render(maze)) == maze for maze in mazes)


def test_reduced_tiles_equal_the_reduced_picture(mazes):
    for maze in mazes:
        moves = maze.shortest_path()
        picture = render(maze)
        assert torch.equal(reduce_picture(picture), to_pixels(reduced_problem(maze)))
        drawn = reduce_picture(draw_path(picture, maze, moves))
        assert torch.equal(drawn, to_pixels(reduced_visual_thought(maze, moves)))
        assert drawn.shape == (3, 16 * maze.size, 16 * maze.size)
        assert drawn.min() >= -1
        assert drawn.max() <= 1


def test_crossing_and_returning_lines_are_drawn_alike_in_both_ways():
    maze = Maze(("SFF", "FFF", "FFG"))
    moves = tuple("RRDLLURRDD")
    drawn = reduce_picture(draw_path(render(maze), maze, moves))
    assert torch.equal(drawn, to_pixels(reduced_visual_thought(maze, moves)))


def test_the_path_can_be_read_from_every_visual_thought(mazes):
    for maze in mazes:
        moves = maze.shortest_path()
        assert read_path(to_pixels(reduced_visual_thought(maze, moves)), maze) == moves


def test_the_path_can_be_read_from_a_noisy_drawing(mazes):
    generator = torch.Generator().manual_seed(0)
    for maze in mazes:
        moves = maze.shortest_path()
        clean = to_pixels(reduced_visual_thought(maze, moves))
        noisy = clean + 0.3 * torch.randn(clean.shape, generator=generator)
        assert read_path(noisy.clamp(-1, 1), maze) == moves


def test_no_line_a_torn_line_and_a_forked_line_are_no_path():
    maze = Maze(("SFF", "FFF", "FFG"))
    bare = to_pixels(reduced_problem(maze))
    assert read_path(bare, maze) is None
    whole = to_pixels(reduced_visual_thought(maze, tuple("DDRR")))
    torn = whole.clone()
    torn[:, 32:, :16] = bare[:, 32:, :16]
    assert read_path(torn, maze) is None
    forked = torch.minimum(whole, to_pixels(reduced_visual_thought(maze, tuple("RRDD"))))
    assert read_path(forked, maze) is None


def test_a_wrong_path_is_read_as_it_is_drawn():
    maze = Maze(("SHG", "FFF", "FFF"))
    drawn = to_pixels(reduced_visual_thought(maze, ("R", "R")))
    assert read_path(drawn, maze) == ("R", "R")


def test_the_line_is_red_and_the_rest_is_untouched():
    maze = Maze(("SFF", "FFF", "FFG"))
    before, after = np.array(render(maze)), np.array(draw_path(render(maze), maze, ("R", "L")))
    changed = (before != after).any(axis=-1)
    assert (after[changed] == (255, 0, 0)).all()
    assert not changed[64:].any()
    assert changed[32, 32:96].all()


def test_pictures_of_other_sizes_are_refused_by_name():
    with pytest.raises(ValueError, match="multiples of 64 px; got 200x192 px"):
        reduce_picture(Image.new("RGB", (200, 192)))
    with pytest.raises(ValueError, match="192x192"):
        draw_path(Image.new("RGB", (64, 64)), Maze(("SFF", "FFF", "FFG")), ("R",))
    with pytest.raises(ValueError, match="leaves the board"):
        draw_path(render(Maze(("SF", "FG"))), Maze(("SF", "FG")), ("U",))
    with pytest.raises(ValueError, match="one S and one G"):
        read_maze(Image.new("RGB", (192, 192), "white"))
