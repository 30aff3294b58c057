"""One model folder out of a run: ``python -m experiments.export RUN_FOLDER [OUT] [which=student]``.

``which`` is ``student`` (what the run ships: averaged weights if it averages), ``last`` (those of
the last step) or ``teacher``. However many ranks wrote the checkpoint, one process reads it.
"""

import sys
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from experiments import build, run_files
from experiments.schema import load_experiment
from lightning_modules.sharding import client_states, joined
from visual_opsd.models.bagel import checkpoints
from visual_opsd.trainable import merge_adapters

Which = Literal["student", "last", "teacher"]
PREFIX = "model."


def export(run: Path, out: Path, which: Which = "student") -> Path:
    """Write the newest checkpoint of ``run`` as a model folder.

    Raises:
        FileNotFoundError: No run there, or no checkpoint in it.
        ValueError: The checkpoint is of another model than the run's configuration says.
    """
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{run} is no run folder: it has no config.yaml")
    config = load_experiment(run / "config.yaml")
    checkpoint = run_files.last_checkpoint(run)
    if checkpoint is None:
        raise FileNotFoundError(f"{run / 'checkpoints'} holds no whole checkpoint")
    weights, state = read(checkpoint)
    memory: dict[str, Tensor] = {}
    if which == "teacher":
        memory = state["teacher"]
        if not memory:
            teacher = config.visual_opsd.teacher
            same = "the student" if teacher == "current" else config.model
            raise ValueError(
                f"{run}: the teacher {teacher!r} has no weights to export: it is {same}"
            )
    elif which == "student":
        memory = state["callbacks"].get("AveragedWeights", {})
    model, tokenizer = checkpoints.load(config.model, reading_only=config.reading_only)
    build.adapted(config, model)
    held = {n: w for n, w in model.named_parameters() if not n.startswith("codec.")}
    if misfit := sorted(weights.keys() - held.keys()) or [
        name for name in weights if held[name].shape != weights[name].shape
    ]:
        raise ValueError(f"{checkpoint} is not of the model {config.model}: {misfit}")
    with torch.no_grad():
        for name, value in {**weights, **memory}.items():  # what never trained is as it started
            weight = held[name]
            weight.copy_(value.flatten()[: weight.numel()].view_as(weight))
    merge_adapters(model)
    base = config.model if config.reading_only else None
    checkpoints.save(model, tokenizer, out, base=base)
    return out


def read(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Whole weights by the model's names, and what else was saved, the parts of ranks joined."""
    if checkpoint.is_dir():
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        found = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
        state = joined(client_states(checkpoint))
    else:
        # The run's own folder: training state may be any object.
        state = torch.load(checkpoint, map_location="cpu", weights_only=False)
        found = state["state_dict"]
    weights = {
        name.removeprefix(PREFIX): value
        for name, value in found.items()
        if name.startswith(PREFIX) and not name.startswith(PREFIX + "codec.")
    }
    return weights, state


def main() -> None:
    """Command line."""
    options = dict(a.split("=", 1) for a in sys.argv[1:] if "=" in a)
    folders = [Path(a) for a in sys.argv[1:] if "=" not in a]
    which: Any = options.pop("which", "student")
    if options or which not in get_args(Which) or len(folders) not in (1, 2):
        raise SystemExit(f"usage: python -m experiments.export RUN [OUT] [which={get_args(Which)}]")
    try:
        print(export(folders[0], folders[-1] if folders[1:] else folders[0] / "export", which))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
