"""A frozen lake as rows of letters: where it starts, what solves it, what it is worth guessing."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from visual_opsd.seeds import row_seed

Cell = tuple[int, int]
"""Row and column, counted from zero at the top left."""
Moves = tuple[str, ...]
"""Letters of ``DIRECTIONS``, one a move."""

# The order settles ties between shortest paths, so that equal mazes get equal answers.
DIRECTIONS: dict[str, Cell] = {"D": (1, 0), "R": (0, 1), "U": (-1, 0), "L": (0, -1)}
CELL_LETTERS = "SGHF"
NAVIGATION_TASK = "Spatial_Navigation"
# Byte for byte the question of ThinkMorph's 6,000 mazes, the doubled braces included.
NAVIGATION_QUESTION = (
    "You are a maze solver. Your goal is to guide a player from the start to the goal on a grid "
    "map while avoiding holes. The player can move one square at a time in the directions left "
    "(L), right (R), up (U), or down (D). The frozen lake is not slippery; the player will always "
    "move in the intended direction. Moving off the edge or falling into a hole results in "
    "failure. Reaching the goal means success.\nProvide your solution as a sequence of moves "
    "wrapped in \\boxed{{}}, such as \\boxed{L,R,U,D}. The moves should be comma-separated."
)
NAVIGATION_ANSWER_TEMPLATE = r"\boxed{{{answer}}}"


@dataclass(frozen=True, slots=True)
class Maze:
    """A square frozen lake with one start, one goal and holes to avoid."""

    rows: tuple[str, ...]
    """One string a row: S start, G goal, H hole, F frozen."""

    def __post_init__(self) -> None:
        size = len(self.rows)
        if size < 2 or any(len(row) != size for row in self.rows):
            raise ValueError(f"a maze has as many columns as rows, at least 2; got {self.rows}")
        letters = "".join(self.rows)
        if letters.count("S") != 1 or letters.count("G") != 1:
            raise ValueError(f"a maze has exactly one S and one G; got {self.rows}")
        if letters.strip(CELL_LETTERS) or set(letters) - set(CELL_LETTERS):
            raise ValueError(f"a maze is written in the letters {CELL_LETTERS}; got {self.rows}")

    @property
    def size(self) -> int:
        """Cells a side."""
        return len(self.rows)

    @property
    def start(self) -> Cell:
        """Where the player stands."""
        return self._find("S")

    @property
    def goal(self) -> Cell:
        """Where the gift lies."""
        return self._find("G")

    @property
    def holes(self) -> tuple[Cell, ...]:
        """Cells that end the walk, row by row."""
        return tuple(
            (row, column)
            for row, letters in enumerate(self.rows)
            for column, letter in enumerate(letters)
            if letter == "H"
        )

    @property
    def canonical_form(self) -> str:
        """The smallest of the eight rotations and mirror images, rows joined by a slash."""
        forms = []
        rows = self.rows
        for _ in range(4):
            forms += ["/".join(rows), "/".join(row[::-1] for row in rows)]
            rows = tuple("".join(column) for column in zip(*rows[::-1], strict=True))
        return min(forms)

    @property
    def canonical_key(self) -> str:
        """The first 16 hex digits of SHA-256 over the canonical form."""
        return hashlib.sha256(self.canonical_form.encode()).hexdigest()[:16]

    def shortest_path(self) -> Moves:
        """The canonical shortest path: breadth first, ties settled in the order D, R, U, L.

        Raises:
            ValueError: The goal cannot be reached.
        """
        return _shortest_path(self.rows)

    @property
    def shortest_length(self) -> int:
        """Moves of a shortest path."""
        return len(self.shortest_path())

    @property
    def detour(self) -> int:
        """Moves beyond the Manhattan distance that holes force upon a shortest path."""
        (row, column), (goal_row, goal_column) = self.start, self.goal
        return self.shortest_length - abs(goal_row - row) - abs(goal_column - column)

    def cells(self, moves: Sequence[str]) -> tuple[Cell, ...]:
        """Every cell that the moves visit, the start first, whether or not it is on the board."""
        row, column = self.start
        visited = [(row, column)]
        for move in moves:
            step_row, step_column = _direction(move)
            row, column = row + step_row, column + step_column
            visited.append((row, column))
        return tuple(visited)

    def walk(self, moves: Sequence[str]) -> bool:
        """The strict rule: leaving the board or entering a hole fails, the last cell is the goal.

        Moves beyond the goal are walked too: passing through it is no success.
        """
        visited = self.cells(moves)
        return visited[-1] == self.goal and all(self._is_safe(cell) for cell in visited)

    def walk_as_gymnasium(self, moves: Sequence[str]) -> bool:
        """The rule of FrozenLake-v1: off the board is no move, the goal ends the walk."""
        row, column = self.start
        for move in moves:
            step_row, step_column = _direction(move)
            row = min(max(row + step_row, 0), self.size - 1)
            column = min(max(column + step_column, 0), self.size - 1)
            letter = self.rows[row][column]
            if letter in "GH":
                return letter == "G"
        return False

    def is_shortest(self, moves: Sequence[str]) -> bool:
        """Whether the moves are one of the shortest paths, canonical or not."""
        return self.walk(moves) and len(moves) == self.shortest_length

    def _find(self, letter: str) -> Cell:
        index = "".join(self.rows).index(letter)
        return divmod(index, self.size)

    def _is_safe(self, cell: Cell) -> bool:
        row, column = cell
        on_board = 0 <= row < self.size and 0 <= column < self.size
        return on_board and self.rows[row][column] != "H"


def vertical_then_horizontal(maze: Maze) -> Moves:
    """The baseline that sees start and goal but no hole; it solves two thirds of VSP."""
    (row, column), (goal_row, goal_column) = maze.start, maze.goal
    vertical = ("D" if goal_row > row else "U",) * abs(goal_row - row)
    horizontal = ("R" if goal_column > column else "L",) * abs(goal_column - column)
    return vertical + horizontal


def wrong_path(maze: Maze) -> Moves:
    """A plausible mistake: the shortest path to another cell, about as long as the right one.

    It never meets the goal, and is the same for equal mazes. Where the start has no way but to the
    goal, it leads into a hole.
    """
    closed = [row.replace("G", "H") for row in maze.rows]
    reached = distances(closed, maze.start)
    if len(reached) == 1:
        reached = distances([row.replace("H", "F") for row in maze.rows], maze.start)
    misses = {
        cell: abs(steps - maze.shortest_length)
        for cell, steps in reached.items()
        if cell not in (maze.start, maze.goal)
    }
    nearest = [cell for cell, miss in misses.items() if miss == min(misses.values())]
    row, column = nearest[row_seed("wrong path", *maze.rows) % len(nearest)]
    closed[row] = closed[row][:column] + "G" + closed[row][column + 1 :]
    return _shortest_path(tuple(closed))


def best_constant(mazes: Sequence[Maze], num_candidates: int = 50) -> tuple[Moves, float]:
    """The answer that solves most mazes without a look at them, and the fraction it solves.

    Args:
        mazes: What is to be solved.
        num_candidates: How many of the most frequent canonical answers are tried.
    """
    if not mazes:
        raise ValueError("best_constant needs at least one maze; got none")
    frequent = Counter(maze.shortest_path() for maze in mazes).most_common(num_candidates)
    scores = {moves: sum(maze.walk(moves) for maze in mazes) for moves, _ in frequent}
    best = max(scores, key=lambda moves: scores[moves])
    return best, scores[best] / len(mazes)


def distances(rows: Sequence[str], start: Cell) -> dict[Cell, int]:
    """Moves from ``start`` to every cell that can be reached without a hole."""
    size = len(rows)
    reached = {start: 0}
    queue = [start]
    for row, column in queue:  # grows while it is read
        step = reached[row, column] + 1
        for step_row, step_column in DIRECTIONS.values():
            cell = (row + step_row, column + step_column)
            if cell in reached or not (0 <= cell[0] < size and 0 <= cell[1] < size):
                continue
            if rows[cell[0]][cell[1]] != "H":
                reached[cell] = step
                queue.append(cell)
    return reached


@lru_cache(maxsize=65536)
def _shortest_path(rows: tuple[str, ...]) -> Moves:
    maze = Maze(rows)
    size, start, goal = maze.size, maze.start, maze.goal
    came_by: dict[Cell, str] = {start: ""}
    queue = [start]
    for row, column in queue:  # grows while it is read
        if (row, column) == goal:
            break
        for letter, (step_row, step_column) in DIRECTIONS.items():
            cell = (row + step_row, column + step_column)
            if cell in came_by or not (0 <= cell[0] < size and 0 <= cell[1] < size):
                continue
            if rows[cell[0]][cell[1]] != "H":
                came_by[cell] = letter
                queue.append(cell)
    if goal not in came_by:
        raise ValueError(f"no path leads from S to G in {rows}")
    moves: list[str] = []
    cell = goal
    while cell != start:
        letter = came_by[cell]
        moves.append(letter)
        step_row, step_column = DIRECTIONS[letter]
        cell = (cell[0] - step_row, cell[1] - step_column)
    return tuple(reversed(moves))


def _direction(move: str) -> Cell:
    if move not in DIRECTIONS:
        raise ValueError(f"a move is one of {', '.join(DIRECTIONS)}; got {move!r}")
    return DIRECTIONS[move]
