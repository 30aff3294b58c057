"""One rank of a run, for tests: the entry point of every run, with a record and with accidents.

``python -m tests.distributed.job EXPERIMENT RECORD [key=value ...]``. Environment:
``JOB_ACCIDENT=rank:kind:step`` is what happens to one rank at one step: SIGKILL within a rollout, a
step, a save or between the parts of a save, SIGTERM, or a disk that fills up during a save.
``JOB_LOGITS_A_CHUNK`` cuts completions into chunks, as the 7B model's vocabulary does.
"""

import json
import os
import resource
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch

from experiments.schema import load_experiment
from experiments.train import train
from visual_opsd.models.bagel import decoder
from visual_opsd.models.bagel import model as bagel
from visual_opsd.models.bagel.vision import PositionTable

warnings.filterwarnings("ignore", category=FutureWarning)


class Recorder(L.Callback):
    """Every batch's loss, sampled tokens and rollout time, a line each, a file a rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds = 0.0

    def write(self, trainer: L.Trainer, name: str, row: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}_{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.seconds = trainer.profiler.seconds["sampling"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        sampled = batch.rollout.completions.ids if batch.rollout else ()
        row = {
            "step": trainer.global_step,
            "batch": batch_idx,
            "loss": float(outputs["loss"]) * trainer.accumulate_grad_batches,
            "problems": [problem.problem_id for problem in batch.problems],
            "tokens": [ids.tolist() for ids in sampled],
            "rollout_seconds": trainer.profiler.seconds["sampling"] - self.seconds,
        }
        self.write(trainer, "rank", row)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not hasattr(pl_module, "teacher"):
            return
        trained = [w for w in pl_module.model.parameters() if w.requires_grad]
        row = {
            "teacher_bytes": sum(
                w.untyped_storage().nbytes() for w in pl_module.teacher.state_dict().values()
            ),
            "num_trained": sum(getattr(w, "ds_numel", w.numel()) for w in trained),
        }
        self.write(trainer, "memory", row)
        with torch.no_grad(), pl_module.rollout_weights() as model:
            tables = {
                name: off(part)
                for name, part in model.named_modules()
                if isinstance(part, PositionTable)
            }
        self.write(trainer, "tables", tables)


def off(table: PositionTable) -> tuple[str, float]:
    """The type of what a table gives, and how far it is from the formula, rounded once."""
    given = table(torch.arange(table.side**2))
    return str(given.dtype), float((given - table.exact().to(given.dtype)).abs().max())


class Accident(L.Callback):
    """What happens to this rank, once."""

    def __init__(self, kind: str, step: int) -> None:
        self.kind, self.step = kind, step
        self.is_due = False

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            if self.kind == "term":
                os.kill(os.getpid(), signal.SIGTERM)
            if self.kind == "rollout":
                decode = bagel.decode_rows
                bagel.decode_rows = lambda step, *a, **k: decode(lambda ids: kill(), *a, **k)

    def on_after_backward(self, trainer: L.Trainer, *_: Any) -> None:
        if self.kind == "step" and trainer.global_step == self.step:
            kill()

    def on_save_checkpoint(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step != self.step:
            return
        if self.kind == "save":
            kill()
        if self.kind == "full":
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
        if self.kind == "shards":
            calls = []

            def save(*arguments: Any, **options: Any) -> None:
                calls.append(arguments)
                if len(calls) == 2:  # the model's part is written, the optimiser's is not
                    time.sleep(1)
                    kill()
                original(*arguments, **options)

            original = torch.save
            torch.save = save


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    torch.set_num_threads(1)
    config = load_experiment(Path(sys.argv[1]), sys.argv[3:])
    decoder.LOGITS_A_CHUNK = int(os.environ.get("JOB_LOGITS_A_CHUNK", decoder.LOGITS_A_CHUNK))
    extra: list[L.Callback] = [Recorder(Path(sys.argv[2]))]
    rank, kind, step = os.environ.get("JOB_ACCIDENT", ":none:-1").split(":")
    if rank == os.environ.get("RANK", "0"):
        extra.append(Accident(kind, int(step)))
    train(config, extra)


if __name__ == "__main__":
    main()
