"""The other bases of ``make ablate-noise``: ``make second-bases``, resumable.

``python -m experiments.second_bases [key=value ...]``, keys for all. Two are made from nothing,
each without one kind of rows of the shipped base's recipe; one is the shipped base, taught to read
an answer in words (``experiments/second_bases/*.yaml``). The study says what of its findings
depends on that.
"""

import sys
from dataclasses import replace
from pathlib import Path

from experiments.pretrain_tiny import make_start
from experiments.schema import load_experiment
from experiments.side_by_side import run_all, training
from experiments.study import OTHER_BASE, TOLD_BASE, UNDRAWN_BASE
from visual_opsd.models.bagel import checkpoints

TABLES = Path("experiments/second_bases")


def main() -> None:
    """Command line; what a user got wrong is one line."""
    try:
        folders = second_bases(sys.argv[1:])
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
    arguments = " ".join(f"study.{name}={folder}" for name, folder in folders.items())
    print(f'make ablate-noise SET="{arguments}"')


def second_bases(overrides: list[str]) -> dict[str, Path]:
    """Train what is not there; the model folders, by what the study calls them.

    Raises:
        ValueError: A key or value that does not fit.
        RuntimeError: A training failed; names its log.
    """
    ruled, undrawn, told = (
        load_experiment(TABLES / f"{name}.yaml", overrides)
        for name in ("uncorrupted", "undrawn", "told")
    )
    # The shipped base's rule says which step is taken; of one that cannot draw it says nothing.
    folders = {
        OTHER_BASE: ruled.folder / "base",
        UNDRAWN_BASE: undrawn.folder / "model",
        TOLD_BASE: told.folder / "model",
    }
    make_start(ruled)
    jobs = {config.name: training(config) for config in (ruled, undrawn, told)}
    jobs[ruled.name] = replace(
        jobs[ruled.name],
        command=("experiments.pretrain_tiny", str(ruled.folder / "resolved.yaml")),
        is_finished=lambda: (folders[OTHER_BASE] / checkpoints.WEIGHTS).is_file(),
    )
    if failed := run_all(jobs, threads=1):
        named = ", ".join(f"{name} (see {log})" for name, log in failed.items())
        raise RuntimeError(f"training failed: {named}")
    return folders


if __name__ == "__main__":
    main()
