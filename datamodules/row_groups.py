"""Rows of parquet files of any size, a few at a time in memory."""

import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.columns import COLUMNS, REQUIRED, columns_read

Row = dict[str, Any]
ROWS_A_SLICE = 16
MAX_CACHED_BYTES = 2**26

_BUFFER_BYTES = 2**20  # of a column's pages; without it, arrow reads whole column chunks


class RowGroups:
    """Any row of some files, read through slices of 16 rows.

    Pictures make a row group large, so none is held whole where its pages are smaller: its slices
    are read one after the other up to the one that is wanted, and the last ones that were wanted
    are kept. Reading rows in their order is reading each slice once. The least that is held is a
    page: all of a row group of up to 1024 rows if pyarrow wrote it by its defaults;
    ``datasets`` writes pictures 100 rows a group.
    """

    def __init__(self, max_cached_bytes: int = MAX_CACHED_BYTES) -> None:
        """Nothing is opened yet."""
        self._max_cached_bytes = max_cached_bytes
        self._process = os.getpid()
        self._files: dict[Path, pq.ParquetFile] = {}
        self._cache: OrderedDict[tuple[Path, int, int], pa.RecordBatch] = OrderedDict()
        self._open: tuple[Path, int] | None = None
        self._slices: Iterator[pa.RecordBatch] = iter(())
        self._next = 0

    def __getstate__(self) -> dict[str, Any]:
        """A copy for another process opens its own files."""
        return {"_max_cached_bytes": self._max_cached_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start empty."""
        RowGroups.__init__(self, state["_max_cached_bytes"])

    def file(self, path: Path) -> pq.ParquetFile:
        """The file, opened once.

        Raises:
            ValueError: It is no parquet file, is cut off or lacks a column; it is named.
        """
        if self._process != os.getpid():  # forked: a reader that two processes share would mix up
            RowGroups.__init__(self, self._max_cached_bytes)
        if path not in self._files:
            self._files[path] = _open(path)
        return self._files[path]

    def row(self, path: Path, row_group: int, row: int) -> Row:
        """One row as a dictionary of the columns read, None where a column is absent.

        Raises:
            ValueError: The file is damaged there; file and row group are named.
        """
        number, offset = divmod(row, ROWS_A_SLICE)
        found = self._slice(path, row_group, number)
        return {**dict.fromkeys(COLUMNS), **found.slice(offset, 1).to_pylist()[0]}

    def rows(self, path: Path, row_group: int) -> Iterator[Row]:
        """All rows of a row group, in order."""
        for row in range(self.file(path).metadata.row_group(row_group).num_rows):
            yield self.row(path, row_group, row)

    def _slice(self, path: Path, row_group: int, number: int) -> pa.RecordBatch:
        key = (path, row_group, number)
        if key not in self._cache:
            self._cache[key] = self._read(path, row_group, number)
            while len(self._cache) > 1 and self._cached_bytes() > self._max_cached_bytes:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def _read(self, path: Path, row_group: int, number: int) -> pa.RecordBatch:
        file = self.file(path)
        if self._open != (path, row_group) or number < self._next:
            columns = columns_read(file.schema_arrow.names)
            self._slices = file.iter_batches(
                ROWS_A_SLICE, row_groups=[row_group], columns=columns, use_threads=False
            )
            self._open, self._next = (path, row_group), 0
        try:
            for found in self._slices:
                self._next += 1
                if self._next > number:
                    return found
        except (pa.ArrowException, OSError) as error:
            self._open = None
            raise ValueError(f"{path}, row group {row_group}: damaged: {error}") from error
        raise ValueError(f"{path}, row group {row_group}: ends before row {number * ROWS_A_SLICE}")

    def _cached_bytes(self) -> int:
        return sum(found.nbytes for found in self._cache.values())


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path, buffer_size=_BUFFER_BYTES)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: no parquet file, or cut off: {error}") from error
    missing = [column for column in REQUIRED if column not in file.schema_arrow.names]
    if missing:
        raise ValueError(
            f"{path}: missing columns {', '.join(missing)}; expected {', '.join(COLUMNS)} "
            "(sic: the thoughts are spelt resoning)"
        )
    return file
