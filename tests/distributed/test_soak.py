"""Twenty SIGKILLs at random moments: the final weights are those of a run left alone."""

import random
import sys
import time

import pytest

from tests.distributed.conftest import PATIENCE, ZERO3, free_port, kill_all
from tests.distributed.test_resume import assert_same_bits

pytestmark = [pytest.mark.distributed, pytest.mark.soak, pytest.mark.timeout(3000 * PATIENCE)]
NUM_KILLS = 20
LONG = (
    *ZERO3,
    "trainer.max_steps=280",  # twenty times, up to 2.5 seconds behind four steps
    "trainer.checkpoint_every=4",
    "data.batch_size=2",
    "trainer.devices=2",
)


def start(machine, name):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_port())]
    return machine.start(command, name, LONG)


def test_twenty_kills_change_no_bit(machine, note):
    """All processes of the job at once, wherever they are, a checkpoint being written included."""
    straight = machine.run("straight", *LONG, ranks=2)
    seed = random.SystemRandom().randrange(2**32)
    moments = random.Random(seed)
    kills, torn = 0, 0
    deadline = time.monotonic() + 2400 * PATIENCE
    while kills < NUM_KILLS and time.monotonic() < deadline:
        job = start(machine, "soaked")
        checkpoints = machine.folder / "runs" / "soaked" / "checkpoints"
        known = set(checkpoints.glob("*.ckpt"))
        # Far enough that the run gets on: some time behind its first new checkpoint.
        while job.poll() is None and not set(checkpoints.glob("*.ckpt")) - known:
            time.sleep(0.02)
            assert time.monotonic() < deadline, "no new checkpoint"
        time.sleep(moments.uniform(0, 2.5))
        if job.poll() is not None:
            break
        kill_all(job)
        job.communicate()
        kills += 1
        torn += bool(list(checkpoints.glob("*.tmp")))
    soaked = machine.run("soaked", *LONG, ranks=2)
    assert_same_bits(straight.model, soaked.model)
    note(
        "soak: SIGKILL at random moments",
        "20 kills; final weights bit-identical",
        kills=kills,
        during_a_save=torn,
        seed=seed,
        identical=True,
    )
    assert kills == NUM_KILLS
