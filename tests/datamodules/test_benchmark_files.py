"""Nine benchmarks from the files people have, and every fault of a file by its row."""

import base64
import csv
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

from datamodules.benchmark_files import find, read
from datamodules.benchmark_twins import write_nine
from visual_opsd.benchmarks.benchmark import guess_an_option
from visual_opsd.benchmarks.maze_pictures import render
from visual_opsd.benchmarks.mazes import Maze
from visual_opsd.benchmarks.nine import NINE
from visual_opsd.benchmarks.vsp_navigation import maze_of_item

VSTAR = NINE["VStarBench"]


def png(grey=128, size=(32, 32)):
    buffer = io.BytesIO()
    PILImage.new("RGB", size, (grey, grey, grey)).save(buffer, format="PNG")
    return buffer.getvalue()


def encoded(grey=128):
    return base64.b64encode(png(grey)).decode()


def row(number, **changes):
    cells = {"index": number, "image": encoded(), "question": "Which?", "A": "red", "B": "blue"}
    return {**cells, "answer": "A", "category": "direct_attributes", **changes}


def write(folder, rows, name="VStarBench", newline="\n"):
    path = folder / f"{name}.tsv"
    columns = list(dict.fromkeys(column for each in rows for column in each))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator=newline)
        writer.writeheader()
        writer.writerows(rows)
    return path


def only_fault(folder, rows):
    """The one row that is left out, and why, while the rest is read."""
    write(folder, [row(0), *rows])
    found = read(folder, VSTAR)
    assert [item.index for item in found.items] == ["0"]
    ((reason, (said,)),) = found.left_out.items()
    with pytest.raises(ValueError, match="VStarBench"):
        read(folder, VSTAR, on_bad_input="stop")
    return reason, said


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nine")
    write_nine(folder, 6)
    return folder


def test_all_nine_are_found_and_read_from_files_written_here(nine):
    assert [benchmark.name for benchmark in find(nine)] == list(NINE)
    for benchmark in find(nine):
        found = read(nine, benchmark)
        assert not found.left_out
        assert len(found.benchmark.headline.units(found.items)) >= 6
        assert all(item.pictures for item in found.items)


def test_files_written_here_have_the_published_number_of_pictures_and_options(nine):
    items = {name: read(nine, benchmark).items for name, benchmark in NINE.items()}
    assert {len(item.pictures) for item in items["BLINK_Jigsaw"]} == {3}
    assert {len(item.options) for item in items["MMVP"]} == {2}
    assert not any(item.options for item in (*items["VSP"], *items["ChartQA"]))
    assert {item.columns["source"] for item in items["CV-Bench"]} == {"ADE20K", "COCO", "Omni3D"}
    assert NINE["SAT_circular"].headline.expected(
        items["SAT_circular"], guess_an_option
    ) == pytest.approx(0.25)
    first, second = items["MMVP"][:2]
    assert first.question == second.question
    assert first.answer != second.answer
    assert all(
        NINE["VSP"].mark(item, f"<answer>{item.answer}</answer>").is_right for item in items["VSP"]
    )


def test_options_that_read_none_stay_and_numbers_stay_text(tmp_path):
    write(tmp_path, [row(7, A="None", B="NA", C="007", answer="C")], newline="\r\n")
    (item,) = read(tmp_path, VSTAR).items
    assert item.options == {"A": "None", "B": "NA", "C": "007"}
    assert item.shown_options("harness") == {"C": "007"}
    assert item.index == "7"


def test_a_short_picture_cell_is_the_index_of_the_row_that_has_it(tmp_path):
    write(tmp_path, [row(1, image="2"), row(2, image=encoded(9))])
    first, second = read(tmp_path, VSTAR).items
    assert first.pictures == second.pictures == (png(9),)


def test_a_list_of_pictures_is_read_and_never_run(tmp_path):
    write(tmp_path, [row(0, image=str([encoded(1), encoded(2)]))])
    assert read(tmp_path, VSTAR).items[0].pictures == (png(1), png(2))
    assert only_fault(tmp_path, [row(1, image="[print('x'), " + " " * 99 + "]")])[0] == (
        "list of pictures that cannot be read"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answer": "E"}, "unfit answer"),
        ({"answer": ""}, "unfit answer"),
        ({"index": "0"}, "duplicate index"),
        ({"index": ""}, "no index"),
        ({"question": ""}, "no question"),
        ({"image": ""}, "no picture"),
        ({"image": "99"}, "picture of a row that has none"),
        ({"image": "!" * 99}, "picture that is no base64"),
        ({"image": base64.b64encode(b"no picture" * 9).decode()}, "picture that cannot be decoded"),
        ({"image": encoded()[:80]}, "picture that cannot be decoded"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_fault_is_counted_and_named_by_file_and_row(tmp_path, changes, reason):
    found, said = only_fault(tmp_path, [row(1, **changes)])
    assert found == reason
    assert "VStarBench.tsv, row 1" in said


def test_what_is_left_of_a_circular_question_is_left_out_with_its_lost_row(tmp_path):
    rows = [row(index, g_index=str(index % 1000)) for index in (1, 2, 1001, 1002)]
    write(tmp_path, [*rows[:3], {**rows[3], "image": ""}], name="SAT_circular")
    found = read(tmp_path, NINE["SAT_circular"])
    assert [item.index for item in found.items] == ["1", "1001"]
    assert found.left_out["rows of a question that lacks others"] == ["SAT_circular:2"]


def test_a_foreign_md5_is_said_or_stops(tmp_path):
    write(tmp_path, [row(0)])
    (note,) = read(tmp_path, VSTAR).notes
    assert "VStarBench.tsv: md5" in note
    assert "b18854d7" in note
    with pytest.raises(ValueError, match="is not the published file's"):
        read(tmp_path, VSTAR, on_bad_input="stop")


def test_a_missing_column_names_the_file_and_what_is_there(tmp_path):
    write(tmp_path, [{"index": 0, "picture": encoded(), "question": "?"}])
    with pytest.raises(ValueError, match=r"VStarBench\.tsv: missing columns image; got index, pic"):
        read(tmp_path, VSTAR)


def test_no_usable_row_is_an_error_that_says_why(tmp_path):
    write(tmp_path, [row(0, answer="Q")])
    with pytest.raises(ValueError, match=r"no usable row.*'Q' is none of A, B"):
        read(tmp_path, VSTAR)


def test_half_a_benchmark_and_an_unknown_one_are_refused(tmp_path):
    write(tmp_path, [row(0)], name="CV-Bench-2D")
    with pytest.raises(ValueError, match=r"CV-Bench-3D is missing; expected CV-Bench-3D\.tsv or"):
        find(tmp_path)
    with pytest.raises(ValueError, match="no benchmark vstar; known are VSP"):
        find(tmp_path, ["vstar"])


IMAGE = {"bytes": png(), "path": None}
HUB = {
    "VisPuzzle": (
        "VisPuzzle/data/test-0.parquet",
        {"pid": "p", "question": "?", "problem_image": IMAGE, "options": ["l", "r"], "answer": "B"},
    ),
    "VStarBench": (
        "vstar_bench/test.parquet",
        {"image": IMAGE, "category": "c", "question": "?", "choices": ["l", "r"], "answer": 1},
    ),
    "BLINK": (
        "BLINK/Counting/val-0.parquet",
        {"idx": "i", "question": "?", "sub_task": "Counting", "choices": ["l", "r"]}
        | {"answer": "(B)", "image_1": IMAGE, "image_2": None},
    ),
    "MMVP": (
        "MMVP/train.parquet",
        {"Index": 1, "Question": "?", "Options": "(a) l (b) r", "Correct Answer": "(b)"}
        | {"image": IMAGE},
    ),
    "SAT_circular": (
        "SAT/SAT_test.parquet",
        {"image_bytes": [IMAGE, IMAGE], "question": "?", "answers": ["l", "r"]}
        | {"question_type": "t", "correct_answer": "r"},
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_the_hubs_rows_are_read_as_the_tsv_would_be(tmp_path, name):
    place, values = HUB[name]
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([values]), path)
    (benchmark,) = [each for each in find(tmp_path) if each.name == name]
    item = read(tmp_path, benchmark).items[0]
    assert item.options == {"A": "l", "B": "r"}
    assert item.answer == "B"
    assert item.pictures[0] == png()
    pq.write_table(pa.Table.from_pylist([{**values, "question": "?"}]).select([0]), path)
    with pytest.raises(ValueError, match=r"missing column .*; got"):
        read(tmp_path, benchmark)


def test_a_truncated_parquet_is_named(tmp_path):
    path = tmp_path / "VisPuzzle" / "test-0.parquet"
    path.parent.mkdir()
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=r"test-0\.parquet: no parquet file"):
        read(tmp_path, NINE["VisPuzzle"])


def test_vsp_is_read_from_its_own_folders_too(tmp_path):
    pictures = tmp_path / "VSP" / "level3" / "img"
    pictures.mkdir(parents=True)
    maze = Maze(("SFH", "FFF", "HFG"))
    render(maze).save(pictures / "7.png")
    (item,) = read(tmp_path, NINE["VSP"]).items
    assert item.index == "level3_7"
    assert maze_of_item(item) == maze
    (pictures / "8.png").write_bytes(png()[:80])
    PILImage.new("RGB", (100, 100)).save(pictures / "9.png")
    found = read(tmp_path, NINE["VSP"])
    assert [each.index for each in found.items] == ["level3_7"]
    ((reason, said),) = found.left_out.items()
    assert reason == "picture that cannot be read"
    assert ["8.png: " in said[0], "9.png: " in said[1]] == [True, True]
    with pytest.raises(ValueError, match=r"level3/img/8\.png: picture that cannot be read"):
        read(tmp_path, NINE["VSP"], on_bad_input="stop")


def test_a_row_of_more_cells_than_columns_is_left_out(tmp_path):
    """Its surplus went on under no name, and ended the run when all was asked and exported."""
    path = write(tmp_path, [row(0), row(1)])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2] + "\tmore"]) + "\n")
    found = read(tmp_path, VSTAR)
    assert [item.index for item in found.items] == ["0"]
    ((reason, (said,)),) = found.left_out.items()
    assert reason == "more cells than columns"
    assert "row 1 (index 1)" in said


def test_a_rotation_of_nobody_knows_what_is_left_out(tmp_path):
    """Its index was taken for a number, and the run ended with no word of file and row."""
    write(tmp_path, [row(0), row(1_000_000, answer="B"), row("x")], "SAT_circular")
    found = read(tmp_path, NINE["SAT_circular"])
    assert [item.index for item in found.items] == ["0", "1000000"]
    ((said,),) = found.left_out.values()
    assert "row 2 (index x)" in said
