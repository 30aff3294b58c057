"""Replies as files that others score again: VLMEvalKit's predictions, lmms-eval's results."""

import csv
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import files
from visual_opsd.benchmarks.items import Item, Wording
from visual_opsd.benchmarks.nine import NINE

LMMS_TASKS = {
    "VStarBench": "vstar_bench",
    "MMVP": "mmvp",
    "CV-Bench-2D": "cv_bench_2d",
    "CV-Bench-3D": "cv_bench_3d",
    "BLINK": "blink",
}
"""Where lmms-eval has a task of its own, that name; else the data set's in small letters."""


def write(
    folder: Path,
    model: str,
    wording: Wording,
    chosen: Mapping[str, Sequence[Item]],
    replies: Mapping[str, dict[str, Any]],
    scores: Mapping[str, dict[str, Any]],
) -> None:
    """``vlmevalkit/{model}_{dataset}.tsv`` and ``lmms_eval/{model}/{date}_*``."""
    by_dataset: dict[str, list[Item]] = {}
    for items in chosen.values():
        for item in items:
            by_dataset.setdefault(item.dataset, []).append(item)
    for dataset, items in by_dataset.items():
        write_vlmevalkit(folder / "vlmevalkit" / f"{model}_{dataset}.tsv", items, replies)
    _write_lmms(folder / "lmms_eval" / model, model, wording, chosen, replies, scores)


def write_vlmevalkit(
    path: Path, items: Sequence[Item], replies: Mapping[str, dict[str, Any]]
) -> None:
    """What ``run.py --mode eval --reuse`` reads; pictures stay in the benchmark's own file."""
    letters = sorted({letter for item in items for letter in item.options})
    extra = sorted({column for item in items for column in item.columns})
    columns = ["index", "question", *letters, "answer", *extra, "prediction"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", restval="", lineterminator="\n")
        writer.writeheader()
        for item in items:
            own = {"index": item.index, "question": item.question, "answer": item.answer}
            text = replies[item.key]["text"]
            writer.writerow({**item.columns, **item.options, **own, "prediction": text})


def _write_lmms(
    folder: Path,
    model: str,
    wording: Wording,
    chosen: Mapping[str, Sequence[Item]],
    replies: Mapping[str, dict[str, Any]],
    scores: Mapping[str, dict[str, Any]],
) -> None:
    """One set of files, the newest: an older one of the same run is replaced."""
    for old in (*folder.glob("*_results.json"), *folder.glob("*_samples_*.jsonl")):
        old.unlink()
    date = time.strftime("%Y%m%d_%H%M%S", time.gmtime())
    table: dict[str, Any] = {}
    counts: dict[str, Any] = {}
    for name, items in chosen.items():
        for dataset, score in scores[name]["files"].items():
            own = [item for item in items if item.dataset == dataset]
            task = LMMS_TASKS.get(dataset, dataset.lower())
            deviation = (score["value"] * (1 - score["value"]) / score["n"]) ** 0.5
            table[task] = {
                "alias": task,
                "accuracy,none": score["value"],
                "accuracy_stderr,none": deviation,
            }
            counts[task] = {"original": len(own), "effective": len(own)}
            lines = [
                {
                    "doc_id": item.row,
                    "input": NINE[name].prompt(item, wording),
                    "target": item.answer,
                    "filtered_resps": [replies[item.key]["text"]],
                }
                for item in own
            ]
            text = "\n".join(json.dumps(each, ensure_ascii=False) for each in lines)
            files.write(folder / f"{date}_samples_{task}.jsonl", text + "\n")
    results = {"results": table, "n-samples": counts, "model_name": model, "date": date}
    files.write(folder / f"{date}_results.json", json.dumps(results, indent=2) + "\n")
