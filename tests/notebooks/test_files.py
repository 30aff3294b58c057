"""Notebooks look, packages compute; what they computed is not committed."""

import ast
import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted(Path("notebooks").glob("*.ipynb"))


def cells_of(path, kind):
    found = json.loads(path.read_text())["cells"]
    return [cell | {"text": "".join(cell["source"])} for cell in found if cell["cell_type"] == kind]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    for cell in cells_of(path, "code"):
        assert cell["outputs"] == [], f"{path}: commit it without outputs (pre-commit strips them)"
        assert cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_defines_a_class_or_loops(path):
    for cell in cells_of(path, "code"):
        code = "\n".join(line for line in cell["text"].splitlines() if not line.startswith("%"))
        for node in ast.walk(ast.parse(code)):
            assert not isinstance(node, ast.ClassDef | ast.For | ast.While), cell["text"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_says_first_what_it_answers_and_last_what_was_seen(path):
    words = cells_of(path, "markdown")
    assert "**Answers**" in words[0]["text"]
    assert words[-1]["text"].startswith("## What was seen")


def test_every_picture_of_the_gallery_hangs():
    folder = Path("docs/gallery")
    page = (folder / "README.md").read_text()
    named = set(re.findall(r"\]\(([^)]+\.(?:png|pdf))\)", page))
    assert len(named) >= 14
    assert named == {path.name for path in folder.iterdir()} - {"README.md"}
