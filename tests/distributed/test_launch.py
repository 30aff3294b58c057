"""Several nodes, and SLURM, as far as one machine can show them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.conftest import PATIENCE, ROOT, TIMEOUT_SECONDS, ZERO3, free_port

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(600 * PATIENCE)]
FIVE_STEPS = ("trainer.max_steps=5", "data.batch_size=2", *ZERO3)


def test_two_nodes_of_one_rank_form_one_job(machine, note):
    """Two launchers that know nothing of each other but an address."""
    port = free_port()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    launcher += ["--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    settings = (*FIVE_STEPS, "trainer.num_nodes=2")
    nodes = [
        machine.start([*launcher, "--node-rank", str(node)], "nodes", settings) for node in (0, 1)
    ]
    run = machine.finish("nodes", nodes)
    assert run.model.is_file()
    seen = [row["problems"] for rank in (0, 1) for row in run.rows(rank)]
    assert len(seen) == 2 * 10
    assert len({tuple(names) for names in seen}) == 20  # each rank has its own
    note("two launchers, one rank each", "one job, 5 steps", steps=run.rows()[-1]["step"])


SRUN = """#!/usr/bin/env bash
# Stands for srun: the variables Lightning reads, one process a task.
[[ $1 == --kill-on-bad-exit=1 ]] && shift
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NODEID=0 SLURM_NTASKS=2 "$@" &
done
status=0
for job in $(jobs -p); do wait "$job" || status=$?; done
exit "$status"
"""


def test_the_sbatch_template_trains(machine, note, tmp_path):
    """Under a stand-in for srun; then the job is not put into the queue again."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    for name, text in {"srun": SRUN, "scontrol": "#!/bin/sh\ntouch requeued\n"}.items():
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(0o755)
    template = ROOT / "experiments" / "cluster" / "train.sbatch"
    environment = {
        **os.environ,
        "PATH": f"{stand_ins}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "EXPERIMENT": str(machine.yaml),
        "NAME": "slurm",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "visual-opsd",
        "SLURM_NNODES": "1",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NODELIST": "localhost",
        "SLURM_CPUS_PER_TASK": "1",
        "MASTER_PORT": str(free_port()),
        "PYTHONWARNINGS": "ignore",
    }
    arguments = [a for a in machine.arguments("slurm", *FIVE_STEPS)[4:] if "output_dir" not in a]
    done = subprocess.run(
        [shutil.which("bash"), str(template), *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    run = tmp_path / "runs" / "slurm"
    assert (run / "model" / "model.safetensors").is_file()
    assert len(list((run / "checkpoints" / "step=5.ckpt" / "checkpoint").glob("*rank_1*"))) == 2
    assert not Path(tmp_path / "requeued").exists()
    note("the sbatch template under a stand-in for srun", "one job, 5 steps", steps=5)
