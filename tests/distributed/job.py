"""One rank of a run, for tests: the entry point of every run, with a record of what it did.

``python -m tests.distributed.job EXPERIMENT RECORD [key=value ...]``; options start with ``--``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch

from experiments.schema import load_experiment
from experiments.train import train


class Recorder(L.Callback):
    """Every batch's loss and sampled tokens, a line each, a file a rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        row = {
            "step": trainer.global_step,
            "batch": batch_idx,
            "loss": float(outputs["loss"]) * trainer.accumulate_grad_batches,
            "problems": [problem.problem_id for problem in batch.problems],
            "tokens": [ids.tolist() for ids in batch.rollout.completions.ids],
        }
        with (self.folder / f"rank_{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def main() -> None:
    torch.set_num_threads(1)
    config = load_experiment(Path(sys.argv[1]), sys.argv[3:])
    train(config, [Recorder(Path(sys.argv[2]))])


if __name__ == "__main__":
    main()
