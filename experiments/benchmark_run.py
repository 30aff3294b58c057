"""Scores a checkpoint on any of the nine benchmarks whose files a folder holds.

``python -m experiments.evaluate [MODEL=folder] DATA=folder [key=value ...]``; on several GPUs
``python -m torch.distributed.run --nproc-per-node 8 -m experiments.evaluate ...``.

Every reply is on disk before the next batch begins: what was answered is not asked again, whatever
number of ranks goes on, and the same replies can be scored by other rules.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import Progress

from datamodules.benchmark_files import BadInput, BenchmarkData, find, read
from experiments import benchmark_exports, benchmark_tables, files, respond, run_files
from experiments.environment import environment
from experiments.respond import Asked, Respondent
from experiments.schema import TINY_BASE
from visual_opsd.benchmarks.benchmark import Scoring
from visual_opsd.benchmarks.harness import Judge
from visual_opsd.benchmarks.items import Item, Wording
from visual_opsd.models.bagel.preprocessing import open_picture
from visual_opsd.models.vlm import loading as vlm
from visual_opsd.seeds import row_seed


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is scored, and how."""

    model: str = str(TINY_BASE)
    """Checkpoint folder; ``MODEL=`` on the command line."""
    data: str = ""
    """Folder of benchmark files, ``DATA=`` on the command line."""
    benchmarks: tuple[str, ...] = ()
    """Names of columns; empty for all whose files are there."""
    way: Literal["text_only", "drawn"] = "text_only"
    protocol: Wording = "paper"
    """Words, pictures and decoding: ``paper`` or ``harness``."""
    scoring: Scoring = "robust"
    """``robust`` reads tags first, without a judge; ``harness_compat`` as VLMEvalKit reads."""
    limit: int = 0
    """Questions a file, at most, the first ones; 0 for all."""
    batch_size: int = 1
    """Questions at once; latency is published at 1."""
    max_tokens: int = 0
    """Of a reply; 0 for the protocol's."""
    seed: int = 42
    """Of sampling and drawing."""
    on_bad_input: BadInput = "go_on"
    paper_rows: bool = True
    """Whether the paper's rows stand beside: not where the files are no published ones."""
    out: str | None = None
    """Where results go; None: runs/evaluate/<model>-<digest>-<data>-<way>-<protocol>."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        for name in ("limit", "max_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


Predictions = dict[str, dict[str, Any]]
"""An item's key to its reply and what identifies it."""


def score(config: BenchmarkConfig, console: Console, judge: Judge | None = None) -> Path:
    """Ask what is not asked yet, score all of it; returns the folder of the results."""
    rank, world = join_ranks()
    folder_of_data = Path(config.data)
    benchmarks = find(folder_of_data, config.benchmarks)
    if not benchmarks:
        raise ValueError(f"DATA={config.data}: no file of a benchmark is there")
    found = [read(folder_of_data, each, config.on_bad_input) for each in benchmarks]
    chosen = {data.benchmark.name: limited(data, config.limit) for data in found}
    folder = folder_of(config)
    if rank == 0:
        files.claim(folder / "evaluation.json", identity(config), "another evaluation")
        files.write(folder / "run.json", json.dumps(described(config, found), indent=2) + "\n")
    replies = load_predictions(folder)
    todo = [
        (data, item)
        for data in found
        for item in chosen[data.benchmark.name]
        if not is_answered(config, data, item, replies)
    ]
    if world > 1:
        dist.barrier()  # all have seen the same replies, and share out the same questions
    if todo:
        ask(config, folder, todo[rank::world], rank, console)
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
    if rank == 0:
        conclude(config, folder, found, chosen, judge, console)
    return folder


def join_ranks() -> tuple[int, int]:
    """This process and how many there are, as torchrun says; each takes its own GPU."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(days=2))  # ranks wait for the slowest
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return rank, world


def limited(data: BenchmarkData, limit: int) -> list[Item]:
    """The first questions of every file, each whole: a circular one with all its rotations."""
    taken: dict[str, int] = {}
    rows: list[int] = []
    for unit in data.benchmark.headline.units(data.items):
        dataset = data.items[unit[0]].dataset
        taken[dataset] = taken.get(dataset, 0) + 1
        if not limit or taken[dataset] <= limit:
            rows += unit
    return [data.items[row] for row in sorted(rows)]


# Asking


def ask(
    config: BenchmarkConfig,
    folder: Path,
    todo: Sequence[tuple[BenchmarkData, Item]],
    rank: int,
    console: Console,
) -> None:
    """Append a line a reply to this rank's file."""
    respondent = loaded(config)
    path = folder / "replies" / f"rank{rank}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    _drop_half_a_line(path)
    with Progress(console=console, disable=rank > 0, transient=True) as progress:
        task = progress.add_task("asking", total=len(todo))
        with path.open("a", encoding="utf-8") as file:
            for start in range(0, len(todo), config.batch_size):
                batch = todo[start : start + config.batch_size]
                asked = [question(config, data, item) for data, item in batch]
                replies = respondent.answer(asked)
                for (data, item), reply in zip(batch, replies, strict=True):
                    asked_at = {"batch_size": config.batch_size}
                    line = {**identified(config, data, item), **asdict(reply), **asked_at}
                    file.write(json.dumps(line) + "\n")
                file.flush()
                progress.update(task, advance=len(batch), description=batch[-1][0].benchmark.name)


def loaded(config: BenchmarkConfig) -> Respondent:
    """The model, with the budget that was asked for."""
    respondent = respond.load(config.model, config.protocol, config.way)
    return respondent.limited(config.max_tokens) if config.max_tokens else respondent


def question(config: BenchmarkConfig, data: BenchmarkData, item: Item) -> Asked:
    """What a model is asked about an item."""
    pictures = tuple(open_picture(each, name=item.key) for each in item.pictures)
    prompt = data.benchmark.prompt(item, config.protocol)
    return Asked(pictures=pictures, prompt=prompt, seed=row_seed(config.seed, item.key))


def identified(config: BenchmarkConfig, data: BenchmarkData, item: Item) -> dict[str, str]:
    """What was asked, to know it again."""
    prompt = data.benchmark.prompt(item, config.protocol).encode()
    return {
        "key": item.key,
        "benchmark": data.benchmark.name,
        "dataset": item.dataset,
        "index": item.index,
        "prompt_hash": hashlib.sha256(prompt).hexdigest()[:16],
        "pictures_hash": hashlib.sha256(b"".join(item.pictures)).hexdigest()[:16],
    }


def is_answered(
    config: BenchmarkConfig, data: BenchmarkData, item: Item, replies: Predictions
) -> bool:
    """Whether the very same question has its reply."""
    asked = identified(config, data, item)
    return asked.items() <= replies.get(item.key, {}).items()


def load_predictions(folder: Path) -> Predictions:
    """All replies of a run, whichever ranks wrote them; half a line is no reply."""
    paths = [folder / "predictions.jsonl", *sorted((folder / "replies").glob("rank*.jsonl"))]
    found: Predictions = {}
    for path in paths:
        for each in _lines(path):
            found[each["key"]] = each
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        for text in path.read_text(encoding="utf-8").split("\n")[:-1]:
            yield json.loads(text)


def _drop_half_a_line(path: Path) -> None:
    """What a killed process left unfinished must not run into the next line."""
    if path.is_file():
        whole = path.read_bytes().rpartition(b"\n")
        path.write_bytes(whole[0] + whole[1])


# Concluding


def conclude(
    config: BenchmarkConfig,
    folder: Path,
    found: Sequence[BenchmarkData],
    chosen: dict[str, list[Item]],
    judge: Judge | None,
    console: Console,
) -> None:
    """Everything that is made of the replies: scores, tables, files for other harnesses."""
    replies = load_predictions(folder)
    text = "\n".join(json.dumps(each) for each in replies.values())
    files.write(folder / "predictions.jsonl", text + "\n")
    for path in (folder / "replies").glob("rank*.jsonl"):
        path.unlink()
    scores = {
        data.benchmark.name: scored(config, data, chosen[data.benchmark.name], replies, judge)
        for data in found
    }
    files.write(folder / "scores.json", json.dumps(scores, indent=2) + "\n")
    model = Path(config.model).resolve().name
    benchmark_tables.write(folder, f"{model}, {config.way.replace('_', '-')}", config, scores)
    benchmark_exports.write(folder / "exports", model, config.protocol, chosen, replies, scores)
    for data in found:
        notes = data.notes if config.paper_rows else ()  # of files that claim to be published
        for said in (*notes, *benchmark_tables.left_out(data)):
            console.print(f"[yellow]{data.benchmark.name}[/yellow]: {said}", highlight=False)
    console.print(benchmark_tables.on_screen(scores))


def scored(
    config: BenchmarkConfig,
    data: BenchmarkData,
    items: Sequence[Item],
    replies: Predictions,
    judge: Judge | None,
) -> dict[str, Any]:
    """One benchmark's entry of ``scores.json``."""
    own = [replies[item.key] for item in items]
    texts = [counted_text(config, each) for each in own]
    marks = data.benchmark.marks(items, texts, config.scoring, judge)
    return {
        **data.benchmark.score(items, marks),
        "mean_tokens": float(np.mean([each["num_tokens"] for each in own])),
        **latency(own),
        "cut": sum(each["is_cut"] for each in own),
        "ended_at_image_start": sum(each["ended_at_image_start"] for each in own),
        "drawings": sum(each["num_drawings"] for each in own),
        "left_out": {reason: len(rows) for reason, rows in data.left_out.items()},
    }


def latency(replies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of the replies asked at the batch size that most were asked at.

    A run may go on at another batch size; what was asked at others is in ``num_untimed``, and takes
    no part. Replies from before batch sizes were kept are a group of their own, "unknown".
    """
    sizes = Counter(each.get("batch_size", "unknown") for each in replies)
    size = max(sizes, key=lambda size: sizes[size])
    seconds = [each["seconds"] for each in replies if each.get("batch_size", "unknown") == size]
    return {
        "mean_seconds": float(np.mean(seconds)),
        "seconds_p50": float(np.percentile(seconds, 50)),
        "seconds_p95": float(np.percentile(seconds, 95)),
        "timed_batch_size": size,
        "num_untimed": len(replies) - len(seconds),
        "num_of_unknown_batch_size": sizes["unknown"],
    }


def counted_text(config: BenchmarkConfig, reply: dict[str, Any]) -> str:
    """What the budget cut is no answer, unless it had come to an end by itself."""
    is_answer = config.scoring == "harness_compat" or not reply["is_cut"]
    return reply["text"] if is_answer or "</answer>" in reply["text"] else ""


# What a run is


def folder_of(config: BenchmarkConfig) -> Path:
    """Where its results go."""
    if config.out:
        return Path(config.out)
    parts = (
        Path(config.model).resolve().name,
        model_digest(config)[:8],
        Path(config.data).resolve().name,
        config.way,
        config.protocol,
    )
    return Path("runs") / "evaluate" / "-".join(parts)


def identity(config: BenchmarkConfig) -> dict[str, Any]:
    """What must not change while a run goes on; more questions may come."""
    keys = ("way", "protocol", "max_tokens", "seed")
    return {
        "model_digest": model_digest(config),
        "data": str(Path(config.data).resolve()),
        **{key: getattr(config, key) for key in keys},
    }


def described(config: BenchmarkConfig, found: Sequence[BenchmarkData]) -> dict[str, Any]:
    """``run.json``: all that a reader of the scores may ask."""
    return {
        **asdict(config),
        "decoding": asdict(respond.decoding_of(Path(config.model), config.protocol)),
        "commit": run_files.commit(),
        "md5": {name: md5 for data in found for name, md5 in data.md5.items()},
        "notes": {data.benchmark.name: data.notes for data in found if data.notes},
        "left_out": {data.benchmark.name: data.left_out for data in found if data.left_out},
        "environment": environment(),
    }


def model_digest(config: BenchmarkConfig) -> str:
    """Of the files that make the model what it is, whatever its family."""
    folder = Path(config.model)
    if vlm.is_vlm(folder):
        kinds = ("*.json", "*.safetensors", "*.jinja", "*.txt")
        return run_files.digest_of(sorted(path for kind in kinds for path in folder.glob(kind)))
    return run_files.digest(folder)
