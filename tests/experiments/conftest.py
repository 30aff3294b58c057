"""A model of few weights that asks for drawings, a few mazes in VSP's layout, and one story."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from datamodules.frozen_lake import MazeSettings, generate
from experiments.demo import ARMS, NAMES, load_story
from experiments.report import write_report
from experiments.story import Story
from experiments.study import BASE, Study
from tests import tiny
from tests.studies import put, study_in
from visual_opsd.benchmarks.maze_pictures import render
from visual_opsd.benchmarks.vsp import FOLDER_VARIABLE
from visual_opsd.contexts import Problem, student_context
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.bagel.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def _cache_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing that a test keeps is found in the user's cache."""
    monkeypatch.setenv("VISUAL_OPSD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def start(
    tokenizer: Tokenizer, problems: tuple[Problem, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Fresh weights as a folder; every third token asks for a drawing, every tenth ends."""
    shares = {tokenizer.encode(tiny.ASKS)[0]: 0.3, tokenizer.marks.end: 0.1}
    contexts = [student_context(problem, tokenizer.encode) for problem in problems]
    model = tiny.inclined(tiny.make_model(tokenizer, problems), contexts, shares)
    folder = tmp_path_factory.mktemp("start")
    checkpoints.save(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def vsp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two mazes of each of two levels, as VSP lays out its own."""
    folder = tmp_path_factory.mktemp("vsp")
    for level in (3, 4):
        pictures = folder / f"level{level}" / "img"
        pictures.mkdir(parents=True)
        for number in range(2):
            maze = generate(MazeSettings(sizes=(level,)), "test", number)
            render(maze).save(pictures / f"{number}.png")
    return folder


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


@dataclass(frozen=True)
class Told:
    """A story that was killed once and told to the end."""

    story: Story
    summary: dict[str, Any]
    report: Path
    at_kill: dict[Path, int]
    """What lay there when it was killed, with the times of writing."""

    def again(self) -> Story:
        """The same story for another process."""
        return Story(self.story.folder, self.story.arms, self.story.settings)


def written(folder: Path) -> dict[Path, int]:
    """Results and models by the time they were written."""
    kinds = ("*.jsonl", "gap/*.json", "strip.json", "latency.json", "arms/*/model/*.safetensors")
    return {p: p.stat().st_mtime_ns for kind in kinds for p in folder.rglob(kind)}


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory, start: Path, vsp: Path) -> Iterator[Told]:
    """Three arms of two steps; the process dies once between two stages."""
    folder = tmp_path_factory.mktemp("story")
    arguments = [
        f"output_dir={folder / 'arms'}",
        f"model={start}",
        "data.sizes=[3,4]",
        "data.num_problems=32",
        "data.batch_size=4",
        "trainer.max_steps=2",
        "held_out.every=1",
        "held_out.num_problems=4",
        "rollout.sampling.max_tokens=8",
        "story.num_problems=12",
        "story.num_drawn=8",
        "story.num_trajectories=12",
        "story.num_timed=1",
    ]

    class Killed(Story):
        def gap(self, name: str) -> dict[str, Any]:
            if name == "matched_noise":
                raise KeyboardInterrupt
            return super().gap(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(vsp))
        story = load_story(ARMS, NAMES, arguments)
        with contextlib.suppress(KeyboardInterrupt):
            Killed(story.folder, story.arms, story.settings).tell()
        at_kill = written(story.folder)
        summary = story.tell()
        yield Told(story, summary, write_report(story, summary), at_kill)
