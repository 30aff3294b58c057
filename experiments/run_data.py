"""What a run trains on, and the mazes that its models are asked about."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from datamodules.four_tasks import four_tasks
from datamodules.frozen_lake import MazeSettings
from datamodules.mazes import MazeData
from datamodules.own_answers import OwnAnswers
from datamodules.sources import GeneratedMazes
from experiments import run_files
from experiments.evaluation import GREEDY
from experiments.schema import FOUR_TASKS, GENERATED, ExperimentConfig
from visual_opsd.benchmarks.maze_pictures import REDUCED_CELL, draw_path, render
from visual_opsd.benchmarks.vsp import maze_of
from visual_opsd.contexts import Problem
from visual_opsd.models.bagel.preprocessing import PROTOCOLS, Protocol, to_picture
from visual_opsd.rollouts.own_answers import read_answers


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
        run_files.digest(Path(config.model)),
        asdict(replace(config.data, batch_size=1, donors="same", answers="gold")),
        asdict(config.drawing),
        asdict(config.rollout.sampling),
        config.seed_of_drawings,
    ]
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    return run_files.cache_folder(config) / "own_answers" / f"{name}.jsonl"


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
            index_folder=run_files.cache_folder(config) / "indices",
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
