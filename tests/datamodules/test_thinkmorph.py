import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image as PILImage

from datamodules.columns import COLUMNS
from datamodules.frozen_lake import MazeSettings, generate, generate_problem
from datamodules.thinkmorph import ThinkMorphFolder, maze_row, write_mazes, write_rows
from visual_opsd.models.bagel.packing import num_tokens
from visual_opsd.models.bagel.preprocessing import PROTOCOLS

NAMES = ("problem_id", "question", "answer", "tagged_answer", "task", "category")
NAMES += ("text_thoughts", "text_only_thought")
SETTINGS = MazeSettings(thought_length="faithful")


def _row(index=0, **change):
    problem = generate_problem(SETTINGS, "train", index)
    return {**maze_row(generate(SETTINGS, "train", index), problem), **change}


def _write(folder, rows):
    path = folder / "train-00000-of-00001.parquet"
    write_rows(path, rows)
    return path


def _picture(width, height, mode="RGB", colour="red"):
    buffer = io.BytesIO()
    PILImage.new(mode, (width, height), colour).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def test_mazes_written_are_the_mazes_read(tmp_path):
    paths = write_mazes(tmp_path, SETTINGS, "train", 9, num_shards=2, rows_per_group=2)
    assert [path.name for path in paths] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    folder = ThinkMorphFolder(tmp_path)
    assert folder.num_rows == len(folder) == 9
    assert folder.index.left_out == {}
    order = [0, 2, 4, 6, 8, 1, 3, 5, 7]  # dealt out to the shards, read shard by shard
    for row, index in enumerate(order):
        read, made = folder[row], generate_problem(SETTINGS, "train", index)
        for name in NAMES:
            assert getattr(read, name) == getattr(made, name), name
        assert torch.equal(read.image.pixels, made.image.pixels)
        assert torch.equal(read.visual_thoughts[0].pixels, made.visual_thoughts[0].pixels)
        assert read.visual_thoughts[0].role == made.visual_thoughts[0].role


def test_only_mazes_can_be_wrongly_solved(tmp_path):
    _write(tmp_path, [_row(0), _row(1, task="Visual_Search")])
    folder = ThinkMorphFolder(tmp_path)
    assert folder.wrongly_solved(0).answer != folder[0].answer
    with pytest.raises(ValueError, match=r"row 1: a wrong solution .* not for Visual_Search"):
        folder.wrongly_solved(1)


def test_the_file_has_the_published_schema(tmp_path):
    path = _write(tmp_path, [_row()])
    schema = pq.ParquetFile(path).schema_arrow
    assert schema.names == list(COLUMNS)
    assert COLUMNS == (
        "pid",
        "question",
        "answer",
        "problem_image_0",
        "resoning_thought_0",
        "reasoning_image_0",
        "resoning_thought_1",
        "task",
        "full_text_only_thought",
    )
    assert schema.field("problem_image_0").type == pa.struct(
        [("bytes", pa.binary()), ("path", pa.string())]
    )
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["reasoning_image_0"] == {"_type": "Image"}
    assert features["answer"] == {"dtype": "string", "_type": "Value"}


def test_rows_that_cannot_be_used_are_counted_and_named(tmp_path):
    broken = {"bytes": b"no picture", "path": None}
    rows = [
        _row(0),
        _row(1, question=""),
        _row(2, answer=None),
        _row(3, problem_image_0=None),
        _row(4, reasoning_image_0=broken),
        _row(5, reasoning_image_0={"bytes": None, "path": "lost.png"}),
        _row(6, resoning_thought_0="", resoning_thought_1=None),
        _row(7),
    ]
    path = _write(tmp_path, rows)
    folder = ThinkMorphFolder(tmp_path)
    assert folder.num_rows == 8
    assert len(folder) == 2
    assert folder.index.num_left_out == {
        "no question": 1,
        "no answer": 1,
        "no problem_image_0": 1,
        "undecodable reasoning_image_0": 1,
        "no visual thought": 1,
        "no text thought": 1,
    }
    assert folder.index.left_out["no question"] == (f"{path}:1 ({rows[1]['pid']})",)
    assert folder[1].problem_id == rows[7]["pid"]


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        ("answer", 42, "answer that is no text"),
        ("pid", 7, "pid that is no text"),
        ("resoning_thought_1", ["a", "list"], "resoning_thought_1 that is no text"),
        ("problem_image_0", b"bare bytes", "problem_image_0 that is no picture"),
        ("reasoning_image_0", {"bytes": "base64"}, "reasoning_image_0 that is no picture"),
        ("reasoning_image_0", {"path": "lost.png"}, "no visual thought"),
    ],
)
def test_a_cell_of_another_type_is_a_row_left_out(tmp_path, column, cell, reason):
    """A number for an answer ended the run with an AttributeError that named no file."""
    good, bad = _write(tmp_path, [_row(0)]), tmp_path / "train-bad.parquet"
    row = _row(1, **{column: cell})
    pq.write_table(pa.Table.from_pylist([row]), bad)  # a column of another type, as people have
    index = ThinkMorphFolder(tmp_path).index
    assert [row.path for row in index.rows] == [good]
    assert index.left_out == {reason: (f"{bad}:0 ({row['pid']})",)}


def test_a_picture_that_breaks_off_is_left_out_before_training(tmp_path):
    data = _row(1)["reasoning_image_0"]["bytes"]
    cut = {"bytes": data[: len(data) // 2], "path": None}
    _write(tmp_path, [_row(0), _row(1, reasoning_image_0=cut)])
    assert ThinkMorphFolder(tmp_path).index.num_left_out == {"undecodable reasoning_image_0": 1}


def test_a_maze_of_no_whole_cells_is_named_by_file_row_and_column(tmp_path):
    _write(tmp_path, [_row(0), _row(1, reasoning_image_0=_picture(100, 64))])
    with pytest.raises(ValueError, match=r"train-.*parquet, row 1: column reasoning_image_0"):
        ThinkMorphFolder(tmp_path)[1]


def test_what_is_transparent_is_white(tmp_path):
    clear = _picture(64, 64, "RGBA", (0, 0, 0, 0))
    _write(tmp_path, [_row(0, reasoning_image_0=clear)])
    for protocol in (None, PROTOCOLS["train"]):
        problem = ThinkMorphFolder(tmp_path, cell=None, protocol=protocol)[0]
        assert (problem.visual_thoughts[0].pixels == 1).all()


def test_an_answer_that_is_no_path_is_left_out_where_a_path_is_asked_for(tmp_path):
    rows = [_row(0), _row(1, answer="forty-two"), _row(2, answer="forty-two", task="Chart_Refocus")]
    _write(tmp_path, rows)
    folder = ThinkMorphFolder(tmp_path, cell=None)
    assert len(folder) == 2
    assert folder.index.num_left_out == {"answer that no rule parses": 1}
    assert folder[1].answer == "forty-two"


def test_an_answer_may_be_boxed_already(tmp_path):
    _write(tmp_path, [_row(0, answer=r"\boxed{D, R}")])
    problem = ThinkMorphFolder(tmp_path)[0]
    assert problem.tagged_answer == r"<answer>\boxed{D,R}</answer>"


def test_other_tasks_are_read_without_reduction(tmp_path):
    row = _row(0, task="Jigsaw_Assembly", answer="A")
    _write(tmp_path, [row])
    problem = ThinkMorphFolder(tmp_path, cell=None)[0]
    assert problem.tagged_answer == "<answer>A</answer>"
    assert problem.image.pixels.shape == (3, 192, 192)
    assert problem.category == ""


@pytest.mark.parametrize("size", [(384, 384), (300, 200), (640, 480)])
def test_the_7b_models_pictures_fit_its_patches_and_its_latents(tmp_path, size):
    picture = _picture(*size)
    _write(tmp_path, [_row(problem_image_0=picture, reasoning_image_0=picture)])
    problem = ThinkMorphFolder(tmp_path, cell=None, protocol=PROTOCOLS["train"])[0]
    for image in (problem.image, *problem.visual_thoughts):
        assert num_tokens(image.pixels, 14, "patches") >= 27**2
        assert num_tokens(image.drawn_pixels, 16, "latents") >= 32**2
        assert not image.with_latents  # the student's context is read, not drawn from


def test_only_files_with_train_in_their_name_are_read(tmp_path):
    with pytest.raises(ValueError, match="absent"):
        ThinkMorphFolder(tmp_path / "absent")
    write_rows(tmp_path / "test-00000-of-00001.parquet", [_row()])
    with pytest.raises(ValueError, match="'train' in its name"):
        ThinkMorphFolder(tmp_path)


def test_a_file_that_is_no_parquet_or_lacks_a_column_is_named(tmp_path):
    path = tmp_path / "train-0.parquet"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"train-0\.parquet: no parquet"):
        len(ThinkMorphFolder(tmp_path))
    pq.write_table(pa.table({"pid": ["a"], "reasoning_thought_0": ["spelt right"]}), path)
    with pytest.raises(ValueError, match=r"train-0\.parquet: missing columns question.*resoning"):
        len(ThinkMorphFolder(tmp_path))
