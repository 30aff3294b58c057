"""What notebooks and gallery show of finished runs, small enough to ship with the project.

``python -m experiments.results [RUN=runs/demo] [STUDY=runs/ablate-noise] [ATTENTION=runs/attention]
[OUT=notebooks/results]``
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments import run_files
from experiments.demo import ARMS, NAMES
from experiments.evaluation import evaluate, load_predictions, save_predictions
from experiments.schema import differences, load_experiment
from experiments.story import Story, StorySettings
from experiments.study import BASE, FROM_BASE
from experiments.study import load_study as read_study
from visual_opsd.contexts import Image, Problem
from visual_opsd.interventions import intervene
from visual_opsd.rollouts.answering import Way

SHIPPED = Path("notebooks/results")
COMMAND, STUDY_COMMAND = "make demo", "make ablate-noise"
STUDY_FILE = Path("experiments/ablate_noise.yaml")
ARM = "arms."
PILOT = ("matched_noise", "legacy_noise", "blank")
"""What is put before the base in place of its own drawing, at inference (paper, Fig. 3a)."""
NUM_PILOT, NUM_TOKEN_ROWS = 512, 64
_WAYS: tuple[Way, ...] = ("text_only", "drawn", "privileged")
_NEEDED = ("story.json", "summary.json", "latency.json", "gap/base.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """A story in numbers: what the figures need, and not a model more."""

    command: str
    differs: list[str]
    """Settings in which the run differs from the command's own, ``key: own -> here``."""
    commit: str
    """That the run was started with."""
    summary: dict[str, Any]
    """As the run's ``summary.json``."""
    categories: list[str]
    """Of the held-out problems, in order."""
    solved: dict[str, str]
    """A digit a problem: 1 where it was solved. Some have only the first problems."""
    gaps: dict[str, list[float]]
    """KL(T0 || S) of every fixed completion, summed over its tokens, in nats, by model."""
    lengths: list[int]
    """Tokens of every fixed completion; completion i is of problem i."""
    tokens: dict[str, dict[str, Any]]
    """Of the first completions: category, tokens, and KL(T0 || S) of each in nats by model."""
    seconds: dict[str, list[float]]
    """A sample, one by one."""

    @property
    def origin(self) -> str:
        """Where the numbers come from, in a sentence."""
        return origin_of(asdict(self))

    def is_solved(self, who: str, num_problems: int | None = None) -> NDArray[np.float64]:
        """1 where solved, of the first problems.

        Raises:
            ValueError: Nobody of that name was scored.
        """
        if who not in self.solved:
            raise ValueError(f"nobody was scored as {who!r}; there are {sorted(self.solved)}")
        found = np.array([digit == "1" for digit in self.solved[who]], dtype=float)
        return found[:num_problems]


def origin_of(found: Mapping[str, Any]) -> str:
    """Command, what was set otherwise or added, and commit, of results or of a study."""
    differs = "; ".join(found["differs"])
    same = f"with other settings ({differs})" if differs else "as it is"
    more = ", ".join(f"`{name}`" for name in found.get("added", []))
    added = f" (and {more} beside it)" if more else ""
    return f"Measured by `{found['command']}` {same}{added}, commit `{found['commit']}`."


def load(path: Path | str) -> Results:
    """From a file that was written here, or from a run folder; of a folder it is kept beside.

    Raises:
        FileNotFoundError: What is missing, and which command makes it.
        ValueError: Another kind of file.
    """
    path = Path(path)
    if path.is_dir():
        kept = path / "results.json"
        if not kept.is_file():
            save(collect(path), kept)
        path = kept
    if not path.is_file():
        raise FileNotFoundError(f"no results at {path}: {COMMAND} makes a run folder to read from")
    found = json.loads(path.read_text())
    names = {field.name for field in fields(Results)}
    if not isinstance(found, dict) or set(found) != names:
        missing = sorted(names - set(found))
        raise ValueError(
            f"{path} lacks {missing}: python -m experiments.results RUN=runs/demo "
            f"OUT={path.parent} writes it again"
        )
    return Results(**found)


def load_study(path: Path | str) -> dict[str, Any]:
    """The summary of a finished study, from its folder or from a copy, and how it was made.

    Raises:
        FileNotFoundError: There is none; says which command makes it.
        ValueError: Another kind of file.
    """
    path = Path(path)
    path = path / "summary.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no study at {path}: {STUDY_COMMAND} makes runs/ablate-noise")
    found = json.loads(path.read_text())
    wanted = {"arms", "base", "claims", "comparison", "missing", "settings", "commit"}
    if not isinstance(found, dict) or not wanted <= set(found):
        missing = sorted(wanted - set(found))
        raise ValueError(f"{path} is no study's summary, it lacks {missing}: {STUDY_COMMAND}")
    if "text_only_of_drawn" not in found["base"].get(BASE, {}):
        raise ValueError(
            f"{path} is an older version's, base.{BASE} lacks text_only_of_drawn: the command that "
            f"made its study ({STUDY_COMMAND}) writes it anew and trains nothing again"
        )
    differs, added = _study_differences(found)
    return {"command": STUDY_COMMAND, "differs": differs, "added": added} | found


def save(results: Results, path: Path) -> Path:
    """Written as :func:`load` reads it."""
    return _write(asdict(results), path)


def _write(entries: dict[str, Any], path: Path) -> Path:
    """A line an entry, so that a changed number is a short difference."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'))}" for k, v in entries.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return path


def collect(folder: Path) -> Results:
    """Read a finished run; what it did not measure (Fig. 3a, more token rows) is measured now."""
    story = open_story(folder)
    predictions = {("base", way): story.predictions("base", way) for way in _WAYS}
    predictions |= {(name, "text_only"): story.predictions(name, "text_only") for name in NAMES}
    named = {f"{name}, {way.replace('_', ' ')}": rows for (name, way), rows in predictions.items()}
    for intervention in PILOT:
        named[f"base, shown {intervention}"] = look_elsewhere(story, intervention)
    gaps = {name: story.gap(name) for name in ("base", *NAMES)}
    rows = story.token_rows(story.problems[:NUM_TOKEN_ROWS])
    for row in rows.values():
        row["gaps"] = {name: _short(values) for name, values in row["gaps"].items()}
    return Results(
        command=COMMAND,
        differs=_differences(story),
        commit=json.loads((folder / "story.json").read_text())["commit"],
        summary=json.loads((folder / "summary.json").read_text()),
        categories=[prediction.category for prediction in named["base, text only"]],
        solved={who: "".join(str(int(p.is_solved)) for p in rows) for who, rows in named.items()},
        gaps={name: _short(gap["fixed_sums"]) for name, gap in gaps.items()},
        lengths=gaps["base"]["fixed_lengths"],
        tokens=rows,
        seconds={key: _short(values) for key, values in story.latency().items()},
    )


def open_story(folder: Path) -> Story:
    """A told story, to read from.

    Raises:
        FileNotFoundError: A file that a finished story has is not there.
    """
    arms = {name: folder / "arms" / name / "resolved.yaml" for name in NAMES}
    for path in (*(folder / name for name in _NEEDED), *arms.values()):
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no finished demo, no {path}: {COMMAND} makes one")
    saved = json.loads((folder / "story.json").read_text())
    return Story(
        folder,
        {
            name: replace(load_experiment(path), output_dir=str(folder / "arms"))
            for name, path in arms.items()
        },
        StorySettings(**{field.name: saved[field.name] for field in fields(StorySettings)}),
    )


def look_elsewhere(story: Story, intervention: str) -> list[Any]:
    """The base draws, and sees something else in the drawing's place: is it looked at (Fig. 3a)?"""
    path = story.folder / "predictions" / f"base-drawn-test-shown_{intervention}.jsonl"
    if not path.is_file():
        model, tokenizer = story.model("base")

        def show(problem: Problem, drawn: Image) -> Image:
            seen = replace(problem, visual_thoughts=(drawn,))
            (image,) = intervene(intervention, seen, None, story.settings.seed).visual_thoughts
            return image

        problems = story.problems[: min(NUM_PILOT, story.settings.num_drawn)]
        save_predictions(
            path,
            evaluate(
                model, tokenizer, problems, "drawn", seed=story.settings.seed, show=show,
                description=f"base: drawn, then shown {intervention}",
            ),
        )  # fmt: skip
    return load_predictions(path)


def _differences(story: Story) -> list[str]:
    """From what the command does by itself; where a run lies does not count."""
    own, here = asdict(StorySettings()), asdict(story.settings)
    changed = [f"story.{key}: {own[key]} -> {here[key]}" for key in own if own[key] != here[key]]
    return changed + [
        f"{name}, {words}"
        for name, arm in story.arms.items()
        for words in differences(arm, ARMS / f"{name}.yaml")
        if not words.startswith(("output_dir", "cache_dir"))
    ]


def _study_differences(summary: dict[str, Any]) -> tuple[list[str], list[str]]:
    """From what its command does by itself; and what was added, at most more for Holm to count."""
    own = _by_arm(json.loads(json.dumps(asdict(read_study(STUDY_FILE)))))
    here = _by_arm(summary["settings"])
    keys = [*here, *(key for key in own if key.startswith(ARM) and key not in here)]
    other = [
        key
        for key in keys
        if key not in ("name", "output_dir", "quick", "jobs") and own.get(key) != here.get(key)
    ]
    added = [key for key in other if key in FROM_BASE or key not in own]
    differs = [f"{key}: {own[key]} -> {here.get(key)}" for key in other if key not in added]
    return differs, [key.removeprefix(ARM) for key in added]


def _by_arm(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with an arm's changes and seeds under a key each."""
    arms = {f"{ARM}{name}": arm for name, arm in settings["arms"].items() if arm["seeds"]}
    return {key: value for key, value in settings.items() if key != "arms"} | arms


def _rounded(entry: Any) -> Any:
    """Six digits are more than any table shows."""
    if isinstance(entry, dict):
        return {key: _rounded(value) for key, value in entry.items()}
    if isinstance(entry, list):
        return [_rounded(value) for value in entry]
    return float(f"{entry:.6g}") if isinstance(entry, float) else entry


def _short(values: Sequence[float]) -> list[float]:
    """A tenth of a millinat, or of a millisecond, is enough for a figure."""
    return [round(value, 4) for value in values]


def main() -> None:
    """Command line; what is missing is one line."""
    options = {
        "RUN": "runs/demo",
        "STUDY": "runs/ablate-noise",
        "ATTENTION": "runs/attention",
        "OUT": str(SHIPPED),
    }
    for argument in sys.argv[1:]:
        key, found, value = argument.partition("=")
        if not found or key not in options:
            raise SystemExit(f"unknown option {argument!r}; there are {sorted(options)}, key=value")
        options[key] = value
    run, study, looks = (Path(options[key]) for key in ("RUN", "STUDY", "ATTENTION"))
    out, written = Path(options["OUT"]), []
    try:
        if run.is_dir():
            written.append(save(collect(run), out / "demo.json"))
        if study.is_dir():
            written.append(_write(_rounded(load_study(study)), out / "ablate-noise.json"))
        if looks.is_dir():
            shares = json.loads((looks / "summary.json").read_text())
            written.append(_write(shares, out / "attention" / "summary.json"))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    if not written:
        print(f"none of {run}, {study}, {looks}: {COMMAND}, {STUDY_COMMAND}, make attention")
    for path in written:
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB, written at {run_files.commit()}")


if __name__ == "__main__":
    main()
