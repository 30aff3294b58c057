"""Can the answer be read off the visual thought alone, and does training share test pictures?

``python -m experiments.leak_audit [MODEL=folder] [DATA=folder] [TRAIN=folder] [key=value ...]``

Without folders: the shipped base, held-out mazes, generated training mazes. ``intervention=``
audits a control. Writes ``table.md``, ``leaks.json`` and a row a problem, ``problems.jsonl``.
"""

import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markdown import Markdown

from datamodules.frozen_lake import MazeSettings
from datamodules.sources import GeneratedMazes
from experiments import command, run_data, run_files
from experiments.evaluate import read_folder
from experiments.evaluation import GREEDY, donors_of, evaluate, score_answer, share
from experiments.schema import TINY_BASE
from experiments.wording import table, words
from visual_opsd.benchmarks.vsp import maze_of, vsp_folder, vsp_problems
from visual_opsd.contexts import Problem
from visual_opsd.interventions import intervention
from visual_opsd.leaks import (
    hash_distances,
    is_read_off,
    last_thought,
    overlap,
    probe,
    without_problem_picture,
)
from visual_opsd.models.bagel import checkpoints
from visual_opsd.rollouts.answering import Answer, in_batches
from visual_opsd.rollouts.trajectories import show
from visual_opsd.seeds import row_seed
from visual_opsd.statistics import Estimate

BATCH_SIZE = 256
_READERS = {
    "reader": "the red line, followed by a program",
    "probe": "first move, by a linear probe on the visual thought",
    "probe_on_problem": "first move, by the same probe on the problem's picture",
    "commonest": "first move, always the commonest",
    "model_alone": "the model, given the visual thought without the problem's picture",
    "text_only": "the model, given the problem's picture",
    "privileged": "the model, given both",
}


@dataclass(frozen=True, kw_only=True)
class LeakAuditConfig:
    """What is audited."""

    model: str = str(TINY_BASE)
    """Checkpoint folder; ``MODEL=`` on the command line."""
    data: str = ""
    """Folder of the audited mazes, ``DATA=``; empty for held-out ones."""
    train: str = ""
    """Folder of the training mazes, ``TRAIN=``; empty for generated ones."""
    num_problems: int = 1024
    """Audited, at most."""
    num_train: int = 4096
    """Compared with, at most."""
    sizes: tuple[int, ...] = (3, 4, 5, 6)
    """Of generated mazes."""
    intervention: str = "true_vt"
    """What the visual thoughts are replaced by before they are audited."""
    max_distance: int = 4
    """Bits of 64 in which the perceptual hashes of like pictures differ, at most."""
    seed: int = 0
    out: str | None = None
    """Where results go; None: runs/leak_audit/<model>-<digest>-<intervention>."""

    def __post_init__(self) -> None:
        for name in ("num_problems", "num_train"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        intervention(self.intervention)  # an unknown name is an error here
        if self.intervention in ("drawn_vt", "wrong_vt"):
            raise ValueError(
                f"intervention {self.intervention}: an audit reads the data set's visual thoughts "
                "and makes none; it can tell nothing of drawn or of wrong ones"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """Who gets one problem's answer, and from what."""

    problem_id: str
    category: str
    reader: bool
    probe: bool
    probe_on_problem: bool
    commonest: bool
    model_alone: bool
    text_only: bool
    privileged: bool

    @property
    def score(self) -> int:
        """How many of the three that see the visual thought alone have the answer."""
        return self.reader + self.probe + self.model_alone


def main() -> None:
    """Command line; what a user got wrong is one line."""
    console = Console()
    try:
        folder = audit(command.parse(sys.argv[1:], LeakAuditConfig))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    console.print(Markdown((folder / "table.md").read_text()))
    console.print(f"numbers: {folder / 'leaks.json'}")


def audit(config: LeakAuditConfig) -> Path:
    """Audit the visual thoughts and compare the sets; returns the folder of the results."""
    problems = audited(config)
    leaks = read_leaks(config, problems)
    result: dict[str, Any] = {
        "config": asdict(config),
        "model_digest": run_files.digest(Path(config.model)),
        "commit": run_files.commit(),
        **summarise(leaks),
        "overlaps": overlaps(config, problems),
    }
    name = f"{Path(config.model).resolve().name}-{result['model_digest'][:8]}-{config.intervention}"
    folder = Path(config.out or Path("runs") / "leak_audit" / name)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(leak), "score": leak.score} for leak in leaks]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "leaks.json").write_text(json.dumps(result, indent=2) + "\n")
    (folder / "table.md").write_text(report(config, result))
    return folder


def audited(config: LeakAuditConfig) -> list[Problem]:
    """The problems with the visual thoughts that are audited."""
    if config.data:
        problems = list(read_folder(Path(config.data), config.num_problems).problems)
    else:
        settings = MazeSettings(sizes=tuple(config.sizes))
        problems = run_data.held_out(settings, "test", config.num_problems)
    donors = donors_of(problems) if config.intervention == "other_vt" else []
    return list(
        show(
            config.intervention,
            problems,
            donors,
            [row_seed(config.seed, problem.problem_id) for problem in problems],
        )
    )


def read_leaks(config: LeakAuditConfig, problems: Sequence[Problem]) -> list[Leak]:
    """Ask everybody for every answer."""
    pictures = [last_thought(problem).pixels for problem in problems]
    first_moves = [problem.answer.split(",")[0] for problem in problems]
    commonest = max(set(first_moves), key=first_moves.count)
    probed = probe(pictures, first_moves)
    probed_on_problem = probe([problem.image.pixels for problem in problems], first_moves)
    model, tokenizer = checkpoints.load(config.model)
    model.eval()
    model_alone = answered_alone(model, tokenizer, problems)
    text_only = evaluate(model, tokenizer, problems, "text_only", seed=config.seed)
    privileged = evaluate(model, tokenizer, problems, "privileged", seed=config.seed)
    return [
        Leak(
            problem_id=problem.problem_id,
            category=problem.category,
            reader=is_read_off(pictures[index], maze_of(problem)),
            probe=bool(probed[index]),
            probe_on_problem=bool(probed_on_problem[index]),
            commonest=first_moves[index] == commonest,
            model_alone=model_alone[index],
            text_only=text_only[index].is_solved,
            privileged=privileged[index].is_solved,
        )
        for index, problem in enumerate(problems)
    ]


@torch.no_grad()
def answered_alone(model: Any, tokenizer: Any, problems: Sequence[Problem]) -> list[bool]:
    """Whether the model solves each maze from its visual thought without the maze, greedily."""
    solved: dict[int, bool] = {}
    for indices in in_batches(problems, BATCH_SIZE):
        contexts = [without_problem_picture(problems[index], tokenizer.encode) for index in indices]
        completions = model.sample(contexts, GREEDY, [0] * len(indices))
        for row, index in enumerate(indices):
            given = Answer(
                problem_id=problems[index].problem_id,
                text=tokenizer.decode(completions.ids[row].tolist()),
                num_tokens=completions.lengths[row],
                seconds=0.0,
                is_cut=completions.is_cut[row],
            )
            solved[index] = score_answer(problems[index], given, "privileged").is_solved
    return [solved[index] for index in range(len(problems))]


def summarise(leaks: Sequence[Leak]) -> dict[str, Any]:
    """Who reads how much, and the model's accuracy by leak score; shares with 95 % intervals."""
    by_score = {}
    for score in range(4):
        found = [leak for leak in leaks if leak.score == score]
        if found:
            by_score[str(score)] = {
                "num_problems": len(found),
                "text_only": share(leak.text_only for leak in found).as_dict(),
                "privileged": share(leak.privileged for leak in found).as_dict(),
            }
    return {
        "num_problems": len(leaks),
        "readers": {
            name: share(getattr(leak, name) for leak in leaks).as_dict() for name in _READERS
        },
        "by_leak_score": by_score,
    }


def overlaps(config: LeakAuditConfig, problems: Sequence[Problem]) -> dict[str, dict[str, Any]]:
    """What the audited set and VSP share with the training mazes."""
    if config.train:
        train = list(read_folder(Path(config.train), config.num_train).problems)
    else:
        bank = GeneratedMazes(MazeSettings(sizes=tuple(config.sizes)), "train", config.num_train)
        train = [bank.problem(index) for index in range(len(bank))]
    sets = {"audited": list(problems)}
    vsp = vsp_folder()
    if vsp is not None:
        sets["vsp"] = vsp_problems(vsp, warnings.warn)
    distances = hash_distances(problems, problems)
    distances[range(len(problems)), range(len(problems))] = 64
    false_alarms = int((distances.min(axis=1) <= config.max_distance).sum())
    found: dict[str, dict[str, Any]] = {"alike_within_audited": {"count": false_alarms}}
    for name, held in sets.items():
        shared = overlap(held, train, lambda p: maze_of(p).canonical_key, config.max_distance)
        found[name] = {"num_problems": shared.num_problems, "num_train": len(train)}
        for field in fields(shared)[1:]:
            ids = getattr(shared, field.name)
            found[name][field.name] = {"count": len(ids), "first": list(ids[:5])}
    return found


def report(config: LeakAuditConfig, result: dict[str, Any]) -> str:
    """Markdown."""

    def shown(value: dict[str, float]) -> str:
        return words(Estimate(**value), "share")

    readers = [[text, shown(result["readers"][name])] for name, text in _READERS.items()]
    strata = [
        [score, str(row["num_problems"]), shown(row["text_only"]), shown(row["privileged"])]
        for score, row in result["by_leak_score"].items()
    ]
    found = dict(result["overlaps"])
    within = found.pop("alike_within_audited")["count"]
    kinds = ("same_pixels", "same_key", "alike")
    shared = [
        [name, str(row["num_problems"]), *(str(row[kind]["count"]) for kind in kinds)]
        for name, row in found.items()
    ]
    num_train = found["audited"]["num_train"]
    return f"""# Answer-leak audit of {config.intervention}, {result["num_problems"]} mazes

Who has the answer, and from what. 95 % intervals; {config.model}, greedy. A linear probe, and a
model that never saw a question without its picture, find less than is there: lower bounds.

{table(["reads", "right"], readers)}

The model's accuracy by leak score: how many of program, probe and model have the answer from the
visual thought alone.

{table(["score", "mazes", "text-only", "privileged"], strata)}

Pictures shared with {num_train} training mazes. Alike are perceptual hashes within
{config.max_distance} of 64 bits: where to look, no proof. {within} of the audited mazes have such a
neighbour among themselves.

{table(["set", "mazes", "same pixels", "same canonical key", "alike"], shared)}
"""


if __name__ == "__main__":
    main()
