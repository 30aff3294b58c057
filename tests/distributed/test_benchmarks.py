"""Two ranks share out the questions of a benchmark and answer them as one process does."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from datamodules.benchmark_twins import write_nine
from experiments.benchmark_run import BenchmarkConfig, load_predictions, score
from tests.distributed.conftest import PATIENCE, ROOT, free_port
from visual_opsd.benchmarks.nine import NINE

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(600 * PATIENCE)]


def on_two_ranks(module, *settings):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, "-m", module, *settings], cwd=ROOT, env=environment, check=True)


def test_two_ranks_answer_what_one_answers_and_take_up_what_one_left(base_folder, tmp_path, note):
    write_nine(tmp_path / "nine", 3)
    config = BenchmarkConfig(
        model=str(base_folder), data=str(tmp_path / "nine"), max_tokens=4, out=str(tmp_path / "two")
    )
    score(replace(config, limit=1), Console(quiet=True))  # the ranks find these answered
    keys = ("model", "data", "max_tokens", "out")
    settings = [f"{key}={getattr(config, key)}" for key in keys]
    on_two_ranks("experiments.evaluate", "DATA=" + config.data, *settings)
    alone = score(replace(config, out=str(tmp_path / "one")), Console(quiet=True))
    one, two = load_predictions(alone), load_predictions(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(one[key]["text"] == two[key]["text"] for key in one)
    note("benchmarks on two ranks", "same replies as one process", replies=len(two))


def test_one_rank_writes_the_twins_that_two_are_asked_about(base_folder, tmp_path):
    """Each removed what the other was writing."""
    settings = [f"MODEL={base_folder}", f"out={tmp_path}", "num_questions=2", "max_tokens=2"]
    on_two_ranks("experiments.evaluate_twins", *settings)
    assert list(json.loads((tmp_path / "scores.json").read_text())) == list(NINE)
