"""What a notebook opens and computes live: models, problems, K a token under any control."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from datamodules.frozen_lake import MazeSettings
from datamodules.thinkmorph import ThinkMorphFolder
from experiments import run_data, run_files
from experiments.evaluation import FAST_DRAWING
from experiments.exhibits import RESAMPLES, SEED, nats
from experiments.figures import WIDTH_INCHES, Strip, in_style
from experiments.kl_gap import SAMPLED, sample_fixed, sums_and_lengths, token_gaps
from experiments.respond import is_tiny
from visual_opsd.benchmarks.maze_pictures import REDUCED_CELL
from visual_opsd.contexts import Image, Problem
from visual_opsd.interventions import intervene
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.bagel.config import BagelConfig
from visual_opsd.models.bagel.preprocessing import PROTOCOLS, to_picture
from visual_opsd.models.interface import Drawing, Sampling
from visual_opsd.rollouts.cache import DrawingCache
from visual_opsd.rollouts.visual_thoughts import Illustrator
from visual_opsd.statistics import Estimate, bootstrap_ratio

STUDENT = Path("runs/demo/arms/true_vt/model")
CACHE = Path("runs/notebooks/drawings")


def begin() -> None:
    """Read paths from the project's folder, wherever the notebook lies."""
    os.chdir(Path(__file__).parents[1])


def open_model(folder: Path | str) -> tuple[Any, Any]:
    """A model, on the GPU if there is one, and its tokenizer.

    Raises:
        FileNotFoundError: No such folder; says which command makes or downloads it.
    """
    folder = Path(folder)
    if not folder.is_dir() and folder.name == "model":
        raise FileNotFoundError(
            f"no trained model at {folder}: make demo trains {STUDENT}, make train RUN=name others"
        )
    if not folder.is_dir():
        raise run_files.absent("MODEL", folder)
    model, tokenizer = checkpoints.load(folder, "cuda" if torch.cuda.is_available() else "cpu")
    return model.eval(), tokenizer


def open_problems(model: Path | str, data: str, num_problems: int) -> list[Problem]:
    """The first problems of a folder of ThinkMorph's parquet files; of held-out mazes without one.

    Raises:
        ValueError: The model needs a folder, or no row of it can be used; says why.
    """
    config = checkpoints.open_folder(Path(model)).config
    if not data:
        if not is_tiny(config):
            raise ValueError(
                "DATA is empty: only the tiny model has mazes of its own. Name a folder of "
                f"ThinkMorph's parquet files: {run_files.ON_THE_HUB['ThinkMorph']}"
            )
        return run_data.held_out(MazeSettings(), "test", num_problems)
    reads = {"cell": REDUCED_CELL} if is_tiny(config) else {"protocol": PROTOCOLS["train"]}
    rows = ThinkMorphFolder(Path(data), **{"cell": None, **reads})  # type: ignore[arg-type]
    if not len(rows):
        raise ValueError(f"no row of {data} can be used: {rows.index.num_left_out}")
    return [rows[index] for index in range(min(num_problems, len(rows)))]


class TokenGaps:
    """Fixed completions of a base, and K a token under whatever the teacher is shown."""

    def __init__(
        self,
        base_folder: Path | str,
        problems: Sequence[Problem],
        students: Mapping[str, Path | str] | None = None,
        sampling: Sampling = SAMPLED,
    ) -> None:
        """Sample once from the base; it is the teacher T0, and the first of the students."""
        self.problems = list(problems)
        self.base, self.tokenizer = open_model(base_folder)
        self.students = {"base": self.base} | {
            name: open_model(folder)[0] for name, folder in (students or {}).items()
        }
        self.fixed = sample_fixed(self.base, self.tokenizer, problems, sampling, SEED)
        self._folder = Path(base_folder)

    def shown(self, index: int, intervention: str) -> Problem:
        """A problem as the teacher sees it; the next one is the donor of a control that needs one.

        Raises:
            ValueError: The control does not fit: no visual thought, no donor, no drawing half.
        """
        problem, donor = (self.problems[i % len(self.problems)] for i in (index, index + 1))
        if intervention == "drawn_vt":
            (problem,) = self._illustrator().illustrate([problem])
        return intervene(intervention, problem, donor, SEED)

    def strip(self, index: int, intervention: str, student: str = "base") -> Strip:
        """K(T0 || S) of every token of a problem's completion, the true visual thought above."""
        alone = self.fixed.only(index)
        names = dict.fromkeys(("true_vt", intervention))
        gaps = {
            name: token_gaps(
                self.base,
                self.students[student],
                self.tokenizer,
                alone,
                [self.shown(index, name)],
            )[0]
            for name in names
        }
        means = ", ".join(f"{name} {float(gap.mean()):.3f}" for name, gap in gaps.items())
        return Strip(
            f"problem {index}, student {student}, nats a token: {means}",
            self.fixed.tokens(self.tokenizer, index),
            {name: gap.tolist() for name, gap in gaps.items()},
        )

    def pictures(self, index: int, intervention: str) -> Figure:
        """What the student sees, and what the teacher sees besides; words are titles."""
        shown = self.shown(index, intervention)
        told = ", ".join(shown.hints) or intervention
        thoughts = [(f"teacher: {told}", image) for image in shown.visual_thoughts]
        alone = "both see" if thoughts else f"both see; teacher: {told}"
        return draw_pictures([(alone, shown.image), *thoughts], inches=2)

    @property
    def labels(self) -> list[tuple[str, int]]:
        """Name and index of every problem, for a widget."""
        return [(f"{i}: {p.category or p.task}", i) for i, p in enumerate(self.problems)]

    def by_category(self, intervention: str = "true_vt") -> pd.DataFrame:
        """K_gen (Eq. 4) of every student in nats a token with its 95 % interval, by category."""
        groups = pd.Series([p.category or p.task or "all" for p in self.problems])
        chosen = {"all": groups.index, **{name: groups.index[groups == name] for name in groups}}
        columns: dict[str, dict[str, Any]] = {
            "completions": {name: len(rows) for name, rows in chosen.items()}
        }
        for student in self.students:
            sums, lengths = (pd.Series(column) for column in self._sums(intervention, student))
            columns[student] = {
                name: nats(bootstrap_ratio(sums[rows], lengths[rows], SEED, RESAMPLES))
                for name, rows in chosen.items()
            }
        return pd.DataFrame(columns)

    def mean(self, intervention: str = "true_vt", student: str = "base") -> Estimate:
        """K_gen over all tokens."""
        return bootstrap_ratio(*self._sums(intervention, student), SEED, RESAMPLES)

    def _sums(self, intervention: str, student: str) -> tuple[list[float], list[int]]:
        shown = [self.shown(index, intervention) for index in range(len(self.problems))]
        model = self.students[student]
        return sums_and_lengths(token_gaps(self.base, model, self.tokenizer, self.fixed, shown))

    def _illustrator(self) -> Illustrator:
        return Illustrator(
            lambda: self.base,
            self.tokenizer,
            checkpoint=run_files.digest(self._folder),
            cache=DrawingCache(CACHE),
            drawing=FAST_DRAWING if is_tiny(self.base.config) else Drawing(),
            sampling=SAMPLED,
            seed=SEED,
            look=lambda drawn: readable(self.base.config, drawn),
        )


def readable(config: BagelConfig, drawn: Image) -> Image:
    """A drawing in the size that the model reads."""
    if is_tiny(config):
        return drawn
    return PROTOCOLS["train"].kept(to_picture(drawn.pixels), drawn.role)


@in_style
def draw_pictures(pictures: Sequence[tuple[str, Image]], inches: float = 1.5) -> Figure:
    """Pictures in a row, each under its title."""
    width = min(inches * len(pictures), WIDTH_INCHES)
    figure = Figure(figsize=(width, width / len(pictures) + 0.3), layout="constrained")
    row = figure.subplots(1, len(pictures), squeeze=False)[0]
    for axes, (title, image) in zip(row, pictures, strict=True):
        axes.imshow(to_picture(image.pixels), interpolation="nearest")
        axes.set_title(title, fontsize=7)
        axes.axis("off")
    return figure
