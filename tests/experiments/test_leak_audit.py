"""One command says what visual thoughts give away and what training shares with tests."""

import json

import pytest

from experiments import command
from experiments.leak_audit import LeakAuditConfig, audit, overlaps
from experiments.leak_audit import audited as audited_problems
from visual_opsd.benchmarks.vsp import FOLDER_VARIABLE

FEW = ("num_problems=12", "num_train=16", "sizes=[3,4]")


@pytest.fixture(autouse=True)
def few_of_vsp(monkeypatch, vsp):
    monkeypatch.setenv(FOLDER_VARIABLE, str(vsp))


def audited(start, out, *overrides):
    folder = audit(
        command.parse([f"MODEL={start}", f"out={out}", *FEW, *overrides], LeakAuditConfig)
    )
    return folder, json.loads((folder / "leaks.json").read_text())


def test_a_drawn_solution_is_read_by_a_program_and_splits_share_nothing(start, tmp_path):
    folder, found = audited(start, tmp_path / "true")
    assert found["readers"]["reader"]["value"] == 1
    assert sum(row["num_problems"] for row in found["by_leak_score"].values()) == 12
    assert "0" not in found["by_leak_score"], "the program always has the answer"
    for held in ("audited", "vsp"):
        assert found["overlaps"][held]["same_key"]["count"] == 0
    rows = [json.loads(line) for line in (folder / "problems.jsonl").read_text().splitlines()]
    assert len({row["problem_id"] for row in rows}) == 12
    table = (folder / "table.md").read_text()
    assert "the red line, followed by a program | 100.0 %" in table
    assert "16 training mazes" in table


def test_training_on_the_benchmark_is_found(vsp):
    config = command.parse([f"TRAIN={vsp}", "sizes=[3,4]", "num_problems=4"], LeakAuditConfig)
    found = overlaps(config, audited_problems(config))
    assert found["vsp"]["num_problems"] == 4
    for kind in ("same_pixels", "same_key", "alike"):
        assert found["vsp"][kind]["count"] == 4
    assert found["vsp"]["same_key"]["first"][0] == "vsp_level3_0"


def test_no_visual_thought_leaves_nothing_to_audit(start, tmp_path):
    with pytest.raises(ValueError, match="no visual thought to be audited"):
        audited(start, tmp_path / "none", "intervention=no_vt")


@pytest.mark.parametrize("name", ["drawn_vt", "wrong_vt", "blured"])
def test_what_an_audit_cannot_show_is_refused(name):
    """``drawn_vt`` audited the data set's own visual thoughts under the drawings' name."""
    with pytest.raises(ValueError, match=f"intervention.*{name}"):
        command.parse([f"intervention={name}"], LeakAuditConfig)
