"""Exhibits count what they say they count, on results small enough to count by hand."""

import json
import math
from dataclasses import replace

import pytest

from experiments import exhibits, figures, gallery, results
from experiments.figures import Spread
from experiments.results import PILOT, Results, load, load_study, save


def row(category, tokens, base, student):
    others = {"sft": base, "matched_noise": base}
    return {
        "category": category,
        "tokens": tokens,
        "gaps": {"base": base, "true_vt": student} | others,
    }


TOKENS = {
    "a": row("size_3", ["D", "[end]"], [3.0, 1.0], [1.0, 1.0]),
    "b": row("size_4", ["D", "R"], [4.0, 0.0], [0.0, 0.0]),
}
RUN = Results(
    command="make demo",
    differs=[],
    commit="abc",
    summary={},
    categories=["size_3", "size_3", "size_4", "size_4"],
    solved={
        "true_vt, text only": "1101",
        "base, text only": "0100",
        "base, drawn": "011",
        "base, privileged": "1111",
        **{f"base, shown {name}": "00" for name in PILOT},
    },
    gaps={"base": [4.0, 4.0, 2.0, 1.0], "true_vt": [2.0, 2.0, 2.0, 1.0]},
    lengths=[2, 2, 2, 2],
    tokens=TOKENS,
    seconds={},
)


def test_wins_and_losses_are_of_problems_that_one_side_alone_solves():
    table = exhibits.wins_and_losses(RUN, "true_vt, text only", "base, drawn")
    assert table.loc["all", ["problems", "wins", "losses"]].tolist() == [3, 1, 1]
    assert table.loc["size 3", ["problems", "wins", "losses"]].tolist() == [2, 1, 0]
    assert table.loc["size 4", ["problems", "wins", "losses"]].tolist() == [1, 0, 1]
    assert table["p"].tolist() == [1.0, 1.0, 1.0]
    assert math.isnan(table.loc["all", "p, Holm"])


def test_all_ways_of_the_pilot_are_asked_the_same_problems():
    assert exhibits.num_shown(RUN) == 2
    kept = exhibits.use_of_drawings(RUN)[exhibits.PILOT_ROWS["base, drawn"]]
    assert kept.value == 0.5


def test_the_gap_is_a_mean_over_tokens_and_closes_against_the_base():
    found = exhibits.gaps_by_category(RUN)
    assert found["base"]["all"].value == pytest.approx(11 / 8)
    assert found["base"]["size 4"].value == pytest.approx(3 / 4)
    closed = exhibits.gap_table(RUN)["true_vt, closed"]
    assert closed["all"].startswith("36.4 %")
    assert closed["size 3"].startswith("50.0 %")
    assert closed["size 4"].startswith("0.0 %")


def test_tokens_are_told_apart_by_what_they_say():
    table = exhibits.tokens_table(RUN)
    assert table.index[0] == "D"
    assert table.loc["D", "count"] == 2
    assert table.loc["D", "share of the gap"] == pytest.approx(7 / 8)
    assert table.loc["D", "true_vt (nats a token)"] == pytest.approx(0.5)
    few = exhibits.concentration(RUN)
    assert (few.num_tokens, few.share_of_tokens, few.first_half) == (4, 0.25, 7 / 8)


def test_largest_gaps_come_first_in_the_strip():
    assert [strip.title for strip in exhibits.token_strips(RUN)] == ["size 3", "size 4"]


def test_results_are_read_back_as_they_were_written(tmp_path):
    assert load(save(RUN, tmp_path / "demo.json")) == RUN


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results at .*absent: make demo"):
        load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"no finished demo, no .*story.json: make demo"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no study at .*: make ablate-noise"):
        load_study(tmp_path)
    other = tmp_path / "other.json"
    other.write_text('{"arms": {}}')
    with pytest.raises(ValueError, match=r"other.json lacks \['categories'"):
        load(other)
    with pytest.raises(ValueError, match=r"is no study's summary, it lacks \['base'"):
        load_study(other)
    keys = ("arms", "base", "claims", "comparison", "missing", "settings", "commit")
    other.write_text(json.dumps({key: {} for key in keys}))
    with pytest.raises(ValueError, match=r"older version's.* \(make ablate-noise\) writes it anew"):
        load_study(other)
    with pytest.raises(ValueError, match="nobody was scored as 'him'; there are"):
        RUN.is_solved("him")


def test_a_run_that_is_not_the_commands_own_says_so():
    assert "as it is" in RUN.origin
    assert (
        "story.num_drawn: 1024 -> 8" in replace(RUN, differs=["story.num_drawn: 1024 -> 8"]).origin
    )


def test_what_ships_is_small_and_can_be_read():
    files = list(results.SHIPPED.rglob("*.json"))
    assert sum(path.stat().st_size for path in files) <= 200_000
    shipped = load(results.SHIPPED / "demo.json")
    assert set(shipped.gaps) == {"base", "true_vt", "matched_noise", "sft"}
    assert len(shipped.categories) == shipped.summary["settings"]["num_problems"]
    (controls, dose_response) = gallery.of_study(load_study(results.SHIPPED / "ablate-noise.json"))
    assert "| the KL gap closes with true VTs" in controls.caption
    assert dose_response.figure.axes


def test_an_arm_off_the_scale_is_named_and_moves_no_axis():
    rows = [
        Spread("near", 0.2, 0.1, 0.3, [0.2], start=0.1),
        Spread("far", -7.4, -8.3, -6.6, [-7.4]),
    ]
    (axes,) = figures.spreads({"closure": rows}, {"closure": 0}).axes
    assert axes.get_xlim()[0] > -0.5
    assert [text.get_text() for text in axes.texts] == ["\N{LEFTWARDS ARROW} -7.4"]
    panels = {"accuracy": [replace(row, low=0.1, high=0.3) for row in rows], "closure": rows}
    left, right = figures.dose_response({"near": 0.9, "far": 0.3}, panels, 0.7).axes
    assert right.get_title() == "closure (below: far -7.4)"
    assert [text.get_text() for text in right.get_legend().texts] == ["near", "far"]
    assert len(left.collections) == 2
    assert len(right.collections) == 1
