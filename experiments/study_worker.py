"""One part of a study in a process of its own: train a run and measure it, or measure a base.

``python -m experiments.study_worker STUDY_FOLDER NAME``; what is there already is not made again.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from experiments import build, draw_thoughts, files, own_answers, run_data, run_files
from experiments.evaluation import GREEDY, donors_of, evaluate, load_predictions, save_predictions
from experiments.kl_gap import (
    BATCH_SIZE,
    SAMPLED,
    Trajectories,
    class_sums,
    gap_record,
    ids_digest,
    sample_fixed,
    sampled_classes,
    sampled_rows,
    token_gaps,
)
from experiments.plan import launch_line, write_plan
from experiments.report import read_curve
from experiments.schema import ExperimentConfig
from experiments.side_by_side import is_finished
from experiments.study import Run, Study
from experiments.train import train
from experiments.watch import HELD_OUT
from visual_opsd.contexts import Problem
from visual_opsd.metrics.calibration import answer_confidence, expected_calibration_error
from visual_opsd.metrics.token_classes import TOKEN_CLASSES
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.interface import Sampling
from visual_opsd.rollouts.answering import Way
from visual_opsd.rollouts.own_answers import read_answers
from visual_opsd.rollouts.trajectories import show
from visual_opsd.seeds import row_seed


def main() -> None:
    """Command line."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m experiments.study_worker STUDY_FOLDER NAME")
    try:
        print(do(Study.open(Path(sys.argv[1])), sys.argv[2]))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def do(study: Study, name: str) -> Path:
    """Do one part of a study; returns its result's file, written last."""
    is_base = name in study.bases
    result = measure_base(study, name) if is_base else train_and_measure(study, study.run(name))
    return files.write(study.result(name), json.dumps(result))


def train_and_measure(study: Study, run: Run) -> dict[str, Any]:
    """A run from start to numbers."""
    config = run.config
    trained_at = note_commit(study, run)
    fill_bank(study, run)
    model_folder = train_alone(config)
    last = run_files.last_checkpoint(config.folder)
    curve = read_curve(config.folder, HELD_OUT)
    sessions = list(config.folder.glob("metrics/session_*"))
    seconds = json.loads((config.folder / "cpu_seconds.json").read_text())
    measured = Measurement(study, run.name, run.base, model_folder)
    is_compared = study.is_compared(run)
    return {
        "arm": run.arm,
        "number": run.number,
        "base": run.base,
        "base_digest": json.loads((config.folder / "run.json").read_text())["model_digest"],
        "trained_at": trained_at,
        "measured_at": run_files.commit(),
        "steps": 0 if last is None else int(last.stem.partition("=")[2]),
        "samples_a_step": config.sequences_a_batch * config.trainer.accumulate,
        # A run that was stopped knows the seconds of its last session only.
        "cpu_seconds": seconds if len(sessions) == 1 else None,
        "curve": {"steps": curve.steps, "values": curve.values},
        "left_out": left_out(config),
        "scored": measured.score(is_compared=is_compared),
        "calibration_error": measured.calibration_error() if is_compared else None,
        "gap": measured.gap(),
    }


def train_alone(config: ExperimentConfig) -> Path:
    """Train here, or where a run takes several processes in those; returns the model folder.

    Raises:
        ValueError: It takes several nodes, which must be told there; or its processes failed.
    """
    if config.trainer.world_size == 1:
        return train(config)
    if not is_finished(config):
        write_plan(config)  # and with it the file that the launch line names
        if config.trainer.num_nodes > 1:
            raise ValueError(
                f"{config.name} takes {config.trainer.num_nodes} nodes: start it on each by "
                f"`{launch_line(config)}`; when it is finished, the same study goes on"
            )
        program, *arguments = shlex.split(launch_line(config))
        done = subprocess.run(  # noqa: S603 - our own entry point
            [str(Path(sys.executable).with_name(program)), *arguments], check=False
        )
        if done.returncode:
            raise ValueError(f"{launch_line(config)}: exit code {done.returncode}")
    return config.folder / "model"


def note_commit(study: Study, run: Run) -> list[str]:
    """The commits that a run was trained at; today's joins them, unless it is trained already."""
    path, first = study.folder / "commits" / f"{run.name}.json", run.config.folder / "run.json"
    known: list[str] = []
    if path.is_file():
        known = json.loads(path.read_text())
    elif first.is_file():  # begun before commits were kept
        known = [json.loads(first.read_text())["commit"]]
    if not is_finished(run.config):
        known = list(dict.fromkeys([*known, run_files.commit()]))
    files.write(path, json.dumps(known))
    return known


def fill_bank(study: Study, run: Run) -> None:
    """Let the base draw, or draw and answer, what the arm is to see: once for all its seeds."""
    config = run.config
    path = study.folder / "banks" / f"{run.arm}.json"
    path.parent.mkdir(exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # another seed may be at it
        if config.data.answers == "own":
            files.kept(path, lambda: {"file": str(own_answers.collect(config))})
        elif config.method == "visual_opsd" and config.rollout.intervention == "drawn_vt":
            files.kept(path, lambda: {"num_drawn": draw_thoughts.fill(config).num_drawn})
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the training is another process's


def left_out(config: ExperimentConfig) -> dict[str, int] | None:
    """How many of the base's own answers were out of form and not imitated; None: gold ones.

    Raises:
        ValueError: They are not there any more.
    """
    if config.data.answers == "gold":
        return None
    path = run_data.own_answers_path(config)
    answers = read_answers(path)
    if not answers:
        raise ValueError(
            f"{path}: the own answers that {config.folder} imitates are gone; make own-answers "
            f"RUN={config.folder / 'config.yaml'} makes the same again"
        )
    return {"num": sum(own.answer is None for own in answers), "of": len(answers)}


def measure_base(study: Study, name: str) -> dict[str, Any]:
    """What every arm is held against, and how well the base reads what each teacher is shown."""
    measured = Measurement(study, name, name, study.bases[name])
    scored = measured.score(is_compared=True)
    firsts = {run.arm: run for run in reversed(study.runs) if run.base == name}
    for arm, run in firsts.items():
        # TODO(#5): a dose of what other donors show; here a donor is the next problem of its size.
        if run.config.method == "visual_opsd" and run.config.data.donors == "same":
            scored.append(measured.dose(arm, run.config))
    return {
        "base": name,
        "base_digest": run_files.digest(study.bases[name]),
        "measured_at": run_files.commit(),
        "scored": scored,
        "calibration_error": measured.calibration_error(),
        "gap": measured.gap(),
    }


class Measurement:
    """One model against its base, by the rules of a study."""

    def __init__(self, study: Study, name: str, base: str, folder: Path) -> None:
        """``folder`` holds the model that is called ``name`` and was trained from ``base``."""
        self.study, self.settings, self.name = study, study.config, name
        self.asked = run_data.asked(study.shared)
        device = build.own_device(study.shared)
        self.model, self.tokenizer = checkpoints.load(folder, device)
        self.base, _ = checkpoints.load(study.bases[base], device)
        for model in (self.model, self.base):
            model.eval()
        self.test = study.problems("test")

    def score(self, *, is_compared: bool) -> list[list[str]]:
        """Answer, save the answers; returns what was answered, as [problems, way]."""
        asked: list[tuple[str, Way, list[Problem]]] = [("test", "text_only", self.test)]
        if is_compared:
            num_drawn = self.settings.num_drawn
            asked += [
                ("unseen_sizes", "text_only", self.study.problems("unseen_sizes")),
                ("hard", "text_only", self.study.problems("hard")),
                ("test", "privileged", self.test[:num_drawn]),
                ("test", "drawn", self.test[:num_drawn]),
            ]
        return [self._answer(on, way, problems) for on, way, problems in asked]

    def dose(self, arm: str, config: ExperimentConfig) -> list[str]:
        """Let this model answer with in sight what the arm's teacher is shown."""
        problems: Sequence[Problem] = self.test[: self.settings.num_dosed]
        donors = donors_of(problems)
        seeds = [row_seed(self.settings.seed, problem.problem_id) for problem in problems]
        if config.rollout.intervention == "drawn_vt":
            problems = build.illustrator(config, self.tokenizer).illustrate(problems)
        shown = show(config.rollout.intervention, problems, donors, seeds)
        return self._answer(f"dose_{arm}", "privileged", shown)

    def gap(self) -> dict[str, Any]:
        """K(T0 || S) on completions of the base; T0 is the frozen base with the true thoughts."""
        problems = self.test[: self.settings.num_trajectories]
        fixed = self._sampled(self.base, problems, SAMPLED)
        gaps = token_gaps(self.base, self.model, self.tokenizer, fixed)
        return {
            **gap_record("fixed", gaps),
            "fixed_digest": ids_digest(fixed),
            "classes": class_sums(fixed, gaps, self.tokenizer),
            "max_rescore_error": fixed.max_rescore_error,
        }

    def calibration_error(self) -> float:
        """How far confidence in an answer is from its being right, in bins; text-only, greedy."""
        problems = self.test[: self.settings.num_drawn]
        greedy = self._sampled(self.model, problems, GREEDY)
        answer = TOKEN_CLASSES.index("answer")
        rows = zip(
            sampled_rows(greedy, "log_probs"), sampled_classes(greedy, self.tokenizer), strict=True
        )
        confidence = answer_confidence([row[classes == answer] for row, classes in rows])
        answers = load_predictions(self.study.predictions(self.name, "test", "text_only"))
        is_solved = {answer.problem_id: answer.is_solved for answer in answers}
        is_right = torch.tensor([is_solved[problem.problem_id] for problem in problems])
        return expected_calibration_error(confidence, is_right)

    def _sampled(self, model: Any, problems: Sequence[Problem], how: Sampling) -> Trajectories:
        if self.asked:
            how = replace(how, max_tokens=self.asked["sampling"].max_tokens)
        at_once = self.asked.get("batch_size", BATCH_SIZE)
        return sample_fixed(model, self.tokenizer, problems, how, self.settings.seed, at_once)

    def _answer(self, on: str, way: Way, problems: Sequence[Problem]) -> list[str]:
        seed = self.settings.seed
        found = evaluate(self.model, self.tokenizer, problems, way, seed=seed, **self.asked)
        save_predictions(self.study.predictions(self.name, on, way), found)
        return [on, way]


if __name__ == "__main__":
    main()
