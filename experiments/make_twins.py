"""Write procedural twins of ThinkMorph's four tasks, as the files of the real data.

``python -m experiments.make_twins [--to data/twins] [--num 1000] [--pixels 64] [--difficulty 0.5]``

``train/`` is read as any ThinkMorph folder (``data.source=data/twins/train``). ``test/`` holds
held-out ones as the files of the nine benchmarks, which ``make evaluate DATA=data/twins/test``
scores. ``leaks.json`` says what guessing and looking without thinking are worth.
"""

import argparse
import json
from pathlib import Path

from rich.progress import track

from datamodules.benchmark_twins import write_nine
from datamodules.frozen_lake import MazeSettings, overlap_report
from datamodules.leaks import leak_report
from datamodules.splits import Split
from datamodules.thinkmorph import write_mazes
from datamodules.twin_files import write_twins
from datamodules.twins import TWIN_TASKS, TwinSettings
from visual_opsd.benchmarks.mazes import NAVIGATION_TASK

MAX_REPORTED = 300
"""Twins a split that the leak report looks at."""


def make(to: Path, num: int, pixels: int, difficulty: float, seed: int) -> None:
    """``num`` problems a task for training, a tenth of them a benchmark, and the leak report."""
    num_test = max(num // 10, 10)
    mazes = MazeSettings(seed=seed)
    write_mazes(to / "train", mazes, "train", num)
    write_nine(to / "test", num_test, pixels, difficulty, seed)
    counts: dict[Split, int] = {
        "train": min(num, MAX_REPORTED),
        "test": min(num_test, MAX_REPORTED),
    }
    leaks = {NAVIGATION_TASK: overlap_report(mazes, counts)}
    for task in track(TWIN_TASKS, description="writing"):
        settings = TwinSettings(task=task, pixels=pixels, difficulty=difficulty, seed=seed)
        write_twins(to / "train", settings, "train", num)
        leaks[task] = leak_report(settings, counts)
    (to / "leaks.json").write_text(json.dumps(leaks, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.make_twins", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--to", type=Path, default=Path("data/twins"))
    parser.add_argument("--num", type=int, default=1000, help="problems a task")
    parser.add_argument("--pixels", type=int, default=64, help="32 to 512, a multiple of 16")
    parser.add_argument("--difficulty", type=float, default=0.5, help="0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    try:
        make(chosen.to, chosen.num, chosen.pixels, chosen.difficulty, chosen.seed)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"make evaluate DATA={chosen.to}/test SET=paper_rows=false scores the held-out ones")
    print(f"{chosen.to}/train, {chosen.to}/test, {chosen.to}/leaks.json")


if __name__ == "__main__":
    main()
