"""A study: arms that differ in what they ask, each from several seeds, all from one start.

A study is a table: what all arms share (an experiment), and for each arm the few keys it changes
and its number of seeds. Its runs go side by side, seed by seed, so that a study that is stopped
early has whole seeds; every run is measured by the process that trained it
(:mod:`experiments.study_worker`), and what is there already is not made again.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments import files, run_data, run_files
from experiments.schema import ExperimentConfig, defaults, differing, flat, load_experiment
from experiments.side_by_side import Job, last_step, run_all
from visual_opsd.contexts import Problem

PREFIX = "study."
STUDY_FILE = "study.json"
"""What a study's folder was claimed for, in it."""
BASE, OTHER_BASE, UNDRAWN_BASE, TOLD_BASE = "base", "other_base", "undrawn_base", "told_base"
FROM_BASE = {
    OTHER_BASE: ("true_vt", "matched_noise"),
    UNDRAWN_BASE: ("sft",),
    TOLD_BASE: ("true_vt", "answer_text"),
}
"""The arms that are trained from another base too."""
DISTILLED_FROM = {"gold": "true_vt", "own": "drawn_vt"}
"""The arm that imitation of such answers is held against in the map."""
UNSEEN_SIZES = (7, 8)
"""No arm trains on them, and the shipped base has not."""
MAY_GROW = (
    *("arms", "bases", *FROM_BASE, "max_seeds", "other_seeds", "jobs"),
    *("quick", "large"),
)
"""Facts about a study that may be added to, or change no result."""
MAY_DIFFER = (
    *("name", "seed", "method", "rollout.", "visual_opsd.", "sft.", "drawing"),
    *("data.donors", "data.answers"),
)
"""Keys of an experiment that an arm may change; the rest is what makes arms comparable."""


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """One line of the table."""

    seeds: int = 3
    """0: left out, with what there is of it; an added arm from then on."""
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
    large: tuple[str, ...] = ()
    """What ``RUN=`` adds for an experiment whose model reads pictures in their own size."""
    other_base: str | None = None
    """One whose SFT saw no corrupted visual thoughts: is noise neutral there too?"""
    undrawn_base: str | None = None
    """One without interleaved training: what is text-only SFT worth from there?"""
    told_base: str | None = None
    """One taught to read an answer in words: how much of the gain is the answer that is drawn?"""
    output_dir: str = "runs"
    max_seeds: int | None = None
    """At most so many of every arm."""
    other_seeds: int = 3
    """At most so many of an arm from another base than the study's own."""
    num_problems: int = 2048
    """Held-out mazes, greedy, text-only: the same for everybody."""
    num_drawn: int = 1024
    """The first of them, drawn, and answered with the true drawing in sight."""
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
    num_resamples: int = 10_000
    """Of every bootstrap."""
    jobs: int = 0
    """Runs at once; 0: one a core, or one if there is a GPU."""

    def __post_init__(self) -> None:
        if not any(arm.seeds for arm in self.arms.values()):
            raise ValueError("arms: a study needs at least one, with seeds")
        for name, arm in self.arms.items():
            if arm.seeds < 0:
                raise ValueError(f"arms.{name}.seeds must be at least 0, got {arm.seeds}")
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
        others = {name: getattr(config, name) for name in FROM_BASE}
        self.bases |= {name: Path(base) for name, base in others.items() if base is not None}
        self.runs = self._runs()
        self._started: float | None = None

    @classmethod
    def open(cls, folder: Path) -> "Study":
        """The study that lies in a folder."""
        return cls(load_study(folder / "study.yaml"))

    @cached_property
    def shared(self) -> ExperimentConfig:
        """What all arms share."""
        return load_experiment(self._path, list(self.config.shared))

    @property
    def _path(self) -> Path:
        return Path("experiments") / f"{self.config.experiment}.yaml"

    def run(self, name: str) -> Run:
        """A run by its name."""
        found = {run.name: run for run in self.runs}
        if name not in found:
            raise ValueError(f"{self.folder} has no run {name!r}; there are {sorted(found)}")
        return found[name]

    def result(self, name: str) -> Path:
        """Where a run's or a base's result lies: the last thing that is written."""
        return self.folder / "results" / f"{name}.json"

    def predictions(self, name: str, on: str, way: str) -> Path:
        """Where a model's answers lie: on one set of problems, in one way."""
        return self.folder / "predictions" / f"{name}-{on}-{way}.jsonl"

    def problems(self, on: str) -> list[Problem]:
        """One of the sets that models are asked: ``test``, ``hard`` or ``unseen_sizes``."""
        mazes, count = run_data.maze_settings(self.shared), self.config.num_elsewhere
        split = "test" if on == "unseen_sizes" else on
        if on == "test":
            count = self.config.num_problems
        elif on == "unseen_sizes":
            mazes = replace(mazes, sizes=UNSEEN_SIZES)
        return run_data.held_out(mazes, split, count, run_data.protocol_of(self.shared))

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Count the seconds within, on top of earlier sessions (but of those killed outright)."""
        self._started = time.perf_counter()
        try:
            yield
        finally:
            files.write(self.folder / "seconds.json", json.dumps(self.seconds))
            self._started = None

    @property
    def seconds(self) -> float:
        """Wall time of all sessions up to now."""
        path = self.folder / "seconds.json"
        before = float(json.loads(path.read_text())) if path.is_file() else 0.0
        return before + (time.perf_counter() - self._started if self._started else 0.0)

    def check(self) -> None:
        """All arms start from one base, on the same data, for as many steps.

        So does a baseline of another method, whose optimiser may be tuned by itself.

        Raises:
            ValueError: An arm changes what arms must share; names arm, key and both values.
        """
        first = self.runs[0].config
        for other in (run.config for run in self.runs if run.number == 1 and run.base == BASE):
            changed = {
                key: values
                for key, values in differing(first, other).items()
                if not key.startswith(MAY_DIFFER)
            }
            if other.method == self.shared.method and other.optimiser != self.shared.optimiser:
                changed["optimiser"] = (self.shared.optimiser, other.optimiser)
            if changed:
                said = "; ".join(f"{key}: {mine} -> {its}" for key, (mine, its) in changed.items())
                raise ValueError(f"{other.name} is not comparable with {first.name}: {said}")

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Arms of the map, which asks what else than in-distribution accuracy either is good for.

        Distillation against each arm that imitates: with gold answers, and without any.
        """
        found = []
        trained = [name for name, arm in self.config.arms.items() if arm.seeds]
        for name in trained:
            config = self._arms[name]
            one = DISTILLED_FROM[config.data.answers]
            if config.method == "sft" and one in trained:
                found.append((one, name))
        return found

    def is_compared(self, run: Run) -> bool:
        """Whether a run is asked all that the map asks, whichever arms there are beside it."""
        is_either = run.config.method == "sft" or run.arm in DISTILLED_FROM.values()
        return run.base == BASE and is_either

    def is_untuned(self, arm: str) -> bool:
        """Whether a method that is not the shared one runs with the shared one's optimiser."""
        config = next(run.config for run in self.runs if run.arm == arm)
        is_other = config.method != self.shared.method
        return is_other and config.optimiser == self.shared.optimiser

    # Running

    def claim(self) -> None:
        """Make the folder this study's, before anything is measured or trained.

        Arms, seeds and other bases may be added; what is there may not be changed.

        Raises:
            ValueError: It holds another study; names the keys.
            FileNotFoundError: No such base.
        """
        for key, base in self.bases.items():
            if not base.is_dir():
                raise run_files.absent("model" if key == BASE else f"{PREFIX}{key}", base)
        path = self.folder / STUDY_FILE
        saved = json.loads(path.read_text()) if path.is_file() else {}
        mine = {
            **asdict(self.config),
            "bases": {name: run_files.digest(base) for name, base in self.bases.items()},
            "commit": saved.get("commit", run_files.commit()),
            # The file that ``experiment`` names may be edited between two sessions.
            "resolved": flat(self.shared),
        }
        for key in ("arms", "bases"):
            mine[key] = {**saved.get(key, {}), **mine[key]}
        if saved:
            # What it was before there was a key is the key's default.
            new = {key: value for key, value in defaults().items() if key in mine["resolved"]}
            saved["resolved"] = new | saved.get("resolved", mine["resolved"])
            files.check_same(self.folder, _terms(saved, mine), _terms(mine, mine), "another study")
        files.write(path, json.dumps(mine, indent=2) + "\n")
        files.write(
            self.folder / "study.yaml", OmegaConf.to_yaml(OmegaConf.structured(self.config))
        )

    @property
    def commit(self) -> str:
        """What it was started with."""
        return str(json.loads((self.folder / STUDY_FILE).read_text())["commit"])

    def execute(self) -> dict[str, Path]:
        """Do all that is not done; returns the logs of what failed, by name."""
        jobs = {name: self._job(name, 1) for name in self.bases}
        jobs |= {run.name: self._job(run.name, run.config.trainer.max_steps) for run in self.runs}
        is_on_gpu = torch.cuda.is_available()
        at_once = self.config.jobs or (1 if is_on_gpu else os.cpu_count() or 1)
        # One thread, whatever runs beside: another number adds up in another order, and one token
        # sampled otherwise is another completion.
        threads = None if is_on_gpu else 1
        return run_all(jobs, at_once=at_once, threads=threads, together=self.config.name)

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
        """Seed by seed; those from other bases last."""
        arms = self.config.arms
        limit = self.config.max_seeds or max(arm.seeds for arm in arms.values())
        rounds = range(1, limit + 1)
        found = [
            self._one(name, number, base)
            for base in self.bases
            for number in rounds
            for name, arm in arms.items()
            if number <= self._num_seeds(name, arm, base)
        ]
        return tuple(found)

    def _num_seeds(self, name: str, arm: ArmConfig, base: str) -> int:
        """How often an arm is trained from a base."""
        if base == BASE:
            return arm.seeds
        return min(arm.seeds, self.config.other_seeds) if name in FROM_BASE[base] else 0

    def _one(self, arm: str, number: int, base: str) -> Run:
        suffix = "" if base == BASE else f"_{base}"
        config = replace(
            self._arms[arm],
            name=f"{arm}{suffix}-{number}",
            output_dir=str(self.folder / "arms"),
            seed=self.shared.seed + number - 1,
            model=str(self.bases[base]),
        )
        return Run(arm=arm + suffix, number=number, base=base, config=config)

    @cached_property
    def _arms(self) -> dict[str, ExperimentConfig]:
        """Every arm's experiment; SFT has Visual-OPSD's optimiser, unless another is asked for."""
        prefix = f"{self.shared.method}.optimiser."
        optimiser = [
            f"sft.optimiser.{key.removeprefix(prefix)}={value}"
            for key, value in flat(self.shared).items()
            if key.startswith(prefix)
        ]
        return {
            name: load_experiment(self._path, [*optimiser, *self.config.shared, *arm.changes])
            for name, arm in self.config.arms.items()
        }


def _terms(facts: dict[str, Any], all_facts: dict[str, Any]) -> dict[str, Any]:
    """What may not change of a study; arms and bases that ``facts`` lacks count as in the other."""
    arms, bases = ({**all_facts[key], **facts[key]} for key in ("arms", "bases"))
    return {
        **{key: value for key, value in facts.items() if key not in (*MAY_GROW, "resolved")},
        **{f"resolved.{key}": value for key, value in facts["resolved"].items()},
        **{f"bases.{name}": digest for name, digest in bases.items()},
        **{f"arms.{name}": list(arm["changes"]) for name, arm in arms.items()},
    }
