"""Benchmarks from the files people have: VLMEvalKit's TSV, the hub's parquet, VSP's own folders.

Nothing is dropped in silence: what cannot be used is named by file and row, and counted by reason.
"""

import ast
import base64
import binascii
import csv
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from visual_opsd.benchmarks.benchmark import Benchmark
from visual_opsd.benchmarks.items import OPTION_LETTERS, Item
from visual_opsd.benchmarks.nine import NINE
from visual_opsd.models.bagel.preprocessing import open_picture

BadInput = Literal["go_on", "stop"]
"""Whether what is wrong in a file is left out, named and counted, or ends the run."""
MAX_REFERENCE = 64
"""A picture's cell of so few characters names the row that has the picture (VLMEvalKit)."""
MAX_PICTURE_CELL = 2**28
"""Characters; a longer cell is not parsed."""


class UnfitRowError(ValueError):
    """What is wrong with a row; ``reason`` is what such rows are counted under."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class BenchmarkData:
    """A benchmark with its items."""

    benchmark: Benchmark
    items: tuple[Item, ...]
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Reason to ``file, row N (index I): what is wrong``."""
    md5: dict[str, str] = field(default_factory=dict)
    """Of every TSV."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the score has to know."""


def find(folder: Path, names: Sequence[str] = ()) -> list[Benchmark]:
    """The benchmarks whose files lie below a folder, or the named ones.

    Raises:
        ValueError: An unknown name, or a benchmark of which a file is missing; said which.
    """
    unknown = [name for name in names if name not in NINE]
    if unknown:
        raise ValueError(f"no benchmark {', '.join(unknown)}; known are {', '.join(NINE)}")
    found = []
    for name in names or NINE:
        benchmark = NINE[name]
        there = {dataset: _sources(folder, benchmark, dataset) for dataset in benchmark.files}
        missing = [dataset for dataset, paths in there.items() if not paths]
        if missing and (names or len(missing) < len(there)):
            raise ValueError(
                f"DATA={folder}: {name} needs {' and '.join(there)}, and {', '.join(missing)} is "
                f"missing; expected {_expected(benchmark, missing[0])}. To go on without {name}, "
                "name the others in benchmarks="
            )
        if not missing:
            found.append(benchmark)
    return found


def is_any_in(folder: Path) -> bool:
    """Whether a file of any benchmark lies below a folder, be it half of what that one needs."""
    return any(
        _sources(folder, benchmark, dataset)
        for benchmark in NINE.values()
        for dataset in benchmark.files
    )


def read(folder: Path, benchmark: Benchmark, on_bad_input: BadInput = "go_on") -> BenchmarkData:
    """All items of a benchmark below a folder, file after file.

    Raises:
        ValueError: A file that is none of its format or lacks a column; no usable row; and, where
            ``on_bad_input`` is ``stop``, the first unfit row or foreign md5.
    """
    data = BenchmarkData(benchmark=benchmark, items=())
    items: dict[str, Item] = {}
    for dataset in benchmark.files:
        paths = _sources(folder, benchmark, dataset)
        if paths and paths[0].suffix == ".tsv":
            _check_md5(paths[0], dataset, data, on_bad_input)
        for row, (where, cells) in enumerate(_rows(paths, benchmark)):
            try:
                item = _item(cells, dataset, row, benchmark)
                if item.key in items:
                    raise UnfitRowError("duplicate index", item.index)
            except UnfitRowError as error:
                if on_bad_input == "stop":
                    raise ValueError(f"{where}: {error}") from error
                data.left_out.setdefault(error.reason, []).append(f"{where}: {error}")
            else:
                items[item.key] = item
    kept = _whole(list(items.values()), data, on_bad_input)
    if not kept:
        raise ValueError(f"DATA={folder}: {benchmark.name} has no usable row: {data.left_out}")
    return replace(data, items=kept)


def _whole(items: list[Item], data: BenchmarkData, on_bad_input: BadInput) -> tuple[Item, ...]:
    """Without the rest of a question that lost a rotation: it would be easier than the others."""
    rows = sorted(row for unit in data.benchmark.headline.units(items) for row in unit)
    kept = tuple(items[row] for row in rows)
    if lost := sorted({item.key for item in items} - {item.key for item in kept}):
        reason = "rows of a question that lacks others"
        if on_bad_input == "stop":
            raise ValueError(f"{data.benchmark.name}, {reason}: {', '.join(lost)}")
        data.left_out[reason] = lost
    return kept


def _sources(folder: Path, benchmark: Benchmark, dataset: str) -> list[Path]:
    """The TSV, else parquet files, else a folder of the benchmark's own layout."""
    tables = sorted(folder.rglob(f"{dataset}.tsv"))
    if len(tables) > 1:
        raise ValueError(f"DATA={folder}: {dataset} is there more than once: {tables}")
    shards = sorted({path for glob in benchmark.hub.get(dataset, ()) for path in folder.glob(glob)})
    own = [folder / benchmark.name] if benchmark.pictures_in else []
    return tables or shards or [path for path in own if path.is_dir()]


def _expected(benchmark: Benchmark, dataset: str) -> str:
    return " or ".join([f"{dataset}.tsv", *benchmark.hub.get(dataset, ())])


def _check_md5(path: Path, dataset: str, data: BenchmarkData, on_bad_input: BadInput) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "md5").hexdigest()
    data.md5[dataset] = digest
    official = data.benchmark.files[dataset]
    if official and not digest.startswith(official):
        said = f"{path}: md5 {digest} is not the published file's, {official}..."
        if on_bad_input == "stop":
            raise ValueError(said)
        data.notes.append(said)


_Cells = dict[str, Any] | UnfitRowError


def _rows(paths: Sequence[Path], benchmark: Benchmark) -> Iterator[tuple[str, _Cells]]:
    """Where a row lies, and its cells with the columns of the TSV, or what is wrong with it."""
    if paths and paths[0].suffix == ".parquet":
        yield from _hub_rows(paths, benchmark)
    elif paths and paths[0].is_dir():
        yield from _picture_rows(paths[0], benchmark)
    elif paths:
        yield from _tsv_rows(paths[0])


def _picture_rows(folder: Path, benchmark: Benchmark) -> Iterator[tuple[str, _Cells]]:
    assert benchmark.pictures_in is not None
    assert benchmark.from_picture is not None
    for path in benchmark.pictures_in(folder):
        try:
            yield str(path), benchmark.from_picture(path)
        except (ValueError, OSError) as error:
            yield str(path), UnfitRowError("picture that cannot be read", str(error))


def _tsv_rows(path: Path) -> Iterator[tuple[str, _Cells]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8", newline="") as file:
        try:
            reader = csv.DictReader(file, delimiter="\t", restval="")
            missing = {"index", "image", "question"} - set(reader.fieldnames or ())
            if missing:
                raise ValueError(
                    f"{path}: missing columns {', '.join(sorted(missing))}; "
                    f"got {', '.join(reader.fieldnames or ['none'])}"
                )
            rows = list(reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: no VLMEvalKit TSV: {error}") from error
    pictures = {row["index"]: row["image"] for row in rows}
    for number, row in enumerate(rows):
        where = f"{path}, row {number} (index {row['index'] or '-'})"
        try:
            if surplus := row.pop(None, None):
                raise UnfitRowError("more cells than columns", f"{len(surplus)} more")
            yield where, {**row, "image": _decoded(_referred(row["image"], pictures))}
        except UnfitRowError as error:
            yield where, error


def _referred(cell: str, pictures: dict[str, str]) -> str:
    """A picture's cell, or that of the row that it names."""
    if not 0 < len(cell) <= MAX_REFERENCE:
        return cell
    found = pictures.get(cell, "")
    if len(found) <= MAX_REFERENCE:
        raise UnfitRowError("picture of a row that has none", f"row with index {cell}")
    return found


def _decoded(cell: str) -> list[bytes]:
    """Base64, or a Python list of it, read as a literal and never run."""
    if len(cell) > MAX_PICTURE_CELL:
        raise UnfitRowError("picture cell too long", f"{len(cell)} characters")
    cells = [cell] if cell else []
    if cell.startswith("["):
        try:
            cells = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError) as error:
            raise UnfitRowError("list of pictures that cannot be read", repr(cell[:40])) from error
    try:
        return [base64.b64decode(each, validate=True) for each in cells]
    except (binascii.Error, ValueError, TypeError) as error:
        raise UnfitRowError("picture that is no base64", repr(cell[:40])) from error


def _hub_rows(paths: Sequence[Path], benchmark: Benchmark) -> Iterator[tuple[str, _Cells]]:
    assert benchmark.from_hub is not None
    for number, (path, row, values) in enumerate(_parquet_rows(paths)):
        where = f"{path}, row {row}"
        try:
            for cells in benchmark.from_hub(values, number):
                yield where, cells
        except KeyError as error:
            columns = ", ".join(values)
            raise ValueError(f"{path}: missing column {error}; got {columns}") from error
        except (ValueError, TypeError, IndexError) as error:
            yield where, UnfitRowError("row that cannot be read", str(error))


def _parquet_rows(paths: Sequence[Path]) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    for path in paths:
        try:
            batches = pq.ParquetFile(path).iter_batches(batch_size=64)
            rows = (row for batch in batches for row in batch.to_pylist())
            for row, values in enumerate(rows):
                yield path, row, values
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: no parquet file that can be read: {error}") from error


def _item(cells: _Cells, dataset: str, row: int, benchmark: Benchmark) -> Item:
    if isinstance(cells, UnfitRowError):
        raise cells
    pictures = tuple(cells["image"])
    if not pictures:
        raise UnfitRowError("no picture")
    for place, picture in enumerate(pictures):
        try:
            open_picture(picture, name=f"picture {place}")
        except ValueError as error:
            raise UnfitRowError("picture that cannot be decoded", str(error)) from error
    if not cells["index"] or not cells["question"]:
        raise UnfitRowError("no index" if not cells["index"] else "no question")
    # Only an empty cell is no option: None and NA are words that some questions offer.
    options = {letter: cells[letter] for letter in OPTION_LETTERS if cells.get(letter)}
    own = {"index", "image", "question", "answer", *OPTION_LETTERS}
    item = Item(
        dataset=dataset,
        index=str(cells["index"]),
        row=row,
        question=cells["question"],
        pictures=pictures,
        answer=cells.get("answer") or "",
        options=options,
        columns={key: value for key, value in cells.items() if key not in own and value},
    )
    try:
        benchmark.check(item)
    except ValueError as error:
        raise UnfitRowError("unfit answer", str(error)) from error
    return item
