"""What a maze looks like, and what a picture of a maze says.

Every picture is put together from square tiles, one a cell, whose looks depend on nothing outside
the cell. So a picture drawn at 64 px a cell and then reduced equals the reduced tiles side by side,
to the byte, and training pictures are made from the second at a hundredth of the price.
"""

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw
from torch import Tensor

from visual_opsd.benchmarks.mazes import CELL_LETTERS, DIRECTIONS, Cell, Maze, Moves

RENDERED_CELL = 64
"""Pixels a cell in VSP, in ThinkMorph's data and in every picture written to disk."""
REDUCED_CELL = 16
"""Pixels a cell in training: one patch of the tiny preset. Below it the sprites are illegible."""
RED = (255, 0, 0)
BORDER = (180, 200, 230)

_SPRITES = {"S": "elf_down.png", "G": "goal.png", "H": "hole.png", "F": "ice.png"}
_OPPOSITE = {"D": "U", "U": "D", "L": "R", "R": "L"}
# A trace is a pair: the side of the cell that the line touches, and whether it comes in there.
_Trace = tuple[str, bool]
_Pixels8 = NDArray[np.uint8]


def render(maze: Maze, cell: int = RENDERED_CELL) -> PILImage.Image:
    """The maze as VSP shows it: ice, holes, gift and elf, without gymnasium's stool."""
    return PILImage.fromarray(_assemble(maze, {}, cell, cell))


def draw_path(
    picture: PILImage.Image, maze: Maze, moves: Sequence[str], cell: int = RENDERED_CELL
) -> PILImage.Image:
    """The picture with a red line through the centres of the cells and an arrow head a move.

    The line is an eighth of a cell wide, so that at 16 px it covers two pixels in full; half as
    wide, it would leave two half-red ones.

    Raises:
        ValueError: The picture has another size than the maze, or a move leaves the board.
    """
    side = maze.size * cell
    if picture.size != (side, side):
        raise ValueError(f"expected a picture of {side}x{side} px; got {picture.size}")
    pixels = np.array(picture.convert("RGB"))
    for (row, column), traces in _traces(maze, moves).items():
        tile = pixels[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
        tile[_line_mask(traces, cell)] = RED
    return PILImage.fromarray(pixels)


def reduce_picture(
    picture: PILImage.Image, cell_from: int = RENDERED_CELL, cell_to: int = REDUCED_CELL
) -> Float[Tensor, "3 height width"]:
    """The picture at ``cell_to`` px a cell (box filter), as RGB in [-1, 1].

    The one way from a picture to a model, be it generated, of a parquet file or of VSP.

    Raises:
        ValueError: The picture is no whole number of cells.
    """
    return to_pixels(_reduce(picture, cell_from, cell_to))


def reduced_problem(maze: Maze) -> _Pixels8:
    """``reduce_picture(render(maze))`` as bytes [height, width, 3], from cached tiles."""
    return _assemble(maze, {}, RENDERED_CELL, REDUCED_CELL)


def reduced_visual_thought(maze: Maze, moves: Sequence[str]) -> _Pixels8:
    """``reduce_picture(draw_path(render(maze), maze, moves))`` as bytes, from cached tiles."""
    return _assemble(maze, _traces(maze, moves), RENDERED_CELL, REDUCED_CELL)


def to_pixels(array: _Pixels8) -> Float[Tensor, "3 height width"]:
    """Bytes [height, width, 3] as values in [-1, 1]."""
    channels_first = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
    return channels_first.float().div_(127.5).sub_(1.0)


def read_maze(picture: PILImage.Image, cell: int = RENDERED_CELL) -> Maze:
    """The maze that a picture shows: for every cell the sprite that is nearest.

    Raises:
        ValueError: The picture is no whole number of cells, not square, or without one elf and one
            gift.
    """
    return read_maze_pixels(reduce_picture(picture, cell_from=cell))


def read_maze_pixels(pixels: Float[Tensor, "3 height width"], num_cells: int | None = None) -> Maze:
    """The maze that pixels show: at 16 px a cell, or ``num_cells`` a side; see ``read_maze``."""
    height, width = pixels.shape[1:]
    if num_cells is not None and height == width:
        pixels = _at_reduced(pixels, num_cells)
        height = width = num_cells * REDUCED_CELL
    if height != width or height % REDUCED_CELL:
        raise ValueError(
            f"expected a square picture of {REDUCED_CELL} px a cell; got {width}x{height} px"
        )
    size = height // REDUCED_CELL
    cells = pixels.cpu().float().numpy().reshape(3, size, REDUCED_CELL, size, REDUCED_CELL)
    differences = [np.abs(cells - sprite[:, None, :, None, :]) for sprite in _reduced_sprites()]
    nearest = np.argmin([difference.mean(axis=(0, 2, 4)) for difference in differences], axis=0)
    return Maze(tuple("".join(CELL_LETTERS[index] for index in row) for row in nearest.tolist()))


def read_path(pixels: Float[Tensor, "3 height width"], maze: Maze) -> Moves | None:
    """The moves that a red line shows, or None where it is no simple chain from S to G.

    Looks at every border between two cells: the line crosses it when both sides are redder, by
    nearly half of what a full line would add, than the maze without a line. Good for pictures that
    a model drew, which are never clean. A square larger than 16 px a cell is reduced first.
    """
    side = maze.size * REDUCED_CELL
    if pixels.shape[1] == pixels.shape[2] > side:
        pixels = _at_reduced(pixels, maze.size)
    if tuple(pixels.shape[1:]) != (side, side):
        shape = tuple(pixels.shape)
        raise ValueError(f"expected pixels [3, {side}, {side}] for this maze; got {shape}")
    bare = _redness(to_pixels(reduced_problem(maze)))
    red = ((_redness(pixels.cpu().float()) - bare) / (2.0 - bare)).numpy()
    neighbours: dict[Cell, list[tuple[str, Cell]]] = {}
    num_crossings = 0
    for row in range(maze.size):
        for column in range(maze.size):
            for letter in "DR":
                step_row, step_column = DIRECTIONS[letter]
                cell, other = (row, column), (row + step_row, column + step_column)
                if max(other) < maze.size and _is_crossed(red, cell, letter):
                    num_crossings += 1
                    neighbours.setdefault(cell, []).append((letter, other))
                    neighbours.setdefault(other, []).append((_OPPOSITE[letter], cell))
    return _follow_chain(neighbours, num_crossings, maze.start, maze.goal)


def _follow_chain(
    neighbours: dict[Cell, list[tuple[str, Cell]]], num_crossings: int, start: Cell, goal: Cell
) -> Moves | None:
    moves: list[str] = []
    came_from: Cell | None = None
    cell = start
    while cell != goal:
        onward = [step for step in neighbours.get(cell, ()) if step[1] != came_from]
        if len(onward) != 1 or len(moves) == num_crossings:
            return None
        came_from = cell
        letter, cell = onward[0]
        moves.append(letter)
    return tuple(moves) if len(moves) == num_crossings else None


def _is_crossed(red: NDArray[np.float32], cell: Cell, letter: str) -> bool:
    """Whether the line crosses the border of ``cell`` towards D or R."""
    reach, middle = 3, slice(REDUCED_CELL // 2 - 1, REDUCED_CELL // 2 + 1)
    row, column = cell[0] * REDUCED_CELL, cell[1] * REDUCED_CELL
    if letter == "D":
        border = row + REDUCED_CELL
        across = slice(column + middle.start, column + middle.stop)
        sides = red[border - reach : border, across], red[border : border + reach, across]
    else:
        border = column + REDUCED_CELL
        across = slice(row + middle.start, row + middle.stop)
        sides = red[across, border - reach : border], red[across, border : border + reach]
    return min(float(side.mean()) for side in sides) > 0.45


def _at_reduced(pixels: Tensor, num_cells: int) -> Tensor:
    """A square picture at 16 px a cell, whatever size it was resized to."""
    side = num_cells * REDUCED_CELL
    if pixels.shape[-1] == side:
        return pixels
    resized = F.interpolate(
        pixels[None].float(), (side, side), mode="bilinear", antialias=True, align_corners=False
    )
    return resized[0]


def _redness(pixels: Tensor) -> Tensor:
    """Red beyond the mean of green and blue: 2 on the line, about 0 on ice."""
    return pixels[0] - (pixels[1] + pixels[2]) / 2


def _traces(maze: Maze, moves: Sequence[str]) -> dict[Cell, tuple[_Trace, ...]]:
    """What the line leaves in every cell that it visits."""
    visited = maze.cells(moves)
    found: dict[Cell, set[_Trace]] = {}
    for step, (letter, cell, other) in enumerate(zip(moves, visited, visited[1:], strict=False)):
        if min(other) < 0 or max(other) >= maze.size:
            raise ValueError(f"move {step} of {','.join(moves)} leaves the board of {maze.rows}")
        found.setdefault(cell, set()).add((letter, False))
        found.setdefault(other, set()).add((_OPPOSITE[letter], True))
    return {cell: tuple(sorted(traces)) for cell, traces in found.items()}


def _assemble(
    maze: Maze, traces: dict[Cell, tuple[_Trace, ...]], cell_from: int, cell_to: int
) -> _Pixels8:
    side = maze.size * cell_to
    array = np.empty((side, side, 3), dtype=np.uint8)
    for row, letters in enumerate(maze.rows):
        band = array[row * cell_to : (row + 1) * cell_to]
        for column, letter in enumerate(letters):
            tile = _tile(letter, traces.get((row, column), ()), cell_from, cell_to)
            band[:, column * cell_to : (column + 1) * cell_to] = tile
    return array


@lru_cache(maxsize=4096)
def _tile(letter: str, traces: tuple[_Trace, ...], cell_from: int, cell_to: int) -> _Pixels8:
    tile = _sprite("F", cell_from).copy()
    if letter in "GH":
        _paste(tile, letter, cell_from)
    draw = ImageDraw.Draw(tile)
    draw.rectangle((0, 0, cell_from - 1, cell_from - 1), outline=BORDER)
    if letter == "S":
        _paste(tile, letter, cell_from)
    array = np.array(tile.convert("RGB"))
    if traces:
        array[_line_mask(traces, cell_from)] = RED
    if cell_to != cell_from:
        array = _reduce(PILImage.fromarray(array), cell_from, cell_to)
    array.setflags(write=False)
    return array


@lru_cache(maxsize=1)
def _reduced_sprites() -> tuple[NDArray[np.float32], ...]:
    """Every kind of cell as [3, height, width] in [-1, 1], in the order of ``CELL_LETTERS``."""
    tiles = (_tile(letter, (), RENDERED_CELL, REDUCED_CELL) for letter in CELL_LETTERS)
    return tuple(to_pixels(tile).numpy() for tile in tiles)


@lru_cache(maxsize=1024)
def _line_mask(traces: tuple[_Trace, ...], cell: int) -> NDArray[np.bool_]:
    """Where the line is within a cell: an arm for every side, a head on those that come in."""
    mask = np.zeros((cell, cell), dtype=bool)
    half = max(1, cell // 16)
    middle = cell // 2
    head = cell // 4
    for side, comes_in in traces:
        arm = np.zeros((cell, cell), dtype=bool)  # drawn as if from above, then turned
        arm[: middle + half, middle - half : middle + half] = True
        if comes_in:
            for step in range(head):  # the tip lies on the centre
                width = half + 1 + (step * half) // (head // 2)
                row = middle + half - 1 - step
                arm[row, middle - min(width, middle) : middle + min(width, middle)] = True
        mask |= np.rot90(arm, {"U": 0, "L": 1, "D": 2, "R": 3}[side])
    mask.setflags(write=False)
    return mask


@lru_cache(maxsize=64)
def _sprite(letter: str, cell: int) -> PILImage.Image:
    name = _SPRITES[letter]
    path = _sprite_folder() / name
    if not path.is_file():
        raise ValueError(f"{path} is missing; install gymnasium>=1.0,<1.4, later ones redrew it")
    with PILImage.open(path) as sprite:
        return sprite.convert("RGBA").resize((cell, cell), PILImage.Resampling.NEAREST)


def _paste(tile: PILImage.Image, letter: str, cell: int) -> None:
    tile.alpha_composite(_sprite(letter, cell))


@lru_cache(maxsize=1)
def _sprite_folder() -> Path:
    # Found, not imported: gymnasium's import is slow and the sprites are plain files.
    spec = find_spec("gymnasium")
    if spec is None or spec.origin is None:
        raise ValueError("the sprites come from gymnasium>=1.0,<1.4, which is not installed")
    return Path(spec.origin).parent / "envs" / "toy_text" / "img"


def _reduce(picture: PILImage.Image, cell_from: int, cell_to: int) -> _Pixels8:
    width, height = picture.size
    if not width or not height or width % cell_from or height % cell_from:
        raise ValueError(
            f"expected a picture whose sides are multiples of {cell_from} px; "
            f"got {width}x{height} px"
        )
    if cell_from % cell_to:
        raise ValueError(f"{cell_from} px a cell cannot be reduced to {cell_to} px by a box filter")
    return np.asarray(picture.convert("RGB").reduce(cell_from // cell_to))
