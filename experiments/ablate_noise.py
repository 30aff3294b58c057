"""Why does it work? Every control, several seeds, one base: ``make ablate-noise``.

``python -m experiments.ablate_noise [RUN=experiment] [QUICK=1] [DRY=1] [key=value ...]``: keys of
an experiment go to every arm, keys below ``study.`` to the study (``study.max_seeds=1``). ``RUN=``
names what the arms share instead of the tiny run; ``DRY=1`` only prints what would be trained.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments import run_data
from experiments.plan import launch_line, plan
from experiments.schema import load_experiment
from experiments.study import (
    FROM_BASE,
    STUDY_FILE,
    ArmConfig,
    Study,
    StudyConfig,
    load_study,
)
from experiments.study_report import show, write_report
from experiments.study_summary import summarise

TABLE = Path("experiments/ablate_noise.yaml")


def main() -> None:
    """Command line; what a user got wrong is one line, a run that failed is in the exit code."""
    console = Console()
    try:
        study, is_dry = read(sys.argv[1:])
        if is_dry:
            show_plan(study, console)
            return
        study.claim()
        summary, failed = tell(study)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    report = write_report(study, summary)
    show(summary, console)
    console.print(f"report:  {report}", f"summary: {study.folder / 'summary.json'}", sep="\n")
    if failed:
        named = ", ".join(f"{name} (see {log})" for name, log in failed.items())
        raise SystemExit(f"failed, and missing in the report: {named}")


def read(arguments: Sequence[str]) -> tuple[Study, bool]:
    """The study of a command line, and whether only its plan is wanted.

    Raises:
        ValueError: A key or value that does not fit, or arms that cannot be compared.
        FileNotFoundError: No such experiment.
    """
    flags = {"RUN": "", "QUICK": "", "DRY": ""}
    overrides = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in flags:
            flags[key] = value
        else:
            overrides.append(argument)
    table = load_study(TABLE)
    name = table.name
    is_quick, is_dry = (is_on(key, flags[key]) for key in ("QUICK", "DRY"))
    given: list[str] = []
    if flags["RUN"] not in ("", table.experiment):
        name += f"-{Path(flags['RUN']).name}"
        experiment = load_experiment(Path("experiments") / f"{flags['RUN']}.yaml")
        given = [f"study.experiment={flags['RUN']}"]
        given += [] if run_data.protocol_of(experiment) is None else table.large
    if is_quick:
        name += "-quick"
        given += table.quick
    config = load_study(TABLE, [f"study.name={name}", *given, *overrides])
    study = Study(with_earlier_arms(config))
    study.check()
    return study, is_dry


def with_earlier_arms(config: StudyConfig) -> StudyConfig:
    """Arms and bases that an earlier command added to the same folder stay in its report.

    Raises:
        ValueError: An arm that nobody knows is to be left out.
    """
    path = Path(config.output_dir) / config.name / STUDY_FILE
    facts = json.loads(path.read_text()) if path.is_file() else {}
    saved = facts.get("arms", {})
    known = {*load_study(TABLE).arms, *saved}
    for name, arm in config.arms.items():
        if not arm.seeds and name not in known:
            close = get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"study.arms.{name}.seeds=0: no arm {name} to leave out{hint}")
    bases: dict[str, Any] = {name: getattr(config, name) or facts.get(name) for name in FROM_BASE}
    config = replace(config, **bases)
    earlier = {
        name: ArmConfig(
            seeds=config.arms[name].seeds if name in config.arms else arm["seeds"],
            changes=tuple(arm["changes"]),
        )
        for name, arm in saved.items()
        if name not in config.arms or not config.arms[name].seeds
    }
    return replace(config, arms={**config.arms, **earlier})


def is_on(key: str, value: str) -> bool:
    """A flag of the command line.

    Raises:
        ValueError: Neither 1, 0 nor nothing.
    """
    if value not in ("", "0", "1"):
        raise ValueError(f"{key}={value}: it takes 1, or 0 for off")
    return value == "1"


def tell(study: Study) -> tuple[dict[str, Any], dict[str, Path]]:
    """Train and measure what is not there; the summary, and the logs of what failed."""
    with study.clock():
        failed = study.execute()
        return summarise(study), failed


def show_plan(study: Study, console: Console) -> None:
    """Which runs there would be, and what each asks of the machine."""
    shown = Table(title=f"{study.folder}: {len(study.runs)} runs of {study.config.experiment}")
    for column in ("arm", "seeds", "steps", "samples a step", "processes", "GB a GPU", "hours"):
        shown.add_column(column)
    for arm in dict.fromkeys(run.arm for run in study.runs):
        runs = [run for run in study.runs if run.arm == arm]
        facts = plan(runs[0].config)
        shown.add_row(
            arm,
            ", ".join(str(run.config.seed) for run in runs),
            str(facts["max_steps"]),
            str(facts["sequences_per_step"]),
            str(facts["world_size"]),
            f"{facts['bytes_per_gpu']['peak'] / 1e9:.1f}",
            "-" if facts["hours"] is None else f"{facts['hours'] * len(runs):.1f}",
        )
    console.print(shown)
    for run in study.runs:
        console.print(launch_line(run.config), soft_wrap=True)


if __name__ == "__main__":
    main()
