"""Train the shipped base from nothing: ``make pretrain-tiny``, resumable.

Which step is shipped follows a rule that was fixed before any distillation: the first evaluated
step whose weights (averaged) pass :class:`ShippingRule`. Training stops there.
"""

import hashlib
import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib.pyplot as plt
import torch

from callbacks.averaging import AveragedWeights
from datamodules.frozen_lake import generate
from datamodules.thoughts import template_corpus
from experiments import build, run_data
from experiments.evaluation import accuracy, evaluate, is_exact, three_ways
from experiments.schema import TINY_BASE, ExperimentConfig, load_experiment, to_yaml
from experiments.train import train
from visual_opsd.benchmarks.maze_pictures import read_maze_pixels
from visual_opsd.benchmarks.mazes import NAVIGATION_QUESTION
from visual_opsd.contexts import (
    REFERENCE_INTRO,
    SYSTEM_PROMPT_TRAIN,
    TRANSITION,
    Image,
    Problem,
)
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.bagel.fresh import fresh_tiny
from visual_opsd.models.bagel.tokenizer import Tokenizer

CONSTANT_SENTENCES = (
    SYSTEM_PROMPT_TRAIN,
    REFERENCE_INTRO,
    TRANSITION,
    NAVIGATION_QUESTION,
    "<think>",
    "</think><image_start>",
    "<image_end><think>",
    "</think><answer>\\boxed{",
    "}</answer>",
)
"""One token each (decision record 0001)."""
EXPERIMENT = Path("experiments/pretrain_tiny.yaml")
VERIFY_TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class ShippingRule:
    """Read the visual thought, draw about as well as answer, and draw right half the time."""

    min_privileged: float = 0.95
    max_text_over_drawn: float = 0.02
    min_exact: float = 0.5
    every: int = 250
    num_problems: int = 512
    """Of the validation split, which is neither trained nor reported on."""
    num_drawn: int = 256

    def passes(self, scores: dict[str, float]) -> bool:
        """Whether a step may be shipped."""
        return (
            scores["privileged"] >= self.min_privileged
            and scores["drawn"] >= scores["text_only"] - self.max_text_over_drawn
            and scores["exact_drawings"] >= self.min_exact
        )


class Gate(L.Callback):
    """Scores the averaged weights every so often, keeps the curve, stops at the first pass."""

    def __init__(self, config: ExperimentConfig, tokenizer: Any) -> None:
        """Write ``curve.jsonl`` and, at the end, ``base/`` into the run folder."""
        self.rule = ShippingRule()
        self.config = config
        self.tokenizer = tokenizer
        self.problems = run_data.held_out(
            run_data.maze_settings(config), "validation", self.rule.num_problems
        )
        self.started = time.perf_counter()
        self.curve = config.folder / "curve.jsonl"

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        """Runs behind the averaging of the same step."""
        step = trainer.global_step
        if step % self.rule.every:
            return
        known = [row for row in read_curve(self.curve) if row["step"] < step]
        memory = build.only(trainer.callbacks, AveragedWeights).memory  # type: ignore[attr-defined]
        with memory.recalled(pl_module.model), torch.random.fork_rng(devices=[]):
            scores = self._scores(pl_module.model)
            has_passed = self.rule.passes(scores)
            row = {"step": step, **scores, "has_passed": has_passed}
            for key in ("train/text_loss", "train/drawing_loss"):
                row[key] = round(float(trainer.callback_metrics[key]), 4)
            row["seconds"] = round(time.perf_counter() - self.started, 1)
            self.curve.write_text("".join(json.dumps(r) + "\n" for r in [*known, row]))
            # The base goes last: it is what tells another start that there is nothing left to do.
            if has_passed:
                base = self.config.folder / "base"
                checkpoints.save(pl_module.model, self.tokenizer, base)
        print(json.dumps(row), flush=True)
        trainer.should_stop = has_passed

    def _scores(self, model: Any) -> dict[str, float]:
        found = three_ways(model, self.tokenizer, self.problems, self.rule.num_drawn)
        exact = [bool(prediction.has_exact_drawing) for prediction in found["drawn"]]
        return {
            **{way: round(accuracy(rows).value, 4) for way, rows in found.items()},
            "exact_drawings": round(sum(exact) / len(exact), 4),
        }


def read_curve(path: Path) -> list[dict[str, Any]]:
    """Rows of ``curve.jsonl``."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def make_start(config: ExperimentConfig) -> None:
    """The untrained model as a folder, once."""
    folder = Path(config.model)
    if (folder / checkpoints.WEIGHTS).is_file():
        return
    problems = run_data.held_out(run_data.maze_settings(config), "train", 512)
    images = [i.pixels for p in problems for i in (p.image, *p.visual_thoughts)]
    model, tokenizer = fresh_tiny(images, template_corpus(), CONSTANT_SENTENCES, config.seed)
    checkpoints.save(model, tokenizer, folder)


def pretrain(config: ExperimentConfig) -> dict[str, Any]:
    """Train until the rule passes; what was found, or an error that says how far it came.

    Raises:
        SystemExit: No step passed.
    """
    make_start(config)
    tokenizer = Tokenizer.load(Path(config.model))
    gate = Gate(config, tokenizer)
    if not (config.folder / "base" / checkpoints.WEIGHTS).is_file():
        train(config, [gate])
    curve = read_curve(gate.curve)
    if not (curve and curve[-1]["has_passed"]):
        raise SystemExit(f"no step passed {gate.rule}; the last was {curve[-1:]}")
    base = config.folder / "base"
    facts = {
        "experiment": config.name,
        "commit": json.loads((config.folder / "run.json").read_text())["commit"],
        "seed": config.seed,
        "rule": asdict(gate.rule),
        "weights_averaged_with_decay": config.trainer.average_decay,
        "shipped": curve[-1],
        "swapped": swapped(base, gate.problems[: gate.rule.num_drawn]),
        "data_digest": data_digest(config),
        "num_parameters": count_parameters(base),
    }
    (base / "base.json").write_text(json.dumps(facts, indent=2) + "\n")
    (base / "experiment.yaml").write_text(to_yaml(config))
    shutil.copy(gate.curve, base / "curve.jsonl")
    plot_curve(curve, base / "curve.png")
    return facts


def swapped(folder: Path, problems: list[Problem]) -> dict[str, float]:
    """Does a drawing depend on its maze? Its share that is exact for its own maze and for another.

    The other is the next problem of the same size; chance agreement is what short paths share.
    """
    model, tokenizer = checkpoints.load(folder)
    drawn: dict[str, Image | None] = {}
    evaluate(
        model.eval(),
        tokenizer,
        problems,
        "drawn",
        on_answers=lambda chosen, answers: drawn.update(
            {p.problem_id: a.drawn for p, a in zip(chosen, answers, strict=True)}
        ),
    )
    by_size: dict[str, list[Problem]] = {}
    for problem in problems:
        by_size.setdefault(problem.category, []).append(problem)
    own, other = [], []
    for members in by_size.values():
        for problem, neighbour in zip(members, members[1:] + members[:1], strict=True):
            image = drawn[problem.problem_id]
            own.append(is_exact(image, read_maze_pixels(problem.image.pixels)))
            other.append(is_exact(image, read_maze_pixels(neighbour.image.pixels)))
    return {"own_maze": sum(own) / len(own), "another_maze": sum(other) / len(other)}


def data_digest(config: ExperimentConfig) -> str:
    """SHA-256 over every maze of the bank, in order."""
    settings, total = run_data.maze_settings(config), hashlib.sha256()
    for index in range(config.data.num_problems):
        total.update("/".join(generate(settings, "train", index).rows).encode())
    return total.hexdigest()


def count_parameters(folder: Path) -> int:
    """Weights of a model folder, the codec left out."""
    model, _ = checkpoints.load(folder)
    return sum(weight.numel() for weight in checkpoints.weights(model).values())


def plot_curve(curve: list[dict[str, Any]], path: Path) -> None:
    """Accuracy of the three ways and of the drawings, by step."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    steps = [row["step"] for row in curve]
    for key in ("privileged", "text_only", "drawn", "exact_drawings"):
        axes.plot(steps, [row[key] for row in curve], marker=".", label=key.replace("_", " "))
    axes.set(xlabel="optimiser step", ylabel="share of held-out mazes", ylim=(0, 1))
    axes.set_title("The base learns to read, draw and answer")
    axes.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def verify(facts: dict[str, Any]) -> None:
    """Compare a new base's scores with the shipped one's."""
    shipped = json.loads((TINY_BASE / "base.json").read_text())
    if facts["data_digest"] != shipped["data_digest"]:
        raise SystemExit("the data differ from what the shipped base was trained on")
    for key in ("privileged", "text_only", "drawn", "exact_drawings"):
        new, old = facts["shipped"][key], shipped["shipped"][key]
        print(f"{key}: {new:.3f}, shipped {old:.3f}")
        if abs(new - old) > VERIFY_TOLERANCE:
            raise SystemExit(f"{key} differs by more than {VERIFY_TOLERANCE}")


def main() -> None:
    """Command line: ``[EXPERIMENT.yaml] [--ship] [--verify] [key=value ...]``."""
    flags = {argument for argument in sys.argv[1:] if argument.startswith("--")}
    if unknown := flags - {"--ship", "--verify"}:
        raise SystemExit(f"unknown options {sorted(unknown)}; there are --ship and --verify")
    overrides = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    path = Path(overrides.pop(0)) if overrides and overrides[0].endswith(".yaml") else EXPERIMENT
    if path != EXPERIMENT and flags:
        raise SystemExit(f"{path} is not the shipped base's recipe: no {sorted(flags)}")
    config = load_experiment(path, overrides)
    facts = pretrain(config)
    print(json.dumps(facts["shipped"], indent=2))
    if "--ship" in flags:
        shutil.copytree(config.folder / "base", TINY_BASE, dirs_exist_ok=True)
    if "--verify" in flags:
        verify(facts)


if __name__ == "__main__":
    main()
