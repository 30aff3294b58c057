"""What batching and foretelling save, as ratios within one run.

``python -m experiments.bench [--only NAME ...] [--again]`` writes ``runs/bench/summary.json``.
Ratios are of CPU time on one thread, both sides in turn, so that a busy machine changes little.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from datamodules.frozen_lake import MazeSettings
from experiments import run_data, run_files
from experiments.bench_loading import load_rss_ratio
from experiments.evaluation import GREEDY
from experiments.schema import TINY_BASE
from visual_opsd.benchmarks.maze_pictures import read_maze_pixels, read_path
from visual_opsd.contexts import (
    IMAGE_START,
    Context,
    DrawingContext,
    Image,
    Problem,
    Text,
    drawing_context,
    student_context,
    teacher_context,
)
from visual_opsd.models.bagel import checkpoints, presets
from visual_opsd.models.bagel.fresh import initialise
from visual_opsd.models.bagel.model import BagelModel
from visual_opsd.models.bagel.tokenizer import Tokenizer
from visual_opsd.models.interface import Drawing, StepCache

Result = dict[str, Any]
FORETOLD = tuple(
    StepCache(interval=interval, order=order)
    for interval, order in ((2, 1), (4, 0), (4, 1), (4, 2), (8, 1))
)


def drawing_in_one_batch(preset: str, repeats: int = 5) -> Result:
    """Three guidance branches of one problem in one batch against one call each."""
    model, tokenizer = model_of(preset)
    contexts = [started(problem, tokenizer) for problem in mazes(1)]
    drawing = Drawing(num_timesteps=9)
    separate = replace(drawing, branches_in_one_batch=False)
    one, other = (latents(model, contexts, how) for how in (drawing, separate))
    found = compare(
        lambda: latents(model, contexts, separate),
        lambda: latents(model, contexts, drawing),
        repeats,
    )
    difference = float((one - other).abs().max())
    return {
        **found,
        "largest_difference": difference,
        "largest_latent": float(other.abs().max()),
        "has_same_latents": difference <= 1e-5,
    }


def batched_decoding(preset: str, repeats: int = 3) -> Result:
    """Sixteen contexts of different lengths decoded together against one after another."""
    model, tokenizer = model_of(preset)
    contexts: list[Context] = []
    for index, problem in enumerate(mazes(16)):
        see = teacher_context if index % 2 else student_context
        contexts.append(see(problem, tokenizer.encode))
    sampling = replace(GREEDY, max_tokens=32)
    seeds = range(len(contexts))

    def together() -> list[list[int]]:
        return [ids.tolist() for ids in model.sample(contexts, sampling, seeds).ids]

    def alone() -> list[list[int]]:
        single = [model.sample([context], sampling, [0]) for context in contexts]
        return [completions.ids[0].tolist() for completions in single]

    ids = together()
    found = compare(alone, together, repeats)
    tokens = sum(map(len, ids))
    return {
        **found,
        "tokens_a_second": tokens / found["fast_seconds"],
        "tokens_a_second_one_by_one": tokens / found["slow_seconds"],
        "has_same_ids": ids == alone(),
    }


def step_cache(num_problems: int = 16, repeats: int = 3) -> Result:
    """Foretold velocities of the shipped base against all 49, beside fewer steps at equal cost."""
    model, tokenizer = model_of("tiny")
    problems = mazes(num_problems)
    contexts = [started(problem, tokenizer) for problem in problems]
    seeds = range(len(contexts))
    full = Drawing()
    pictures = model.draw(contexts, full, seeds)
    rows = []
    for foretold in FORETOLD:
        steps = full.num_timesteps - 1
        evaluations = sum(foretold.is_evaluated(step) for step in range(steps))
        ways = {
            "foretold": replace(full, step_cache=foretold),
            "fewer_steps": replace(full, num_timesteps=evaluations + 1),
        }
        row: Result = {"interval": foretold.interval, "order": foretold.order}
        row["evaluations"] = evaluations
        for name, drawing in ways.items():
            row[name] = distance(problems, pictures, model.draw(contexts, drawing, seeds))
        how = ways["foretold"]
        timed = compare(
            lambda: latents(model, contexts[:1], full),
            lambda how=how: latents(model, contexts[:1], how),  # type: ignore[misc]
            repeats,
        )
        rows.append({**row, "times_as_fast": timed["times_as_fast"]})
    return {"evaluations": full.num_timesteps - 1, "problems": len(problems), "settings": rows}


MEASUREMENTS: dict[str, Callable[[], Result]] = {
    "drawing_in_one_batch_tiny": partial(drawing_in_one_batch, "tiny"),
    "drawing_in_one_batch_d512": partial(drawing_in_one_batch, "d512"),
    "batched_decoding_tiny": partial(batched_decoding, "tiny"),
    "batched_decoding_d512": partial(batched_decoding, "d512"),
    "step_cache": step_cache,
    "load_rss_ratio": load_rss_ratio,
}
"""By the name that ``--only`` takes and the summary has."""

TARGETS = {
    "drawing_in_one_batch_tiny": "times_as_fast >= 1.5, has_same_latents (to 1e-5)",
    "batched_decoding_tiny": "times_as_fast >= 4, has_same_ids",
    "batched_decoding_d512": "times_as_fast >= 4, has_same_ids",
    "load_rss_ratio": "ratio <= 1.3",
}


def compare(
    slow: Callable[[], object], fast: Callable[[], object], repeats: int = 5
) -> dict[str, float]:
    """Median CPU-seconds of two ways, taken in turn after one round that does not count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_index in range(repeats + 1):
        for way, taken in zip((slow, fast), seconds, strict=True):
            start = time.process_time()
            way()
            if round_index:
                taken.append(time.process_time() - start)
    slow_seconds, fast_seconds = map(statistics.median, seconds)
    return {
        "times_as_fast": slow_seconds / fast_seconds,
        "slow_seconds": slow_seconds,
        "fast_seconds": fast_seconds,
    }


def distance(
    problems: Sequence[Problem], wanted: Sequence[Image], found: Sequence[Image]
) -> dict[str, float]:
    """How far drawings are from others of the same problems."""
    grey = [
        float((one.pixels - other.pixels).abs().mean() * 127.5)
        for one, other in zip(wanted, found, strict=True)
    ]
    is_same = []
    for problem, one, other in zip(problems, wanted, found, strict=True):
        maze = read_maze_pixels(problem.image.pixels)
        is_same.append(read_path(one.pixels, maze) == read_path(other.pixels, maze))
    return {
        "mean_grey_levels": statistics.mean(grey),
        "same_path": statistics.mean(is_same),
    }


@cache
def model_of(preset: str) -> tuple[BagelModel, Tokenizer]:
    """The shipped base, or random weights of another preset with its tokenizer and codec."""
    model, tokenizer = checkpoints.load(TINY_BASE)
    if preset != "tiny":
        assert model.codec is not None
        config = getattr(presets, preset)(tokenizer.marks)
        codec, generator = model.codec, torch.Generator().manual_seed(0)
        model = BagelModel(config, codec, tokenizer.decode)
        initialise(model, codec.model, generator)
        # A fresh model's velocity is zero, and zeros are easily equal.
        torch.nn.init.normal_(model.llm2vae.weight, std=0.1, generator=generator)
    return model.eval(), tokenizer


def mazes(count: int) -> list[Problem]:
    """Held-out mazes of 3 to 6 cells a side, in turn."""
    return run_data.held_out(MazeSettings(sizes=(3, 4, 5, 6)), "test", count)


def started(problem: Problem, tokenizer: Tokenizer) -> DrawingContext:
    """What a drawing of a maze starts from, after the thought that the data set has."""
    words = f"<think>{problem.text_thoughts[0]}</think>{IMAGE_START}"
    return drawing_context(problem, tokenizer.encode, Text(tokenizer.encode(words)))


def latents(
    model: BagelModel, contexts: Sequence[DrawingContext], drawing: Drawing
) -> torch.Tensor:
    """Latent tokens of drawings, from seeded noise."""
    side, width = model.config.latent.pixels_per_token, model.config.latent.token_size
    images = [[part for part in c.main if isinstance(part, Image)][-1] for c in contexts]
    grids = [(x.pixels.shape[1] // side, x.pixels.shape[2] // side) for x in images]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(sum(h * w for h, w in grids), width, generator=generator)
    return model.flow(contexts, drawing, noise, grids)


def run(names: Sequence[str], folder: Path, *, again: bool, console: Console) -> dict[str, Result]:
    """Take the measurements that this commit has not taken yet; each is saved when it is done."""
    torch.set_num_threads(1)
    path = folder / "summary.json"
    summary: dict[str, Result] = json.loads(path.read_text()) if path.is_file() else {}
    commit = run_files.commit()
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not again and summary.get(name, {}).get("commit") == commit:
            continue
        with console.status(name):
            found = MEASUREMENTS[name]()
        target = {"target": TARGETS[name]} if name in TARGETS else {}
        summary[name] = {"commit": commit, **target, **found}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
        temporary.replace(path)
    return summary


def main(command: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m experiments.bench")
    parser.add_argument("--only", action="append", choices=list(MEASUREMENTS), metavar="NAME")
    parser.add_argument("--again", action="store_true", help="take what is there already anew")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    arguments = parser.parse_args(command)
    console = Console()
    names = arguments.only or list(MEASUREMENTS)
    summary = run(names, arguments.out, again=arguments.again, console=console)
    table = Table("measurement", "found", "target")
    for name in names:
        shown = {k: v for k, v in summary[name].items() if k not in ("commit", "target")}
        rows = shown.pop("settings", ())
        found = [f"{key} {_short(value)}" for key, value in shown.items()]
        found += [" ".join(f"{k} {_short(v)}" for k, v in row.items()) for row in rows]
        table.add_row(name, "\n".join(found), summary[name].get("target", "reported"))
    console.print(table)
    console.print(f"summary: {arguments.out / 'summary.json'}")


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_short(one)}" for key, one in value.items()) + ")"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
