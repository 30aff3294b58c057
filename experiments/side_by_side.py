"""Runs that share nothing but the machine, trained in processes of their own, a few at a time.

Small models gain little from a second thread: two runs on a core each end sooner than one after
the other on both.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.progress import Progress, TaskID

from experiments.schema import ExperimentConfig, to_yaml
from visual_opsd.models.bagel import checkpoints

POLL_SECONDS = 1.0


def num_jobs() -> int:
    """Three runs for two cores, because runs end at different times; one at a time on a GPU."""
    return 1 if torch.cuda.is_available() else (os.cpu_count() or 1) * 3 // 2 or 1


def train_all(configs: dict[str, ExperimentConfig]) -> None:
    """Train every run that is not finished, with a progress bar each.

    Raises:
        RuntimeError: A run failed; names it and the log, after the others have ended.
    """
    waiting = {name: config for name, config in configs.items() if not is_finished(config)}
    jobs = min(num_jobs(), max(len(waiting), 1))
    threads = max(1, (os.cpu_count() or 1) // jobs)
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: list[str] = []
    with Progress() as progress:
        bars: dict[str, TaskID] = {
            name: progress.add_task(name, total=config.trainer.max_steps)
            for name, config in waiting.items()
        }
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    name = next(iter(waiting))
                    running[name] = _start(waiting.pop(name), threads)
                time.sleep(POLL_SECONDS)
                for name in list(running):
                    if step := _step(configs[name].folder):
                        progress.update(bars[name], completed=step)
                    code = running[name].poll()
                    if code is not None:
                        del running[name]
                        if code or not is_finished(configs[name]):
                            failed.append(f"{name} (see {_log(configs[name])})")
                        else:
                            total = configs[name].trainer.max_steps
                            progress.update(bars[name], completed=total)
        finally:
            for process in running.values():
                process.terminate()
    if failed:
        raise RuntimeError(f"training failed: {', '.join(failed)}")


def is_finished(config: ExperimentConfig) -> bool:
    """The trained model is there."""
    return (config.folder / "model" / checkpoints.WEIGHTS).is_file()


def _start(config: ExperimentConfig, threads: int) -> subprocess.Popen[bytes]:
    config.folder.mkdir(parents=True, exist_ok=True)
    resolved = config.folder / "resolved.yaml"
    resolved.write_text(to_yaml(config))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with _log(config).open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own entry point
            [sys.executable, "-m", "experiments.train", str(resolved)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _log(config: ExperimentConfig) -> Path:
    return config.folder / "train.log"


def _step(folder: Path) -> int:
    """The last step in the newest metrics of a run."""
    files = sorted(folder.glob("metrics/session_*/metrics.csv"), key=lambda p: p.stat().st_mtime)
    if not files:
        return 0
    try:
        header, *rows = files[-1].read_text().splitlines()
        column = header.split(",").index("step")
        return int(rows[-1].split(",")[column]) + 1
    except (ValueError, IndexError):  # looked while it was being written
        return 0
