"""A story gives the numbers the issue names, goes on where it was killed, and judges by numbers."""

import copy
import json
import math
import re
import shutil

import pytest
from PIL import Image as PILImage

from experiments import figures, results
from experiments.figures import Strip
from experiments.report import HELD_OUT, accuracy_section, making_section, read_curve
from experiments.story import Story
from experiments.targets import judge
from tests.experiments.conftest import written
from visual_opsd.benchmarks.vsp import FOLDER_VARIABLE

ESTIMATES = (
    "base_drawn",
    "base_text",
    "base_privileged",
    "student_text",
    "gain_over_drawn",
    "gain_over_own_text",
    "noise_gain_over_own_text",
    "gain_over_sft",
    "closure",
    "noise_closure",
    "closure_own_trajectories",
    "latency_ratio",
    "latency_ratio_fast_teacher",
    "vsp_student_text",
    "vsp_base_drawn",
)
PLAIN = ("max_rescore_error", "wall_seconds", "seed", "commit", "commits")


@pytest.mark.parametrize("key", ESTIMATES)
def test_summary_has_every_number_with_its_interval(told, key):
    found = told.summary[key]
    assert set(found) == {"value", "low", "high"}
    assert all(math.isfinite(value) for value in found.values())
    assert found["low"] <= found["value"] <= found["high"]


def test_summary_on_disk_is_strict_json_with_all_keys(told):
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (told.story.folder / "summary.json").read_text()
    on_disk = json.loads(text, parse_constant=refuse)
    assert set(ESTIMATES) | set(PLAIN) | {"gap_recovered"} <= set(on_disk)
    assert on_disk["seed"] == 42


def test_nothing_recovered_where_the_teacher_answers_no_better(told):
    """An untrained model gave 0/0, written as NaN, which is no JSON."""
    assert told.summary["gap_recovered"] is None


def test_vsp_is_null_where_the_mazes_are_absent(told, monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER_VARIABLE, "/nowhere")
    folder = tmp_path / "story"
    without = shutil.ignore_patterns("*-vsp-*", "arms")
    shutil.copytree(told.story.folder, folder, ignore=without)
    story = Story(folder, told.story.arms, told.story.settings)
    summary = story.summary(0.0)
    assert summary["vsp_student_text"] is None
    assert summary["vsp_base_drawn"] is None
    assert any("no VSP mazes" in target.measured for target in judge(story, summary))
    assert "The real VSP mazes are not on this machine" in accuracy_section(story, summary)


def test_sampled_tokens_are_scored_as_they_were_sampled(told):
    assert told.summary["max_rescore_error"] <= 1e-4


def test_killed_story_goes_on_where_it_stopped(told):
    now = written(told.story.folder)
    assert told.at_kill
    assert told.at_kill.items() <= now.items()
    assert told.story.folder / "gap" / "matched_noise.json" in now.keys() - told.at_kill.keys()


def test_told_again_nothing_is_measured_or_trained(told):
    before = written(told.story.folder)
    story = told.again()
    summary = story.tell()
    assert written(story.folder) == before
    changing = {"wall_seconds", "commit"}
    assert {k: v for k, v in summary.items() if k not in changing} == {
        k: v for k, v in told.summary.items() if k not in changing
    }


def test_report_shows_its_figures(told):
    text = told.report.read_text()
    names = re.findall(r"!\[.*\]\((.+\.png)\)", text)
    assert names == ["curves.png", "kl_strip.png", "contact_sheet.png"]
    for name in names:
        with PILImage.open(told.report.parent / name) as picture:
            assert picture.width > 1000
        assert (told.report.parent / name).with_suffix(".pdf").stat().st_size > 1000


def test_report_answers_before_it_explains(told):
    title, answer, section, *_ = told.report.read_text().split("\n\n")
    assert title.startswith("# ")
    assert answer.startswith("On 12 held-out mazes the base solves")
    assert "missed: student text-only minus the base's drawn accuracy" in answer
    assert section == "## Targets"


def test_report_never_says_nan(told):
    assert "nan" not in re.findall(r"\w+", told.report.read_text().lower())


def test_verdicts_follow_the_numbers(told):
    def verdicts(**changes: dict[str, float]) -> dict[str, bool | None]:
        summary = {**copy.deepcopy(told.summary), **changes}
        return {t.claim: t.is_met for t in judge(told.story, summary)}

    claim = "student text-only minus the base's drawn accuracy"
    assert verdicts(gain_over_drawn={"value": 0.05, "low": 0.01, "high": 0.09})[claim] is True
    assert verdicts(gain_over_drawn={"value": 0.05, "low": -0.01, "high": 0.11})[claim] is False
    assert verdicts(gain_over_drawn={"value": 0.03, "low": 0.02, "high": 0.04})[claim] is False
    claim = "closure on the base's completions, `true_vt`"
    assert verdicts(closure={"value": 0.584, "low": 0.5, "high": 0.6})[claim] is True
    assert verdicts()["student minus SFT at equal steps"] is None


def test_vsp_target_is_asked_only_of_a_story_on_all_its_sizes(told):
    (asked,) = [t for t in judge(told.story, told.summary) if "VSP" in t.claim]
    assert asked.is_met is None
    assert "trained on sizes 3 to 4" in asked.claim


def test_every_arm_has_its_curve_from_the_first_step(told):
    for arm in told.story.arms.values():
        assert list(read_curve(arm.folder, HELD_OUT).steps) == [0, 1, 2]


def test_resumed_session_overrides_equal_steps(tmp_path):
    for session, rows in {9: ["0,0.1", "5,0.2", "9,"], 10: ["5,0.3", "10,0.4"]}.items():
        folder = tmp_path / "metrics" / f"session_{session}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("\n".join([f"step,{HELD_OUT}", *rows]) + "\n")
    curve = read_curve(tmp_path, HELD_OUT)
    assert (list(curve.steps), list(curve.values)) == ([0, 5, 10], [0.1, 0.3, 0.4])


def test_strip_holds_real_values_on_one_completion_for_everybody(told):
    strip = told.story.token_strip()
    assert len(strip) == 6
    gap = told.story.gap("base")
    ids = [problem.problem_id for problem in told.story.problems]
    for name, row in strip.items():
        assert set(row["gaps"]) == {"base", "true_vt", "matched_noise", "sft"}
        assert {len(values) for values in row["gaps"].values()} == {len(row["tokens"])}
        kept = gap["fixed_sums"][ids.index(name)]
        assert sum(row["gaps"]["base"]) == pytest.approx(kept, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fixed_digest": "others"}, r"as long, of other tokens \(digests others and "),
        ({"fixed_digest": None, "fixed_lengths": [1]}, "1 against 12"),
    ],
)
def test_closure_over_other_completions_is_refused_with_the_difference(
    told, tmp_path, change, said
):
    """Completions of the same lengths passed for the same."""
    shutil.copytree(told.story.folder / "gap", tmp_path / "gap")
    story = Story(tmp_path, told.story.arms, told.story.settings)
    path = tmp_path / "gap" / "sft.json"
    path.write_text(json.dumps(story.gap("sft") | change))
    with pytest.raises(ValueError, match=rf"sft\.json is of other completions.*: {said}"):
        story.closure("sft")
    assert story.closure("true_vt") == told.story.closure("true_vt")


def test_gaps_from_before_ids_were_kept_are_held_by_their_lengths(told, tmp_path):
    (tmp_path / "gap").mkdir()
    for name in ("base", "sft"):
        gap = told.story.gap(name)
        del gap["fixed_digest"]
        (tmp_path / "gap" / f"{name}.json").write_text(json.dumps(gap))
    story = Story(tmp_path, told.story.arms, told.story.settings)
    assert story.closure("sft") == told.story.closure("sft")


def test_an_arm_that_was_trained_later_is_reported_with_its_commit(told, tmp_path):
    """All arms passed for trained at the commit that the story was begun at."""
    summary, late = told.summary, {**told.summary["commits"], "sft": "a-later-one"}
    assert set(summary["commits"].values()) == {summary["commit"]}
    assert "Trained at the commits" not in making_section(told.story, summary)
    said = making_section(told.story, {**summary, "commits": late})
    assert f"`true_vt` `{summary['commit']}`" in said
    assert "`sft` `a-later-one`" in said


def test_strip_of_other_arms_is_made_anew(told, tmp_path):
    """An arm that was added later was missing."""
    shutil.copytree(told.story.folder / "gap", tmp_path / "gap")
    strip = told.story.token_strip()
    without = copy.deepcopy(strip)
    for row in without.values():
        del row["gaps"]["sft"]
    (tmp_path / "strip.json").write_text(json.dumps(without))
    story = Story(tmp_path, told.story.arms, told.story.settings)
    assert story.token_strip() == strip
    assert json.loads((tmp_path / "strip.json").read_text()) == strip


def test_vsp_pictures_left_out_are_named_in_summary_and_report(told, vsp, monkeypatch, tmp_path):
    """They were warned of once, and in no result."""
    pictures = shutil.copytree(vsp, tmp_path / "vsp")
    (pictures / "level3" / "img" / "99.png").write_bytes(b"no picture")
    monkeypatch.setenv(FOLDER_VARIABLE, str(pictures))
    story = told.again()
    summary = story.summary(0.0)
    (said,) = summary["vsp_left_out"]
    assert "99.png: no picture of a maze" in said
    assert f"1 pictures left out ({said})" in accuracy_section(story, summary)
    assert told.summary["vsp_left_out"] == []
    assert "left out" not in accuracy_section(told.story, told.summary)


def test_strip_wraps_long_completions_without_losing_a_token():
    tokens = ["a token of many words "] * 40
    figure = figures.kl_strip([Strip("long", tokens, {"base": [0.1] * 40})])
    shown = [text for axes in figure.axes for text in axes.texts]
    assert len(shown) == 40


def test_a_finished_story_is_collected(told):
    found = results.collect(told.story.folder)
    predictions = told.story.predictions("true_vt", "text_only")
    assert found.solved["true_vt, text only"] == "".join(str(int(p.is_solved)) for p in predictions)
    assert found.lengths == told.story.gap("base")["fixed_lengths"]
    for row in found.tokens.values():
        assert {len(values) for values in row["gaps"].values()} == {len(row["tokens"])}
    assert "story.num_problems: 2048 -> 12" in found.differs
    assert any(words.startswith("sft, trainer.max_steps: 600 -> 2") for words in found.differs)
