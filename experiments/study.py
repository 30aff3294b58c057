"""A study: arms that differ in what they ask, each from several seeds, all from one start.

A study is a table: what all arms share (an experiment), and for each arm the few keys it changes
and its number of seeds. Its runs go side by side, seed by seed, so that a study that is stopped
early has whole seeds; every run is measured by the process that trained it
(:mod:`experiments.study_worker`), and what is there already is not made again.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments import build, files
from experiments.schema import ExperimentConfig, differing, load_experiment
from experiments.side_by_side import Job, last_step, run_all
from visual_opsd.contexts import Problem

PREFIX = "study."
BASE, OTHER_BASE = "base", "other_base"
FROM_OTHER_BASE = ("true_vt", "matched_noise")
"""The arms that are trained from the second base too."""
COMPARED = ("true_vt", "sft")
"""The arms of the map: what Visual-OPSD and SFT are good for besides in-distribution accuracy."""
UNSEEN_SIZES = (7, 8)
"""No arm trains on them, and the shipped base has not."""
MAY_DIFFER = ("name", "seed", "method", "rollout", "visual_opsd", "sft", "drawing", "drawing_seed")
"""Parts of an experiment that an arm may change; the rest is what makes arms comparable."""


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """One line of the table."""

    seeds: int = 3
    changes: tuple[str, ...] = ()
    """``key=value`` on top of what all arms share."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The arms, and how much is measured about them."""

    name: str = MISSING
    experiment: str = MISSING
    """What all arms share: ``experiments/<experiment>.yaml``; ``RUN=`` on the command line."""
    arms: dict[str, ArmConfig] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    """``key=value`` for every arm."""
    quick: tuple[str, ...] = ()
    """What ``QUICK=1`` adds to the command line."""
    other_base: str | None = None
    """A second base, say one whose SFT saw no corrupted visual thoughts: is noise neutral there?"""
    output_dir: str = "runs"
    max_seeds: int | None = None
    """At most so many of every arm."""
    num_problems: int = 2048
    """Held-out mazes, greedy, text-only: the same for everybody."""
    num_drawn: int = 512
    """The first of them, drawn; twice as many are answered with the true drawing in sight."""
    num_trajectories: int = 1024
    """Fixed completions of the base that the gap is measured on."""
    num_elsewhere: int = 512
    """Mazes of sizes 7 and 8, and as many of the ``hard`` split."""
    num_dosed: int = 512
    """Mazes on which the base is shown what each arm's teacher sees: the dose."""
    num_timed: int = 24
    """Mazes answered one by one for the latency."""
    target_accuracy: float = 0.75
    """How many samples and CPU-seconds until this share of the validation mazes is solved?"""
    seed: int = 0
    """Of sampling and resampling; runs have their own."""
    jobs: int = 0
    """Runs at once; 0: one a core, or one if there is a GPU."""

    def __post_init__(self) -> None:
        if not self.arms:
            raise ValueError("arms: a study needs at least one")
        for name, arm in self.arms.items():
            if arm.seeds < 1:
                raise ValueError(f"arms.{name}.seeds must be at least 1, got {arm.seeds}")
        for name in ("num_problems", "num_drawn", "num_trajectories", "num_elsewhere", "num_dosed"):
            if getattr(self, name) < 1:
                raise ValueError(f"{PREFIX}{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One arm from one seed."""

    arm: str
    number: int
    """Of the seed, from 1."""
    base: str
    config: ExperimentConfig

    @property
    def name(self) -> str:
        """Its folder's."""
        return self.config.name


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """A table with ``study.key=value`` for itself and ``key=value`` for every arm, strictly.

    Raises:
        FileNotFoundError: No such file.
        ValueError: An unknown key ("did you mean") or a value that does not fit, with the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no study {path}")
    mine = [o.removeprefix(PREFIX) for o in overrides if o.startswith(PREFIX)]
    of_arms = [o for o in overrides if not o.startswith(PREFIX)]
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(StudyConfig), OmegaConf.load(path), OmegaConf.from_dotlist(mine)
        )
        config = cast(StudyConfig, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise ValueError(f"{' '.join((str(path), *overrides))}: {error}") from error
    return replace(config, shared=(*config.shared, *of_arms))


class Study:
    """The runs of a table and where they lie."""

    def __init__(self, config: StudyConfig) -> None:
        """Every experiment of the table is resolved here, before anything runs.

        Raises:
            ValueError: A key or value of an arm that does not fit.
        """
        self.config = config
        self.folder = Path(config.output_dir) / config.name
        self.bases = {BASE: Path(self.shared.model)}
        if config.other_base is not None:
            self.bases[OTHER_BASE] = Path(config.other_base)
        self.runs = self._runs()

    @classmethod
    def open(cls, folder: Path) -> "Study":
        """The study that lies in a folder."""
        return cls(load_study(folder / "study.yaml"))

    @cached_property
    def shared(self) -> ExperimentConfig:
        """What all arms share."""
        path = Path("experiments") / f"{self.config.experiment}.yaml"
        return load_experiment(path, list(self.config.shared))

    def run(self, name: str) -> Run:
        """A run by its name."""
        found = {run.name: run for run in self.runs}
        if name not in found:
            raise ValueError(f"{self.folder} has no run {name!r}; there are {sorted(found)}")
        return found[name]

    def result(self, name: str) -> Path:
        """Where a run's, a base's or the drawings' result lies: the last thing that is written."""
        return self.folder / "results" / f"{name}.json"

    def predictions(self, name: str, on: str, way: str) -> Path:
        """Where a model's answers lie: on one set of problems, in one way."""
        return self.folder / "predictions" / f"{name}-{on}-{way}.jsonl"

    def problems(self, on: str) -> list[Problem]:
        """One of the sets that models are asked: ``test``, ``hard`` or ``unseen_sizes``."""
        mazes, count = build.maze_settings(self.shared), self.config.num_elsewhere
        if on == "test":
            return build.held_out(mazes, "test", self.config.num_problems)
        if on == "unseen_sizes":
            return build.held_out(replace(mazes, sizes=UNSEEN_SIZES), "test", count)
        return build.held_out(mazes, on, count)

    @property
    def seconds_so_far(self) -> float:
        """Wall time of all its sessions."""
        path = self.folder / "seconds.json"
        return float(json.loads(path.read_text())) if path.is_file() else 0.0

    def keep_seconds(self, seconds: float) -> None:
        """Note the wall time of all sessions."""
        files.write(self.folder / "seconds.json", json.dumps(seconds))

    @property
    def draws(self) -> list[Run]:
        """A run of every bank of drawings that runs show."""
        found = {
            (run.base, run.config.drawing, run.config.seed_of_drawings): run
            for run in reversed(self.runs)
            if run.config.method == "visual_opsd" and run.config.rollout.intervention == "drawn_vt"
        }
        return list(found.values())

    def check(self) -> None:
        """All arms start from one base, on the same data, for as many steps.

        Raises:
            ValueError: An arm changes what arms must share; names arm, key and both values.
        """
        first = self.runs[0].config
        for other in (run.config for run in self.runs if run.number == 1 and run.base == BASE):
            changed = {
                key: values
                for key, values in differing(first, other).items()
                if key.split(".")[0] not in MAY_DIFFER
            }
            if first.optimiser != other.optimiser:
                changed["optimiser"] = (first.optimiser, other.optimiser)
            if changed:
                said = "; ".join(f"{key}: {mine} -> {its}" for key, (mine, its) in changed.items())
                raise ValueError(f"{other.name} is not comparable with {first.name}: {said}")

    # Running

    def claim(self) -> None:
        """Make the folder this study's, before anything is measured or trained.

        Raises:
            ValueError: It holds another study; names the keys.
            FileNotFoundError: No such base.
        """
        source = self.shared.data.source
        if source != "frozen_lake":
            # TODO(#5): held-out pictures in the size that a model of this source reads.
            raise ValueError(
                f"{self.config.experiment} trains on {source}, and a study scores mazes at 16 px a "
                "cell, which its model does not read: DRY=1 prints the runs and how to launch each"
            )
        for key, base in self.bases.items():
            if not base.is_dir():
                raise build.absent("model" if key == BASE else f"{PREFIX}other_base", base)
        mine = {
            **{k: v for k, v in asdict(self.config).items() if k not in ("jobs", "max_seeds")},
            "bases": {name: build.digest(base) for name, base in self.bases.items()},
        }
        path = self.folder / "study.json"
        commit = json.loads(path.read_text())["commit"] if path.is_file() else build.commit()
        files.check_same(path, {**mine, "commit": commit}, "another study")
        files.write(path, json.dumps({**mine, "commit": commit}, indent=2) + "\n")
        files.write(
            self.folder / "study.yaml", OmegaConf.to_yaml(OmegaConf.structured(self.config))
        )

    @property
    def commit(self) -> str:
        """What it was started with."""
        return str(json.loads((self.folder / "study.json").read_text())["commit"])

    def execute(self) -> dict[str, Path]:
        """Do all that is not done; returns the logs of what failed, by name."""
        jobs = {name: self._job(name, 1) for name in self.bases}
        jobs |= {f"drawings-{run.name}": self._job(f"drawings-{run.name}", 1) for run in self.draws}
        jobs |= {run.name: self._job(run.name, run.config.trainer.max_steps) for run in self.runs}
        at_once = self.config.jobs or num_at_once()
        return run_all(jobs, at_once=at_once, together=self.config.name)

    def _job(self, name: str, total: int) -> Job:
        run_folder = self.folder / "arms" / name
        return Job(
            command=("experiments.study_worker", str(self.folder), name),
            log=self.folder / "logs" / f"{name}.log",
            is_finished=self.result(name).is_file,
            total=total,
            done=lambda: last_step(run_folder),
        )

    # The table

    def _runs(self) -> tuple[Run, ...]:
        """Seed by seed; those from the second base last."""
        arms = self.config.arms
        limit = self.config.max_seeds or max(arm.seeds for arm in arms.values())
        rounds = range(1, limit + 1)
        found = [
            self._one(name, number, base)
            for base in self.bases
            for number in rounds
            for name, arm in arms.items()
            if number <= arm.seeds and (base == BASE or name in FROM_OTHER_BASE)
        ]
        return tuple(found)

    def _one(self, arm: str, number: int, base: str) -> Run:
        path = Path("experiments") / f"{self.config.experiment}.yaml"
        suffix = "" if base == BASE else f"_{base}"
        placed = [
            f"name={arm}{suffix}-{number}",
            f"output_dir={self.folder / 'arms'}",
            f"seed={self.shared.seed + number - 1}",
            *([] if base == BASE else [f"model={self.bases[base]}"]),
        ]
        changes = self.config.arms[arm].changes
        config = load_experiment(path, [*self.config.shared, *changes, *placed])
        # One optimiser for all arms, whatever their method.
        sft = replace(config.sft, optimiser=self.shared.optimiser)
        return Run(arm=arm + suffix, number=number, base=base, config=replace(config, sft=sft))


def num_at_once() -> int:
    """One run a core, or one on a GPU."""
    return 1 if torch.cuda.is_available() else os.cpu_count() or 1
