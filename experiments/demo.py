"""The whole method from the shipped base, told in minutes: ``make demo``.

``python -m experiments.demo [key=value ...]``: keys of an experiment go to every arm, keys below
``story.`` say how much is measured (``story.num_problems=512``).
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from experiments.report import write_report
from experiments.schema import load_experiment
from experiments.story import Story, StorySettings
from experiments.targets import judge
from experiments.wording import estimate, verdict

ARMS = Path("experiments/demo")
NAMES = ("true_vt", "matched_noise", "sft")
STORY_PREFIX = "story."


def main() -> None:
    """Command line."""
    tell(ARMS, NAMES, sys.argv[1:])


def tell(
    arms: Path, names: Sequence[str], arguments: Sequence[str], seconds_before: float = 0.0
) -> None:
    """Tell a story, write its report, show where it lies; what a user got wrong is one line.

    ``seconds_before`` it began were spent on its base, and count.
    """
    console = Console()
    try:
        story = load_story(arms, names, arguments, console)
        story.claim()
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    summary = story.tell(seconds_before)
    report = write_report(story, summary)
    show(story, summary, console)
    console.print(f"report:  {report}", f"summary: {story.folder / 'summary.json'}", sep="\n")


def load_story(
    arms: Path, names: Sequence[str], arguments: Sequence[str], console: Console | None = None
) -> Story:
    """Arms by name from a folder of experiments; they lie in ``<story folder>/arms/<name>``.

    Raises:
        ValueError: An unknown key ("did you mean") or a value that does not fit.
        FileNotFoundError: No such arm, or no base to start from.
    """
    of_story = [a.removeprefix(STORY_PREFIX) for a in arguments if a.startswith(STORY_PREFIX)]
    of_arms = [a for a in arguments if not a.startswith(STORY_PREFIX)]
    found = {name: load_experiment(arms / f"{name}.yaml", of_arms) for name in names}
    if renamed := [config.name for name, config in found.items() if config.name != name]:
        raise ValueError(f"name: arms are named as their files, {list(names)}; got {renamed}")
    folder = Path(next(iter(found.values())).output_dir).parent
    base = Path(next(iter(found.values())).model)
    if not base.is_dir():
        raise FileNotFoundError(f"no base at {base}: make it with make pretrain-tiny")
    return Story(folder, found, story_settings(of_story), console)


def story_settings(overrides: list[str]) -> StorySettings:
    """Defaults with ``key=value`` overrides, strictly."""
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(StorySettings), OmegaConf.from_dotlist(overrides)
        )
        return cast(StorySettings, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        where = " ".join(f"{STORY_PREFIX}{override}" for override in overrides)
        raise ValueError(f"{where}: {error}") from error


def show(story: Story, summary: dict[str, Any], console: Console) -> None:
    """Scores and targets on the terminal."""
    scores = Table(title="Held-out mazes solved, greedy")
    for column in ("", "share", "95 % interval"):
        scores.add_column(column)
    for key in (
        "base_text",
        "base_drawn",
        "base_privileged",
        "student_text",
        "noise_text",
        "sft_text",
        "vsp_base_drawn",
        "vsp_student_text",
    ):
        found = estimate(summary[key])
        if found is not None:
            scores.add_row(key, f"{found.value:.3f}", f"{found.low:.3f} to {found.high:.3f}")
    console.print(scores)
    targets = Table(title="Targets", show_lines=True)
    for column in ("", "target", "measured (95 % interval)", ""):
        targets.add_column(column)
    for target in judge(story, summary):
        word = verdict(target.is_met).strip("*")
        targets.add_row(target.claim, target.goal, target.measured.replace("[", r"\["), word)
    console.print(targets)


if __name__ == "__main__":
    main()
