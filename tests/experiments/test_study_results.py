"""A study's results are comparable or refused, judge by numbers, and say how they were made."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from experiments import files
from experiments.evaluation import donors_of, load_predictions, save_predictions
from experiments.results import load_study, origin_of
from experiments.study import BASE, OTHER_BASE, TOLD_BASE, UNDRAWN_BASE, ArmConfig, Study
from experiments.study_claims import decompose
from experiments.study_map import cost_of
from experiments.study_report import answer_first, arms_section, making_section, write_report
from experiments.study_results import TEXT, Key, Numbers, Results
from experiments.study_summary import summarise
from tests.studies import gap_of, predictions, put, study_in
from visual_opsd.statistics import holm, mcnemar_exact

NOISE_CLAIM = "noise for VTs moves accuracy by under 3 points"

# Refused results


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_digest": "xyz"}, "blank-2 started from another base: xyz"),
        ({"steps": 500}, "blank-2 has steps 500, and true_vt-1 has 600"),
        ({"samples_a_step": 16}, "blank-2 has samples_a_step 16, and true_vt-1 has 32"),
    ],
)
def test_result_on_other_terms_is_refused_with_the_difference(study, change, said):
    put(study, "blank-2", "blank", **change)
    with pytest.raises(ValueError, match=said):
        Results(study)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fixed_digest": "others"}, r"as long, of other tokens \(digests others and ids\)"),
        ({"fixed_lengths": [4, 6, 6]}, "1 of 3 have another length"),
        ({"fixed_lengths": [4, 6]}, "2 against 3"),
    ],
)
def test_gap_of_other_completions_is_refused_with_the_difference(study, change, said):
    """Completions of the same lengths passed for the same."""
    put(study, "blank-2", "blank", gap=gap_of("blank") | change)
    said = f"blank-2 was scored on other completions than base: {said}"
    with pytest.raises(ValueError, match=said):
        Results(study)


def test_gap_measured_before_ids_were_kept_is_held_by_its_lengths(study):
    without = {key: value for key, value in gap_of("blank").items() if key != "fixed_digest"}
    put(study, "blank-2", "blank", gap=without)
    assert "blank-2" in Results(study).records


def test_other_problems_are_refused_by_name(study):
    path = study.predictions("blank-1", "test", "text_only")
    save_predictions(path, predictions(40, 20, "text_only", offset=1))
    said = r"blank-1 answered other problems.*lacks \['maze_0'\] and has \['maze_40'\]"
    with pytest.raises(ValueError, match=said):
        Results(study)


def test_ways_are_paired_by_problem(study):
    """The first answers of either way were taken for the same problems."""
    path = study.predictions(BASE, "dose_blank", "privileged")
    text = load_predictions(study.predictions(BASE, "test", "text_only"))
    doses = sorted(path.parent.glob(f"{BASE}-dose_*-privileged.jsonl"))
    for dose in doses:
        save_predictions(dose, text[30:][::-1])  # those that the base does not solve
    numbers = Numbers(Results(study))
    dose = Key("dose_blank", "privileged")
    assert numbers.between_ways(BASE, dose, BASE, TEXT).as_dict() == {
        "value": 0,
        "low": 0,
        "high": 0,
    }
    save_predictions(path, text[:10])
    with pytest.raises(ValueError, match=r"other problems \(dose_blank, privileged\) than base"):
        summarise(study)
    for dose in doses:
        save_predictions(dose, predictions(10, 5, "privileged", offset=35))
    said = (
        r"dose_true_vt, privileged\) and base \(test, text_only\) are of different problems: of 10"
    )
    with pytest.raises(ValueError, match=rf"{said}.* lacks 5, \['maze_40', 'maze_41', 'maze_42'\]"):
        summarise(study)
    for dose in doses:
        save_predictions(dose, predictions(5, 5, "privileged") * 2)
    with pytest.raises(ValueError, match=f"{doses[-1]}: 10 answers to 5 problems"):
        summarise(study)


def test_seconds_and_tokens_are_of_the_same_problems(study):
    path = study.folder / "latency.json"
    by_position = summarise(study)["speed_up"]
    seconds = json.loads(path.read_text())
    path.write_text(json.dumps({"problem_ids": ["maze_1", "maze_0"], **seconds}))
    assert summarise(study)["speed_up"]["whole"]["value"] == by_position["whole"]["value"]
    path.write_text(json.dumps({"problem_ids": ["maze_1", "maze_x"], **seconds}))
    with pytest.raises(ValueError, match=r"latency.json and drawn .* lacks 1, \['maze_x'\]"):
        summarise(study)


def test_fewer_answers_than_problems_are_refused(study):
    path = study.predictions("blank-1", "test", "text_only")
    save_predictions(path, load_predictions(path)[:-1])
    with pytest.raises(ValueError, match=r"39 against 40; it lacks \['maze_39'\]"):
        Results(study)


def test_missing_predictions_are_refused_by_file(study):
    path = study.predictions("blank-1", "test", "text_only")
    path.unlink()
    with pytest.raises(ValueError, match=f"{path}: missing predictions of blank-1"):
        Results(study)


# Numbers


def test_what_is_added_to_a_study_makes_it_no_other(study):
    """The gallery left out a whole study that had two arms more than its command asks for."""
    arms = {**study.config.arms, "forward_kl": ArmConfig(seeds=1)}
    config = replace(study.config, arms=arms, other_base="other", jobs=3)
    files.write(
        study.folder / "summary.json",
        json.dumps({**summarise(study), "settings": asdict(config)}),
    )
    found = load_study(study.folder)
    assert found["added"] == ["other_base", "forward_kl"]
    assert "num_problems: 2048 -> 40" in found["differs"]
    assert any(words.startswith("arms.no_vt: ") for words in found["differs"])  # it has five arms
    assert not any(words.startswith(("jobs", "arms.sft")) for words in found["differs"])
    assert "(and `other_base`, `forward_kl` beside it)" in origin_of(found)


def test_second_base_is_asked_about_noise_too(study):
    """Neutral noise must not be a product of the rows that one base was made from."""
    study = Study(replace(study.config, other_base=study.shared.model))
    study.claim()
    put(study, OTHER_BASE, OTHER_BASE, base=OTHER_BASE)
    others = [run for run in study.runs if run.base == OTHER_BASE]
    for run in others:
        put(study, run.name, run.arm, base=OTHER_BASE)
    assert study.runs[-len(others) :] == tuple(others)
    assert {run.arm for run in others} == {"true_vt_other_base", "matched_noise_other_base"}
    once = Study(replace(study.config, other_seeds=1))
    assert {run.number for run in once.runs if run.base == OTHER_BASE} == {1}
    assert {run.number for run in once.runs if run.base == BASE} == {1, 2}
    verdicts = {claim["claim"]: claim["verdict"] for claim in summarise(study)["claims"]}
    second = f"{NOISE_CLAIM}, on a base that saw no corrupted VTs"
    assert verdicts[second] == "supported"


def test_sft_is_asked_from_a_base_that_never_drew_too(study):
    study = Study(replace(study.config, undrawn_base=study.shared.model))
    study.claim()
    put(study, UNDRAWN_BASE, UNDRAWN_BASE, base=UNDRAWN_BASE)
    for run in [run for run in study.runs if run.base == UNDRAWN_BASE]:
        assert run.config.method == "sft"
        put(study, run.name, run.arm, base=UNDRAWN_BASE)
    verdicts = {claim["claim"]: claim["verdict"] for claim in summarise(study)["claims"]}
    asked = "the student passes text-only SFT from a base that never drew"
    assert verdicts[asked] == "supported"
    (claim,) = [c for c in summarise(study)["claims"] if c["claim"] == asked]
    parts = ("difference", "gain", "its_gain", "starts_differ_by")
    whole, mine, its, starts = (claim["numbers"][part]["value"] for part in parts)
    assert whole == pytest.approx(mine - its + starts)


def test_the_answer_in_words_is_asked_of_a_base_that_reads_it(study):
    study = Study(replace(study.config, told_base=study.shared.model))
    study.claim()
    put(study, TOLD_BASE, TOLD_BASE, base=TOLD_BASE)
    for run in [run for run in study.runs if run.base == TOLD_BASE]:
        put(study, run.name, run.arm.removesuffix("_told_base"), base=TOLD_BASE)
    for arm in ("true_vt", "answer_text"):
        _read_by(study, arm, 9)
    _put_scored(study)

    def claim() -> dict[str, Any]:
        said = "the true VTs do more than the answer in text, on a base taught to read it"
        return next(c for c in summarise(study)["claims"] if c["claim"] == said)

    assert claim()["verdict"] == "not supported"
    assert claim()["numbers"]["difference"]["value"] == pytest.approx(-1 / 40)
    for number in (1, 2):
        path = study.predictions(f"answer_text_told_base-{number}", "test", "text_only")
        save_predictions(path, predictions(40, 20, "text_only"))
    assert claim()["verdict"] == "supported"
    _read_by(study, "answer_text", 0)
    assert claim()["verdict"] == "not testable here"


def _read_by(study: Study, arm: str, solved: int) -> None:
    """What the told base makes of what an arm's teacher is shown."""
    path = study.predictions(TOLD_BASE, f"dose_{arm}_told_base", "privileged")
    save_predictions(path, predictions(10, solved, "privileged"))


def _put_scored(study: Study) -> None:
    """Name the doses of the told base's arms in its record, as its worker would."""
    path = study.result(TOLD_BASE)
    record = json.loads(path.read_text())
    record["scored"] = [row for row in record["scored"] if not row[0].startswith("dose_")]
    doses = (f"dose_{arm}_told_base" for arm in ("true_vt", "answer_text"))
    record["scored"] += [[dose, "privileged"] for dose in doses]
    path.write_text(json.dumps(record))


def test_numbers_are_those_of_the_files(study):
    summary = summarise(study)
    arms = summary["arms"]
    assert arms["true_vt"]["accuracy"]["value"] == 34 / 40
    assert arms["true_vt"]["gain"]["value"] == pytest.approx(14 / 40)
    assert arms["true_vt"]["closure"]["value"] == pytest.approx(0.6)
    assert arms["true_vt"]["closure_by_seed"] == pytest.approx([0.6, 0.6])
    assert arms["blank"]["dose"]["value"] == 0.5
    assert summary["seeds"]["blank"] == [42, 43]
    others = [arm for arm in arms if arm != "true_vt"]
    raw = [mcnemar_exact(*{"sft": (0, 2), "answer_text": (0, 1)}.get(a, (14, 0))) for a in others]
    assert [arms[arm]["p_holm"] for arm in others] == pytest.approx(holm(raw))
    on_disk = json.loads((study.folder / "summary.json").read_text())
    assert on_disk == json.loads(json.dumps(summary))
    assert (study.folder / "arms.csv").read_text().count("\n") == 1 + len(arms)
    assert "true_vt,43,0.85," in (study.folder / "seeds.csv").read_text()


def test_more_seeds_on_one_side_alone_make_no_win(study):
    """Five seeds agree less often than three: compared are as many seeds of either."""
    for name, solved in {"true_vt-1": 20, "true_vt-2": 0, "blank-1": 20}.items():
        path = study.predictions(name, "test", "text_only")
        save_predictions(path, predictions(40, solved, "text_only"))
    study.result("blank-2").unlink()
    arm = summarise(study)["arms"]["blank"]
    assert (arm["true_vt_wins"], arm["true_vt_losses"]) == (0, 0)


def test_what_is_detectable_is_said_in_accuracy(study):
    """Problems won in one of two seeds were counted as won whole: twice the difference was said."""
    whole = summarise(study)["arms"]["blank"]["smallest_detectable"]
    path = study.predictions("blank-2", "test", "text_only")
    save_predictions(path, predictions(40, 34, "text_only"))
    arm = summarise(study)["arms"]["blank"]
    assert (arm["true_vt_wins"], arm["true_vt_losses"]) == (14, 0)
    assert arm["smallest_detectable"] == pytest.approx(whole / 2)


def test_verdicts_follow_the_numbers(study):
    def verdicts() -> dict[str, str]:
        return {c["claim"]: c["verdict"] for c in summarise(study)["claims"]}

    found = verdicts()
    control = "what helps is what the VTs show: `true_vt` against `blank`"
    assert found[control] == "supported"
    assert found["the student passes text-only SFT: `sft`"] == "not supported"
    assert found[f"{NOISE_CLAIM}, on the shipped base"] == "supported"
    second = f"{NOISE_CLAIM}, on a base that saw no corrupted VTs"
    assert found[second] == "not measured"
    assert found["the KL gap closes with true VTs: `true_vt`"] == "supported"
    for number in (1, 2):
        path = study.predictions(f"blank-{number}", "test", "text_only")
        save_predictions(path, predictions(40, 33, "text_only"))
    assert verdicts()[control] == "not supported"


def test_what_the_base_cannot_read_is_no_control(study):
    """The shipped base answers 28 % with the answer in words before it, 68 % with nothing."""

    def verdict() -> str:
        claim = "the true VTs do more than the answer in text"
        return next(c["verdict"] for c in summarise(study)["claims"] if c["claim"] == claim)

    path = study.predictions(BASE, "dose_answer_text", "privileged")
    save_predictions(path, predictions(10, 10, "privileged"))  # as with nothing in sight
    assert verdict() == "not supported"
    save_predictions(path, predictions(10, 5, "privileged"))
    assert verdict() == "not testable here"


def test_the_map_says_who_is_ahead_cell_by_cell(study):
    cells = {cell["question"]: cell for cell in summarise(study)["comparison"]}
    assert cells["held-out mazes, text-only"]["difference"]["value"] == pytest.approx(-2 / 40)
    samples = cells["samples until 0.75 of the validation mazes"]
    assert [v["value"] for v in samples["values"]] == pytest.approx([150 * 32, 150 * 32])
    assert samples["decided_by"] is None
    for number in (1, 2):
        path = study.predictions(f"true_vt-{number}", "hard", "text_only")
        save_predictions(path, predictions(10, 10, "text_only"))
        path = study.predictions(f"sft-{number}", "hard", "text_only")
        save_predictions(path, predictions(10, 0, "text_only"))
    cells = {cell["question"]: cell for cell in summarise(study)["comparison"]}
    assert cells["the `hard` split"]["decided_by"] == "true_vt"


def test_one_seed_decides_no_cost(study):
    """Its interval had no width, so any difference decided the cell."""
    for arm, error in {"true_vt": 0.100, "sft": 0.101}.items():
        study.result(f"{arm}-2").unlink()
        put(study, f"{arm}-1", arm, calibration_error=error)
    summary = summarise(study)
    assert "calibration error" not in {cell["question"] for cell in summary["comparison"]}
    assert any("calibration error" in said for said in summary["not_compared"])


def test_one_seed_of_a_trained_arm_decides_no_accuracy(study):
    """Training passed for free of chance: cells were decided, and claims supported."""
    cell, claim = "held-out mazes, text-only", "the student passes its own start, text-only"

    def said() -> tuple[dict[str, Any], dict[str, Any]]:
        summary = summarise(study)
        (of_map,) = [c for c in summary["comparison"] if c["question"] == cell]
        (of_claims,) = [c for c in summary["claims"] if c["claim"] == claim]
        return of_map, of_claims

    for number in (1, 2):
        path = study.predictions(f"sft-{number}", "test", "text_only")
        save_predictions(path, predictions(40, 10, "text_only"))
    decided, supported = said()
    assert (decided["decided_by"], supported["verdict"]) == ("true_vt", "supported")
    study.result("true_vt-2").unlink()
    open_, unmeasured = said()
    assert (open_["decided_by"], unmeasured["verdict"]) == (None, "not measured")
    assert open_["difference"]["low"] > 0
    assert unmeasured["numbers"]["difference"]["low"] > 0


def test_one_seed_decides_no_closure(study):
    for number in (1, 2):
        put(study, f"true_vt-{number}", "true_vt")
    study.result("true_vt-2").unlink()
    claim = "the KL gap closes with true VTs: `true_vt`"
    (found,) = [c for c in summarise(study)["claims"] if c["claim"] == claim]
    assert found["verdict"] == "not measured"
    assert found["numbers"]["closure"]["value"] == pytest.approx(0.6)


def test_closure_is_judged_by_its_interval(study):
    """Seeds of .25 and .95 have a mean above the target, and show nothing."""

    def verdict(arm: str, *closed: float) -> str:
        for number, share in enumerate(closed, 1):
            gap = gap_of(arm)
            gap["fixed_sums"] = [(1 - share) * nats for nats in (1, 3, 2)]
            put(study, f"{arm}-{number}", arm, gap=gap)
        said = summarise(study)["claims"]
        (found,) = [c for c in said if c["claim"].startswith("the KL") and f"`{arm}`" in c["claim"]]
        assert found["numbers"]["closure"]["value"] == pytest.approx(sum(closed) / len(closed))
        return found["verdict"]

    assert verdict("true_vt", 0.6, 0.6) == "supported"
    assert verdict("true_vt", 0.25, 0.95) == "not supported"
    assert verdict("blank", 0.02, 0.02) == "supported"
    assert verdict("blank", -0.1, 0.1) == "not supported"


def test_tuned_sft_has_its_own_claim_and_cells(study):
    """It was in the table alone, where nobody saw that it was ahead."""
    changes = (*study.config.arms["sft"].changes, "sft.optimiser.learning_rate=3e-4")
    arms = {**study.config.arms, "sft_slow": ArmConfig(seeds=2, changes=changes)}
    study = Study(replace(study.config, arms=arms))
    study.claim()
    for number in (1, 2):
        put(study, f"sft_slow-{number}", "sft_slow")
    summary = summarise(study)
    verdicts = {claim["claim"]: claim["verdict"] for claim in summary["claims"]}
    assert verdicts["the student passes text-only SFT: `sft_slow`"] == "supported"
    assert verdicts["the student passes text-only SFT: `sft`"] == "not supported"
    assert ["true_vt", "sft_slow"] in [cell["arms"] for cell in summary["comparison"]]


def test_cost_that_one_arm_never_pays_is_said_not_dropped(study):
    curve = {"steps": [0, 100, 200], "values": [0.6, 0.55, 0.6]}
    put(study, "true_vt-2", "true_vt", curve=curve)
    summary = summarise(study)
    assert not [cell for cell in summary["comparison"] if cell["question"].startswith("samples")]
    said = "samples until 0.75 of the validation mazes: 1 of 2 runs of `true_vt` did not get there"
    assert said in summary["not_compared"]
    assert said in write_report(study, summary).read_text()


def test_costs_are_up_to_what_all_runs_of_a_pair_reach(study):
    """Nobody reached the study's target without gold answers, and both cells were empty."""
    for number in (1, 2):
        curve = {"steps": [0, 100, 200], "values": [0.6, 0.7, 0.7 + number / 100]}
        put(study, f"true_vt-{number}", "true_vt", curve=curve)
    cells = [cell["question"] for cell in summarise(study)["comparison"]]
    assert "samples until 0.71 of the validation mazes" in cells
    for number in (1, 2):
        put(study, f"true_vt-{number}", "true_vt", curve={"steps": [0, 9], "values": [0.6, 0.629]})
    assert any("samples until 0.75" in said for said in summarise(study)["not_compared"])


def test_a_cell_that_is_one_of_many_is_open(study):
    """Six problems of 40 have p = .03 by themselves, and seven cells are asked."""
    for number in (1, 2):
        path = study.predictions(f"sft-{number}", "test", "text_only")
        save_predictions(path, predictions(40, 28, "text_only"))
    summary = summarise(study)
    (cell,) = [c for c in summary["comparison"] if c["question"] == "held-out mazes, text-only"]
    assert cell["difference"]["low"] > 0
    assert cell["p"] == pytest.approx(mcnemar_exact(6, 0))
    assert cell["p"] < 0.05 < cell["p_holm"]
    assert cell["decided_by"] is None
    said = write_report(study, summary).read_text()
    assert "against `sft`, `true_vt` is ahead in 0 and behind in 0;" in said


def test_what_says_nothing_or_is_out_of_range_is_written_so(study):
    """Steps of a quick study, an underflow, and a gap so wide that a closure says little."""
    put(study, "sft-1", "sft", gap=gap_of("sft") | {"fixed_sums": [9, 27, 18]})
    study.result("blank-2").unlink()
    summary = summarise(study)
    summary["arms"]["sft"]["p_holm"] = 0.0
    said = write_report(study, summary).read_text()
    assert "| < 1e-300 |" in said
    assert "(one seed) |" in said
    assert "times [" in said.partition("| `sft` (not tuned) |")[2].partition("\n")[0]
    assert "`sft` widens the gap most in tokens of class" in said
    assert "to check the machinery" not in said
    quick = Study(replace(study.config, name="ablate-noise-quick"))
    assert answer_first(quick, summary).startswith("**A few steps of every arm, to check")


def test_noise_is_tested_for_equivalence(study):
    (claim,) = [
        c for c in summarise(study)["claims"] if c["claim"] == f"{NOISE_CLAIM}, on the shipped base"
    ]
    assert "p_tost_over_problems" not in claim["numbers"]  # the same answers to every problem
    path = study.predictions("matched_noise-1", "test", "text_only")
    save_predictions(path, predictions(40, 26, "text_only"))
    (claim,) = [
        c for c in summarise(study)["claims"] if c["claim"] == f"{NOISE_CLAIM}, on the shipped base"
    ]
    assert claim["numbers"]["p_tost_over_problems"] > 0.5


def test_a_control_that_harms_stands_beside_what_it_does(study):
    (claim,) = [
        c for c in summarise(study)["claims"] if c["claim"].endswith("`true_vt` against `blank`")
    ]
    assert {"control_minus_base", "its_teacher_minus_base"} < set(claim["numbers"])


def test_cost_is_read_off_the_curve_in_a_line():
    curve = {"steps": [0, 100, 200], "values": [0.6, 0.7, 0.9]}
    record = {"curve": curve, "samples_a_step": 32, "steps": 200, "cpu_seconds": 100.0}
    assert cost_of(record, 0.75) == pytest.approx({"samples": 125 * 32, "cpu_seconds": 62.5})
    assert cost_of(record, 0.95) == {"samples": None, "cpu_seconds": None}
    assert cost_of({**record, "cpu_seconds": None}, 0.5) == {"samples": 0, "cpu_seconds": None}


def test_speed_up_is_no_drawing_times_fewer_tokens():
    seconds = {
        "drawn_official": [0.8, 1.2],
        "drawn_fast": [0.2, 0.2],
        "base_text_only": [0.1, 0.1],
        "student_text_only": [0.05, 0.15],
    }
    found = decompose(
        seconds, {"drawn": [40.0, 20.0], "student": [10.0, 20.0]}, seed=0, resamples=10
    )
    assert found["whole"]["value"] == pytest.approx(10)
    assert found["fewer_tokens"]["value"] == pytest.approx(2)
    assert found["no_drawing"]["value"] == pytest.approx(5)


def test_donor_is_another_problem_of_the_size(problems):
    donors = donors_of(problems)
    for problem, donor in zip(problems, donors, strict=True):
        assert donor.category == problem.category
        assert donor.problem_id != problem.problem_id


# Reporting


def test_own_answers_left_out_are_counted_in_the_report(study):
    """Only the log of the run said how many there were."""
    put(study, "sft-1", "sft", left_out={"num": 96, "of": 8192})
    summary = summarise(study)
    assert summary["arms"]["sft"]["left_out_by_seed"] == [{"num": 96, "of": 8192}, None]
    said = arms_section(study, summary)
    assert "`sft` leaves out 96 of 8,192 of the base's own answers: out of form." in said


def test_every_commit_of_a_study_is_named(study):
    """A study that went on at another commit named the first alone."""
    summary = summarise(study)
    assert list(summary["commits"]) == [study.commit]
    assert f"Commit `{study.commit}`;" in making_section(study, summary)
    put(study, "blank-2", "blank", trained_at=[study.commit, "aaa"], measured_at="bbb")
    summary = summarise(study)
    assert "trained blank-2" in summary["commits"][study.commit]
    assert summary["commits"]["aaa"] == ["trained blank-2"]
    said = making_section(study, summary)
    assert "`aaa` (trained blank-2), `bbb` (measured blank-2)" in said


def test_crashed_arm_is_listed_and_leaves_the_others_usable(study):
    whole = summarise(study)
    for number in (1, 2):
        study.result(f"blank-{number}").unlink()
    study.result("true_vt-2").unlink()
    summary = summarise(study)
    assert sorted(summary["missing"]) == ["blank-1", "blank-2", "true_vt-2"]
    assert "blank" not in summary["arms"]
    assert summary["arms"]["true_vt"]["num_seeds"] == 1
    assert summary["arms"]["sft"]["gain"] == whole["arms"]["sft"]["gain"]
    verdicts = {c["claim"]: c["verdict"] for c in summary["claims"]}
    assert verdicts["what helps is what the VTs show: `true_vt` against `blank`"] == "not measured"
    said = write_report(study, summary).read_text()
    assert "**Missing**: `blank-1`, `true_vt-2`, `blank-2`." in said


def test_study_without_any_result_says_where_the_logs_are(tmp_path):
    study = study_in(tmp_path)
    study.claim()
    with pytest.raises(ValueError, match=r"has no result of base: see .*logs"):
        summarise(study)


def test_html_holds_figures_tables_and_that_sft_was_not_tuned(study):
    path = write_report(study, summarise(study))
    page = path.with_suffix(".html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert '.png"' not in page
    assert page.count("<table>") == path.read_text().count("\n| ---") == 5
    assert "conditional on this base" in page.lower()
    assert page.count("Not tuned: <code>sft</code> ran with Visual-OPSD's optimiser") == 1
    assert "<code>sft</code> (not tuned)" in page
