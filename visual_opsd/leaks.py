"""Whether a visual thought alone gives the answer away, and whether two sets share pictures."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.fft import dctn
from torch import Tensor

from visual_opsd.benchmarks.maze_pictures import read_maze_pixels, read_path
from visual_opsd.benchmarks.mazes import Maze
from visual_opsd.contexts import Problem, Role

HASH_SIDE = 8
"""A perceptual hash has the square of it in bits."""
_PROBED_SIDE = 24


def alone(problem: Problem) -> Problem:
    """The question about the last visual thought instead of the problem's picture.

    Raises:
        ValueError: The problem has no visual thought.
    """
    if not problem.visual_thoughts:
        raise ValueError(f"problem {problem.problem_id} has no visual thought to be audited")
    picture = replace(problem.visual_thoughts[-1], role=Role.PROBLEM)
    return replace(problem, image=picture, visual_thoughts=())


def is_read_off(pixels: Float[Tensor, "3 height width"], maze: Maze) -> bool:
    """Whether the red line of a picture, read without a look at the maze, solves the maze."""
    try:
        seen = read_maze_pixels(pixels)
        moves = read_path(pixels, seen)
    except ValueError:  # no maze is to be seen
        return False
    return moves is not None and maze.walk(moves)


def probe(
    pictures: Sequence[Float[Tensor, "3 _height _width"]],
    labels: Sequence[str],
    num_folds: int = 5,
) -> Bool[np.ndarray, " pictures"]:
    """Whether a linear probe tells each picture's label, having been fitted on the others.

    Ridge regression on the picture at 24 x 24 px, one target a label; a fold is every
    ``num_folds``-th picture. Linear, so that a miss does not say that nothing is there.
    """
    if len(pictures) != len(labels) or len(pictures) < 2 * num_folds:
        raise ValueError(
            f"a probe needs a label each and 2 pictures a fold of {num_folds}, got "
            f"{len(pictures)} pictures and {len(labels)} labels"
        )
    small = [F.adaptive_avg_pool2d(picture, _PROBED_SIDE).flatten() for picture in pictures]
    features = torch.stack(small).double().numpy()
    classes, targets = np.unique(np.asarray(labels), return_inverse=True)
    wanted = np.eye(len(classes))[targets]
    folds = np.arange(len(pictures)) % num_folds
    guesses = np.empty(len(pictures), dtype=np.int64)
    for fold in range(num_folds):
        seen, held = folds != fold, folds == fold
        centre, share = features[seen].mean(axis=0), wanted[seen].mean(axis=0)
        known, new = features[seen] - centre, features[held] - centre
        kernel = known @ known.T
        ridge = max(float(np.trace(kernel)) / len(kernel), 1e-12)
        weights = np.linalg.solve(kernel + ridge * np.eye(len(kernel)), wanted[seen] - share)
        guesses[held] = (new @ known.T @ weights + share).argmax(axis=1)
    return np.asarray(guesses == targets)


def perceptual_hash(pixels: Float[Tensor, "3 height width"]) -> NDArray[np.bool_]:
    """64 bits that a small change of a picture leaves alone (pHash).

    Which of the lowest 8 x 8 frequencies of the grey picture at 32 x 32 px are above their median.
    """
    grey = pixels.mean(dim=0, keepdim=True)[None]
    small = F.interpolate(grey, size=(32, 32), mode="bilinear", antialias=True)[0, 0].numpy()
    low = np.asarray(dctn(small, norm="ortho"))[:HASH_SIDE, :HASH_SIDE].flatten()
    return np.asarray(low > np.median(low))


def hash_distances(problems: Sequence[Problem], others: Sequence[Problem]) -> NDArray[np.int64]:
    """In how many of 64 bits the pictures of two sets differ, [problems, others]."""
    signs = [
        np.array([perceptual_hash(problem.image.pixels) for problem in side]) * 2.0 - 1.0
        for side in (problems, others)
    ]
    return np.asarray((HASH_SIDE**2 - signs[0] @ signs[1].T) / 2).round().astype(np.int64)


@dataclass(frozen=True, slots=True)
class Overlap:
    """Problems of one set that another has as well, by their ids."""

    num_problems: int
    same_pixels: tuple[str, ...]
    same_key: tuple[str, ...]
    """By canonical key: rotations and mirror images count as the same."""
    alike: tuple[str, ...]
    """Perceptual hashes differ in a few bits at most: to be looked at, not proven."""


def overlap(
    problems: Sequence[Problem],
    others: Sequence[Problem],
    key: Callable[[Problem], str],
    max_distance: int,
) -> Overlap:
    """Which of ``problems`` have their picture, or an equivalent one, among ``others``."""
    keys = {key(other) for other in others}
    digests = {_digest(other) for other in others}
    nearest = hash_distances(problems, others).min(axis=1)
    return Overlap(
        num_problems=len(problems),
        same_pixels=tuple(p.problem_id for p in problems if _digest(p) in digests),
        same_key=tuple(p.problem_id for p in problems if key(p) in keys),
        alike=tuple(
            p.problem_id for p, d in zip(problems, nearest, strict=True) if d <= max_distance
        ),
    )


def _digest(problem: Problem) -> bytes:
    pixels = problem.image.pixels
    return hashlib.sha256(f"{tuple(pixels.shape)}".encode() + pixels.numpy().tobytes()).digest()
