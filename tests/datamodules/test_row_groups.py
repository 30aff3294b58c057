"""Real files are large, spread over ranks and workers, and some of what is in them is bad."""

import io
import json
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image as PILImage

from datamodules.frozen_lake import MazeSettings, generate, generate_problem
from datamodules.mazes import BatchPlan, ProblemLoader
from datamodules.own_answers import OwnAnswers
from datamodules.row_groups import RowGroups
from datamodules.sources import ThinkMorphRows
from datamodules.thinkmorph import ThinkMorphFolder, maze_row, write_mazes, write_rows
from visual_opsd.rollouts.own_answers import OwnAnswer

SETTINGS = MazeSettings(sizes=(3,))


def _row(index=0, **change):
    problem = generate_problem(SETTINGS, "train", index)
    return {**maze_row(generate(SETTINGS, "train", index), problem), **change}


def _picture(data):
    return {"bytes": data, "path": None}


def _damaged_inside(data):
    """The same PNG with other bytes in the middle: header and end are as they should be."""
    middle = len(data) // 2
    return data[:middle] + bytes(64) + data[middle + 64 :]


def _live(folder, rank, state, diary, killed_after):
    """A rank's pass over the data with two workers; it may be killed on the way."""
    plan = BatchPlan(batch_size=2, rank=rank, world_size=2, num_workers=2)
    loader = ProblemLoader(ThinkMorphRows(folder), plan)
    if state is not None:
        loader.load_state_dict(state)
    with diary.open("a", encoding="utf-8") as file:
        for number, batch in enumerate(loader, start=1):
            ids = [problem.problem_id for problem in batch.problems]
            file.write(json.dumps([ids, loader.state_dict()]) + "\n")
            file.flush()
            if number == killed_after:
                os.kill(os.getpid(), signal.SIGKILL)


def test_two_workers_of_two_ranks_see_each_row_once_though_killed_in_the_middle(tmp_path):
    write_mazes(tmp_path, SETTINGS, "train", 24, num_shards=2, rows_per_group=5)
    states, exits = {0: None, 1: None}, []
    for killed_after in (2, None):
        processes = {}
        for rank in (0, 1):
            arguments = (tmp_path, rank, states[rank], tmp_path / f"{rank}.diary", killed_after)
            context = multiprocessing.get_context("fork")
            processes[rank] = context.Process(target=_live, args=arguments)
            processes[rank].start()
        for rank, process in processes.items():
            process.join()
            exits.append(process.exitcode)
            last = (tmp_path / f"{rank}.diary").read_text().splitlines()[-1]
            states[rank] = json.loads(last)[1]
    assert exits == [-signal.SIGKILL] * 2 + [0] * 2
    lines = [json.loads(line) for r in (0, 1) for line in (tmp_path / f"{r}.diary").open()]
    seen = Counter(name for ids, _ in lines for name in ids)
    assert len(seen) == 24
    assert set(seen.values()) == {1}


def test_workers_change_nothing_in_the_stream(tmp_path):
    write_mazes(tmp_path, SETTINGS, "train", 12, rows_per_group=5)
    rows = ThinkMorphRows(tmp_path)
    torch.manual_seed(0)
    streams = [
        [batch.problems[0].problem_id for batch in ProblemLoader(rows, plan)]
        for plan in (BatchPlan(batch_size=1), BatchPlan(batch_size=1, num_workers=1))
    ]
    assert streams[0] == streams[1]
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert drawn == torch.rand(1), "no number of the global generator is taken"


def test_a_file_that_is_cut_off_is_named_before_training(tmp_path):
    first, second = write_mazes(tmp_path, SETTINGS, "train", 8, num_shards=2)
    second.write_bytes(second.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{second.name}: no parquet file, or cut off"):
        ThinkMorphFolder(tmp_path)
    folder = ThinkMorphFolder(tmp_path, tolerated="files")
    assert len(folder) == folder.num_rows == 4
    assert list(folder.index.num_left_out) == ["unreadable file"]
    assert second.name in folder.index.left_out["unreadable file"][0]
    assert first.name in str(folder.index.rows[0].path)


def test_damage_in_the_first_pages_is_found_by_the_preflight(tmp_path):
    (path,) = write_mazes(tmp_path, SETTINGS, "train", 4)
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{path.name}, row group 0: damaged"):
        ThinkMorphFolder(tmp_path)


def test_a_run_that_tolerates_nothing_stops_at_the_first_bad_row(tmp_path):
    write_rows(tmp_path / "train-0.parquet", [_row(0), _row(1, question="")])
    with pytest.raises(ValueError, match=r"train-0.parquet:1 \(frozenlake_.*\): no question"):
        len(ThinkMorphFolder(tmp_path, tolerated="nothing"))


def test_a_gigantic_picture_is_left_out_by_its_header(tmp_path):
    data = bytearray(_row()["problem_image_0"]["bytes"])
    data[16:24] = struct.pack(">II", 9000, 9000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    write_rows(tmp_path / "train-0.parquet", [_row(0, problem_image_0=_picture(bytes(data)))])
    assert ThinkMorphFolder(tmp_path).index.num_left_out == {"gigantic problem_image_0": 1}


def test_a_picture_damaged_inside_is_replaced_named_and_counted_when_it_is_met(tmp_path):
    data = _damaged_inside(_row(1)["problem_image_0"]["bytes"])
    write_rows(
        tmp_path / "train-0.parquet",
        [_row(0), _row(1, problem_image_0=_picture(data)), _row(2)],
    )
    rows = ThinkMorphRows(tmp_path)
    assert len(rows) == 3, "its header and its end are right"
    with pytest.warns(UserWarning, match=r"train-0.parquet, row 1: column problem_image_0"):
        assert rows.problem(1).problem_id == _row(2)["pid"]
    assert list(rows.failed) == [1]
    with pytest.raises(ValueError, match="row 1"):
        ThinkMorphRows(tmp_path, tolerated="nothing").problem(1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_rows_are_counted_and_said_once_whoever_met_them(tmp_path, num_workers):
    """What a worker process had counted was never heard of."""
    data = _damaged_inside(_row(1)["problem_image_0"]["bytes"])
    rows = [_row(index) for index in range(4)]
    for index in (1, 2):  # side by side: the one after both is taken, met in whatever order
        rows[index]["problem_image_0"] = _picture(data)
    write_rows(tmp_path / "train-0.parquet", rows)
    source = ThinkMorphRows(tmp_path)
    plan = BatchPlan(batch_size=1, num_workers=num_workers)
    loader = ProblemLoader(source, plan, donors=None)
    with pytest.warns(UserWarning, match="so far") as said:
        seen = [batch.problems[0].problem_id for _ in range(2) for batch in loader]
    assert Counter(seen) == {rows[0]["pid"]: 2, rows[3]["pid"]: 6}
    assert sorted(source.failed) == [1, 2]
    assert sorted(str(each.message)[-len("(1 so far)") :] for each in said) == [
        "(1 so far)",
        "(2 so far)",
    ]


def test_damage_that_a_worker_meets_is_said_where_the_answers_are_a_models_own(tmp_path):
    """A bank within another bank was not asked."""
    data = _damaged_inside(_row(1)["problem_image_0"]["bytes"])
    rows = [_row(0), _row(1, problem_image_0=_picture(data)), _row(2)]
    write_rows(tmp_path / "train-0.parquet", rows)
    answers = [
        OwnAnswer(index=index, problem_id=rows[met]["pid"], answer="U")
        for index, met in enumerate((0, 2, 2))
    ]
    bank = OwnAnswers(ThinkMorphRows(tmp_path), answers, tmp_path)
    loader = ProblemLoader(bank, BatchPlan(batch_size=1, num_workers=1), donors=None)
    with pytest.warns(UserWarning, match=r"row 1: .*\(1 so far\)"):
        assert len(list(loader)) == 3
    assert list(bank.failed) == [1]


def test_the_index_is_made_once_and_anew_when_a_file_changes(tmp_path):
    data, kept = tmp_path / "data", tmp_path / "kept"
    (path,) = write_mazes(data, SETTINGS, "train", 5)
    index = ThinkMorphFolder(data, index_folder=kept).index
    assert index == ThinkMorphFolder(data).index
    (file,) = kept.glob("*.json")
    file.write_text(file.read_text().replace('"left_out": {}', '"left_out": {"seen": ["x"]}'))
    assert ThinkMorphFolder(data, index_folder=kept).index.num_left_out == {"seen": 1}
    write_rows(path, [_row(0), _row(1)])
    assert len(ThinkMorphFolder(data, index_folder=kept)) == 2


def test_caps_take_the_first_rows_of_a_task_and_count_the_rest(tmp_path):
    write_mazes(tmp_path, SETTINGS, "train", 6)
    folder = ThinkMorphFolder(tmp_path, caps={"Spatial_Navigation": 4})
    assert [row.number for row in folder.index.rows] == [0, 1, 2, 3]
    assert folder.index.num_left_out == {"beyond the cap of its task": 2}
    with pytest.raises(ValueError, match="no row of Spatial; there are Spatial_Navigation"):
        len(ThinkMorphFolder(tmp_path, caps={"Spatial": 4}))


def test_weights_say_how_often_a_pass_shows_the_rows_of_a_task(tmp_path):
    tasks = ["A"] * 4 + ["B"] * 4 + ["C"] * 4
    write_rows(
        tmp_path / "train-0.parquet",
        [_row(i, pid=f"{task}{i}", task=task, answer="A") for i, task in enumerate(tasks)],
    )
    rows = ThinkMorphRows(tmp_path, cell=None)
    plan = BatchPlan(batch_size=1, weights={"A": 0.5, "B": 2.25})
    loader = ProblemLoader(rows, plan, donors=None)
    passes = [[batch.problems[0].problem_id for batch in loader] for _ in range(2)]
    for seen in passes:
        assert Counter(name[0] for name in seen) == {"A": 2, "B": 9, "C": 4}
        assert Counter(Counter(name for name in seen if name[0] == "B").values()) == {2: 3, 3: 1}
    assert passes[0] != passes[1]
    with pytest.raises(ValueError, match=r"no problem of \['D'\]"):
        ProblemLoader(rows, BatchPlan(batch_size=1, weights={"D": 1}))


def test_rows_are_the_same_in_any_order_and_from_a_cache_of_one_slice(tmp_path):
    (path,) = write_mazes(tmp_path, SETTINGS, "train", 40, rows_per_group=40)
    whole = pq.read_table(path).to_pylist()
    reader = RowGroups(max_cached_bytes=1)
    for row in (0, 39, 17, 16, 15, 38, 2):
        assert reader.row(path, 0, row) == whole[row]


_READ_THROUGH = """
import sys
from pathlib import Path
from datamodules.mazes import BatchPlan, ProblemLoader
from datamodules.sources import ThinkMorphRows

def kilobytes(name):
    line = next(x for x in Path("/proc/self/status").open() if x.startswith(name))
    return int(line.split()[1])

Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
before = kilobytes("VmRSS")
rows = ThinkMorphRows(Path(sys.argv[1]), cell=None)
read = 0
for index in range(len(rows)):
    problem = rows.problem(index)
    read += problem.image.pixels.shape[1]
print(len(rows), (kilobytes("VmHWM") - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_reading_two_gigabytes_takes_300_megabytes_at_most(tmp_path):
    """Pictures of one colour, not compressed: 2 GB to the reader, a few MB on the disk."""
    buffer = io.BytesIO()
    PILImage.new("RGB", (512, 512), "teal").save(buffer, format="PNG", compress_level=0)
    plain = buffer.getvalue()
    small = io.BytesIO()
    PILImage.new("RGB", (32, 32), "teal").save(small, format="PNG")

    base = _row(0, task="Visual_Search", answer="A", reasoning_image_0=_picture(small.getvalue()))

    def rows(count):
        for index in range(count):
            # A picture's bytes are its own, or parquet would keep one copy of them.
            mine = plain + index.to_bytes(4, "big")
            yield {**base, "pid": str(index), "problem_image_0": _picture(mine)}

    for shard, rows_per_group in enumerate((100, 260)):
        write_rows(tmp_path / f"train-{shard}.parquet", rows(1300), rows_per_group)
    files = [pq.ParquetFile(path).metadata for path in tmp_path.glob("*.parquet")]
    groups = [file.row_group(group) for file in files for group in range(file.num_row_groups)]
    assert sum(group.total_byte_size for group in groups) > 2e9
    ran = subprocess.run(
        [sys.executable, "-c", _READ_THROUGH, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    count, megabytes = map(int, ran.stdout.split())
    assert count == 2600
    assert megabytes <= 300
