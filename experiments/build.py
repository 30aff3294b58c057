"""From a configuration to the objects of a run."""

import hashlib
import json
import os
import subprocess
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy

from callbacks.averaging import AveragedWeights
from callbacks.phases import PhaseClock, Throughput
from callbacks.probe import Probe
from callbacks.rollout import RolloutCallback
from callbacks.saving import SavePoints
from datamodules.four_tasks import four_tasks
from datamodules.frozen_lake import MazeSettings
from datamodules.mazes import MazeData
from datamodules.own_answers import OwnAnswers
from datamodules.sources import GeneratedMazes
from experiments.evaluation import GREEDY
from experiments.schema import FOUR_TASKS, GENERATED, ExperimentConfig, differences, to_yaml
from experiments.watch import HELD_OUT, LOG_EVERY, watchers
from lightning_modules.sft import SupervisedFineTuning
from lightning_modules.sharding import ShardedWeights, Zero3Strategy, rank_files
from lightning_modules.visual_opsd import VisualOPSD
from visual_opsd.benchmarks.maze_pictures import REDUCED_CELL, draw_path, render
from visual_opsd.benchmarks.vsp import maze_of
from visual_opsd.contexts import Image, Problem
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.bagel.model import BagelModel
from visual_opsd.models.bagel.preprocessing import PROTOCOLS, Protocol, to_picture
from visual_opsd.models.bagel.tokenizer import Tokenizer
from visual_opsd.rollouts.cache import DrawingCache
from visual_opsd.rollouts.own_answers import read_answers
from visual_opsd.rollouts.visual_thoughts import Illustrator
from visual_opsd.trainable import adapt
from visual_opsd.weights import WholeWeights

T = TypeVar("T")
ON_THE_HUB = {
    "ThinkMorph-7B": "hf download ThinkMorph/ThinkMorph-7B --local-dir checkpoints/ThinkMorph-7B",
    "BAGEL-7B-MoT": "hf download ByteDance-Seed/BAGEL-7B-MoT --local-dir checkpoints/BAGEL-7B-MoT",
    "ThinkMorph": "for SET in Visual_Search Spatial_Navigation Jigsaw_Assembly Chart_Refocus: "
    "hf download ThinkMorph/SET --repo-type dataset --local-dir data/ThinkMorph/SET",
}
"""How to get the folders that the shipped experiments name."""
PACKAGES = ("torch", "lightning", "transformers", "diffusers", "torchmetrics", "omegaconf")


def strategy(config: ExperimentConfig) -> Strategy | Literal["auto"]:
    """How the run is spread over processes; "auto" is one."""
    settings = config.trainer
    timeout = timedelta(seconds=settings.zero3.timeout_seconds)
    if settings.strategy == "single":
        return "auto"
    if settings.strategy == "ddp":
        return DDPStrategy(timeout=timeout, find_unused_parameters=True)
    if find_spec("deepspeed") is None:
        raise ValueError("trainer.strategy zero3 needs deepspeed, which is not installed")
    last = last_checkpoint(config.folder)
    is_universal = last is not None and len(rank_files(last)) != settings.world_size
    return Zero3Strategy(settings.zero3, is_universal=is_universal)


def place(config: ExperimentConfig, chosen: Strategy | Literal["auto"]) -> WholeWeights:
    """Where weights are under a strategy."""

    def outline() -> torch.nn.Module:
        model = checkpoints.outline(config.model, reading_only=config.reading_only)
        model.run_with(kernel=config.trainer.kernel)
        return adapted(config, model)

    return ShardedWeights(chosen, outline) if isinstance(chosen, Zero3Strategy) else WholeWeights()


def adapted(config: ExperimentConfig, model: torch.nn.Module) -> torch.nn.Module:
    """The model with adapters, if the run trains any, at their start."""
    lora = config.visual_opsd.lora
    if config.method == "visual_opsd" and lora is not None:
        adapt(model, seeded(lora, config.seed))
    return model


def module(
    config: ExperimentConfig, tokenizer: Tokenizer, weights: WholeWeights | None = None
) -> L.LightningModule:
    """The method, with a factory for its model."""

    def build() -> torch.nn.Module:
        is_rounded = config.trainer.precision == "bf16-true"
        model, _ = checkpoints.load(
            config.model,
            dtype=torch.bfloat16 if is_rounded else torch.float32,  # what trains is never rounded
            reading_only=config.reading_only,
            place=weights,
        )
        model.run_with(
            kernel=config.trainer.kernel,
            recomputes_layers=config.trainer.activation_checkpointing,
        )
        return model

    if config.method == "sft":
        sft = seeded(config.sft, config.seed)
        return SupervisedFineTuning(build, tokenizer.encode, sft, weights)
    settings = config.visual_opsd
    if settings.lora is not None:
        settings = replace(settings, lora=seeded(settings.lora, config.seed))
    return VisualOPSD(build, tokenizer.encode, settings, weights)


def data(config: ExperimentConfig) -> MazeData:
    """What it trains on; a folder that is not there or holds no row is an error, here."""
    found = _data(config)
    if config.data.answers == "own":
        path = own_answers_path(config)
        found.train = OwnAnswers(found.train, read_answers(path), path)
    return found


def own_answers_path(config: ExperimentConfig) -> Path:
    """Where the start weights' own answers to this run's problems are kept; its name says whose."""
    identity = [
        digest(Path(config.model)),
        asdict(replace(config.data, batch_size=1, donors="same", answers="gold")),
        asdict(config.drawing),
        asdict(config.rollout.sampling),
        config.seed_of_drawings,
    ]
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder(config) / "own_answers" / f"{name}.jsonl"


def _data(config: ExperimentConfig) -> MazeData:
    settings = config.data
    # A donor is as much work as a problem: none where nobody looks at it.
    donors = settings.donors if config.interventions & {"other_vt", "wrong_vt"} else None
    if settings.source not in GENERATED:
        protocol = protocol_of(config)
        return MazeData.thinkmorph(
            Path(settings.source),
            batch_size=settings.batch_size,
            cell=REDUCED_CELL if protocol is None else None,
            protocol=protocol,
            seed=config.seed,
            donors=donors,
            weights=settings.weights,
            num_workers=settings.num_workers,
            caps=settings.caps,
            tolerated=settings.tolerated,
            index_folder=cache_folder(config) / "indices",
        )
    bank = four_tasks if settings.source == FOUR_TASKS else GeneratedMazes
    return MazeData(
        bank(maze_settings(config), "train", settings.num_problems),
        batch_size=settings.batch_size,
        seed=config.seed,
        donors=donors,
        weights=settings.weights,
        num_workers=settings.num_workers,
    )


def protocol_of(config: ExperimentConfig) -> Protocol | None:
    """How its pictures are resized; None for mazes at the tiny model's 16 px a cell."""
    settings = config.data
    if settings.source in GENERATED or settings.protocol == "reduced":
        return None
    return PROTOCOLS[settings.protocol]


def maze_settings(config: ExperimentConfig) -> MazeSettings:
    """The generator's settings."""
    return MazeSettings(
        sizes=tuple(config.data.sizes),
        hole_probability=config.data.hole_probability,
        seed=config.data.seed,
    )


def held_out(
    settings: MazeSettings, split: Any, num_problems: int, protocol: Protocol | None = None
) -> list[Problem]:
    """The first different mazes of a split; where a small size runs out, larger ones go on.

    ``protocol``: as VSP shows them, 64 px a cell, resized by it (10 MB a problem); None: 16 px.
    """
    source = GeneratedMazes(settings, split, 64 * num_problems)
    found: dict[tuple[str, ...], Problem] = {}
    for index in range(len(source)):
        found.setdefault(source.maze(index).rows, source.problem(index))
        if len(found) == num_problems:
            problems = list(found.values())
            return problems if protocol is None else [as_shown(p, protocol) for p in problems]
    raise ValueError(
        f"the {split} split has {len(found)} different mazes, {num_problems} are asked for"
    )


def as_shown(problem: Problem, protocol: Protocol) -> Problem:
    """A maze with its pictures in the size for a model that reads real ones."""
    maze = maze_of(problem)
    picture = render(maze)
    drawn = draw_path(picture, maze, maze.shortest_path())
    return replace(
        problem,
        image=protocol.kept(picture, problem.image.role),
        visual_thoughts=tuple(protocol.kept(drawn, vt.role) for vt in problem.visual_thoughts),
    )


def asked(config: ExperimentConfig) -> dict[str, Any]:
    """How ``evaluate`` asks the models of a run: the tiny one as it does by itself.

    Any other by the run's own drawing, as many at once as it trains on, and with completions as
    long as its rollouts; what it draws is looked at as the pictures of its data are.
    """
    protocol = protocol_of(config)
    if protocol is None:
        return {}
    return {
        "sampling": replace(GREEDY, max_tokens=config.rollout.sampling.max_tokens),
        "drawing": config.drawing,
        "batch_size": config.data.batch_size,
        "show": lambda _, drawn: protocol.kept(to_picture(drawn.pixels), drawn.role),
    }


def rollout(config: ExperimentConfig, tokenizer: Tokenizer) -> RolloutCallback:
    """Trajectories and visual thoughts."""
    is_drawn = config.rollout.intervention == "drawn_vt"
    artist = illustrator(config, tokenizer, draws=not config.reading_only) if is_drawn else None
    return RolloutCallback(seeded(config.rollout, config.seed), tokenizer.encode, artist)


def seeded(part: Any, seed: int) -> Any:
    """A part of the configuration that takes the run's seed unless it names its own."""
    return replace(part, seed=seed) if part.seed is None else part


def illustrator(
    config: ExperimentConfig, tokenizer: Tokenizer, *, draws: bool = True
) -> Illustrator:
    """Draws with the start weights, through the cache; or reads there only."""
    protocol = protocol_of(config)
    cache = DrawingCache(cache_folder(config) / "drawings")

    def load() -> BagelModel:
        if not draws:
            raise ValueError(
                f"{cache.folder} lacks drawings that this run shows, and with reading_only=true it "
                "does not draw: fill it first, make draw-thoughts RUN=(the experiment's file) with "
                "the same model, data, drawing and seed; or set reading_only=false"
            )
        return checkpoints.load(config.model, own_device(config))[0].eval()

    def look(drawn: Image) -> Image:
        return drawn if protocol is None else protocol.kept(to_picture(drawn.pixels), drawn.role)

    return Illustrator(
        load,
        tokenizer,
        checkpoint=digest(Path(config.model)),
        cache=cache,
        drawing=config.drawing,
        sampling=config.rollout.sampling,
        seed=config.seed_of_drawings,
        look=look,
    )


def own_device(config: ExperimentConfig) -> torch.device:
    """The GPU of this rank, if the run may take one and there is one."""
    if config.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def callbacks(
    config: ExperimentConfig,
    tokenizer: Tokenizer,
    extra: list[L.Callback],
    weights: WholeWeights | None = None,
) -> list[L.Callback]:
    """Averaged weights, rollout, checkpoints, progress, and what looks on."""
    averaged = AveragedWeights(config.trainer.average_decay, weights)
    found: list[L.Callback] = [averaged, *extra]
    if config.method == "visual_opsd":
        found.append(rollout(config, tokenizer))
    count = config.held_out.num_problems
    problems = (
        held_out(maze_settings(config), "validation", count, protocol_of(config)) if count else []
    )
    watching = watchers(config, tokenizer, problems, averaged.memory, asked(config))
    probe = next((callback for callback in watching if isinstance(callback, Probe)), None)
    found += watching
    found.append(
        SavePoints(
            config.folder / "checkpoints",
            config.trainer.checkpoint_every,
            keep_last=config.trainer.keep_last,
            keep_best=config.trainer.keep_best,
            score=lambda: None if probe is None else probe.found.get(HELD_OUT),
            on_full_disk=config.trainer.on_full_disk,
        )
    )
    patience = config.trainer.zero3.timeout_seconds / 2
    found.append(Throughput(PhaseClock(), LOG_EVERY, config.folder, patience))
    found.append(RichProgressBar(leave=True))
    return found


def only(found: Sequence[Any], kind: type[T]) -> T:
    """The one callback of its kind."""
    (one,) = (callback for callback in found if isinstance(callback, kind))
    return one


def trainer(
    config: ExperimentConfig,
    found: list[L.Callback],
    chosen: Strategy | Literal["auto"] = "auto",
) -> L.Trainer:
    """As spread as the strategy says; the log of every start goes to a folder of its own."""
    if config.trainer.num_threads:
        torch.set_num_threads(config.trainer.num_threads)
    return L.Trainer(
        accelerator=config.trainer.accelerator,
        strategy=chosen,
        devices=config.trainer.devices,
        num_nodes=config.trainer.num_nodes,
        precision=lightning_precision(config),
        max_steps=config.trainer.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=config.trainer.accumulate,
        gradient_clip_val=config.trainer.clip_norm or None,
        callbacks=found,
        logger=loggers(config),
        log_every_n_steps=LOG_EVERY,
        profiler=next((c.clock for c in found if isinstance(c, Throughput)), None),
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
        num_sanity_val_steps=0,
    )


def loggers(config: ExperimentConfig) -> list[Logger]:
    """Those the run asks for; a resumed run goes on in a folder of its own."""
    folder = config.folder
    session = f"session_{len(list((folder / 'metrics').glob('session_*')))}"
    makers: dict[str, Callable[[], Logger]] = {
        "csv": lambda: CSVLogger(folder, "metrics", session, flush_logs_every_n_steps=20),
        "tensorboard": lambda: TensorBoardLogger(folder, name="tensorboard", version=session),
        "wandb": lambda: WandbLogger(name=config.name, save_dir=folder, project="visual-opsd"),
    }
    if "wandb" in config.trainer.loggers and find_spec("wandb") is None:
        raise ValueError("trainer.loggers has wandb, which is not installed: pip install wandb")
    return [makers[name]() for name in config.trainer.loggers]


def lightning_precision(config: ExperimentConfig) -> Literal["32-true", "bf16-mixed"]:
    """What one process tells Lightning; ``bf16-true`` is done where the model is built.

    Lightning's own would round the adapters too, and make every new tensor bfloat16 in a step.

    Raises:
        ValueError: Weights in bfloat16 would train without a float32 copy.
    """
    precision = config.trainer.precision
    if precision != "bf16-true":
        return precision
    if config.method != "visual_opsd" or config.visual_opsd.lora is None:
        raise ValueError(
            "trainer.precision=bf16-true would train bfloat16 weights, in which most steps of the "
            "paper's size round to nothing: set visual_opsd.lora, or trainer.precision=bf16-mixed"
        )
    return "32-true"


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
    """Where drawings are kept."""
    default = os.environ.get("VISUAL_OPSD_CACHE", str(Path.home() / ".cache" / "visual_opsd"))
    return Path(config.cache_dir or default)
