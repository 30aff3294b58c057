"""Train one experiment: ``python -m experiments.train experiments/visual_opsd.yaml seed=7``."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_only

from callbacks.averaging import AveragedWeights
from callbacks.saving import SavePoints
from datamodules.own_answers import OwnAnswers
from datamodules.sources import DamageNoted, ProblemSource, ThinkMorphRows
from experiments import build, files, run_data, run_files
from experiments.environment import note_environment
from experiments.export import export
from experiments.plan import bytes_per_gpu, check_fits
from experiments.schema import ExperimentConfig, load_experiment
from visual_opsd.models.bagel import checkpoints
from visual_opsd.trainable import adapters, merge_adapters, save_adapters


def train(config: ExperimentConfig, extra: list[L.Callback] | None = None) -> Path:
    """Train to the end, from the last checkpoint if there is one; returns the model folder.

    Every rank comes through here; the first one prepares the folder and holds it.
    """
    if getattr(rank_zero_only, "rank", 0):
        return _train(config, extra or [])
    if torch.cuda.is_available():
        check_fits(config, torch.cuda.get_device_properties(0).total_memory)
    run_files.prepare_folder(config)
    note_environment(config.folder)
    if config.trainer.strategy == "zero3":
        gather, size = config.trainer.zero3.gather, bytes_per_gpu(config)["rollout_gather"]
        print(f"rollouts gather {gather}: {size / 1e9:.3g} GB a rank at once")
    # A second process on the same run waits for the first, and then finds it finished.
    with FileLock(config.folder / ".lock"):
        return _train(config, extra or [])


def _train(config: ExperimentConfig, extra: list[L.Callback]) -> Path:
    model_folder = config.folder / "model"
    if (model_folder / checkpoints.WEIGHTS).is_file():
        return model_folder
    started = time.process_time()
    tokenizer = checkpoints.open_folder(config.model).tokenizer
    data = run_data.data(config)
    note_left_out(data.train, config.folder)
    strategy = build.strategy(config)
    weights = build.place(config, strategy)
    module: Any = build.module(config, tokenizer, weights)
    callbacks = build.callbacks(config, tokenizer, extra, weights)
    trainer = build.trainer(config, callbacks, strategy)
    last = run_files.last_checkpoint(config.folder)
    try:
        trainer.fit(module, data, ckpt_path=last, weights_only=False)
    finally:
        note_damaged(data.train, config.folder / f"damaged.{trainer.global_rank}.json")
    if trainer.interrupted:
        raise KeyboardInterrupt
    points = build.only(callbacks, SavePoints)
    if points.why_left:
        raise SystemExit(points.why_left if points.is_full else 0)
    (config.folder / "cpu_seconds.json").write_text(json.dumps(time.process_time() - started))
    if config.trainer.strategy == "zero3":  # nowhere is it whole but on disk
        newest = config.folder / "checkpoints" / f"step={trainer.global_step}.ckpt"
        if run_files.last_checkpoint(config.folder) != newest:
            raise SystemExit(
                f"{newest} could not be written, so the student cannot be exported: make room, and "
                "the same command goes on from the last good checkpoint"
            )
        if trainer.is_global_zero:
            export(config.folder, model_folder)
    else:
        with build.only(callbacks, AveragedWeights).memory.recalled(module.model):
            if trainer.is_global_zero:
                if adapters(module.model):
                    save_adapters(module.model, config.folder / "adapter")
                    merge_adapters(module.model)
                base = config.model if config.reading_only else None
                checkpoints.save(module.model, tokenizer, model_folder, base=base)
    trainer.strategy.barrier()
    return model_folder


def note_left_out(source: ProblemSource, folder: Path) -> None:
    """Say how many rows of a data folder are not trained on, and keep which and why.

    Raises:
        ValueError: No row is left to train on.
    """
    if isinstance(source, OwnAnswers):
        print(
            f"{len(source)} own answers are trained on; {source.num_left_out} out of form left out"
        )
        source = source.source
    if not isinstance(source, ThinkMorphRows):
        return
    rows = source.rows
    counts = "; ".join(f"{count} {why}" for why, count in rows.index.num_left_out.items())
    if not len(rows):
        raise ValueError(f"{rows.folder}: no usable row; left out: {counts or 'none'}")
    if getattr(rank_zero_only, "rank", 0) == 0:
        (folder / "left_out.json").write_text(json.dumps(rows.index.left_out, indent=2) + "\n")
        print(f"{len(rows)} of {rows.num_rows} rows are trained on; left out: {counts or 'none'}")


def note_damaged(source: ProblemSource, path: Path) -> None:
    """Keep which rows proved to be damaged when they were read, those of earlier sessions too."""
    if isinstance(source, DamageNoted) and source.failed:
        known = json.loads(path.read_text()) if path.is_file() else {}
        known |= {str(row): why for row, why in source.failed.items()}
        files.write(path, json.dumps(known, indent=2) + "\n")


def main() -> None:
    """Command line."""
    if len(sys.argv) < 2:
        raise SystemExit("usage: python -m experiments.train experiments/NAME.yaml [key=value ...]")
    try:
        config = load_experiment(Path(sys.argv[1]), sys.argv[2:])
        print(train(config))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
