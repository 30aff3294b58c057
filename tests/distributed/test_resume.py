"""Killed, told to leave, moved to other ranks: the run goes on, to the bit on the same ranks."""

import pytest
import torch
from safetensors.torch import load_file

from experiments.evaluation import accuracy, evaluate
from experiments.export import export
from experiments.schema import load_experiment
from tests.distributed.conftest import PATIENCE, ZERO3
from tests.distributed.test_equivalence import largest_difference
from visual_opsd.models.bagel import checkpoints

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900 * PATIENCE)]


def assert_same_bits(one, other):
    ours, theirs = load_file(one), load_file(other)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


def steps_saved(run):
    return sorted(path.name for path in (run.folder / "checkpoints").iterdir())


def test_a_rank_that_is_told_to_leave_takes_all_along_and_the_run_goes_on(machine, note):
    """SIGTERM reaches one of two ranks in the middle of a step: all save behind it and leave."""
    straight = machine.once("adamw_2", *ZERO3, ranks=2)
    left = machine.run("left", *ZERO3, ranks=2, accident="1:term:4")
    assert steps_saved(left) == ["step=5.ckpt"]
    assert not left.model.exists()
    assert "told to leave: saved at step 5" in left.output
    back = machine.run("left", *ZERO3, ranks=2)
    assert_same_bits(straight.model, back.model)
    note("SIGTERM on one rank", "saves, leaves, resumes to the bit", identical=True)


KILLS = {
    "0:rollout:1": 0,
    "1:step:4": 3,
    "0:save:6": 3,
    "1:shards:6": 3,
    "1:full:6": 3,
    "1:rollout:8": 6,
}
"""What happens at which step, and the checkpoint that is there afterwards (saved every three)."""


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_weights(machine, note):
    """In a rollout, between two accumulated batches, before a save, between two ranks' parts.

    Or for want of room on one rank's disk: it says so, and takes the other along.
    """
    straight = machine.once("adamw_2", *ZERO3, ranks=2)
    for accident, step in KILLS.items():
        killed = machine.run("killed", *ZERO3, ranks=2, accident=accident, fails=True)
        whole = [f"step={step}.ckpt"] if step else []
        found = steps_saved(killed) if step or (killed.folder / "checkpoints").exists() else []
        assert [name for name in found if not name.endswith(".tmp")] == whole, accident
        if "full" in accident:
            assert "no checkpoint at step 6" in killed.output, killed.output
    back = machine.run("killed", *ZERO3, ranks=2)
    assert_same_bits(straight.model, back.model)
    note(
        "SIGKILL in a rollout, a step, a save, between two ranks' shards",
        "final weights bit-identical",
        kills=list(KILLS),
        identical=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_it_goes_on_with_another_number_of_ranks(machine, note, problems, before, after):
    """The global batch stays, so weights end where they would have, up to rounding."""
    straight = machine.once("adamw_2", *ZERO3, ranks=2)
    name = f"moved_{before}_{after}"
    machine.run(name, *ZERO3, ranks=before, accident="0:term:4")
    moved = machine.run(name, *ZERO3, ranks=after)
    config = load_experiment(moved.folder / "config.yaml")
    assert config.trainer.devices == before  # the same run: its folder says where it began
    difference, weight = largest_difference(straight.model, moved.model)
    scores = []
    for run in (straight, moved):
        model, tokenizer = checkpoints.load(run.folder / "model")
        found = evaluate(model.eval(), tokenizer, problems, "text_only")
        scores.append(accuracy(found).value)
    note(
        f"resume {before} -> {after} ranks",
        "loads; scores equal to 1e-5",
        largest_weight_difference=difference,
        of_weight=weight,
        scores=scores,
    )
    assert difference <= 1e-4
    assert abs(scores[0] - scores[1]) <= 1e-5


def test_export_of_two_ranks_in_one_process_is_what_they_trained(machine, note, tmp_path):
    """The student, and the teacher, which nothing else writes."""
    two = machine.once("adamw_2", *ZERO3, ranks=2)
    exported = export(two.folder, tmp_path / "student")
    assert_same_bits(exported / "model.safetensors", two.model)
    one = machine.once("adamw_1")
    teachers = [export(run.folder, tmp_path / n, "teacher") for run, n in ((one, "a"), (two, "b"))]
    difference, _ = largest_difference(*(folder / "model.safetensors" for folder in teachers))
    note("export", "equal to what was trained", student_identical=True, teacher=difference)
    assert difference <= 1e-4
    assert largest_difference(exported / "model.safetensors", teachers[1] / "model.safetensors")[0]
