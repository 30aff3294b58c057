"""Scores a checkpoint on mazes in three ways: drawn, text-only, privileged.

``python -m experiments.evaluate [MODEL=folder] [DATA=folder] [key=value ...]``

Without DATA: held-out mazes, and the real VSP mazes where this machine has them. DATA is a folder
of ThinkMorph parquet files or a VSP repository; or one with files of the nine benchmarks, which
``benchmark_run`` scores. What is scored already is not scored again.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from datamodules import benchmark_files
from datamodules.benchmark_files import BadInput
from datamodules.frozen_lake import MazeSettings
from datamodules.thinkmorph import ThinkMorphFolder
from experiments import benchmark_run, command, files, run_data, run_files
from experiments.evaluation import (
    FAST_DRAWING,
    GREEDY,
    Prediction,
    accuracy,
    by_category,
    evaluate,
    load_predictions,
    save_predictions,
    share,
    trivial,
)
from experiments.schema import TINY_BASE
from experiments.wording import WAY_NAMES, percent, table, words
from visual_opsd.benchmarks.maze_pictures import reduced_visual_thought, to_pixels
from visual_opsd.benchmarks.mazes import NAVIGATION_TASK
from visual_opsd.benchmarks.vsp import maze_of, vsp_folder, vsp_problems
from visual_opsd.contexts import Image, Problem, Role
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.interface import Sampling
from visual_opsd.rollouts.answering import Way
from visual_opsd.statistics import Estimate

TEMPERATURES = {"greedy": GREEDY, "sampled": replace(GREEDY, temperature=1.0)}
_LAYOUTS = (
    "ThinkMorph's parquet files (<folder>/**/train*.parquet) or VSP's repository "
    "(<folder>/level3..8/img/*.png)"
)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is scored, and how much of it."""

    model: str = str(TINY_BASE)
    """Checkpoint folder; ``MODEL=`` on the command line."""
    data: str = ""
    """Data folder, ``DATA=`` on the command line; empty for held-out mazes and VSP."""
    num_problems: int = 2048
    """Mazes a set, at most."""
    num_drawn: int = 1024
    """Mazes a set that are drawn, at most."""
    num_timed: int = 24
    """Mazes a set that are answered one by one for the seconds a sample."""
    sizes: tuple[int, ...] = (3, 4, 5, 6)
    """Of the held-out mazes."""
    split: Literal["test", "hard"] = "test"
    seed: int = 0
    """Of sampling and drawing."""
    on_bad_input: BadInput = "go_on"
    """Whether rows of parquet files and pictures of VSP that cannot be used are left out, named
    and counted, or end the run."""
    out: str | None = None
    """Where results go; None: runs/evaluate/<model>-<digest>, with the data's name if given."""

    def __post_init__(self) -> None:
        for name in ("num_problems", "num_drawn", "num_timed"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MazeSet:
    """Mazes that are scored together."""

    name: str
    title: str
    problems: Sequence[Problem]
    note: str = ""
    """What a reader of its table has to know."""


def main() -> None:
    """Command line; what a user got wrong is one line."""
    console = Console()
    try:
        folder = run(sys.argv[1:], console)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    console.print(f"table:  {folder / 'table.md'}", f"scores: {folder / 'scores.json'}", sep="\n")


def run(arguments: Sequence[str], console: Console) -> Path:
    """Score mazes in three ways, or the benchmarks whose files DATA holds."""
    given = [value for key, _, value in (a.partition("=") for a in arguments) if key == "DATA"]
    if given and benchmark_files.is_any_in(Path(given[-1])):
        return benchmark_run.score(command.parse(arguments, benchmark_run.BenchmarkConfig), console)
    return score(parse(arguments), console)


def parse(arguments: Sequence[str]) -> EvaluateConfig:
    """``MODEL=``, ``DATA=`` and ``key=value`` over the defaults, strictly."""
    return command.parse(arguments, EvaluateConfig)


def score(config: EvaluateConfig, console: Console | None = None) -> Path:
    """Score what is not scored yet; returns the folder with tables, scores and predictions."""
    console = console or Console()
    model, tokenizer = checkpoints.load(config.model)
    model.eval()
    sets = maze_sets(config)
    folder = claim(config, sets)
    scores: dict[str, Any] = {}
    sections = [f"# {config.model}"]
    for mazes in sets:
        console.print(f"[bold]{mazes.title}[/bold]: {len(mazes.problems)} mazes")
        found = {
            (way, at): _predictions(config, folder, mazes, model, tokenizer, way, at)
            for way in WAY_NAMES
            for at in TEMPERATURES
        }
        timed = {
            way: _predictions(config, folder, mazes, model, tokenizer, way, "timed")
            for way in WAY_NAMES
        }
        scores[mazes.name] = summarise(mazes, found, timed)
        sections.append(section(mazes, scores[mazes.name]))
        console.print(_on_screen(mazes, scores[mazes.name]))
    files.write(folder / "scores.json", json.dumps(scores, indent=2) + "\n")
    files.write(folder / "table.md", "\n\n".join(sections) + "\n")
    return folder


# What is scored


def maze_sets(config: EvaluateConfig) -> list[MazeSet]:
    """The sets of a configuration.

    Raises:
        ValueError: No such folder, none of the known layouts, or a row that is no maze; named.
    """
    if config.data:
        return [read_folder(Path(config.data), config.num_problems, config.on_bad_input)]
    settings = MazeSettings(sizes=tuple(config.sizes))
    problems = run_data.held_out(settings, config.split, config.num_problems)
    sets = [MazeSet(name="held_out", title=f"Held-out mazes ({config.split})", problems=problems)]
    vsp = vsp_folder()
    if vsp is not None:
        sets.append(_vsp(vsp, config.num_problems, config.on_bad_input))
    return sets


def read_folder(folder: Path, num_problems: int, on_bad_input: BadInput = "go_on") -> MazeSet:
    """A data folder by its layout."""
    if not folder.is_dir():
        raise ValueError(f"DATA={folder}: no such folder; expected {_LAYOUTS}")
    if any(folder.glob("level*/img")):
        return _vsp(folder, num_problems, on_bad_input)
    if not any(folder.rglob("*.parquet")):
        raise ValueError(f"DATA={folder}: neither layout is there; expected {_LAYOUTS}")
    rows = ThinkMorphFolder(folder, tolerated="nothing" if on_bad_input == "stop" else "rows")
    left_out = {reason: list(names) for reason, names in rows.index.left_out.items()}
    problems: list[Problem] = []
    for index in range(len(rows)):
        if len(problems) == num_problems:
            break
        try:
            problem = rows[index]
        except ValueError as error:  # its header and its end are right: nobody has looked inside
            if on_bad_input == "stop":
                raise
            left_out.setdefault("damaged inside", []).append(str(error))
            continue
        if problem.task != NAVIGATION_TASK:
            raise ValueError(
                f"DATA={folder}, row {problem.problem_id}: this command scores mazes, task "
                f"{NAVIGATION_TASK}; got {problem.task!r}. Name that task's folder"
            )
        problems.append(problem)
    listed = "; ".join(f"{reason}: {', '.join(names)}" for reason, names in left_out.items())
    if not problems:
        raise ValueError(f"DATA={folder}: no usable row; left out: {listed or 'none'}")
    num_left_out = sum(map(len, left_out.values()))
    return MazeSet(
        name=folder.name,
        title=f"ThinkMorph rows of {folder}",
        problems=problems,
        note=f"{num_left_out} rows left out ({listed})." if left_out else "",
    )


def _vsp(folder: Path, num_problems: int, on_bad_input: BadInput) -> MazeSet:
    """Level after level in turn, so that the first few are of every level."""
    by_level: dict[str, list[Problem]] = {}
    left_out: list[str] = []
    for problem in vsp_problems(folder, left_out.append if on_bad_input == "go_on" else None):
        by_level.setdefault(problem.category, []).append(problem)
    in_turn = [p for turn in zip_longest(*by_level.values()) for p in turn if p is not None]
    return MazeSet(
        name="vsp",
        title="Real VSP mazes",
        problems=[with_true_thought(problem) for problem in in_turn[:num_problems]],
        note="VSP has no visual thoughts: privileged is given one that is rendered here, the "
        "canonical shortest path of the maze as read from its picture."
        + (f" {len(left_out)} pictures left out ({'; '.join(left_out)})." if left_out else ""),
    )


def with_true_thought(problem: Problem) -> Problem:
    """The problem with its solution drawn into the maze that its picture shows."""
    maze = maze_of(problem)
    drawn = to_pixels(reduced_visual_thought(maze, maze.shortest_path()))
    return replace(problem, visual_thoughts=(Image(drawn, role=Role.VISUAL_THOUGHT),))


def claim(config: EvaluateConfig, sets: Sequence[MazeSet]) -> Path:
    """The results' folder, made this evaluation's; one of another is an error that says why."""
    digest = run_files.digest(Path(config.model))
    name = f"{Path(config.model).resolve().name}-{digest[:8]}"
    if config.data:
        name += f"-{Path(config.data).resolve().name}"
    folder = Path(config.out or Path("runs") / "evaluate" / name)
    mine = {
        "model_digest": digest,
        "num_drawn": config.num_drawn,
        "num_timed": config.num_timed,
        "seed": config.seed,
        **{f"mazes of {mazes.name}": _digest(mazes.problems) for mazes in sets},
    }
    return files.claim(folder / "evaluation.json", mine, "another evaluation")


def _digest(problems: Sequence[Problem]) -> str:
    total = hashlib.sha256()
    for problem in problems:
        total.update(problem.problem_id.encode() + problem.image.pixels.numpy().tobytes())
    return f"{len(problems)}, {total.hexdigest()[:16]}"


# Scores


def _predictions(
    config: EvaluateConfig,
    folder: Path,
    mazes: MazeSet,
    model: Any,
    tokenizer: Any,
    way: Way,
    at: str,
) -> list[Prediction]:
    """From disk, or made now and kept."""
    path = folder / "predictions" / f"{mazes.name}-{way}-{at}.jsonl"
    if path.is_file():
        return load_predictions(path)
    problems = mazes.problems
    if way == "drawn":
        problems = problems[: config.num_drawn]
    sampling: Sampling = TEMPERATURES.get(at, GREEDY)
    is_timed = at == "timed"
    if is_timed:
        problems = problems[: config.num_timed]
        evaluate(model, tokenizer, problems[:2], way, batch_size=1)  # warm-up
    found = evaluate(
        model,
        tokenizer,
        problems,
        way,
        sampling=sampling,
        drawing=FAST_DRAWING,
        seed=config.seed,
        batch_size=1 if is_timed else 256,
        description=f"{mazes.name}: {WAY_NAMES[way]}, {at}",
    )
    save_predictions(path, found)
    return found


def summarise(
    mazes: MazeSet,
    found: dict[tuple[Way, str], list[Prediction]],
    timed: dict[Way, list[Prediction]],
) -> dict[str, Any]:
    """Everything of the table, as numbers: fractions in 0..1, intervals at 95 %."""
    ways: dict[str, Any] = {}
    for way in WAY_NAMES:
        greedy, sampled = found[way, "greedy"], found[way, "sampled"]
        seconds = [prediction.seconds for prediction in timed[way]]
        ways[way] = {
            "num_problems": len(greedy),
            "greedy": accuracy(greedy).as_dict(),
            "sampled": accuracy(sampled).as_dict(),
            "greedy_by_gymnasium": share(p.is_solved_gymnasium for p in greedy).as_dict(),
            "optimal": share(p.is_optimal for p in greedy).as_dict(),
            "format_failures": share(p.has_format_failure for p in greedy).as_dict(),
            "cut": share(p.is_cut for p in greedy).as_dict(),
            "categories": {
                category: {"num_problems": count, **by_category(greedy)[category].as_dict()}
                for category, count in sorted(Counter(p.category for p in greedy).items())
            },
            "mean_tokens": float(np.mean([p.num_tokens for p in greedy])),
            "seconds_p50": float(np.percentile(seconds, 50)),
            "seconds_p95": float(np.percentile(seconds, 95)),
            "num_timed": len(seconds),
        }
    drawn = found["drawn", "greedy"]
    ways["drawn"]["exact_drawings"] = share(bool(p.has_exact_drawing) for p in drawn).as_dict()
    ways["drawn"]["skipped"] = share(p.has_skipped_drawing for p in drawn).as_dict()
    return {
        "ways": ways,
        "trivial": {key: value.as_dict() for key, value in trivial(mazes.problems).items()},
    }


# Tables


def section(mazes: MazeSet, scores: dict[str, Any]) -> str:
    """The Markdown of one set."""
    timed = scores["ways"]["drawn"]["num_timed"]
    parts = [
        f"## {mazes.title}",
        "Solved by the strict rule (no step off the board or into a hole, the last cell is the "
        f"goal), 95 % intervals. Seconds at batch 1, greedy, {timed} mazes; drawn with "
        f"{FAST_DRAWING.num_timesteps - 1} evaluations of the flow. {mazes.note}".strip(),
        table(_HEADER, _rows(scores)),
    ]
    categories = list(scores["ways"]["text_only"]["categories"])
    rows = [
        [
            WAY_NAMES[way],
            *(percent(_of(row["categories"].get(c)), with_interval=True) for c in categories),
        ]
        for way, row in _ways(scores)
    ]
    parts.append(table(["greedy", *(c.replace("_", " ") for c in categories)], rows))
    return "\n\n".join(parts)


_HEADER = ["", "mazes", "greedy", "T = 1", "tokens", "seconds p50", "seconds p95"]


def _rows(scores: dict[str, Any]) -> list[list[str]]:
    rows = [
        [
            WAY_NAMES[way],
            str(row["num_problems"]),
            words(_of(row["greedy"]), "share"),
            words(_of(row["sampled"]), "share"),
            f"{row['mean_tokens']:.1f}",
            f"{row['seconds_p50']:.3f}",
            f"{row['seconds_p95']:.3f}",
        ]
        for way, row in _ways(scores)
    ]
    num_mazes = str(scores["ways"]["text_only"]["num_problems"])
    return rows + [
        [key.replace("_", " "), num_mazes, words(_of(value), "share"), "-", "-", "-", "-"]
        for key, value in scores["trivial"].items()
    ]


def _on_screen(mazes: MazeSet, scores: dict[str, Any]) -> Table:
    shown = Table(title=mazes.title, caption=mazes.note or None)
    for column in _HEADER:
        shown.add_column(column)
    for row in _rows(scores):
        shown.add_row(*(cell.replace("[", r"\[") for cell in row))
    return shown


def _ways(scores: dict[str, Any]) -> list[tuple[Way, dict[str, Any]]]:
    return [(way, scores["ways"][way]) for way in WAY_NAMES]


def _of(value: dict[str, float] | None) -> Estimate | None:
    """Back from JSON, whatever stands beside the interval."""
    return None if value is None else Estimate(value["value"], value["low"], value["high"])


if __name__ == "__main__":
    main()
