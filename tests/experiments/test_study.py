"""A study compares like with like, judges by numbers, and goes on where it was stopped."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout
from rich.console import Console

from experiments import ablate_noise, build
from experiments.evaluation import Prediction, donors_of, load_predictions, save_predictions
from experiments.schema import differing
from experiments.side_by_side import Job, run_all
from experiments.study import BASE, COMPARED, OTHER_BASE, ArmConfig, Study, load_study
from experiments.study_claims import cost_of, decompose
from experiments.study_report import write_report
from experiments.study_results import TEXT, Key, Numbers, Results
from experiments.study_summary import summarise
from experiments.study_worker import left_out, note_commit
from visual_opsd.models.bagel.checkpoints import WEIGHTS
from visual_opsd.rollouts.own_answers import OwnAnswer, write_answers
from visual_opsd.statistics import holm, mcnemar_exact

SMALL = ["study.num_problems=40", "study.num_drawn=10", "study.num_timed=2", "study.max_seeds=2"]
SMALL += ["study.num_resamples=100"]
SOLVED = {"true_vt": 34, "sft": 36, "matched_noise": 20, "blank": 20, "answer_text": 35}
"""Of 40, the first so many; the base solves 20."""
ALL = tuple(load_study(ablate_noise.TABLE).arms)
IMITATED = ("sft", "self_training")
CLOSED = {BASE: 0.0, "true_vt": 0.6, "sft": 0.1}


def study_in(folder: Path, *overrides: str, arms: Sequence[str] = tuple(SOLVED)) -> Study:
    """A study with small numbers and some of its arms."""
    config = load_study(ablate_noise.TABLE, [f"study.output_dir={folder}", *SMALL, *overrides])
    return Study(replace(config, arms={n: a for n, a in config.arms.items() if n in arms}))


def predictions(count: int, solved: int, way: str, offset: int = 0) -> list[Prediction]:
    return [
        Prediction(
            problem_id=f"maze_{offset + index}",
            category="size_3",
            way=way,
            text="",
            is_solved=index < solved,
            is_solved_gymnasium=index < solved,
            is_optimal=index < solved,
            has_format_failure=False,
            is_cut=False,
            has_skipped_drawing=False,
            has_exact_drawing=None,
            num_tokens=30 if way == "drawn" else 15,
            seconds=0.1,
        )
        for index in range(count)
    ]


def gap_of(arm: str) -> dict[str, Any]:
    """KL sums of three fixed completions."""
    left = 1 - CLOSED.get(arm, 0.0)
    gap = {"fixed_sums": [left, 3 * left, 2 * left], "fixed_lengths": [4, 6, 5], "fixed_mean": 0.4}
    gap |= {"fixed_digest": "ids", "max_rescore_error": 0.0}
    return gap | {"classes": {"thought": [left, 10], "answer": [5 * left, 5]}}


def put(study: Study, name: str, arm: str, base: str = BASE, **changes: Any) -> None:
    """The files that a worker leaves behind, by hand."""
    asked = [("test", "text_only", 40)]
    if name == base or arm in COMPARED:
        asked += [("unseen_sizes", "text_only", 10), ("hard", "text_only", 10)]
        asked += [("test", "privileged", 10), ("test", "drawn", 10)]
    if name == base:
        asked += [(f"dose_{a}", "privileged", 10) for a in study.config.arms if a not in IMITATED]
    for on, way, count in asked:
        found = predictions(count, SOLVED.get(arm, 20) * count // 40, way)
        save_predictions(study.predictions(name, on, way), found)
    record = {"base": base, "base_digest": "abc", "scored": [a[:2] for a in asked]}
    record["gap"] = gap_of(arm)
    record |= {"calibration_error": 0.1, "measured_at": study.commit}
    if name != base:
        record["trained_at"] = [study.commit]
        record |= {"arm": arm, "number": int(name.rpartition("-")[2]), "steps": 600}
        record |= {"samples_a_step": 32, "cpu_seconds": 300.0}
        record["curve"] = {"steps": [0, 100, 200], "values": [0.6, 0.7, 0.8]}
    path = study.result(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record | changes))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two seeds of every arm, all there."""
    study = study_in(tmp_path)
    study.claim()
    put(study, BASE, BASE)
    for run in study.runs:
        put(study, run.name, run.arm)
    seconds = {"drawn_official": [0.9, 0.9], "drawn_fast": [0.15, 0.15]}
    seconds |= {"base_text_only": [0.06, 0.06], "student_text_only": [0.06, 0.06]}
    (study.folder / "latency.json").write_text(json.dumps(seconds))
    return study


# The table


def test_every_arm_of_the_issue_has_its_seeds():
    arms = load_study(ablate_noise.TABLE).arms
    more, fewer = {"true_vt", "matched_noise", "sft"}, {"other_vt", "blank", "no_vt"}
    fewer |= {"problem_copy", "drawn_vt", "answer_text"}
    assert {name for name, arm in arms.items() if arm.seeds == 5} == more
    assert {name for name, arm in arms.items() if arm.seeds == 3} == fewer
    assert arms.keys() - more - fewer == {"self_training"}


def test_arms_differ_in_what_the_teacher_is_shown_alone(tmp_path):
    study = study_in(tmp_path, arms=ALL)
    first = {run.arm: run.config for run in study.runs if run.number == 1}
    for arm, config in first.items():
        keys = set(differing(first["true_vt"], config)) - {"name"}
        if config.method == "sft":
            assert config.sft.optimiser == first["true_vt"].visual_opsd.optimiser
        else:
            drawn = {k for k in keys if k.startswith("drawing")}
            assert keys - drawn == ({"rollout.intervention"} if arm != "true_vt" else set())
            assert config.rollout.intervention == arm
            assert (arm == "drawn_vt") == bool(drawn)


def test_stopped_early_a_study_has_whole_seeds(tmp_path):
    study = study_in(tmp_path, "study.max_seeds=5", arms=ALL)
    numbers = [run.number for run in study.runs]
    assert numbers == sorted(numbers)
    assert [numbers.count(number) for number in range(1, 6)] == [10, 9, 9, 3, 3]


@pytest.mark.parametrize("arm", ["drawn_vt", "self_training"])
def test_all_seeds_of_an_arm_see_the_same_drawings(tmp_path, arm):
    more = f"study.arms.{arm}.seeds=2"
    configs = [run.config for run in study_in(tmp_path, more, arms=[arm]).runs]
    assert [config.seed for config in configs] == [42, 43]
    assert {config.seed_of_drawings for config in configs} == {0}
    assert len({build.own_answers_path(config) for config in configs}) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("trainer.max_steps=3", "trainer.max_steps: 600 -> 3"),
        ("data.sizes=[3]", r"data.sizes: \[3, 4, 5, 6\] -> \[3\]"),
        ("visual_opsd.optimiser.name=adamw", "optimiser: .*muon.* -> .*adamw"),
    ],
)
def test_arm_on_other_terms_is_refused_with_the_difference(tmp_path, change, said):
    config = study_in(tmp_path).config
    arm = replace(config.arms["blank"], changes=(*config.arms["blank"].changes, change))
    with pytest.raises(ValueError, match=f"blank-1 is not comparable with true_vt-1: {said}"):
        Study(replace(config, arms={**config.arms, "blank": arm})).check()


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("study.num_problem=3", "(?s)study.num_problem=3.*Did you mean.*'num_problems'"),
        ("study.num_dosed=0", "study.num_dosed must be at least 1, got 0"),
        ("trainer.max_step=3", "(?s)max_step.*Did you mean: 'max_steps'"),
        ("QUICK=yes", "QUICK=yes: it takes 1, or 0 for off"),
    ],
)
def test_mistyped_argument_is_named(argument, said):
    with pytest.raises(ValueError, match=said):
        ablate_noise.read([argument])


@pytest.mark.parametrize("value", ["0", ""])
def test_a_flag_that_is_switched_off_is_off(tmp_path, value):
    """``QUICK=0`` ran a few steps of each arm, and ``DRY=0`` none."""
    flags = [f"QUICK={value}", f"DRY={value}"]
    study, is_dry = ablate_noise.read([*flags, f"study.output_dir={tmp_path}"])
    assert (study.folder.name, is_dry) == ("ablate-noise", False)


def test_plan_of_the_7b_study_needs_neither_gpu_nor_files(tmp_path):
    study, is_dry = ablate_noise.read(
        ["RUN=thinkmorph_7b", "DRY=1", f"study.output_dir={tmp_path}", "study.max_seeds=1"]
    )
    console = Console(record=True, width=120)
    ablate_noise.show_plan(study, console)
    said = console.export_text()
    assert is_dry
    assert study.folder == tmp_path / "ablate-noise-thinkmorph_7b"
    assert said.count("--nproc-per-node 8") == len(study.runs) == len(study.config.arms)
    assert not list(tmp_path.iterdir())


def test_sft_is_tuned_by_an_arm_of_its_own(tmp_path):
    """Its learning rate was overwritten with Visual-OPSD's, and the arm refused."""
    (line,) = (
        line
        for line in ablate_noise.TABLE.read_text().splitlines()
        if line.startswith("#   sft_slow")
    )
    key, _, arm = line.removeprefix("#").strip().partition(": ")
    study, _ = ablate_noise.read([f"study.arms.{key}={arm}", f"study.output_dir={tmp_path}"])
    tuned, shared = study.run("sft_slow-1").config.sft.optimiser, study.shared.optimiser
    assert tuned == replace(shared, learning_rate=3e-4)
    assert [study.is_untuned(arm) for arm in ("true_vt", "sft", "sft_slow")] == [False, True, False]


def test_report_says_that_sft_was_not_tuned(study):
    said = write_report(study, summarise(study)).read_text()
    assert "| `sft` (not tuned) |" in said
    assert said.count("Not tuned: `sft` ran with Visual-OPSD's optimiser") == 2  # table and map


def test_folder_of_another_study_is_refused(study):
    other = study_in(study.folder.parent, "study.num_dosed=7")
    with pytest.raises(ValueError, match="another study: num_dosed: 512 -> 7"):
        other.claim()
    Study.open(study.folder).claim()


def test_experiment_that_was_edited_between_sessions_is_refused(study):
    """Later seeds would have trained on other terms than the first, under one commit's name."""
    path = study.folder / "study.json"
    saved = json.loads(path.read_text())
    saved["resolved"]["trainer.max_steps"] = 500
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"another study: resolved.trainer.max_steps: 500 -> 600"):
        study.claim()


def test_arms_seeds_and_a_base_may_be_added_but_not_changed(study):
    config = replace(study.config, max_seeds=3, other_base=study.shared.model)
    added = {**config.arms, "blurred": ArmConfig(changes=("rollout.intervention=blurred",))}
    Study(replace(config, arms=added)).claim()
    changed = {**added, "blurred": ArmConfig(changes=("rollout.intervention=blank",))}
    with pytest.raises(ValueError, match=r"another study: arms.blurred: .*blurred.* -> .*blank"):
        Study(replace(config, arms=changed)).claim()


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
    verdicts = {claim["claim"]: claim["verdict"] for claim in summarise(study)["claims"]}
    second = "noise in place of the VTs changes nothing, on a base that saw no corrupted VTs"
    assert verdicts[second] == "supported"


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
    save_predictions(path, text[30:][::-1])  # those that the base does not solve
    numbers = Numbers(Results(study))
    dose = Key("dose_blank", "privileged")
    assert numbers.between_ways(BASE, dose, BASE, TEXT).as_dict() == {
        "value": 0,
        "low": 0,
        "high": 0,
    }
    save_predictions(path, predictions(10, 5, "privileged", offset=35))
    said = r"dose_blank, privileged\) and base \(test, text_only\) are of different problems: of 10"
    with pytest.raises(ValueError, match=rf"{said}.* lacks 5, \['maze_40', 'maze_41', 'maze_42'\]"):
        summarise(study)
    save_predictions(path, predictions(5, 5, "privileged") * 2)
    with pytest.raises(ValueError, match=f"{path}: 10 answers to 5 problems"):
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
    assert found["the student passes text-only SFT"] == "not supported"
    assert found["noise in place of the VTs changes nothing, on the shipped base"] == "supported"
    second = "noise in place of the VTs changes nothing, on a base that saw no corrupted VTs"
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

    assert verdict() == "not supported"
    path = study.predictions(BASE, "dose_answer_text", "privileged")
    save_predictions(path, predictions(10, 1, "privileged"))
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


def test_cost_that_one_arm_never_pays_is_said_not_dropped(study):
    curve = {"steps": [0, 100, 200], "values": [0.6, 0.6, 0.7]}
    put(study, "true_vt-2", "true_vt", curve=curve)
    summary = summarise(study)
    assert not [cell for cell in summary["comparison"] if cell["question"].startswith("samples")]
    said = "samples until 0.75 of the validation mazes: 1 of 2 runs of `true_vt` did not get there"
    assert said in summary["not_compared"]
    assert said in write_report(study, summary).read_text()


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


# Running and reporting


def job(folder: Path, name: str, command: str) -> Job:
    """A process of Python that may write its result."""
    path = folder / name
    return Job(
        command=("timeit", "-n1", "-r1", command),
        log=folder / f"{name}.log",
        is_finished=path.is_file,
    )


def test_what_fails_stops_no_other_and_what_is_done_is_not_done_again(tmp_path):
    (tmp_path / "done").write_text("")
    write = "open({!r}, 'w').close()"
    jobs = {
        "done": job(tmp_path, "done", "raise SystemExit('done again')"),
        "fails": job(tmp_path, "fails", "raise SystemExit('on purpose')"),
        "silent": job(tmp_path, "silent", "pass"),
        "works": job(tmp_path, "works", write.format(str(tmp_path / "works"))),
    }
    failed = run_all(jobs, at_once=2, together="study")
    assert failed == {n: tmp_path / f"{n}.log" for n in ("fails", "silent")}
    assert "on purpose" in (tmp_path / "fails.log").read_text()
    assert (tmp_path / "works").is_file()
    assert not (tmp_path / "done.log").exists()


def test_runs_end_with_a_study_that_is_killed_outright(tmp_path):
    """Workers of a study whose terminal was closed trained on, beside those of its next start."""
    held, ready = tmp_path / "held", tmp_path / "ready"
    hold = f"import filelock, time; lock = filelock.FileLock({str(held)!r}); lock.acquire(); "
    hold += f"open({str(ready)!r}, 'w').close(); time.sleep(100)"
    command, log = ("timeit", "-n1", "-r1", hold), tmp_path / "log"
    study = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "from pathlib import Path; from experiments.side_by_side import Job, run_all; "
            f"run_all({{'run': Job(command={command!r}, log=Path({str(log)!r}), "
            "is_finished=lambda: False)})",
        ],
        stdout=subprocess.DEVNULL,
    )
    while not ready.is_file():
        assert study.poll() is None
        time.sleep(0.1)
    with pytest.raises(Timeout):
        FileLock(held).acquire(timeout=0)
    study.kill()
    study.wait()
    FileLock(held).acquire(timeout=20).lock.release()  # free as soon as the run is gone


def test_own_answers_left_out_are_counted_in_the_report(study):
    """Only the log of the run said how many there were."""
    put(study, "sft-1", "sft", left_out={"num": 96, "of": 8192})
    summary = summarise(study)
    assert summary["arms"]["sft"]["left_out_by_seed"] == [{"num": 96, "of": 8192}, None]
    said = write_report(study, summary).read_text()
    assert "`sft` leaves out 96 of 8,192 of the base's own answers: out of form." in said


def test_what_is_out_of_form_is_counted_where_it_is_kept(tmp_path):
    study = study_in(tmp_path, f"cache_dir={tmp_path}", arms=["sft", "self_training"])
    configs = {run.arm: run.config for run in study.runs}
    answers = [OwnAnswer(index=i, problem_id=str(i), answer="U" if i else None) for i in range(3)]
    write_answers(build.own_answers_path(configs["self_training"]), answers)
    assert left_out(configs["self_training"]) == {"num": 1, "of": 3}
    assert left_out(configs["sft"]) is None


def test_every_commit_of_a_study_is_named(study):
    """A study that went on at another commit named the first alone."""
    summary = summarise(study)
    assert list(summary["commits"]) == [study.commit]
    assert f"Commit `{study.commit}`;" in write_report(study, summary).read_text()
    put(study, "blank-2", "blank", trained_at=[study.commit, "aaa"], measured_at="bbb")
    summary = summarise(study)
    assert "trained blank-2" in summary["commits"][study.commit]
    assert summary["commits"]["aaa"] == ["trained blank-2"]
    said = write_report(study, summary).read_text()
    assert "`aaa` (trained blank-2), `bbb` (measured blank-2)" in said


def test_a_run_keeps_the_commits_that_it_was_trained_at(study):
    run, now = study.run("blank-1"), build.commit()
    run.config.folder.mkdir(parents=True)
    (run.config.folder / "run.json").write_text(json.dumps({"commit": "first"}))
    assert note_commit(study, run) == note_commit(study, run) == ["first", now]
    (study.folder / "commits" / "blank-1.json").write_text(json.dumps(["first"]))
    weights = run.config.folder / "model" / WEIGHTS
    weights.parent.mkdir()
    weights.write_text("")
    assert note_commit(study, run) == ["first"]  # today it is measured only


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


def test_html_holds_its_figures_and_its_tables(study):
    path = write_report(study, summarise(study))
    page = path.with_suffix(".html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert '.png"' not in page
    assert page.count("<table>") == path.read_text().count("\n| ---") == 5
    assert "conditional on this base" in page.lower()


@pytest.mark.slow
def test_quick_study_runs_every_arm_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("VISUAL_OPSD_CACHE", str(tmp_path / "cache"))
    arguments = ["QUICK=1", f"study.output_dir={tmp_path}", "study.max_seeds=1"]
    monkeypatch.setattr(sys, "argv", ["ablate_noise", *arguments])
    ablate_noise.main()
    folder = tmp_path / "ablate-noise-quick"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["missing"] == []
    assert set(summary["arms"]) == set(load_study(ablate_noise.TABLE).arms)
    assert (folder / "report.html").stat().st_size > 100_000
    left = folder / "results" / "blank-1.json"
    left.unlink()
    kinds = ("results/*.json", "arms/*/model/*.safetensors")
    written = {p: p.stat().st_mtime_ns for kind in kinds for p in folder.glob(kind)}
    ablate_noise.main()
    assert left.is_file()
    assert {path: path.stat().st_mtime_ns for path in written} == written
