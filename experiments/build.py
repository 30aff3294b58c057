"""From a configuration to the objects of a run."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
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
from callbacks.rollout import RolloutCallback, RolloutConfig
from callbacks.saving import SavePoints
from experiments import run_data, run_files
from experiments.schema import ExperimentConfig
from experiments.watch import HELD_OUT, LOG_EVERY, watchers
from lightning_modules.sft import SupervisedFineTuning
from lightning_modules.sharding import ShardedWeights, Zero3Strategy, rank_files
from lightning_modules.visual_opsd import VisualOPSD
from visual_opsd.contexts import Image
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.bagel.model import BagelModel
from visual_opsd.models.bagel.preprocessing import to_picture
from visual_opsd.models.bagel.tokenizer import Tokenizer
from visual_opsd.rollouts.cache import DrawingCache
from visual_opsd.rollouts.offline import OfflineCache
from visual_opsd.rollouts.visual_thoughts import Illustrator
from visual_opsd.trainable import adapt
from visual_opsd.weights import WholeWeights

T = TypeVar("T")
MOST_KEPT = 16_384
"""Entries a token whose scores an offline cache keeps: 64 kB, of a whole vocabulary."""


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
    last = run_files.last_checkpoint(config.folder)
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


def rollout(config: ExperimentConfig, tokenizer: Tokenizer) -> RolloutCallback:
    """Trajectories and visual thoughts."""
    settings = seeded(config.rollout, config.seed)
    is_drawn = settings.intervention == "drawn_vt"
    artist = illustrator(config, tokenizer, draws=not config.reading_only) if is_drawn else None
    kept = offline_cache(config, settings) if settings.cache_scores else None
    return RolloutCallback(settings, tokenizer.encode, artist, kept)


def offline_cache(config: ExperimentConfig, of: RolloutConfig) -> OfflineCache:
    """Where off-policy completions and the fixed teacher's scores are kept.

    Raises:
        ValueError: The scores of a large vocabulary would all be kept.
    """
    settings = config.visual_opsd
    vocabulary = checkpoints.open_folder(config.model).config.decoder.vocab_size
    top_k = settings.divergence.top_k
    num_kept = min(top_k or vocabulary, vocabulary)
    if num_kept > MOST_KEPT:
        raise ValueError(
            f"rollout.cache_scores would keep {num_kept} entries a token: set "
            f"visual_opsd.divergence.top_k to {MOST_KEPT} at most"
        )
    return OfflineCache(
        run_files.cache_folder(config) / "offline",
        checkpoint=run_files.digest(Path(config.model)),
        precision=config.trainer.precision,
        policy=of.policy,
        sampling=asdict(of.sampling),
        seed=of.seed,
        temperature=settings.divergence.temperature,
        top_k=top_k,
        pooling=settings.pooling,
    )


def seeded(part: Any, seed: int) -> Any:
    """A part of the configuration that takes the run's seed unless it names its own."""
    return replace(part, seed=seed) if part.seed is None else part


def illustrator(
    config: ExperimentConfig, tokenizer: Tokenizer, *, draws: bool = True
) -> Illustrator:
    """Draws with the start weights, through the cache; or reads there only."""
    protocol = run_data.protocol_of(config)
    cache = DrawingCache(run_files.cache_folder(config) / "drawings")

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
        checkpoint=run_files.digest(Path(config.model)),
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
        run_data.held_out(
            run_data.maze_settings(config), "validation", count, run_data.protocol_of(config)
        )
        if count
        else []
    )
    watching = watchers(config, tokenizer, problems, averaged.memory, run_data.asked(config))
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
