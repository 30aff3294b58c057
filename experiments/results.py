"""Folders of results: files written whole or not at all, and never of two evaluations at once."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Whole or not at all, with a newline at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def claim(folder: Path, mine: Mapping[str, Any]) -> Path:
    """Make the folder this evaluation's; one of another is an error that says what differs."""
    path = folder / "evaluation.json"
    saved = json.loads(path.read_text()) if path.is_file() else mine
    keys = sorted(saved.keys() | mine.keys())
    changed = [f"{k}: {saved.get(k)} -> {mine.get(k)}" for k in keys if saved.get(k) != mine.get(k)]
    if changed:
        raise ValueError(
            f"{folder} holds another evaluation: {'; '.join(changed)}. "
            "Take another out=, or remove the folder"
        )
    write_whole(path, json.dumps(mine, indent=2))
    return folder
