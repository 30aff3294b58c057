"""Tensors in safetensors files, known by name and shape before any of them is read."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

INDEX_SUFFIX = ".index.json"


class StoredTensors(Mapping[str, Tensor]):
    """One or several files as one mapping; a tensor is a view of the mapped file until copied."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Open ``paths``; a damaged file or a name held twice is an error that says which."""
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.files: dict[str, Any] = {}
        self.paths = tuple(paths)
        for path in self.paths:
            try:
                file: Any = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path} is damaged: {error}") from error
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                if name in self.shapes:
                    raise ValueError(f"{path} holds {name}, which another file holds too")
                self.shapes[name] = tuple(file.get_slice(name).get_shape())
                self.files[name] = file

    def __getitem__(self, name: str) -> Tensor:
        return self.files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __str__(self) -> str:
        return ", ".join(map(str, self.paths))

    def borrow(self, other: "StoredTensors", wanted: Callable[[str], bool]) -> None:
        """Take in the ``wanted`` tensors of ``other``, all or none, if this one holds none."""
        if any(map(wanted, self.shapes)):
            return
        names = list(filter(wanted, other.shapes))
        self.shapes |= {name: other.shapes[name] for name in names}
        self.files |= {name: other.files[name] for name in names}
        self.paths += other.paths if names else ()

    def must_fit(
        self,
        expected: Mapping[str, torch.Size],
        *,
        optional: Mapping[str, torch.Size] | None = None,
        any_length: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Every name and shape as ``expected``, or one error with all that is wrong.

        ``optional`` names may be there, too; the first axis of ``any_length`` names is free.
        """
        known = {**(optional or {}), **expected}

        def fits(name: str) -> bool:
            start = 1 if any_length(name) else 0
            return self.shapes[name][start:] == tuple(known[name])[start:]

        missing = sorted(expected.keys() - self.shapes.keys())
        unexpected = sorted(self.shapes.keys() - known.keys())
        misshapen = [
            f"{name} {self.shapes[name]} instead of {tuple(known[name])}"
            for name in sorted(known.keys() & self.shapes.keys())
            if not fits(name)
        ]
        if missing or unexpected or misshapen:
            raise ValueError(
                f"{self} does not fit its configuration: missing {missing}, "
                f"unexpected {unexpected}, misshapen {misshapen}"
            )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weights of a folder: one file under a released name, or the shards an index lists.

    A student of the first release may keep its moving average (``ema.safetensors``) beside its
    weights: the weights are taken.
    """
    for name in ("model.safetensors", "ema.safetensors"):
        if (folder / name).is_file():
            return (folder / name,)
    index = folder / f"model.safetensors{INDEX_SUFFIX}"
    if not index.is_file():
        raise FileNotFoundError(
            f"{folder} is no model folder: it has no model.safetensors, ema.safetensors or "
            f"{index.name}"
        )
    names = read_json(index).get("weight_map", {})
    paths = tuple(folder / name for name in sorted(set(names.values())))
    absent = [path.name for path in paths if not path.is_file()]
    if absent or not paths:
        raise FileNotFoundError(f"{index} lists weights in {absent or 'no file'}: not there")
    return paths


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; anything else is an error that names the file."""
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def write(
    tensors: Mapping[str, Tensor],
    path: Path,
    metadata: dict[str, str] | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Write ``path`` at once, so that it is whole where it is; or shards and then their index."""
    shards = _shards(tensors, max_shard_bytes)
    if len(shards) == 1:
        _write(tensors, path, metadata)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        name = f"{path.stem}-{number:05d}-of-{len(shards):05d}{path.suffix}"
        _write({key: tensors[key] for key in names}, path.with_name(name), metadata)
        weight_map |= dict.fromkeys(names, name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    path.with_name(path.name + INDEX_SUFFIX).write_text(json.dumps(index, indent=2) + "\n")


def _write(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None) -> None:
    temporary = path.with_suffix(".tmp")
    state = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    save_file(state, temporary, metadata=metadata)
    temporary.replace(path)


def _shards(tensors: Mapping[str, Tensor], limit: int | None) -> list[list[str]]:
    """Names in order, each shard as full as ``limit`` bytes allow."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if limit is not None and shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards
