"""Train one experiment: ``python -m experiments.train experiments/visual_opsd.yaml seed=7``."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
from filelock import FileLock

from experiments import build
from experiments.schema import ExperimentConfig, load_experiment
from visual_opsd.models.bagel import checkpoints
from visual_opsd.trainable import adapters, merge_adapters, save_adapters


def train(config: ExperimentConfig, extra: list[L.Callback] | None = None) -> Path:
    """Train to the end, from the last checkpoint if there is one; returns the model folder."""
    build.prepare_folder(config)
    # A second process on the same run waits for the first, and then finds it finished.
    with FileLock(config.folder / ".lock"):
        return _train(config, extra or [])


def _train(config: ExperimentConfig, extra: list[L.Callback]) -> Path:
    model_folder = config.folder / "model"
    if (model_folder / checkpoints.WEIGHTS).is_file():
        return model_folder
    started = time.process_time()
    tokenizer = checkpoints.open_folder(config.model).tokenizer
    data = build.data(config)
    module = build.module(config, tokenizer)
    trainer = build.trainer(config, build.callbacks(config, tokenizer, extra))
    trainer.fit(module, data, ckpt_path=build.last_checkpoint(config.folder), weights_only=False)
    if trainer.interrupted:
        raise KeyboardInterrupt
    (config.folder / "cpu_seconds.json").write_text(json.dumps(time.process_time() - started))
    model: Any = module.model
    with build.averaged(trainer).memory.recalled(model):
        if adapters(model):
            save_adapters(model, config.folder / "adapter")
            merge_adapters(model)
        base = config.model if config.reading_only else None
        checkpoints.save(model, tokenizer, model_folder, base=base)
    return model_folder


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
