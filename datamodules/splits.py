"""Which split something belongs to: its canonical key says so, whatever the seed."""

import hashlib
from typing import Literal

import numpy as np

Split = Literal["train", "validation", "test", "hard"]
"""``hard`` is the harder part of ``test``."""
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "hard")


def split_of_key(key: str) -> Split:
    """85 % train, 5 % validation, 10 % test."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    part = int.from_bytes(digest, "big") % 1000
    if part < 850:
        return "train"
    return "validation" if part < 900 else "test"


def split_rng(seed: int, split: Split, index: int, stream: int) -> np.random.Generator:
    """One of the random streams of item ``index``.

    Raises:
        ValueError: There is no such split or index.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}; got {split!r}")
    if index < 0:
        raise ValueError(f"index: expected at least 0; got {index}")
    entropy = (seed, SPLITS.index(split), index, stream)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
