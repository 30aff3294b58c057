import networkx as nx
import numpy as np
import pytest

from datamodules.frozen_lake import MazeSettings, generate
from visual_opsd.benchmarks.mazes import (
    DIRECTIONS,
    Maze,
    best_constant,
    distances,
    vertical_then_horizontal,
    wrong_path,
)

# S F H
# F F F      the shortest paths are D,R,R,D and R,D,R,D and D,R,... through the middle
# H F G
SMALL = Maze(("SFH", "FFF", "HFG"))


@pytest.fixture(scope="module")
def mazes():
    settings = MazeSettings(sizes=(3, 4, 5, 6, 7, 8))
    return [generate(settings, "test", index) for index in range(300)]


def test_ties_between_shortest_paths_are_settled_in_the_order_down_right_up_left():
    assert SMALL.shortest_path() == ("D", "R", "D", "R")
    assert SMALL.is_shortest(("R", "D", "R", "D"))
    assert not SMALL.is_shortest(("D", "U", "D", "R", "D", "R"))


def test_shortest_lengths_agree_with_networkx(mazes):
    for maze in mazes:
        graph = nx.grid_2d_graph(maze.size, maze.size)
        graph.remove_nodes_from(maze.holes)
        assert maze.shortest_length == nx.shortest_path_length(graph, maze.start, maze.goal)
        assert maze.walk(maze.shortest_path())
        assert distances(maze.rows, maze.start)[maze.goal] == maze.shortest_length


def test_the_strict_rule_forgives_nothing():
    assert SMALL.walk(("D", "R", "R", "D"))
    assert not SMALL.walk(("L", "D", "R", "R", "D")), "left the board"
    assert not SMALL.walk(("D", "D", "R", "R")), "fell into a hole"
    assert not SMALL.walk(("D", "R", "R", "D", "U")), "did not stay at the goal"
    assert SMALL.walk(("D", "R", "R", "D", "U", "D")), "came back to the goal"
    assert not SMALL.walk(())


def test_random_walks_agree_with_gymnasium(mazes):
    """10,000 walks; the two rules differ where a walk bumps into the edge or passes the goal."""
    from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

    rng = np.random.default_rng(0)
    letters = {"L": 0, "D": 1, "R": 2, "U": 3}
    num_walks = num_solved = 0
    for maze in mazes[:100]:
        env = FrozenLakeEnv(desc=list(maze.rows), is_slippery=False)
        for _ in range(100):
            moves = tuple(rng.choice(list(DIRECTIONS), size=rng.integers(1, 9)).tolist())
            env.reset()
            reward, is_over = 0, False
            for move in moves:
                if not is_over:
                    _, reward, is_over, _, _ = env.step(letters[move])
            assert maze.walk_as_gymnasium(moves) == (reward == 1)
            cells = maze.cells(moves)
            bumps = any(not (min(cell) >= 0 and max(cell) < maze.size) for cell in cells)
            passes = maze.goal in cells[:-1]
            if not bumps and not passes:
                assert maze.walk(moves) == (reward == 1)
            num_walks += 1
            num_solved += reward == 1
    assert num_walks == 10_000
    assert num_solved > 300


def test_rotations_and_mirror_images_share_a_key(mazes):
    for maze in mazes[:50]:
        turned = Maze(tuple("".join(column) for column in zip(*maze.rows[::-1], strict=True)))
        mirrored = Maze(tuple(row[::-1] for row in maze.rows))
        assert maze.canonical_key == turned.canonical_key == mirrored.canonical_key


def test_the_canonical_form_is_the_example_of_its_specification():
    assert Maze(("FFH", "FSF", "GFF")).canonical_form == "FFG/FSF/HFF"


def test_guessing_without_looking_at_holes_fails_on_hard_mazes_only():
    hard = [generate(MazeSettings(), "hard", index) for index in range(40)]
    assert not any(maze.walk(vertical_then_horizontal(maze)) for maze in hard)
    open_lake = Maze(("SFF", "FFF", "FFG"))
    assert open_lake.walk(vertical_then_horizontal(open_lake))


def test_the_best_constant_answer_is_counted(mazes):
    moves, fraction = best_constant(mazes)
    assert fraction == sum(maze.walk(moves) for maze in mazes) / len(mazes)
    assert fraction < 0.1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("SG", "F"), "as many columns as rows"),
        (("SF", "FF"), "exactly one S and one G"),
        (("SG", "GF"), "exactly one S and one G"),
        (("SG", "XF"), "letters SGHF"),
    ],
)
def test_what_is_no_maze_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        Maze(rows)


def test_what_cannot_be_solved_or_walked_says_so():
    with pytest.raises(ValueError, match="no path"):
        Maze(("SHF", "HFF", "FFG")).shortest_path()
    with pytest.raises(ValueError, match="got 'X'"):
        SMALL.walk(("X",))


def test_a_wrong_path_ends_elsewhere_and_is_mostly_as_long_as_the_right_one(mazes):
    """What a careless reader would believe; no rule lets it pass."""
    misses = []
    for maze in mazes:
        moves = wrong_path(maze)
        *walked, end = maze.cells(moves)
        assert moves
        assert maze.goal not in (*walked, end)
        assert not maze.walk(moves)
        assert not maze.walk_as_gymnasium(moves)
        assert moves == wrong_path(Maze(maze.rows))
        misses.append(abs(len(moves) - maze.shortest_length))
    assert np.mean(np.array(misses) == 0) > 0.7
    assert np.mean(np.array(misses) <= 1) > 0.9


def test_where_only_the_goal_is_open_the_wrong_path_ends_in_a_hole():
    assert wrong_path(Maze(("SG", "HF"))) == ("D",)
    assert wrong_path(Maze(("SHF", "GFF", "FFF"))) == ("R",)
