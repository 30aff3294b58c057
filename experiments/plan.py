"""What a run will ask of a cluster: ``python -m experiments.plan experiments/NAME.yaml [...]``.

Needs neither GPU nor files. Prints ``plan.json`` and writes it into the run folder. Takes overrides
of the configuration, and ``step_seconds=``; without, the speed that the run has logged is used.
"""

import csv
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.schema import ExperimentConfig, load_experiment, to_yaml
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.bagel.config import BagelConfig
from visual_opsd.models.bagel.memory import TrainingSetup, memory_plan, parameter_counts
from visual_opsd.models.bagel.presets import bagel_7b_mot

OVERHEAD = 2_000_000_000
"""CUDA context, allocator gaps and buckets of DeepSpeed, bytes: a round guess."""
RESOLVED = "resolved.yaml"
"""The experiment with every override in it."""
OFFLOADED = ("trained_in_float32", "optimiser")


def plan(config: ExperimentConfig, step_seconds: float | None = None) -> dict[str, Any]:
    """The resolved run in numbers; bytes are a GPU's."""
    trainer, shape = config.trainer, shape_of(config)
    step_seconds, source = (
        (step_seconds, "given") if step_seconds else (measured_step_seconds(config), "measured")
    )
    return {
        "name": config.name,
        "strategy": trainer.strategy,
        "world_size": trainer.world_size,
        "num_nodes": trainer.num_nodes,
        "devices": trainer.devices,
        "sequences_per_step": config.sequences_a_batch * trainer.accumulate,
        "max_steps": trainer.max_steps,
        "parameters": {
            "total": sum(parameter_counts(shape).values()),
            "und_only": sum(parameter_counts(shape.reading_only).values()),
        },
        "zero3": asdict(trainer.zero3) if trainer.strategy == "zero3" else None,
        "setup": asdict(setup_of(config)),
        "bytes_per_gpu": bytes_per_gpu(config),
        "checkpoint_bytes": 16 * sum(parameter_counts(held_of(config)).values()),
        "step_seconds": step_seconds,
        "step_seconds_is": source if step_seconds else "unknown: give step_seconds=",
        "hours": step_seconds * trainer.max_steps / 3600 if step_seconds else None,
        "launch": launch_line(config),
    }


def shape_of(config: ExperimentConfig) -> BagelConfig:
    """The model's shape: of the folder where there is one, else the released 7B."""
    folder = Path(config.model)
    return checkpoints.open_folder(folder).config if folder.is_dir() else bagel_7b_mot()


def held_of(config: ExperimentConfig) -> BagelConfig:
    """What of it is in memory."""
    shape = shape_of(config)
    return shape.reading_only if config.reading_only else shape


def setup_of(config: ExperimentConfig) -> TrainingSetup:
    """The run as the memory plan sees it."""
    trainer, method = config.trainer, config.visual_opsd
    lora = method.lora if config.method == "visual_opsd" else None
    return TrainingSetup(
        trainable="understanding" if lora is None else "lora",
        **({} if lora is None else {"lora_rank": lora.rank}),
        num_gpus=trainer.world_size if trainer.strategy == "zero3" else 1,
        weight_bytes=4 if trainer.precision == "32-true" else 2,
        teacher_copy=config.method == "visual_opsd" and method.teacher in ("fixed", "ema"),
        gather="whole" if trainer.zero3.gather == "whole" else "layer",
        recomputes=trainer.activation_checkpointing,
        num_rows=config.data.batch_size,
        num_completion_tokens=config.rollout.sampling.max_tokens,
    )


def bytes_per_gpu(config: ExperimentConfig) -> dict[str, int]:
    """Part by part, what is offloaded left out; ``peak`` is the larger of the two phases."""
    zero3 = config.trainer.zero3
    parts = dict(memory_plan(held_of(config), setup_of(config)))
    away = {name: 0 for name in OFFLOADED if zero3.offload_optimizer != "none"}
    if zero3.offload_parameters != "none":
        away["weights"] = 0
    spared = sum(parts[name] for name in away)
    parts |= away
    for phase in ("rollout", "training"):
        parts[phase] -= spared
    return {
        **parts,
        "overhead": OVERHEAD,
        "peak": max(parts["rollout"], parts["training"]) + OVERHEAD,
    }


def check_fits(config: ExperimentConfig, gpu_bytes: int) -> None:
    """Refuse a GPU that is too small, before anything is loaded.

    Raises:
        ValueError: With the arithmetic, and what would make it fit.
    """
    found = bytes_per_gpu(config)
    if found["peak"] <= gpu_bytes:
        return
    phase = "rollout" if found["rollout"] >= found["training"] else "training"
    other = "training_" if phase == "rollout" else "rollout_"
    skipped = ("rollout", "training", "peak")
    terms = " + ".join(
        f"{name} {size / 1e9:.2f}"
        for name, size in found.items()
        if size and name not in skipped and not name.startswith(other)
    )
    raise ValueError(
        f"{config.name} needs {found['peak'] / 1e9:.2f} GB a GPU in {phase} and there are "
        f"{gpu_bytes / 1e9:.2f}: {terms} (GB). More devices, trainer.zero3.gather=layers, "
        "trainer.zero3.offload_optimizer=cpu or a smaller data.batch_size need less"
    )


def measured_step_seconds(config: ExperimentConfig) -> float | None:
    """From the samples a second that the run's newest log has last, if it has been started."""
    logs = sorted((config.folder / "metrics").glob("session_*/metrics.csv"))
    key = "speed/samples_a_second"
    for path in reversed(logs):
        with path.open() as file:
            speeds = [float(row[key]) for row in csv.DictReader(file) if row.get(key)]
        if speeds:
            return config.sequences_a_batch * config.trainer.accumulate / speeds[-1]
    return None


def launch_line(config: ExperimentConfig) -> str:
    """How the run is started; on several nodes, on each of them."""
    trainer = config.trainer
    command = f"-m experiments.train {shlex.quote(str(config.folder / RESOLVED))}"
    if trainer.world_size == 1:
        return f"python {command}"
    if trainer.num_nodes == 1:
        return f"torchrun --standalone --nproc-per-node {trainer.devices} {command}"
    return (
        f"torchrun --nnodes {trainer.num_nodes} --nproc-per-node {trainer.devices} "
        f"--rdzv-backend c10d --rdzv-endpoint $HEAD:29500 --rdzv-id {config.name} {command}"
    )


def write_plan(config: ExperimentConfig, step_seconds: float | None = None) -> Path:
    """``plan.json`` in the run folder, and beside it the experiment that its launch line names."""
    config.folder.mkdir(parents=True, exist_ok=True)
    (config.folder / RESOLVED).write_text(to_yaml(config))
    path = config.folder / "plan.json"
    path.write_text(json.dumps(plan(config, step_seconds), indent=2) + "\n")
    return path


def main() -> None:
    """Command line."""
    given = [a for a in sys.argv[2:] if a.startswith("step_seconds=")]
    overrides = [a for a in sys.argv[2:] if a not in given]
    try:
        config = load_experiment(Path(sys.argv[1]), overrides)
        path = write_plan(config, float(given[-1].partition("=")[2]) if given else None)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(path.read_text(), end="")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
