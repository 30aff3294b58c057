"""A study compares like with like, and goes on where it was stopped."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from rich.console import Console

from datamodules.frozen_lake import MazeSettings
from datamodules.thinkmorph import write_mazes
from experiments import ablate_noise, run_data, run_files
from experiments.schema import differing
from experiments.side_by_side import Job, run_all
from experiments.study import ArmConfig, Study, load_study
from experiments.study_worker import left_out, note_commit
from tests import tiny
from tests.studies import study_in
from visual_opsd.contexts import student_context
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.bagel.checkpoints import WEIGHTS
from visual_opsd.models.bagel.preprocessing import PROTOCOLS
from visual_opsd.rollouts.own_answers import OwnAnswer, write_answers

ALL = tuple(load_study(ablate_noise.TABLE).arms)


# The table


def test_every_arm_of_the_issue_has_its_seeds():
    arms = load_study(ablate_noise.TABLE).arms
    more, fewer = {"true_vt", "matched_noise", "sft"}, {"other_vt", "blank", "no_vt"}
    fewer |= {"problem_copy", "drawn_vt", "answer_text", "self_training"}
    assert {name for name, arm in arms.items() if arm.seeds == 5} == more
    assert {name for name, arm in arms.items() if arm.seeds == 3} == fewer
    assert arms.keys() == more | fewer


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
    assert [numbers.count(number) for number in range(1, 6)] == [10, 10, 10, 3, 3]


@pytest.mark.parametrize("arm", ["drawn_vt", "self_training"])
def test_all_seeds_of_an_arm_see_the_same_drawings(tmp_path, arm):
    more = f"study.arms.{arm}.seeds=2"
    configs = [run.config for run in study_in(tmp_path, more, arms=[arm]).runs]
    assert [config.seed for config in configs] == [42, 43]
    assert {config.seed_of_drawings for config in configs} == {0}
    assert len({run_data.own_answers_path(config) for config in configs}) == 1


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
    both = study_in(tmp_path, "sft.optimiser.learning_rate=2e-4")  # for every arm that is SFT
    assert both.run("sft-1").config.optimiser == replace(shared, learning_rate=2e-4)
    assert both.run("true_vt-1").config.optimiser == shared


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


def test_a_study_of_before_there_was_a_key_goes_on(study):
    path = study.folder / "study.json"
    saved = json.loads(path.read_text())
    del saved["resolved"]["rollout.cache_scores"]
    path.write_text(json.dumps(saved))
    study.claim()
    del saved["resolved"]["trainer.max_steps"]
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"study: resolved.trainer.max_steps: \d+ -> 600\. Take"):
        study.claim()


def test_arms_seeds_and_a_base_may_be_added_but_not_changed(study):
    config = replace(study.config, max_seeds=3, other_base=study.shared.model)
    added = {**config.arms, "blurred": ArmConfig(changes=("rollout.intervention=blurred",))}
    Study(replace(config, arms=added)).claim()
    changed = {**added, "blurred": ArmConfig(changes=("rollout.intervention=blank",))}
    with pytest.raises(ValueError, match=r"another study: arms.blurred: .*blurred.* -> .*blank"):
        Study(replace(config, arms=changed)).claim()


def test_arms_of_an_earlier_command_stay(tmp_path):
    """A command without them left their results out of the report, unsaid."""
    here = f"study.output_dir={tmp_path}"
    added = "[visual_opsd.divergence.kind=forward_kl]"
    added_too = [f"study.arms.forward_kl.changes={added}", "study.arms.forward_kl.seeds=1"]
    study, _ = ablate_noise.read([*added_too, here])
    study.claim()
    again, _ = ablate_noise.read([here])
    assert again.run("forward_kl-1").config == study.run("forward_kl-1").config
    again.claim()
    based, _ = ablate_noise.read([f"study.undrawn_base={study.shared.model}", here])
    based.claim()
    assert "sft_undrawn_base-1" in {run.name for run in ablate_noise.read([here])[0].runs}
    with pytest.raises(ValueError, match=r"another study: arms\.forward_kl"):
        ablate_noise.read(["study.arms.forward_kl.changes=[]", here])[0].claim()


def test_an_arm_of_no_seeds_is_left_out_from_then_on(tmp_path):
    """An arm that was added by mistake stayed in every later report."""
    here = f"study.output_dir={tmp_path}"
    added = "study.arms.mistake.changes=[method=sft,'sft.mix={text_only: 1.0}']"
    ablate_noise.read([added, here])[0].claim()
    assert "mistake" in {run.arm for run in ablate_noise.read([here])[0].runs}
    without, _ = ablate_noise.read(["study.arms.mistake.seeds=0", here])
    without.claim()
    for study in (without, ablate_noise.read([here])[0]):
        assert "mistake" not in {run.arm for run in study.runs}
        assert study.pairs == [("true_vt", "sft"), ("drawn_vt", "self_training")]
        assert "true_vt" in {run.arm for run in study.runs}
    again, _ = ablate_noise.read([added, here])
    again.claim()
    assert ("true_vt", "mistake") in again.pairs
    with pytest.raises(ValueError, match=r"mistkae.seeds=0: no arm .*did you mean mistake"):
        ablate_noise.read(["study.arms.mistkae.seeds=0", here])
    none = [f"study.arms.{name}.seeds=0" for name in (*study.config.arms, "mistake")]
    with pytest.raises(ValueError, match="at least one, with seeds"):
        ablate_noise.read([*none, here])


# Running


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


def test_a_run_that_did_not_hear_that_its_starter_is_gone_is_told_again(tmp_path):
    """One signal was sent, and fell where nobody listened."""
    (tmp_path / "deaf.py").write_text(
        "import signal, sys, time\n"
        "told = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: told.append(1) or told[2:] and sys.exit(3))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    again = "from experiments import job; job.REPEAT_SECONDS = 0.2; job.main()"
    run = subprocess.Popen(
        [sys.executable, "-c", again, "deaf"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{Path.cwd()}:{tmp_path}"},
    )
    assert run.stdout is not None
    assert run.stdout.readline() == b"ready\n"
    run.communicate(timeout=50)  # closes its input, as the end of its starter does
    assert run.returncode == 3


def test_a_run_keeps_the_commits_that_it_was_trained_at(study):
    run, now = study.run("blank-1"), run_files.commit()
    run.config.folder.mkdir(parents=True)
    (run.config.folder / "run.json").write_text(json.dumps({"commit": "first"}))
    assert note_commit(study, run) == note_commit(study, run) == ["first", now]
    (study.folder / "commits" / "blank-1.json").write_text(json.dumps(["first"]))
    weights = run.config.folder / "model" / WEIGHTS
    weights.parent.mkdir()
    weights.write_text("")
    assert note_commit(study, run) == ["first"]  # today it is measured only


def test_what_is_out_of_form_is_counted_where_it_is_kept(tmp_path):
    study = study_in(tmp_path, f"cache_dir={tmp_path}", arms=["sft", "self_training"])
    configs = {run.arm: run.config for run in study.runs}
    answers = [OwnAnswer(index=i, problem_id=str(i), answer="U" if i else None) for i in range(3)]
    write_answers(run_data.own_answers_path(configs["self_training"]), answers)
    assert left_out(configs["self_training"]) == {"num": 1, "of": 3}
    assert left_out(configs["sft"]) is None


def test_own_answers_that_are_gone_are_not_none_out_of_form(tmp_path):
    """A cleaned cache was reported as 0 of 0."""
    study = study_in(tmp_path, f"cache_dir={tmp_path}", arms=["self_training"])
    with pytest.raises(ValueError, match=r"own answers that .*self_training-1 imitates are gone"):
        left_out(study.runs[0].config)


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


@pytest.mark.slow
def test_study_of_pictures_in_their_own_size_trains_in_processes_of_its_own(
    tokenizer, problems, tmp_path, monkeypatch
):
    """What a 7B model does on its GPUs: here 378 px pictures, two ranks and ZeRO-3 on the CPU."""
    shares = {tokenizer.encode(tiny.ASKS)[0]: 0.3, tokenizer.marks.end: 0.1}
    model = tiny.make_autoencoder_model(
        tokenizer, patch_size=14, positions=40, multipliers=(1, 1, 1, 1)
    )
    model.codec.scaling_factor, model.codec.shift_factor = 0.3611, 0.1159  # the official ones
    shown = [run_data.as_shown(problem, PROTOCOLS["train"]) for problem in problems]
    contexts = [student_context(problem, tokenizer.encode) for problem in shown]
    checkpoints.save(tiny.inclined(model, contexts, shares), tokenizer, tmp_path / "start")
    write_mazes(tmp_path / "data", MazeSettings(sizes=(3, 4)), "train", 32)

    monkeypatch.setenv("VISUAL_OPSD_CACHE", str(tmp_path / "cache"))
    arguments = ["RUN=tiny_2rank", f"study.output_dir={tmp_path}", "study.max_seeds=1"]
    arguments += [f"model={tmp_path / 'start'}", f"data.source={tmp_path / 'data'}"]
    arguments += ["data.protocol=train", "data.batch_size=1", "data.sizes=[3,4]"]
    arguments += ["trainer.max_steps=2", "held_out.num_problems=0", "rollout.sampling.max_tokens=4"]
    arguments += ["drawing={num_timesteps: 2, text_guidance: 1.0}", "study.num_problems=8"]
    arguments += ["study.num_drawn=4", "study.num_trajectories=4", "study.num_elsewhere=4"]
    arguments += ["study.num_dosed=4", "study.num_timed=1", "study.num_resamples=50"]
    study, _ = ablate_noise.read(arguments)
    arms = {name: study.config.arms[name] for name in ("true_vt", "sft")}
    study = Study(replace(study.config, arms=arms))
    study.claim()
    summary, failed = ablate_noise.tell(study)
    assert not failed, next(iter(failed.values())).read_text()[-2000:]
    assert summary["missing"] == []
    assert study.problems("test")[0].image.pixels.shape == (3, 378, 378)
    assert len(list((study.folder / "arms" / "true_vt-1" / "checkpoints").iterdir())) > 0
    assert summary["arms"]["true_vt"]["accuracy"]["value"] <= 1
