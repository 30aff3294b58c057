"""The tiny base on all four of ThinkMorph's tasks: ``make four-tasks``, resumable.

``python -m experiments.four_tasks [key=value ...]``: keys below ``base.`` go to the first training,
whose start is the shipped base with words and pixels of the other three tasks; below ``search.``
and ``last.`` to the two that go on from there. Then held-out problems: accuracy in three ways
beside what guessing is worth, and K_gen by category (Table 1).
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from datamodules.four_tasks import four_tasks, twin_settings
from datamodules.frozen_lake import MazeSettings
from datamodules.twin_files import maze_tsv_row, twin_tsv_row
from datamodules.twins import generate_twin
from experiments import command, files, run_data, run_files
from experiments.evaluation import FAST_DRAWING, GREEDY
from experiments.kl_gap import SAMPLED, gap_record, sample_fixed, token_gaps
from experiments.schema import TINY_BASE, ExperimentConfig, load_experiment
from experiments.side_by_side import is_finished, train_all
from experiments.wording import WAY_NAMES, table, words
from visual_opsd.benchmarks.benchmark import Benchmark
from visual_opsd.benchmarks.charts import CHART_TASK
from visual_opsd.benchmarks.items import OPTION_LETTERS, Item
from visual_opsd.benchmarks.jigsaw import JIGSAW_TASK
from visual_opsd.benchmarks.mazes import NAVIGATION_TASK
from visual_opsd.benchmarks.nine import NINE
from visual_opsd.benchmarks.puzzles import PALETTE
from visual_opsd.benchmarks.visual_search import SEARCH_TASK, SHAPES, SIDES
from visual_opsd.benchmarks.vsp import maze_of
from visual_opsd.contexts import Problem
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.bagel.grown import grown
from visual_opsd.rollouts.answering import Way, answer, in_batches
from visual_opsd.seeds import row_seed
from visual_opsd.statistics import Estimate, bootstrap_statistic

STAGES = Path("experiments/four_tasks")
NAMES = ("base", "search", "last")
"""In the order of training."""
NUM_NEW_CHANNELS = 32
"""With the maze's 16, a drawing in latents shows red frames, bars and seams."""
SCORED_AS: dict[str, Benchmark] = {
    SEARCH_TASK: NINE["VStarBench"],
    NAVIGATION_TASK: NINE["VSP"],
    CHART_TASK: NINE["ChartQA"],
    JIGSAW_TASK: NINE["VisPuzzle"],
}
"""In the order of the paper's Table 1."""
PAPER_GAPS = {SEARCH_TASK: 4.23, NAVIGATION_TASK: 3.96, CHART_TASK: 3.51, JIGSAW_TASK: 6.84}
"""K_gen of ThinkMorph-7B in nats a token (Table 1)."""
PAPER_MEAN_GAP = 4.64
_SENTENCE = re.compile(r" ?[^.]+\.")
_NAMES = (*PALETTE, *SHAPES, *(side for sides in SIDES.values() for side in sides))


@dataclass(frozen=True, kw_only=True)
class FourTasksConfig:
    """How much is measured."""

    num_problems: int = 1024
    """Held-out problems a task."""
    num_drawn: int = 512
    """The first of them, drawn."""
    num_trajectories: int = 250
    """The first of them, for the gap: as many a category as in the paper."""
    max_tokens: int = 64
    seed: int = 0


def main() -> None:
    """Command line; what a user got wrong is one line."""
    console = Console()
    try:
        trainings, rest = stages(sys.argv[1:])
        folder = run(trainings, command.parse(rest, FourTasksConfig), console)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    console.print(*(str(folder / name) for name in ("report.md", "summary.json", "table.csv")))


def stages(arguments: Sequence[str]) -> tuple[list[ExperimentConfig], list[str]]:
    """The trainings, each from where the one before ends; and the arguments of none.

    Raises:
        ValueError: A key or value that does not fit.
    """
    given: dict[str, list[str]] = {name: [] for name in (*NAMES, "")}
    for argument in arguments:
        stage, _, rest = argument.partition(".")
        of, said = (stage, rest) if stage in NAMES else ("", argument)
        given[of].append(said)
    found: list[ExperimentConfig] = []
    for name in NAMES:
        before = found[-1:]
        goes_on = [f"output_dir={one.output_dir}" for one in before]
        goes_on += [f"model={one.folder / 'model'}" for one in before]
        found.append(load_experiment(STAGES / f"{name}.yaml", [*goes_on, *given[name]]))
    return found, given[""]


def run(trainings: Sequence[ExperimentConfig], config: FourTasksConfig, console: Console) -> Path:
    """Train and measure what is not there yet; returns the folder with report and numbers."""
    base, last = trainings[0], trainings[-1]
    make_start(Path(base.model))
    for one in trainings:
        if not is_finished(one):
            train_all({one.name: one})
    folder, model = base.folder.parent, last.folder / "model"
    mine = {**asdict(config), "model_digest": run_files.digest(model)}
    measured = last.folder / "measured"
    files.claim(last.folder / "measured.json", mine, "measurements of another model or size")
    summary = {
        **measure(measured, model, run_data.maze_settings(base), config, console),
        "steps": sum(one.trainer.max_steps for one in trainings),
        "commits": {
            one.name: json.loads((one.folder / "run.json").read_text())["commit"]
            for one in trainings
        },
    }
    files.write(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    files.write(folder / "table.csv", pd.DataFrame(rows(summary)).to_csv(index=False))
    files.write(folder / "report.md", report(summary))
    return folder


# The start


def make_start(folder: Path, num_examples: int = 300) -> None:
    """The shipped base with tokens, latents and eyes for twins, once."""
    if (folder / checkpoints.WEIGHTS).is_file():
        return
    bank = four_tasks(MazeSettings(), "train", num_examples)
    problems = list(map(bank.problem, range(len(bank))))
    twins = [problem for problem in problems if problem.task != NAVIGATION_TASK]
    images = [image.pixels for p in twins for image in (p.image, *p.visual_thoughts)]
    model, tokenizer = checkpoints.load(TINY_BASE)
    generator = torch.Generator().manual_seed(0)
    found = grown(model, tokenizer, phrases(problems), images, NUM_NEW_CHANNELS, generator)
    checkpoints.save(*found, folder)


def phrases(problems: Sequence[Problem]) -> list[str]:
    """What twins say between names and numbers, and the names, where no maze's thought has them.

    One token each, as in decision record 0001: a tiny model learns what a word looks like, not how
    it is spelt. The question of a jigsaw is one, and so is each sentence about it: what is found is
    never in one token with what comes before.
    """
    found = dict.fromkeys((*_NAMES, "</think><answer>", "</answer>"))
    name = re.compile(rf"\d+|{'|'.join(_NAMES)}")
    of_mazes = ""
    for problem in problems:
        thoughts = (*problem.text_thoughts, problem.text_only_thought)
        if problem.task == NAVIGATION_TASK:
            of_mazes += " ".join(thoughts)
            continue
        sentences = [sentence for thought in thoughts for sentence in _SENTENCE.findall(thought)]
        if problem.task == JIGSAW_TASK:
            found |= dict.fromkeys((problem.question, *sentences))
        else:
            for text in (problem.question, *sentences):
                found |= dict.fromkeys(piece for piece in name.split(text) if len(piece) > 1)
    return [phrase for phrase in found if phrase not in of_mazes]


# Held-out problems


def held_out(task: str, mazes: MazeSettings, num_problems: int) -> tuple[list[Problem], list[Item]]:
    """Problems of the test split, and the same as a benchmark's file has them."""
    if task == NAVIGATION_TASK:
        problems = run_data.held_out(mazes, "test", num_problems)
        cells = [maze_tsv_row(i, maze_of(problem)) for i, problem in enumerate(problems)]
        return problems, [_item("VSP_maze_task_main_original", row) for row in cells]
    settings = twin_settings(task)
    twins = [generate_twin(settings, "test", index) for index in range(num_problems)]
    cells = [twin_tsv_row(index, twin) for index, twin in enumerate(twins)]
    (*files_of,) = SCORED_AS[task].files
    names = [f"ChartQA_{c['category']}" if task == CHART_TASK else files_of[0] for c in cells]
    return [twin.problem() for twin in twins], list(map(_item, names, cells))


def _item(dataset: str, cells: dict[str, Any]) -> Item:
    return Item(
        dataset=dataset,
        index=str(cells["index"]),
        row=cells["index"],
        question=cells["question"],
        pictures=(),
        answer=cells["answer"],
        options={letter: cells[letter] for letter in OPTION_LETTERS if letter in cells},
        columns={key: str(cells[key]) for key in ("category", "maze_map") if key in cells},
    )


# Measurements


@torch.no_grad()
def measure(
    folder: Path, path: Path, mazes: MazeSettings, config: FourTasksConfig, console: Console
) -> dict[str, Any]:
    """Accuracy in three ways and the gap of every task; each is kept as soon as it is made."""
    model, tokenizer = checkpoints.load(path)
    model.eval()
    scores: dict[str, Any] = {}
    gaps: dict[str, Any] = {}
    for task, benchmark in SCORED_AS.items():
        problems, items = held_out(task, mazes, config.num_problems)
        scores[task] = {}
        for way in WAY_NAMES:
            console.print(f"{task}: {WAY_NAMES[way]}")
            few = slice(config.num_drawn if way == "drawn" else None)
            ask = partial(answers, model, tokenizer, problems[few], way, config)
            count = partial(counted, benchmark, items[few], ask)
            scores[task][way] = files.kept(folder / f"{task}-{way}.json", count)
        console.print(f"{task}: KL gap")
        fixed = partial(gap, model, tokenizer, problems[: config.num_trajectories], config)
        gaps[task] = files.kept(folder / f"{task}-gap.json", fixed)
    return {"accuracy": scores, "kl_gap": with_means(gaps, config.seed)}


def answers(
    model: Any, tokenizer: Any, problems: Sequence[Problem], way: Way, config: FourTasksConfig
) -> list[str]:
    """What the model writes, greedily; what the budget cut is no answer unless it had ended."""
    found: dict[int, str] = {}
    for indices in in_batches(problems, 256):
        chosen = [problems[index] for index in indices]
        height, width = chosen[0].visual_thoughts[0].pixels.shape[1:]  # a jigsaw loses its strips
        given = answer(
            way,
            model,
            tokenizer,
            chosen,
            sampling=replace(GREEDY, max_tokens=config.max_tokens),
            drawing=replace(FAST_DRAWING, size=(height, width)),
            seeds=[row_seed(config.seed, way, problem.problem_id) for problem in chosen],
        )
        for index, one in zip(indices, given, strict=True):
            has_ended = not one.is_cut or "</answer>" in one.text
            found[index] = one.text if has_ended else ""
    return [found[index] for index in range(len(problems))]


def counted(
    benchmark: Benchmark, items: Sequence[Item], ask: Callable[[], list[str]]
) -> dict[str, Any]:
    """The benchmark's score, and whether all of its interval is above what needs no picture."""
    score = benchmark.score(items, benchmark.marks(items, ask()))
    unseen = max(score["chance"], score["best_constant"]["value"])
    return {**score, "without_looking": unseen, "is_above_chance": score["low"] > unseen}


def gap(
    model: Any, tokenizer: Any, problems: Sequence[Problem], config: FourTasksConfig
) -> dict[str, Any]:
    """KL(teacher || student) of one sampled completion a problem."""
    sampling = replace(SAMPLED, max_tokens=config.max_tokens)
    fixed = sample_fixed(model, tokenizer, problems, sampling, config.seed)
    found = gap_record("gap", token_gaps(model, model, tokenizer, fixed))
    return {**found, "max_rescore_error": fixed.max_rescore_error}


def with_means(gaps: dict[str, Any], seed: int) -> dict[str, Any]:
    """Nats a token of every category and of all, with intervals over completions."""
    everything = {
        key: [value for found in gaps.values() for value in found[key]]
        for key in ("gap_sums", "gap_lengths")
    }
    errors = {name: found["max_rescore_error"] for name, found in gaps.items()}
    return {
        name: {
            **bootstrap_statistic(
                lambda sums, lengths: float(sums.sum() / lengths.sum()),
                np.array(found["gap_sums"]),
                np.array(found["gap_lengths"]),
                seed=seed,
                resamples=2000,
            ).as_dict(),
            "n": len(found["gap_sums"]),
            "max_rescore_error": errors.get(name, max(errors.values())),
        }
        for name, found in {**gaps, "overall": everything}.items()
    }


# Report


def rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A line a task and measure, as ``table.csv`` has them; shares in 0..1, gaps in nats."""
    kept = ("n", "value", "low", "high", "chance", "without_looking", "is_above_chance")
    found = [
        {"task": task, "measure": way, **{key: score[key] for key in kept}}
        for task, ways in summary["accuracy"].items()
        for way, score in ways.items()
    ]
    return found + [
        {"task": task, "measure": "k_gen", **{key: score[key] for key in kept[:4]}}
        for task, score in summary["kl_gap"].items()
    ]


def report(summary: dict[str, Any]) -> str:
    """Two tables."""
    solved = [
        [
            task.replace("_", " "),
            WAY_NAMES[way],
            f"{score['n']:,}",
            words(Estimate(score["value"], score["low"], score["high"]), "share"),
            f"{100 * score['chance']:.1f} %",
            f"{100 * score['best_constant']['value']:.1f} %",
            "yes" if score["is_above_chance"] else "**no**",
        ]
        for task, ways in summary["accuracy"].items()
        for way, score in ways.items()
    ]
    gaps = [
        [
            name.replace("_", " "),
            str(found["n"]),
            words(Estimate(found["value"], found["low"], found["high"]), "nats"),
            f"{PAPER_GAPS.get(name, PAPER_MEAN_GAP):.2f}",
        ]
        for name, found in summary["kl_gap"].items()
    ]
    at = ", ".join(f"`{name}` at {commit}" for name, commit in summary["commits"].items())
    header = ["task", "way", "n", "solved", "chance", "best constant", "above both"]
    parts = [
        "# The tiny base on ThinkMorph's four tasks",
        f"{summary['steps']:,} steps from the shipped base ({at}). Held-out problems, greedy "
        "decoding, 95 % intervals.",
        table(header, solved),
        "Chance: an option at random, 0 where the answer is free. Best constant: the one answer to "
        "everything that scores most on these very problems.",
        "## K_gen (Eq. 4) by category",
        table(["category", "n", "nats a token", "ThinkMorph-7B (Table 1)"], gaps),
        "The paper's are of its own data and a model of 7B: another scale, shown for the order.",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
