"""Somebody's own pictures become a folder that every command reads."""

import json

import pytest
import torch

from datamodules.frozen_lake import MazeSettings, generate_problem
from datamodules.pictures import NO_THOUGHT, import_jsonl, prepare, write_example
from datamodules.thinkmorph import ThinkMorphFolder


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return write_example(tmp_path_factory.mktemp("pictures"), 3)


def lines_of(example):
    return [json.loads(line) for line in example.read_text().splitlines()]


def written(folder, *lines):
    path = folder / "mine.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_what_is_read_back_is_what_was_given(example, tmp_path):
    import_jsonl(example, tmp_path)
    rows = ThinkMorphFolder(tmp_path)
    assert rows.index.left_out == {}
    for index in range(3):
        expected = generate_problem(MazeSettings(), "train", index)
        found = rows[index]
        assert (found.question, found.answer) == (expected.question, expected.answer)
        assert found.text_thoughts == expected.text_thoughts
        shown = [(problem.image, *problem.visual_thoughts) for problem in (found, expected)]
        for one, other in zip(*shown, strict=True):
            assert torch.equal(one.pixels, other.pixels)


def test_a_problem_needs_no_thought_in_words(example, tmp_path):
    line = {key: value for key, value in lines_of(example)[0].items() if "thought" not in key}
    line |= {"visual_thought": "0-drawn.png", "id": "mine"}
    import_jsonl(written(example.parent, line), tmp_path)
    (found,) = ThinkMorphFolder(tmp_path)
    assert found.problem_id == "mine"
    assert found.text_thoughts[0] == NO_THOUGHT


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"visual_thought": None},
            r"line 2: missing visual_thought \(the picture that the teacher",
        ),
        ({"answr": "A"}, r"line 2: unknown \['answr'\]"),
        ({"thoughts": ["a", "b", "c"]}, "line 2: thoughts has 3 texts"),
        ({"image": "absent.png"}, "line 2: no picture .*absent.png"),
    ],
    ids=["no VT", "misspelt", "thoughts", "no picture"],
)
def test_a_line_that_cannot_be_used_is_named(example, tmp_path, change, said):
    good = lines_of(example)[0]
    bad = {key: value for key, value in {**good, **change}.items() if value is not None}
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        import_jsonl(written(example.parent, good, bad), tmp_path)


def test_a_folder_that_has_data_is_read_as_it_is(example, tmp_path):
    """The notebook wrote its example over the first shard of whoever named a downloaded folder."""
    shard = tmp_path / "data" / "train-00000-of-00001.parquet"
    shard.parent.mkdir()
    shard.write_bytes(b"downloaded")
    for folder in (tmp_path, shard.parent):
        prepare(example, folder, 3)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [shard]
    assert shard.read_bytes() == b"downloaded"


def test_an_example_is_made_where_there_is_nothing_and_imported_again(tmp_path):
    for _ in range(2):
        prepare(tmp_path / "pictures" / "problems.jsonl", tmp_path / "parquet", 3)
        assert len(ThinkMorphFolder(tmp_path / "parquet")) == 3


def test_no_example_is_written_among_somebodys_pictures(tmp_path):
    """A misspelt file of problems cost whoever calls pictures by numbers the first 24 of them."""
    (tmp_path / "0.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"no problems\.jsonl and is not empty"):
        prepare(tmp_path / "misspelt.jsonl", tmp_path / "parquet", 3)
    assert (tmp_path / "0.png").read_bytes() == b"mine"
