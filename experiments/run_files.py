"""The files of a run: its folder claimed, its start identified, its newest checkpoint found."""

import hashlib
import json
import os
import subprocess
import zipfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from experiments.schema import GENERATED, ExperimentConfig, differences, to_yaml
from visual_opsd.models.bagel import checkpoints

ON_THE_HUB = {
    "ThinkMorph-7B": "hf download ThinkMorph/ThinkMorph-7B --local-dir checkpoints/ThinkMorph-7B",
    "BAGEL-7B-MoT": "hf download ByteDance-Seed/BAGEL-7B-MoT --local-dir checkpoints/BAGEL-7B-MoT",
    "ThinkMorph": "for SET in Visual_Search Spatial_Navigation Jigsaw_Assembly Chart_Refocus: "
    "hf download ThinkMorph/SET --repo-type dataset --local-dir data/ThinkMorph/SET",
}
"""How to get the folders that the shipped experiments name."""
PACKAGES = ("torch", "lightning", "transformers", "diffusers", "torchmetrics", "omegaconf")


def prepare_folder(config: ExperimentConfig) -> None:
    """Claim the run folder, after a look at what the run starts from.

    Raises:
        ValueError: The folder holds a run of another configuration or another model; lists the
            differences. Or the model folder does not fit together.
        FileNotFoundError: No such model, or no such data folder.
    """
    model = Path(config.model)
    if not model.is_dir():
        raise absent("model", model)
    checkpoints.open_folder(model)
    last = last_checkpoint(config.folder)
    if last is not None and last.is_dir() != (config.trainer.strategy == "zero3"):
        raise ValueError(
            f"{last} was written under another trainer.strategy than {config.trainer.strategy}: "
            f"export it (python -m experiments.export {config.folder}) and start from there"
        )
    if config.data.source not in GENERATED and not Path(config.data.source).is_dir():
        raise absent("data.source", Path(config.data.source))
    saved = config.folder / "config.yaml"
    if saved.is_file():
        known = json.loads((config.folder / "run.json").read_text())["model_digest"]
        if known != digest(model):
            raise ValueError(
                f"{config.folder} holds a run of another model: {config.model} has changed since. "
                "Take another name or output_dir, or remove the folder"
            )
        changed = differences(config, saved)
        if changed and not config.resume_changed:
            raise ValueError(
                f"{config.folder} holds a run of another configuration: {'; '.join(changed)}. "
                "Take another name or output_dir, remove the folder, or go on all the same with "
                "resume_changed=true"
            )
        return
    config.folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "commit": commit(),
        "seed": config.seed,
        "model_digest": digest(Path(config.model)),
        "versions": {package: version(package) for package in PACKAGES},
    }
    (config.folder / "run.json").write_text(json.dumps(facts, indent=2) + "\n")
    saved.write_text(to_yaml(config))  # last: it is what claims the folder


def absent(key: str, folder: Path) -> FileNotFoundError:
    """The error about a folder that is not there; it says how to get it where we know."""
    command = ON_THE_HUB.get(folder.name)
    advice = f". Download it once ({command}), or set {key} to where it is" if command else ""
    return FileNotFoundError(f"{key}: no folder {folder}{advice}")


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run folder; a damaged file does not count."""
    found = (folder / "checkpoints").glob("step=*.ckpt")
    whole = (path for path in found if path.is_dir() or zipfile.is_zipfile(path))
    return max(whole, key=lambda path: int(path.stem.partition("=")[2]), default=None)


def commit() -> str:
    """The commit at hand, marked where the tree differs from it; "unknown" outside git."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def digest(folder: Path) -> str:
    """SHA-256 over the files that make a model what it is."""
    return digest_of(checkpoints.files(folder))


def digest_of(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.name.encode())
        if path.is_file():
            with path.open("rb") as file:  # in pieces: released weights have 29 GB
                while piece := file.read(2**24):
                    total.update(piece)
    return total.hexdigest()


def cache_folder(config: ExperimentConfig) -> Path:
    """Where drawings, own answers and indices of data are kept."""
    default = os.environ.get("VISUAL_OPSD_CACHE", str(Path.home() / ".cache" / "visual_opsd"))
    return Path(config.cache_dir or default)
