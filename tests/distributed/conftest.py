"""Two gloo ranks on this machine, as a cluster would start them; and the table that they fill."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
SUMMARY = ROOT / "runs" / "distributed" / "summary.json"
EXPERIMENT = """
name: one
data: {sizes: [3, 4], num_problems: 32, batch_size: 4}
trainer: {max_steps: 10, accumulate: 2, checkpoint_every: 3, num_threads: 1, clip_norm: 0.3}
held_out: {num_problems: 0}
rollout: {sampling: {max_tokens: 24}}
visual_opsd:
  teacher: ema
  ema_decay: 0.9
  optimiser: {learning_rate: 5.0e-4, final_learning_rate: 1.0e-4, num_warmup_steps: 2, eps: 1.0e-8}
"""
PATIENCE = int(os.environ.get("VISUAL_OPSD_PATIENCE", "1"))
"""Multiplies every time-out: on a machine that does other things too."""
ZERO3 = (
    "trainer.strategy=zero3",
    "trainer.zero3.persistence_threshold=0",  # every weight is really sharded
    f"trainer.zero3.timeout_seconds={60 * PATIENCE}",
)
TIMEOUT_SECONDS = 240 * PATIENCE


@dataclass(frozen=True)
class Run:
    """A finished or interrupted run."""

    folder: Path
    record: Path
    returncode: int
    output: str

    def rows(self, rank: int = 0, name: str = "rank") -> list[dict[str, Any]]:
        """What the rank recorded, a row a batch."""
        path = self.record / f"{name}_{rank}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    @property
    def model(self) -> Path:
        return self.folder / "model" / "model.safetensors"


@dataclass
class Machine:
    """Starts jobs and waits for them, never longer than it should take."""

    folder: Path
    model: Path
    yaml: Path
    runs: dict[str, Run] = field(default_factory=dict)

    def arguments(self, name: str, *overrides: str) -> list[str]:
        return [
            *("-m", "tests.distributed.job", str(self.yaml), str(self.folder / "records" / name)),
            *(f"name={name}", f"model={self.model}", f"output_dir={self.folder / 'runs'}"),
            *(f"cache_dir={self.folder / 'cache'}", "trainer.accelerator=cpu", *overrides),
        ]

    def run(
        self, name: str, *overrides: str, ranks: int = 1, fails: bool = False, **job: str
    ) -> Run:
        """One process, or ``ranks`` under torchrun that share the batch."""
        command = [sys.executable]
        if ranks > 1 or "trainer.strategy=zero3" in overrides:
            command += ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
            command += ["--master-port", str(free_port())]
            overrides = (*overrides, f"trainer.devices={ranks}", f"data.batch_size={4 // ranks}")
        return self.finish(name, [self.start(command, name, overrides, **job)], fails=fails)

    def start(
        self, command: list[str], name: str, overrides: tuple[str, ...], **job: str
    ) -> "subprocess.Popen[str]":
        """``job`` is what ``job.py`` reads from its environment: ``accident``, say."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        environment |= {f"JOB_{key.upper()}": value for key, value in job.items()}
        return subprocess.Popen(
            [*command, *self.arguments(name, *overrides)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(
        self, name: str, processes: list["subprocess.Popen[str]"], *, fails: bool = False
    ) -> Run:
        try:
            outputs = [p.communicate(timeout=TIMEOUT_SECONDS)[0] for p in processes]
        finally:
            for process in processes:
                kill_all(process)
        returncode = max((abs(process.returncode) for process in processes), default=0)
        run = Run(
            self.folder / "runs" / name,
            self.folder / "records" / name,
            returncode,
            "".join(outputs),
        )
        assert bool(returncode) == fails, run.output[-6000:]
        return run

    def once(self, name: str, *overrides: str, **options: Any) -> Run:
        """The same run for every test that looks at it."""
        if name not in self.runs:
            self.runs[name] = self.run(name, *overrides, **options)
        return self.runs[name]


def kill_all(job: "subprocess.Popen[str]") -> None:
    """A launcher and its ranks, which have sessions of their own; nothing if all are done."""
    if job.poll() is not None:
        return
    ranks = psutil.Process(job.pid).children(recursive=True)
    job.kill()  # first, so that it tells the ranks nothing
    for rank in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def machine(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    folder = tmp_path_factory.mktemp("machine")
    yaml = folder / "one.yaml"
    yaml.write_text(EXPERIMENT)
    return Machine(folder, base_folder, yaml)


@pytest.fixture(scope="session")
def note():
    """Write a row of the table, beside those of other tests."""

    def write(row: str, target: str, **found: Any) -> None:
        SUMMARY.parent.mkdir(parents=True, exist_ok=True)
        rows = json.loads(SUMMARY.read_text()) if SUMMARY.is_file() else {}
        rows[row] = {"target": target, **found}
        SUMMARY.write_text(json.dumps(rows, indent=2) + "\n")

    return write
