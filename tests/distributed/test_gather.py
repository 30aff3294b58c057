"""What gathering once a rollout saves over gathering every layer for every token."""

from dataclasses import replace

import pytest

from tests import tiny
from tests.distributed.conftest import PATIENCE, ZERO3, Machine
from visual_opsd.contexts import student_context
from visual_opsd.models.bagel import checkpoints

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(600 * PATIENCE)]
STEPS = ("trainer.max_steps=4", "trainer.accumulate=1", "trainer.checkpoint_every=100")


@pytest.fixture
def wide(machine, tokenizer, problems, tmp_path):
    """The same machine with a model of width 512."""
    config = tiny.configuration(tokenizer.marks)
    decoder = replace(config.decoder, hidden_size=512, intermediate_size=1024, num_heads=8)
    model = tiny.make_model(tokenizer, problems, replace(config, decoder=decoder))
    contexts = [student_context(problem, tokenizer.encode) for problem in problems]
    tiny.inclined(model, contexts, {tokenizer.marks.end: 0.02})
    checkpoints.save(model, tokenizer, tmp_path / "wide")
    return Machine(tmp_path, tmp_path / "wide", machine.yaml)


def seconds_a_token(run):
    """Of the later batches: the first of a job builds and compiles things."""
    rows = run.rows()[1:]
    steps = sum(max(map(len, row["tokens"])) for row in rows)
    return sum(row["rollout_seconds"] for row in rows) / steps


@pytest.mark.parametrize("width", [32, 512])
def test_gathering_once_is_faster(machine, wide, note, width):
    where = machine if width == 32 else wide
    found = {}
    for gather in ("whole", "layers"):
        settings = (*ZERO3, *STEPS, f"trainer.zero3.gather={gather}")
        run = where.once(f"gather_{gather}", *settings, ranks=2)
        found[gather] = seconds_a_token(run)
    ratio = found["layers"] / found["whole"]
    note(
        f"gather once against layer by layer, width {width}",
        "ratio reported, default is the faster",
        seconds_a_token=found,
        ratio=ratio,
        default="whole",
    )
    assert ratio > 1
