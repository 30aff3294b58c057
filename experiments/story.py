"""The whole story from one base: gap, three arms from the same start, gap and accuracy again.

Every stage writes its result into the run folder and is skipped when it is there, so a killed run
goes on where it stopped. ``make demo`` and ``make reproduce-tiny`` tell it at two lengths.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from datamodules.frozen_lake import MazeSettings
from experiments import files, run_data, run_files
from experiments.evaluation import (
    FAST_DRAWING,
    GREEDY,
    Prediction,
    accuracy,
    by_category,
    evaluate,
    load_predictions,
    save_predictions,
    share,
    trivial,
)
from experiments.kl_gap import (
    SAMPLED,
    Trajectories,
    gap_record,
    ids_digest,
    other_completions,
    sample_fixed,
    token_gaps,
)
from experiments.latency import time_in_turn
from experiments.schema import ExperimentConfig
from experiments.side_by_side import train_all
from visual_opsd.benchmarks.vsp import vsp_folder, vsp_problems
from visual_opsd.contexts import Image, Problem
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.interface import Drawing
from visual_opsd.rollouts.answering import Way
from visual_opsd.statistics import (
    Estimate,
    bootstrap_closure,
    bootstrap_statistic,
    paired_bootstrap_difference,
)


@dataclass(frozen=True, kw_only=True)
class StorySettings:
    """How much is measured."""

    num_problems: int = 2048
    num_drawn: int = 1024
    num_drawn_official: int = 96
    """The first of them, drawn once more by the slow official protocol."""
    num_trajectories: int = 1024
    """Fixed completions of the base that the gap is measured on."""
    num_timed: int = 24
    """Problems answered one by one for the latency."""
    seed: int = 0


class Story:
    """One base, arms trained from it, and everything measured about them."""

    def __init__(
        self,
        folder: Path,
        arms: dict[str, ExperimentConfig],
        settings: StorySettings,
        console: Console | None = None,
    ) -> None:
        """``arms`` by name, in the order of training; all from the same start, data and steps."""
        self.folder = folder
        self.arms = arms
        self.settings = settings
        self.console = console or Console()
        self.base_folder = Path(next(iter(arms.values())).model)
        starts = {arm.model for arm in arms.values()}
        if len(starts) > 1:
            raise ValueError(f"arms must share one start, got {sorted(starts)}")

    # Models and problems

    @cached_property
    def maze_settings(self) -> MazeSettings:
        """The generator of the arms' data."""
        return run_data.maze_settings(next(iter(self.arms.values())))

    @cached_property
    def problems(self) -> list[Problem]:
        """Held-out mazes, paired over everything."""
        return run_data.held_out(self.maze_settings, "test", self.settings.num_problems)

    @property
    def vsp(self) -> list[Problem]:
        """The real mazes; empty where there are none on this machine."""
        return self._vsp_read[0]

    @property
    def vsp_left_out(self) -> list[str]:
        """Pictures of real mazes that cannot be read, and why."""
        return self._vsp_read[1]

    @cached_property
    def _vsp_read(self) -> tuple[list[Problem], list[str]]:
        left_out: list[str] = []
        folder = vsp_folder()
        return vsp_problems(folder, left_out.append) if folder else [], left_out

    def model(self, name: str) -> tuple[Any, Any]:
        """The base or an arm's student, with its tokenizer; loaded once."""
        if name not in self._models:
            folder = self.base_folder if name == "base" else self.arms[name].folder / "model"
            model, tokenizer = checkpoints.load(folder)
            self._models[name] = (model.eval(), tokenizer)
        return self._models[name]

    @cached_property
    def _models(self) -> dict[str, tuple[Any, Any]]:
        return {}

    @cached_property
    def trajectories(self) -> Trajectories:
        """Fixed completions of the base, sampled at temperature 1 from the student's context."""
        model, tokenizer = self.model("base")
        problems = self.problems[: self.settings.num_trajectories]
        return sample_fixed(model, tokenizer, problems, SAMPLED, self.settings.seed)

    # Stages

    def tell(self, seconds_before: float = 0.0) -> dict[str, Any]:
        """Run every stage that has not been run; returns the summary."""
        started = time.perf_counter()
        before = self._seconds_so_far() + seconds_before
        self.claim()
        ways: tuple[Way, ...] = ("text_only", "privileged", "drawn")
        for way in ways:
            self.predictions("base", way)
        self.predictions("base", "drawn", at="official")
        self.gap("base")
        self._keep_seconds(before + time.perf_counter() - started)
        try:
            train_all(self.arms)
        finally:
            self._keep_seconds(before + time.perf_counter() - started)
        self.latency()
        for name in self.arms:
            self.predictions(name, "text_only")
            self.gap(name)
        for name in ("base", *self.arms):
            self.predictions(name, "text_only", on="vsp")
            self.predictions(name, "text_only", at="sampled")
        self.predictions("base", "drawn", on="vsp")
        summary = self.summary(before + time.perf_counter() - started)
        path = self.folder / "summary.json"
        path.write_text(json.dumps(summary, indent=2) + "\n")
        self._keep_seconds(summary["wall_seconds"])
        return summary

    def claim(self) -> None:
        """Make the folders this story's, before anything is measured or trained.

        Raises:
            ValueError: A folder holds another story or another arm; lists what differs.
        """
        mine = {**asdict(self.settings), "base": run_files.digest(self.base_folder)}
        path = self.folder / "story.json"
        saved = json.loads(path.read_text()) if path.is_file() else mine
        changed = [f"{k}: {saved.get(k)} -> {v}" for k, v in mine.items() if saved.get(k) != v]
        if changed:
            raise ValueError(
                f"{self.folder} holds a story with other settings: {'; '.join(changed)}. "
                "Take another output_dir, or remove the folder"
            )
        for arm in self.arms.values():
            run_files.prepare_folder(arm)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            path.write_text(json.dumps({**mine, "commit": run_files.commit()}, indent=2) + "\n")

    def predictions(
        self, name: str, way: Way, *, on: str = "test", at: str = "greedy"
    ) -> list[Prediction]:
        """Answers of one model in one way, from disk or made now."""
        problems = self.vsp if on == "vsp" else self.problems
        if way == "drawn" and on != "vsp":
            problems = problems[: self.settings.num_drawn]
            if at == "official":
                problems = problems[: self.settings.num_drawn_official]
        path = self.folder / "predictions" / f"{name}-{way}-{on}-{at}.jsonl"
        if path.is_file():
            return load_predictions(path)
        if not problems:
            return []
        model, tokenizer = self.model(name)
        found = evaluate(
            model,
            tokenizer,
            problems,
            way,
            sampling=SAMPLED if at == "sampled" else GREEDY,
            drawing=Drawing() if at == "official" else FAST_DRAWING,
            seed=self.settings.seed,
            description=f"{name}: {way} on {len(problems)} mazes ({on}, {at})",
        )
        save_predictions(path, found)
        return found

    def gap(self, name: str) -> dict[str, Any]:
        """K(T0 || S), K(T1 || S1) on the fixed completions, and K(T0 || S1) on the student's own.

        T0 is the frozen start with the true visual thoughts; sums and lengths a completion.
        """

        def measure() -> dict[str, Any]:
            base, tokenizer = self.model("base")
            student, _ = self.model(name)
            fixed = self.trajectories
            words = f"{name}: KL gap"
            result = gap_record("fixed", token_gaps(base, student, tokenizer, fixed, None, words))
            result["fixed_digest"] = ids_digest(fixed)
            result["max_rescore_error"] = fixed.max_rescore_error
            if name != "base":
                result |= gap_record("both_moved", token_gaps(student, student, tokenizer, fixed))
                own = sample_fixed(
                    student, tokenizer, fixed.problems, SAMPLED, self.settings.seed + 1
                )
                result |= gap_record("own", token_gaps(base, student, tokenizer, own))
                result["max_rescore_error"] = own.max_rescore_error
            return result

        return self._kept(f"gap/{name}.json", measure)

    def token_strip(self, num_shown: int = 6, among: int = 64) -> dict[str, Any]:
        """KL(T0 || S) of every token of a few of the fixed completions, for base and students.

        Shown are those of the first ``among`` problems on which the base's mean KL is largest.
        """

        def measure() -> dict[str, Any]:
            gap = self.gap("base")
            means = np.array(gap["fixed_sums"][:among]) / np.array(gap["fixed_lengths"][:among])
            return self.token_rows(
                [self.problems[index] for index in np.argsort(-means)[:num_shown]]
            )

        strip = self._kept("strip.json", measure)
        if any(set(row["gaps"]) != {"base", *self.arms} for row in strip.values()):
            (self.folder / "strip.json").unlink()  # an arm has come or gone since
            strip = self._kept("strip.json", measure)
        return strip

    def token_rows(self, problems: Sequence[Problem]) -> dict[str, Any]:
        """Tokens of the fixed completions of ``problems``, with KL(T0 || S) in nats by model."""
        base, tokenizer = self.model("base")
        fixed = sample_fixed(base, tokenizer, problems, SAMPLED, self.settings.seed)
        gaps = {
            name: token_gaps(base, self.model(name)[0], tokenizer, fixed)
            for name in ("base", *self.arms)
        }
        return {
            problem.problem_id: {
                "category": problem.category,
                "tokens": fixed.tokens(tokenizer, index),
                "gaps": {name: rows[index].tolist() for name, rows in gaps.items()},
            }
            for index, problem in enumerate(problems)
        }

    def latency(self) -> dict[str, Any]:
        """Seconds a sample at batch 1: drawn as the official code does, drawn fast, in text."""

        def measure() -> dict[str, Any]:
            problems = self.problems[: self.settings.num_timed]
            return time_in_turn(self.model("base"), self.model("true_vt"), problems)

        return self._kept("latency.json", measure)

    # Results

    def summary(self, wall_seconds: float) -> dict[str, Any]:
        """The numbers of the report: fractions in 0..1, intervals at 95 %."""
        names = ("base", *self.arms)
        return {
            **self._solved_held_out(),
            **self._gap_closed(),
            **self._latency_ratios(),
            **self._solved_on_vsp(),
            "sampled_text": {
                name: accuracy(self.predictions(name, "text_only", at="sampled")).as_dict()
                for name in names
            },
            "sizes": {
                name: {
                    key: value.as_dict()
                    for key, value in by_category(self.predictions(name, "text_only")).items()
                }
                for name in names
            },
            "trivial": {
                name: {key: value.as_dict() for key, value in trivial(problems).items()}
                for name, problems in {"test": self.problems, "vsp": self.vsp}.items()
                if problems
            },
            "max_rescore_error": max(self.gap(name)["max_rescore_error"] for name in names),
            "wall_seconds": round(wall_seconds, 1),
            "settings": asdict(self.settings),
            "seed": next(iter(self.arms.values())).seed,
            "commit": json.loads((self.folder / "story.json").read_text())["commit"],
            "commits": {
                name: json.loads((arm.folder / "run.json").read_text())["commit"]
                for name, arm in self.arms.items()
            },
        }

    def _solved_held_out(self) -> dict[str, Any]:
        text = {name: self._solved(name, "text_only") for name in ("base", *self.arms)}
        drawn, privileged = self._solved("base", "drawn"), self._solved("base", "privileged")
        official = np.array([p.is_solved for p in self._drawn_officially()], dtype=float)
        student, seed = text["true_vt"], self.settings.seed

        def difference(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
            return paired_bootstrap_difference(a, b, seed).as_dict()

        return {
            "base_drawn": self._accuracy("base", "drawn"),
            "base_drawn_official": accuracy(self._drawn_officially()).as_dict(),
            "official_over_fast_drawing": difference(official, drawn[: len(official)]),
            "base_text": self._accuracy("base", "text_only"),
            "base_privileged": self._accuracy("base", "privileged"),
            "base_exact_drawings": share(
                bool(p.has_exact_drawing) for p in self.predictions("base", "drawn")
            ).as_dict(),
            "student_text": self._accuracy("true_vt", "text_only"),
            "noise_text": self._accuracy("matched_noise", "text_only"),
            "sft_text": self._accuracy("sft", "text_only"),
            "gain_over_drawn": difference(student[: len(drawn)], drawn),
            "gain_over_own_text": difference(student, text["base"]),
            "noise_gain_over_own_text": difference(text["matched_noise"], text["base"]),
            "gain_over_sft": difference(student, text["sft"]),
            "gap_recovered": _recovered(student, text["base"], privileged, seed),
        }

    def _gap_closed(self) -> dict[str, Any]:
        return {
            "kl_gap": self.gap("base")["fixed_mean"],
            "closure": self.closure("true_vt").as_dict(),
            "noise_closure": self.closure("matched_noise").as_dict(),
            "closures": {name: self.closure(name).as_dict() for name in self.arms},
            "closure_own_trajectories": self.closure("true_vt", "own").as_dict(),
            "noise_closure_own_trajectories": self.closure("matched_noise", "own").as_dict(),
            "closure_with_moved_teacher": self.closure("true_vt", "both_moved").as_dict(),
        }

    def _latency_ratios(self) -> dict[str, Any]:
        seconds = {key: np.array(values) for key, values in self.latency().items()}

        def ratio(key: str) -> dict[str, float]:
            return bootstrap_statistic(
                lambda a, b: float(a.mean() / b.mean()),
                seconds[key],
                seconds["student_text_only"],
                seed=self.settings.seed,
                resamples=2000,
            ).as_dict()

        return {
            "latency_ratio": ratio("drawn_official"),
            "latency_ratio_fast_teacher": ratio("drawn_fast"),
            "seconds_a_sample": {key: float(value.mean()) for key, value in seconds.items()},
        }

    def _solved_on_vsp(self) -> dict[str, Any]:
        return {
            "vsp_student_text": self._vsp("true_vt", "text_only"),
            "vsp_base_drawn": self._vsp("base", "drawn"),
            "vsp_base_text": self._vsp("base", "text_only"),
            "vsp_sft_text": self._vsp("sft", "text_only"),
            "vsp_text": {name: self._vsp(name, "text_only") for name in ("base", *self.arms)},
            "vsp_levels": self._vsp_levels(),
            "vsp_left_out": self.vsp_left_out,
        }

    def closure(self, name: str, of: Literal["fixed", "both_moved", "own"] = "fixed") -> Estimate:
        """1 - gap after / gap before, of an arm.

        ``fixed``: K(T0 || S1) on the base's completions; ``both_moved``: K(T1 || S1) on the same;
        ``own``: K(T0 || S1) on the student's own, as means a token, since the tokens differ.
        """
        before, after = self.gap("base"), self.gap(name)
        if of != "own":
            if said := other_completions(after, before):
                raise ValueError(
                    f"{self.folder}/gap: {name}.json is of other completions than base.json: "
                    f"{said}; remove both and run again"
                )
            return bootstrap_closure(before["fixed_sums"], after[f"{of}_sums"], self.settings.seed)
        return bootstrap_statistic(
            lambda b, m, a, n: float(1 - (a.sum() / n.sum()) / (b.sum() / m.sum())),
            np.array(before["fixed_sums"]),
            np.array(before["fixed_lengths"]),
            np.array(after["own_sums"]),
            np.array(after["own_lengths"]),
            seed=self.settings.seed,
            resamples=2000,
        )

    def _solved(self, name: str, way: Way) -> np.ndarray:
        return np.array([p.is_solved for p in self.predictions(name, way)], dtype=float)

    def _drawn_officially(self) -> list[Prediction]:
        return self.predictions("base", "drawn", at="official")

    def _accuracy(self, name: str, way: Way) -> dict[str, float]:
        return accuracy(self.predictions(name, way)).as_dict()

    def _vsp(self, name: str, way: Way) -> dict[str, float] | None:
        found = self.predictions(name, way, on="vsp")
        return accuracy(found).as_dict() if found else None

    def _vsp_levels(self) -> dict[str, dict[str, Any]] | None:
        if not self.vsp:
            return None
        return {
            name: {
                level: estimate.as_dict()
                for level, estimate in by_category(
                    self.predictions(name, "text_only", on="vsp")
                ).items()
            }
            for name in ("base", *self.arms)
        }

    # Files

    def _kept(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return files.kept(self.folder / name, measure)

    def _seconds_so_far(self) -> float:
        path = self.folder / "seconds.json"
        return float(json.loads(path.read_text())) if path.is_file() else 0.0

    def _keep_seconds(self, seconds: float) -> None:
        (self.folder / "seconds.json").write_text(json.dumps(seconds))


def _recovered(
    student: np.ndarray, text: np.ndarray, privileged: np.ndarray, seed: int
) -> dict[str, float] | None:
    """(student - text) / (privileged - text); None where there is nothing shown to recover."""
    if paired_bootstrap_difference(privileged, text, seed).low <= 0:
        return None
    return bootstrap_statistic(
        lambda s, t, p: float((s.mean() - t.mean()) / (p.mean() - t.mean())),
        student,
        text,
        privileged,
        seed=seed,
        resamples=2000,
    ).as_dict()


def drawn_examples(
    story: Story, num_examples: int = 8
) -> list[tuple[Problem, Image | None, dict[str, str]]]:
    """Problems with the base's drawing and the answers of base and students, for the report."""
    model, tokenizer = story.model("base")
    problems = story.problems[:num_examples]
    drawn: dict[str, Image | None] = {}
    evaluate(
        model,
        tokenizer,
        problems,
        "drawn",
        seed=story.settings.seed,
        on_answers=lambda chosen, answers: drawn.update(
            {p.problem_id: a.drawn for p, a in zip(chosen, answers, strict=True)}
        ),
    )
    answers = {
        name: {p.problem_id: p.text for p in story.predictions(name, "text_only")}
        for name in ("base", *story.arms)
    }
    answers["base, drawn"] = {p.problem_id: p.text for p in story.predictions("base", "drawn")}
    return [
        (
            replace(problem),
            drawn[problem.problem_id],
            {name: rows[problem.problem_id] for name, rows in answers.items()},
        )
        for problem in problems
    ]
