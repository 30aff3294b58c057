"""Results on disk: whole or not at all, made once, and never another run's."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def write(path: Path, text: str) -> Path:
    """Write a file whole or not at all; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    return temporary.replace(path)


def kept(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``path`` holds; measured and written first where it holds nothing yet."""
    if not path.is_file():
        write(path, json.dumps(measure()))
    return dict(json.loads(path.read_text()))


def check_same(folder: Path, saved: Mapping[str, Any], mine: Mapping[str, Any], what: str) -> None:
    """Refuse a folder that was made with other settings than ``mine``.

    Raises:
        ValueError: Names ``what`` the folder holds, and every key with both values.
    """
    now = json.loads(json.dumps(mine))
    changed = [
        f"{key}: {saved.get(key)} -> {now.get(key)}"
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key)
    ]
    if changed:
        raise ValueError(
            f"{folder} holds {what}: {'; '.join(changed)}. "
            "Take another output folder, or remove this one"
        )


def claim(path: Path, mine: Mapping[str, Any], what: str) -> Path:
    """Make the folder of ``path`` that of ``mine``, which ``path`` then holds; returns the folder.

    Raises:
        ValueError: It is another one's already; see :func:`check_same`.
    """
    if path.is_file():
        check_same(path.parent, json.loads(path.read_text()), mine, what)
    write(path, json.dumps(mine, indent=2) + "\n")
    return path.parent
