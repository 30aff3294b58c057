"""The schema every experiment file is checked against."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from callbacks.rollout import RolloutConfig
from lightning_modules.optimisation import OptimiserConfig
from lightning_modules.sft import SFTConfig
from lightning_modules.sharding import Zero3Config
from lightning_modules.visual_opsd import VisualOPSDConfig
from visual_opsd.models.interface import Drawing

TINY_BASE = Path("experiments/bases/tiny")
"""The shipped checkpoint; ``make pretrain-tiny`` trains it again from nothing."""


FOUR_TASKS = "four_tasks"
GENERATED = ("frozen_lake", FOUR_TASKS)
"""What ``data.source`` may be besides a folder."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a run trains on."""

    source: str = "frozen_lake"
    """``frozen_lake`` generates mazes, ``four_tasks`` twins of the other three tasks besides,
    ``num_problems`` each; anything else is a folder of ThinkMorph parquet files."""
    protocol: Literal["reduced", "train"] = "reduced"
    """How pictures of a folder are read: mazes at 16 px a cell, as the tiny model wants them, or
    any picture in the size that Visual-OPSD trained the 7B model on."""
    sizes: tuple[int, ...] = (3, 4, 5, 6)
    hole_probability: float = 0.2
    num_problems: int = 8192
    answers: Literal["gold", "own"] = "gold"
    """What text-only SFT imitates: the data's answers, or the start weights' own after drawing,
    wrong ones included, which ``make own-answers`` collects first."""
    donors: Literal["same", "other", "any", "wrong"] = "same"
    """Whose visual thoughts ``other_vt`` shows: a problem's of the same category (the size of a
    maze, the task), of another or of any; ``wrong``: the same problem's, wrongly solved, which is
    what ``wrong_vt`` shows."""
    batch_size: int = 1
    """Problems a rank and batch."""
    seed: int = 0
    """Of the generator; the order of batches follows the run's seed."""
    weights: dict[str, float] = field(default_factory=dict)
    """Task to how often a pass shows each of its rows; a task that is not named has 1. For the
    four sets of ThinkMorph: Visual_Search, Spatial_Navigation, Jigsaw_Assembly, Chart_Refocus."""
    caps: dict[str, int] = field(default_factory=dict)
    """Task to the most rows taken of it, the first ones."""
    tolerated: Literal["nothing", "rows", "files"] = "rows"
    """What may be bad in a folder without stopping the run; it is left out, counted and named."""
    num_workers: int = 0
    """Processes a rank that read and resize pictures ahead of time; the stream is the same."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long and how carefully."""

    max_steps: int = 1000
    accumulate: int = 2
    """Batches an optimiser step."""
    clip_norm: float = 1.0
    average_decay: float = 0.0
    """Moving average of the weights that is watched and saved as the student, once an optimiser
    step; 0 saves the last weights. Training and rollouts never see it."""
    checkpoint_every: int = 100
    """Optimiser steps; a run that was killed goes on from the last one."""
    num_threads: int = 0
    """CPU threads of torch; 0 leaves its choice."""
    precision: Literal["32-true", "bf16-true", "bf16-mixed"] = "32-true"
    """Of weights and products; log-probabilities, losses and adapters stay float32."""
    activation_checkpointing: bool = False
    """Run each decoder layer again in the backward pass instead of keeping what it held."""
    kernel: Literal["auto", "sdpa", "flex"] = "auto"
    """Of attention; ``auto`` takes flex attention for long rows on a GPU."""
    strategy: Literal["single", "ddp", "zero3"] = "single"
    """One process, replicas, or DeepSpeed ZeRO-3."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    """Processes a node, one a GPU."""
    num_nodes: int = 1
    zero3: Zero3Config = Zero3Config()
    keep_last: int = 1
    """Checkpoints kept, the newest."""
    keep_best: int = 0
    """Checkpoints kept besides, those with the best held-out score."""
    on_full_disk: Literal["go_on", "stop"] = "go_on"
    """Without room for a checkpoint, the last good one stays."""

    loggers: tuple[str, ...] = ("csv", "tensorboard")
    """Of ``csv``, ``tensorboard`` and ``wandb``."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.loggers) - {"csv", "tensorboard", "wandb"}):
            raise ValueError(f"loggers {unknown} are none of csv, tensorboard, wandb")
        if self.devices < 1 or self.num_nodes < 1:
            raise ValueError(
                f"devices {self.devices} and num_nodes {self.num_nodes} must be at least 1"
            )
        if self.strategy == "single" and self.world_size > 1:
            raise ValueError(
                f"strategy single is one process: got devices {self.devices} x num_nodes "
                f"{self.num_nodes}; take ddp or zero3"
            )
        if self.keep_last < 1:
            raise ValueError(f"keep_last must be at least 1, got {self.keep_last}")

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.devices * self.num_nodes


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig:
    """What a run is watched on: generated problems of the validation split, never a benchmark."""

    every: int = 100
    num_problems: int = 256
    patience: int = 0
    """The run ends when the score has not risen for so many looks; 0 trains to the last step. The
    best checkpoint is kept by ``trainer.keep_best``."""


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """A whole run; the defaults are the paper's, a YAML says what the tiny one changes."""

    name: str = MISSING
    method: Literal["visual_opsd", "sft"] = "visual_opsd"
    seed: int = 42
    model: str = str(TINY_BASE)
    """Folder of the start weights: our layout, or a downloaded BAGEL or ThinkMorph."""
    reading_only: bool = False
    """Train without the drawing half (6.6 of 14.6 billion parameters of the 7B model, which take no
    gradient); the saved student has it again, from ``model``. Visual thoughts come from the data
    set, or from the cache that ``make draw-thoughts`` filled."""
    output_dir: str = "runs"
    resume_changed: bool = False
    """Go on with a run although its configuration has changed."""
    cache_dir: str | None = None
    """Drawn visual thoughts; None: VISUAL_OPSD_CACHE, else ~/.cache/visual_opsd."""
    data: DataConfig = DataConfig()
    trainer: TrainerConfig = TrainerConfig()
    held_out: HeldOutConfig = HeldOutConfig()
    rollout: RolloutConfig = RolloutConfig()
    drawing: Drawing = Drawing()
    drawing_seed: int | None = None
    """None: the run's. With one of their own, runs from several seeds see the same drawings."""
    visual_opsd: VisualOPSDConfig = VisualOPSDConfig()
    sft: SFTConfig = field(default_factory=SFTConfig)

    def __post_init__(self) -> None:
        if self.trainer.strategy == "zero3" and self.optimiser.name == "muon":
            raise ValueError(
                f"{self.method}.optimiser.name=muon turns whole matrices, trainer.strategy=zero3 "
                "cuts them into flat parts: take adamw, or trainer.strategy=ddp"
            )
        if self.trainer.strategy == "zero3" and self.trainer.precision == "bf16-true":
            raise ValueError(
                "trainer.precision=bf16-true is one process's: take bf16-mixed with "
                "trainer.strategy=zero3"
            )
        self._check_data()
        draws = self.method == "sft" and self.sft.mix.get("interleaved")
        if draws and self.trainer.strategy == "zero3":
            raise ValueError(
                "sft.mix has interleaved rows and trainer.strategy is zero3: ranks whose rows draw "
                "would call other modules than the rest, and wait for ever; take ddp"
            )

    def _check_data(self) -> None:
        """What is shown, imitated or sampled must be there."""
        for name, is_wrong in (("wrong_vt", True), ("other_vt", False)):
            if name in self.interventions and (self.data.donors == "wrong") is not is_wrong:
                wanted = "wrong" if is_wrong else "same, other or any"
                raise ValueError(f"{name} needs data.donors={wanted}, got {self.data.donors}")
        imitates_text = self.method == "sft" and set(self.sft.mix) == {"text_only"}
        if self.data.answers == "own" and not imitates_text:
            raise ValueError(
                "data.answers=own is for method=sft with sft.mix={text_only: 1.0} alone: there are "
                f"no visual thoughts; got method={self.method}, sft.mix={dict(self.sft.mix)}"
            )
        stays = self.visual_opsd.teacher in ("fixed", "adapter_off")
        if self.method == "visual_opsd" and self.rollout.policy == "start" and not stays:
            raise ValueError(
                "rollout.policy=start samples from the start weights, which only a teacher that "
                f"stays there keeps: take fixed or adapter_off, not {self.visual_opsd.teacher}"
            )
        if self.method == "visual_opsd" and self.rollout.cache_scores and not stays:
            raise ValueError(
                "rollout.cache_scores keeps what the teacher said, and visual_opsd.teacher="
                f"{self.visual_opsd.teacher} changes: take fixed or adapter_off"
            )

    @property
    def optimiser(self) -> OptimiserConfig:
        """The method's."""
        return self.sft.optimiser if self.method == "sft" else self.visual_opsd.optimiser

    @property
    def seed_of_drawings(self) -> int:
        """What the start weights draw from."""
        return self.seed if self.drawing_seed is None else self.drawing_seed

    @property
    def interventions(self) -> set[str]:
        """What this run shows in place of visual thoughts; of SFT's true ones nothing is said."""
        if self.method == "sft":
            return {kind.partition(":")[2] for kind in self.sft.mix}
        return {self.rollout.intervention}

    @property
    def sequences_a_batch(self) -> int:
        """Problems of all ranks in one batch."""
        return self.data.batch_size * self.trainer.world_size

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output_dir) / self.name


def load_experiment(path: Path, overrides: list[str] | None = None) -> ExperimentConfig:
    """Merge schema defaults, the YAML at ``path`` and ``key=value`` overrides, strictly.

    Raises:
        FileNotFoundError: No such file.
        ValueError: An unknown key ("did you mean") or a value that does not fit, with the file.
    """
    if not path.is_file():
        known = sorted(str(p) for p in Path("experiments").rglob("*.yaml"))
        raise FileNotFoundError(f"no experiment {path}; there are {known}")
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(ExperimentConfig),
            OmegaConf.load(path),
            OmegaConf.from_dotlist(overrides or []),
        )
        return cast(ExperimentConfig, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        where = f"{path} {' '.join(overrides or [])}".strip()
        raise ValueError(f"{where}: {error}") from error


def to_yaml(config: ExperimentConfig) -> str:
    """The resolved configuration, as the run folder keeps it."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def differences(config: ExperimentConfig, saved: Path) -> list[str]:
    """Keys in which a saved ``config.yaml`` differs, as ``key: saved -> now``.

    The same batches spread over other ranks are the same run.
    """
    before = load_experiment(saved)
    spread = {"resume_changed"}
    if before.sequences_a_batch == config.sequences_a_batch:
        spread |= {"data.batch_size", "trainer.devices", "trainer.num_nodes"}
    return [
        f"{key}: {old} -> {new}"
        for key, (old, new) in differing(before, config).items()
        if key not in spread
    ]


def differing(one: ExperimentConfig, other: ExperimentConfig) -> dict[str, tuple[Any, Any]]:
    """Both values of every key that two experiments differ in."""
    old, new = flat(one), flat(other)
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def flat(config: ExperimentConfig) -> dict[str, Any]:
    """Every value of an experiment by its dotted key."""
    return _flat(cast(DictConfig, OmegaConf.create(to_yaml(config))))


def defaults() -> dict[str, Any]:
    """The values of the schema by their dotted keys, as :func:`flat`."""
    return _flat(OmegaConf.structured(ExperimentConfig))


def _flat(config: DictConfig) -> dict[str, Any]:
    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        found: dict[str, Any] = {}
        for key, inner in value.items():
            found |= walk(f"{prefix}.{key}" if prefix else str(key), inner)
        return found

    return walk("", OmegaConf.to_container(config))
