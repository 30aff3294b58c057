"""Runs that share nothing but the machine, in processes of their own, a few at a time.

Small models gain little from a second thread: two runs on a core each end sooner than one after
the other on both.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import Progress

from experiments.schema import ExperimentConfig, to_yaml
from visual_opsd.models.bagel import checkpoints

POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A command of ours that leaves a result behind."""

    command: tuple[str, ...]
    """What follows ``python -m``."""
    log: Path
    """What it prints, those of earlier starts before it."""
    is_finished: Callable[[], bool]
    total: float = 1
    done: Callable[[], float] = lambda: 0
    """How far it is, of ``total``."""


def num_jobs() -> int:
    """Three runs for two cores, because runs end at different times; one at a time on a GPU."""
    return 1 if torch.cuda.is_available() else (os.cpu_count() or 1) * 3 // 2 or 1


def train_all(configs: Mapping[str, ExperimentConfig]) -> None:
    """Train every run that is not finished, with a progress bar each.

    Raises:
        RuntimeError: A run failed; names it and the log, after the others have ended.
    """
    failed = run_all({name: training(config) for name, config in configs.items()})
    if failed:
        named = ", ".join(f"{name} (see {log})" for name, log in failed.items())
        raise RuntimeError(f"training failed: {named}")


def training(config: ExperimentConfig) -> Job:
    """The training of one run."""
    config.folder.mkdir(parents=True, exist_ok=True)
    resolved = config.folder / "resolved.yaml"
    resolved.write_text(to_yaml(config))
    return Job(
        command=("experiments.train", str(resolved)),
        log=config.folder / "train.log",
        is_finished=lambda: is_finished(config),
        total=config.trainer.max_steps,
        done=lambda: last_step(config.folder),
    )


def run_all(
    jobs: Mapping[str, Job],
    *,
    at_once: int | None = None,
    threads: int | None = None,
    together: str = "",
) -> dict[str, Path]:
    """Run what is not finished, ``at_once`` at a time and in the given order.

    One that fails stops none of the others. Returns the logs of those that failed, by name. Every
    running job has a progress bar, and so have all ``together``, under that name. ``threads`` of a
    job are as many as the cores allow, if not said.
    """
    waiting = {name: job for name, job in jobs.items() if not job.is_finished()}
    at_once = min(at_once or num_jobs(), max(len(waiting), 1))
    threads = threads or max(1, (os.cpu_count() or 1) // at_once)
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: dict[str, Path] = {}
    with Progress() as progress:
        whole = progress.add_task(together, total=len(jobs), visible=bool(together))
        progress.update(whole, completed=len(jobs) - len(waiting))
        bars = {
            name: progress.add_task(name, total=job.total, visible=not together)
            for name, job in waiting.items()
        }
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    name = next(iter(waiting))
                    running[name] = _start(waiting.pop(name), threads)
                    progress.update(bars[name], visible=True)
                time.sleep(POLL_SECONDS)
                for name in list(running):
                    progress.update(bars[name], completed=jobs[name].done())
                    code = running[name].poll()
                    if code is None:
                        continue
                    del running[name]
                    if code or not jobs[name].is_finished():
                        failed[name] = jobs[name].log
                    else:
                        progress.update(bars[name], completed=jobs[name].total)
                    progress.update(bars[name], visible=not together)
                    progress.advance(whole)
        finally:
            for process in running.values():
                process.terminate()
    return failed


def is_finished(config: ExperimentConfig) -> bool:
    """The trained model is there."""
    return (config.folder / "model" / checkpoints.WEIGHTS).is_file()


def _start(job: Job, threads: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own entry point
            [sys.executable, "-m", "experiments.job", *job.command],
            stdin=subprocess.PIPE,  # ends with this process, and the job with it
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def last_step(folder: Path) -> int:
    """The last step in the newest metrics of a run; 0 before the first."""
    files = sorted(folder.glob("metrics/session_*/metrics.csv"), key=lambda p: p.stat().st_mtime)
    if not files:
        return 0
    try:
        header, *rows = files[-1].read_text().splitlines()
        column = header.split(",").index("step")
        return int(rows[-1].split(",")[column]) + 1
    except (ValueError, IndexError):  # looked while it was being written
        return 0
