"""All nine rows of the table from files written here, by the tiny model, in one command.

``python -m experiments.evaluate_twins [MODEL=folder] [key=value ...]``; ``runs/evaluate-twins/``.

The shipped base was trained on mazes alone and answers everything with moves: 0 on the other eight,
below chance. What this shows is the machinery, from file to table.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist
from rich.console import Console

from datamodules.benchmark_twins import write_nine
from experiments import command
from experiments.benchmark_run import BenchmarkConfig, join_ranks, score
from experiments.schema import TINY_BASE


@dataclass(frozen=True, kw_only=True)
class TwinsConfig:
    """How much of it."""

    model: str = str(TINY_BASE)
    num_questions: int = 60
    """A data set; pairs and rotations count as one."""
    max_tokens: int = 64
    batch_size: int = 32
    out: str = "runs/evaluate-twins"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; what a user got wrong is one line."""
    console = Console()
    try:
        folder = run(command.parse(arguments or sys.argv[1:], TwinsConfig), console)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    console.print(f"table:  {folder / 'table.md'}", f"scores: {folder / 'scores.json'}", sep="\n")


def run(config: TwinsConfig, console: Console) -> Path:
    """Write the files anew, ask what was not asked about them, score."""
    data = Path(config.out) / "data"
    rank, world = join_ranks()
    if rank == 0:
        shutil.rmtree(data, ignore_errors=True)
        write_nine(data, config.num_questions)
    if world > 1:
        dist.barrier()  # nobody reads what is still being written
    asked = {key: value for key, value in asdict(config).items() if key != "num_questions"}
    return score(BenchmarkConfig(data=str(data), paper_rows=False, **asked), console)


if __name__ == "__main__":
    main()
