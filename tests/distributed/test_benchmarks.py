"""Two ranks share out the questions of a benchmark and answer them as one process does."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from datamodules.benchmark_twins import write_nine
from experiments.benchmark_run import BenchmarkConfig, load_predictions, score
from tests.distributed.conftest import PATIENCE, ROOT, free_port

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(600 * PATIENCE)]


def test_two_ranks_answer_what_one_answers_and_take_up_what_one_left(base_folder, tmp_path, note):
    write_nine(tmp_path / "nine", 3)
    config = BenchmarkConfig(
        model=str(base_folder), data=str(tmp_path / "nine"), max_tokens=4, out=str(tmp_path / "two")
    )
    score(replace(config, limit=1), Console(quiet=True))  # the ranks find these answered
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    keys = ("model", "data", "max_tokens", "out")
    settings = [f"{key}={getattr(config, key)}" for key in keys]
    subprocess.run(
        [*launcher, "-m", "experiments.evaluate", "DATA=" + config.data, *settings],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    alone = score(replace(config, out=str(tmp_path / "one")), Console(quiet=True))
    one, two = load_predictions(alone), load_predictions(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(one[key]["text"] == two[key]["text"] for key in one)
    note("benchmarks on two ranks", "same replies as one process", replies=len(two))
