"""One command scores a checkpoint in three ways, once, and says what is wrong with its input."""

import json
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from datamodules.frozen_lake import MazeSettings
from datamodules.thinkmorph import ANSWER, PID, write_mazes
from experiments.evaluate import maze_sets, parse, read_folder, score, with_true_thought
from experiments.evaluation import load_predictions
from visual_opsd.benchmarks.maze_pictures import read_path
from visual_opsd.benchmarks.vsp import FOLDER_VARIABLE, maze_of, vsp_problems
from visual_opsd.contexts import teacher_context

FEW = ("sizes=[3,4]", "num_problems=8", "num_drawn=4", "num_timed=1")


@pytest.fixture(scope="module")
def scored(tmp_path_factory, start, vsp):
    out = tmp_path_factory.mktemp("evaluate") / "out"
    config = parse([f"MODEL={start}", f"out={out}", *FEW])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(vsp))
        score(config)
        yield config, out


def test_scores_both_sets_in_three_ways_greedy_and_sampled(scored):
    _, out = scored
    scores = json.loads((out / "scores.json").read_text())
    assert set(scores) == {"held_out", "vsp"}
    for found in scores.values():
        assert set(found["ways"]) == {"drawn", "text_only", "privileged"}
        for row in found["ways"].values():
            for key in ("greedy", "sampled"):
                assert 0 <= row[key]["low"] <= row[key]["value"] <= row[key]["high"] <= 1
            assert 0 < row["seconds_p50"] <= row["seconds_p95"]
        assert found["trivial"]["vertical_then_horizontal"]["value"] > 0
    assert scores["held_out"]["ways"]["drawn"]["num_problems"] == 4
    assert list(scores["vsp"]["ways"]["text_only"]["categories"]) == ["level_3", "level_4"]


def test_table_says_where_the_thoughts_of_vsp_come_from(scored):
    _, out = scored
    text = (out / "table.md").read_text()
    assert "VSP has no visual thoughts" in text
    assert "vertical then horizontal" in text


def test_keeps_an_answer_a_problem_and_way(scored):
    _, out = scored
    found = load_predictions(out / "predictions" / "vsp-privileged-greedy.jsonl")
    assert len({prediction.problem_id for prediction in found}) == 4


def test_scored_once_is_read_back(scored):
    config, out = scored
    lost = out / "predictions" / "held_out-text_only-greedy.jsonl"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.jsonl")}
    answers = [prediction.text for prediction in load_predictions(lost)]
    lost.unlink()
    score(config)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.jsonl")}
    assert {path for path in before if before[path] != after[path]} == {lost}
    assert [prediction.text for prediction in load_predictions(lost)] == answers


def test_results_of_another_evaluation_are_refused(scored):
    config, _ = scored
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        score(replace(config, seed=1))


def test_default_folder_names_the_model_by_its_weights(start, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(FOLDER_VARIABLE, "/nowhere")
    folder = score(parse([f"MODEL={start}", *FEW, "num_problems=2", "num_drawn=1"]))
    assert folder.parent.parts == ("runs", "evaluate")
    assert folder.name.startswith(f"{start.name}-")


def test_rendered_thought_is_a_shortest_path(vsp):
    for problem in vsp_problems(vsp):
        maze = maze_of(problem)
        shown = with_true_thought(problem)
        moves = read_path(shown.visual_thoughts[0].pixels, maze)
        assert moves is not None
        assert maze.is_shortest(moves)
        assert len(teacher_context(shown, lambda _: (1,))) == 6


def test_first_few_of_vsp_are_of_every_level(vsp):
    found = read_folder(vsp, num_problems=2)
    assert [problem.category for problem in found.problems] == ["level_3", "level_4"]


def test_a_picture_of_vsp_that_cannot_be_read_is_in_the_note_or_ends_the_run(vsp, tmp_path):
    folder = shutil.copytree(vsp, tmp_path / "vsp")
    (folder / "level3" / "img" / "99.png").write_bytes(b"no picture")
    found = read_folder(folder, num_problems=100)
    assert len(found.problems) == len(read_folder(vsp, num_problems=100).problems)
    assert "1 pictures left out" in found.note
    assert "99.png: no picture of a maze" in found.note
    with pytest.raises(ValueError, match=r"99\.png: no picture of a maze"):
        read_folder(folder, num_problems=100, on_bad_input="stop")


def test_reads_thinkmorph_rows_and_counts_those_left_out(tmp_path):
    (path,) = write_mazes(tmp_path, MazeSettings(), "test", 4)
    _rewrite(path, row=1, column=ANSWER, value="")
    found = read_folder(tmp_path, num_problems=100)
    assert len(found.problems) == 3
    assert all(problem.visual_thoughts for problem in found.problems)
    assert found.note.startswith("1 rows left out")


def test_answer_that_no_rule_parses_is_left_out_by_file_and_row(tmp_path):
    (path,) = write_mazes(tmp_path, MazeSettings(), "test", 4)
    _rewrite(path, row=2, column=ANSWER, value="northwards")
    found = read_folder(tmp_path, num_problems=100)
    assert len(found.problems) == 3
    assert f"answer that no rule parses: {path}:2" in found.note


def test_a_picture_damaged_inside_is_left_out_by_file_and_row_or_ends_the_run(tmp_path):
    """It ended the run either way."""
    (path,) = write_mazes(tmp_path, MazeSettings(), "test", 4)
    data = pq.read_table(path).to_pylist()[1]["problem_image_0"]["bytes"]
    middle = len(data) // 2
    damaged = {"bytes": data[:middle] + bytes(64) + data[middle + 64 :], "path": None}
    _rewrite(path, row=1, column="problem_image_0", value=damaged)
    found = read_folder(tmp_path, num_problems=3)
    assert len(found.problems) == 3
    assert found.note.startswith(f"1 rows left out (damaged inside: {path}, row 1: column")
    with pytest.raises(ValueError, match=rf"{path.name}, row 1: column problem_image_0"):
        read_folder(tmp_path, num_problems=3, on_bad_input="stop")


def test_row_of_another_task_is_named(tmp_path):
    (path,) = write_mazes(tmp_path, MazeSettings(), "test", 2)
    _rewrite(path, row=0, column="task", value="Jigsaw_Assembly")
    _rewrite(path, row=0, column=PID, value="jigsaw_7")
    with pytest.raises(ValueError, match="row jigsaw_7: this command scores mazes"):
        read_folder(tmp_path, num_problems=100)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["num_problem=3"], "Did you mean: 'num_problems'"),
        (["num_drawn=0"], "num_drawn must be at least 1, got 0"),
        (["split=train"], "split"),
        (["MODLE=x"], "MODLE"),
    ],
)
def test_mistyped_argument_is_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        parse(arguments)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"/nowhere is no model folder"):
        score(parse(["MODEL=/nowhere"]))
    with pytest.raises(ValueError, match=r"DATA=/nowhere: no such folder"):
        maze_sets(parse(["DATA=/nowhere"]))
    with pytest.raises(ValueError, match="neither layout is there"):
        maze_sets(parse([f"DATA={tmp_path}"]))


def _rewrite(path, *, row, column, value):
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[row][column] = value
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)
