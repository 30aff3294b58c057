"""Nine columns and their mean: ours with intervals, the paper's rows beside."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from datamodules.benchmark_files import BenchmarkData
from experiments import files
from experiments.wording import percent, table
from visual_opsd.benchmarks.nine import NINE, PAPER
from visual_opsd.statistics import Estimate, weighted_rates

Scores = Mapping[str, dict[str, Any]]
_DETAILS = (
    *("benchmark", "n", "score", "chance", "best constant", "format failures"),
    *("left out", "tokens", "seconds", "p50", "p95"),
)


def mean_of(scores: Scores) -> Estimate | None:
    """The mean over the nine; none while one of them is missing."""
    if set(scores) != set(NINE):
        return None
    rates = [estimate_of(scores[name]) for name in NINE]
    return weighted_rates(rates, [1 / len(rates)] * len(rates))


def estimate_of(score: Mapping[str, float]) -> Estimate:
    """Back from JSON."""
    return Estimate(score["value"], score["low"], score["high"])


def write(folder: Path, name: str, config: Any, scores: Scores) -> None:
    """``table.md`` and ``table.csv``; percent in the first, fractions in the second."""
    mean = mean_of(scores)
    ours = [
        *(
            percent(estimate_of(scores[c]), with_interval=True) if c in scores else "-"
            for c in NINE
        ),
        percent(mean, with_interval=True) if mean else "-",
    ]
    rows = [[f"**{name}**", *ours]]
    published = PAPER if config.paper_rows else {}
    rows += [
        [title, *(f"{value:.2f}" for value in (*row, sum(row) / len(row)))]
        for title, row in published.items()
    ]
    said = (
        f"Percent, 95 % intervals (Wilson; of means, MOVER). Protocol `{config.protocol}`, scoring "
        f"`{config.scoring}`, way `{config.way}`, data `{config.data}`."
    )
    if config.limit:
        said += f" Only the first {config.limit} questions of a file, which are no random sample."
    said += "".join(f" {name}: {timing(score)}" for name, score in scores.items() if timing(score))
    if published:
        said += (
            " The other rows are the paper's, made by its own harness with other rules of "
            "extraction, partly with a judge, and without intervals."
        )
    parts = [f"# {name}", said, table(["", *NINE, "mean"], rows), "## Details", details(scores)]
    files.write(folder / "table.md", "\n\n".join(parts) + "\n")
    files.write(folder / "table.csv", _csv(name, scores, mean, published) + "\n")


def timing(score: Mapping[str, Any]) -> str:
    """At which batch size seconds are measured, where it is not the same and known for all."""
    size, unknown = score["timed_batch_size"], score["num_of_unknown_batch_size"]
    if size == "unknown":
        said = "seconds are of those whose batch size is unknown; "
        return said + f"{score['num_untimed']} were asked in known ones."
    if not score["num_untimed"]:
        return ""
    said = f"seconds are of those asked {size} at once; {score['num_untimed']} were asked in other "
    return said + (f"batches, {unknown} of them in unknown ones." if unknown else "batches.")


def details(scores: Scores) -> str:
    """What has to be known beside a score."""
    return table(list(_DETAILS), detail_rows(scores))


def detail_rows(scores: Scores) -> list[list[str]]:
    """A row a benchmark."""
    return [
        [
            name,
            str(score["n"]),
            percent(estimate_of(score), with_interval=True),
            f"{100 * score['chance']:.1f}",
            f"{100 * score['best_constant']['value']:.1f}",
            f"{score['format_failures']} of {score['num_items']}",
            str(sum(score["left_out"].values())),
            f"{score['mean_tokens']:.1f}",
            *(f"{score[key]:.3f}" for key in ("mean_seconds", "seconds_p50", "seconds_p95")),
        ]
        for name, score in scores.items()
    ]


def on_screen(scores: Scores) -> Table:
    """The details that fit a terminal."""
    chosen = [_DETAILS.index(name) for name in ("benchmark", "n", "score", "chance", "tokens")]
    shown = Table()
    for place in chosen:
        shown.add_column(_DETAILS[place], no_wrap=True)
    for row in detail_rows(scores):
        shown.add_row(*(row[place].replace("[", r"\[") for place in chosen))
    return shown


def left_out(data: BenchmarkData, num_named: int = 3) -> Iterator[str]:
    """A line a reason, with the first few rows by name; all are in ``run.json``."""
    for reason, rows in data.left_out.items():
        more = "" if len(rows) <= num_named else f" and {len(rows) - num_named} more"
        yield f"{len(rows)} rows left out, {reason}: {'; '.join(rows[:num_named])}{more}"


def _csv(
    name: str,
    scores: Scores,
    mean: Estimate | None,
    published: Mapping[str, tuple[float, ...]],
) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", *NINE, "mean"])
    ends = {"": "value", ", low": "low", ", high": "high"}
    for ending, key in ends.items():
        values = [scores[column][key] if column in scores else "" for column in NINE]
        writer.writerow([name + ending, *values, "" if mean is None else mean.as_dict()[key]])
    for title, row in published.items():
        writer.writerow([title, *(f"{v / 100:.4f}" for v in row), f"{sum(row) / 900:.4f}"])
    return out.getvalue().rstrip("\n")
