"""Tricky completions, read by the harness's rules and by ours, each with the reason it is tricky.

The harness's column was compared, when it was written, with ``can_infer`` and
``relaxed_correctness`` of ms-vlmeval 0.0.20 (behind the fork's tag step); where that package is
installed, it is compared again.
"""

import json
import sys
import types
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from visual_opsd.benchmarks import harness
from visual_opsd.benchmarks.benchmark import mark_choice
from visual_opsd.benchmarks.chartqa import CHARTQA
from visual_opsd.benchmarks.items import Item
from visual_opsd.benchmarks.sat import SAT
from visual_opsd.benchmarks.vispuzzle import VISPUZZLE
from visual_opsd.benchmarks.vsp_navigation import VSP

ROWS = [
    json.loads(line)
    for line in Path(__file__).with_name("golden_answers.jsonl").read_text().splitlines()
]


def rows(*kinds):
    chosen = [row for row in ROWS if row["kind"] in kinds]
    return pytest.mark.parametrize("row", chosen, ids=[row["why"] for row in chosen])


def item(row, answer="A"):
    return Item(
        dataset="golden",
        index="0",
        row=0,
        question="?",
        pictures=(),
        answer=row.get("gold", answer),
        options=row.get("options", {}),
        columns={"maze_map": str(row.get("rows"))},
    )


def test_the_table_is_long_and_says_nothing_twice():
    assert len(ROWS) >= 60
    assert len({row["why"] for row in ROWS}) > 60
    told = {json.dumps({**row, "why": ""}) for row in ROWS}
    assert len(told) == len(ROWS)


@rows("choice")
def test_a_choice_is_read_as_either_rule_reads_it(row):
    shown = item(row).shown_options("harness")
    assert harness.choose(row["text"], shown) == row["harness"]
    assert mark_choice(item(row), row["text"]).answer == row["robust"]
    for letter in row["options"]:
        is_right = VISPUZZLE.mark_as_harness(item(row, letter), row["text"], None)
        assert is_right == (letter == row["harness"])


@rows("circular")
def test_a_rotation_is_read_without_its_tags(row):
    for letter in row["options"]:
        found = SAT.mark_as_harness(item(row, letter), row["text"], None)
        assert found == (letter == row["harness"])


@rows("chart", "maze")
def test_a_free_answer_is_judged_as_either_rule_judges_it(row):
    benchmark = CHARTQA if row["kind"] == "chart" else VSP
    assert benchmark.mark_as_harness(item(row), row["text"], None) == row["harness"]
    assert benchmark.mark(item(row), row["text"]).is_right == row["robust"]


def test_a_judge_is_asked_only_where_the_rules_find_nothing():
    asked = []

    def judge(question, text, options):
        asked.append(text)
        return "D"

    options = {"A": "red", "D": "green"}
    assert harness.choose("<answer>A</answer>", options, "?", judge) == "A"
    assert harness.choose("hard to say", options, "?", judge) == "D"
    assert asked == ["hard to say"]
    assert harness.choose("hard to say", options, "?", lambda *_: "hm") == harness.NO_OPTION


@pytest.mark.slow
def test_the_table_says_what_the_package_does(monkeypatch):
    """Its file alone: importing the package turns off gradients and certificate checks."""
    found = find_spec("vlmeval")
    if found is None:
        pytest.skip("ms-vlmeval is not installed")
    log = types.ModuleType("vlmeval.smp.log")
    log.get_logger = lambda _: None
    for name in ("vlmeval", "vlmeval.smp"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "vlmeval.smp.log", log)
    path = Path(found.submodule_search_locations[0]) / "utils" / "matching_util.py"
    spec = spec_from_file_location("matching", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    for row in ROWS:
        shown = item(row).shown_options("harness")
        assert (module.can_infer(row["text"], dict(shown)) or None) == harness.infer(
            row["text"], shown
        )
