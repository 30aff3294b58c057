import ast
import base64
import csv
import io
import json

import numpy as np
import pytest
from PIL import Image as PILImage

from datamodules.frozen_lake import MazeSettings, generate
from datamodules.leaks import leak_report
from datamodules.thinkmorph import ThinkMorphFolder, write_mazes
from datamodules.twin_files import maze_tsv_row, twin_tsv_row, write_tsv, write_twins
from datamodules.twins import FORMS, MISSING_CORNER, TWIN_TASKS, TwinSettings, generate_twin
from visual_opsd.benchmarks.charts import CHART_TASK
from visual_opsd.benchmarks.jigsaw import JIGSAW_TASK
from visual_opsd.benchmarks.visual_search import SEARCH_TASK


def _decoded(text):
    return np.asarray(PILImage.open(io.BytesIO(base64.b64decode(text))))


def test_one_reader_reads_all_four_tasks(tmp_path):
    write_mazes(tmp_path, MazeSettings(sizes=(3,)), "train", 3)
    made = {}
    for task in TWIN_TASKS:
        settings = TwinSettings(task=task, pixels=32)
        write_twins(tmp_path, settings, "train", 5, num_shards=2)
        made |= {t.problem_id: t for t in (generate_twin(settings, "train", i) for i in range(5))}
    folder = ThinkMorphFolder(tmp_path)
    problems = [folder[index] for index in range(len(folder))]
    assert len(problems) == folder.num_rows == 18
    assert {p.task for p in problems} == {*TWIN_TASKS, "Spatial_Navigation"}
    for problem in problems:
        if problem.problem_id not in made:
            continue
        again = made.pop(problem.problem_id).problem()
        for name in ("question", "answer", "task", "text_thoughts", "text_only_thought"):
            assert getattr(problem, name) == getattr(again, name)
        assert (problem.image.pixels == again.image.pixels).all()
        assert (problem.visual_thoughts[0].pixels == again.visual_thoughts[0].pixels).all()
    assert not made


def test_a_tsv_has_the_cells_of_vlmevalkit(tmp_path):
    forms = (*FORMS[JIGSAW_TASK][:1], MISSING_CORNER)
    jigsaws = TwinSettings(task=JIGSAW_TASK, forms=forms)
    twins = [generate_twin(jigsaws, "test", index) for index in range(2)]
    twins.append(generate_twin(TwinSettings(task=CHART_TASK), "test", 0))
    maze = generate(MazeSettings(), "test", 0)
    rows = [twin_tsv_row(index, twin) for index, twin in enumerate(twins)]
    write_tsv(tmp_path / "twins.tsv", [*rows, maze_tsv_row(3, maze)])
    csv.field_size_limit(2**24)
    with (tmp_path / "twins.tsv").open(newline="", encoding="utf-8") as file:
        plain, corner, chart, navigation = csv.DictReader(file, delimiter="\t")
    assert [plain[letter] for letter in "ABCD"] == [
        "Part 1 should be to the left of Part 2",
        "Part 1 should be to the right of Part 2",
        "",
        "",
    ]
    assert plain["answer"] == twins[0].puzzle.answer
    assert "Part 1 should" not in plain["question"], "the options have cells of their own"
    assert (_decoded(plain["image"]) == np.asarray(twins[0].puzzle.pictures()[0])).all()
    assert ast.literal_eval(corner["image"]) == json.loads(corner["image"])
    shapes = [_decoded(text).shape for text in json.loads(corner["image"])]
    assert shapes == [(64, 64, 3), (32, 32, 3), (32, 32, 3)]
    assert (chart["A"], chart["category"]) == ("", twins[2].puzzle.category)
    assert navigation["maze_map"] == str(np.array(maze.rows))
    assert navigation["maze_size"] == str(maze.size)


@pytest.mark.parametrize("task", TWIN_TASKS)
def test_the_leak_report_finds_no_overlap_and_no_answer_without_a_look(task):
    settings = TwinSettings(task=task, pixels=32)
    report = leak_report(settings, {"train": 60, "test": 40})
    assert report["canonical_overlap"] == {"train/test": 0}
    found = report["splits"]["test"]
    assert found["num_unique"] == found["num_problems"] == 40
    # 40 problems: three standard deviations above chance are a quarter.
    assert found["constant"] < found["chance"] + 0.25
    assert found["question"] < max(found["chance"], 0.2) + 0.25
    if task == JIGSAW_TASK:
        assert found["visual_thought"] < found["chance"] + 0.25, "a whole tells no arrangement"
    if task == SEARCH_TASK:
        assert found["picture"] < found["chance"] + 0.3
