"""What a training step is given: the student's own words, and what its teacher is shown."""

import copy
from dataclasses import replace

import pytest
import torch

from callbacks.rollout import RolloutCallback, RolloutConfig
from lightning_modules.visual_opsd import VisualOPSD, VisualOPSDConfig
from tests import tiny
from visual_opsd.contexts import ProblemBatch
from visual_opsd.models.interface import Drawing, Sampling
from visual_opsd.rollouts.cache import DrawingCache
from visual_opsd.rollouts.visual_thoughts import Illustrator

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to .self.log")
SAMPLING = Sampling(max_tokens=12)


@pytest.fixture
def module(base, tokenizer):
    found = VisualOPSD(lambda: copy.deepcopy(base), tokenizer.encode, VisualOPSDConfig())
    found.configure_model()
    return found


@pytest.fixture
def roll_out(module, tokenizer):
    """Fill a batch as a trainer at ``step`` would."""

    def run(batch, step=0, batch_idx=0, illustrator=None, **settings):
        config = RolloutConfig(**{"sampling": SAMPLING, **settings})
        callback = RolloutCallback(config, tokenizer.encode, illustrator)
        trainer = tiny.quiet_trainer()
        progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress
        progress.optimizer.step.total.completed = step
        assert trainer.global_step == step
        callback.on_train_batch_start(trainer, module, batch, batch_idx)
        return batch.rollout

    return run


@pytest.fixture
def batch(problems):
    # Donors of the same size: 3 x 3 and 4 x 4 come in turn.
    return ProblemBatch(problems, problems[2:] + problems[:2])


@pytest.mark.parametrize("intervention", ["true_vt", "matched_noise", "other_vt", "blank", "no_vt"])
def test_a_rollout_does_not_depend_on_the_order_of_its_batch(roll_out, batch, intervention):
    forwards = roll_out(batch, intervention=intervention)
    turned = ProblemBatch(batch.problems[::-1], batch.donors[::-1])
    backwards = roll_out(turned, intervention=intervention)
    half = roll_out(ProblemBatch(batch.problems[:3], batch.donors[:3]), intervention=intervention)
    for row in range(len(batch)):
        ids = forwards.completions.ids[row]
        assert torch.equal(ids, backwards.completions.ids[-1 - row])
        pairs = [(forwards.shown[row], backwards.shown[-1 - row])]
        if row < 3:
            assert torch.equal(ids, half.completions.ids[row])
            pairs.append((forwards.shown[row], half.shown[row]))
        for one, other in pairs:
            for a, b in zip(one.visual_thoughts, other.visual_thoughts, strict=True):
                assert torch.equal(a.pixels, b.pixels)


def test_another_step_batch_or_seed_samples_anew(roll_out, batch):
    first = roll_out(batch).completions
    for change in ({"step": 1}, {"batch_idx": 1}, {"seed": 7}):
        other = roll_out(batch, **change).completions
        assert any(not torch.equal(a, b) for a, b in zip(first.ids, other.ids, strict=True))
    again = roll_out(batch).completions
    assert all(torch.equal(a, b) for a, b in zip(first.ids, again.ids, strict=True))


def test_the_intervention_changes_what_the_teacher_sees_and_nothing_else(roll_out, batch):
    """The student's completions are the same in every arm of the control ladder."""
    true = roll_out(batch, intervention="true_vt")
    assert true.shown == batch.problems
    for name in ("matched_noise", "no_vt"):
        other = roll_out(batch, intervention=name)
        for a, b in zip(true.completions.ids, other.completions.ids, strict=True):
            assert torch.equal(a, b)
        for problem, shown in zip(batch.problems, other.shown, strict=True):
            assert shown.image is problem.image
            assert shown.visual_thoughts != problem.visual_thoughts


def test_drawn_thoughts_replace_the_data_sets(roll_out, batch, base, tokenizer, tmp_path):
    illustrator = Illustrator(
        lambda: base,
        tokenizer,
        checkpoint="digest",
        cache=DrawingCache(tmp_path),
        drawing=Drawing(num_timesteps=2, text_guidance=1.0),
        sampling=SAMPLING,
        seed=0,
    )
    found = roll_out(batch, intervention="drawn_vt", illustrator=illustrator)
    assert illustrator.num_drawn == len(batch)
    for problem, shown in zip(batch.problems, found.shown, strict=True):
        assert not torch.equal(shown.visual_thoughts[0].pixels, problem.visual_thoughts[0].pixels)
    again = roll_out(batch, intervention="drawn_vt", illustrator=illustrator)
    assert illustrator.num_drawn == len(batch)
    for one, other in zip(found.shown, again.shown, strict=True):
        assert torch.equal(one.visual_thoughts[0].pixels, other.visual_thoughts[0].pixels)


def test_several_drawings_are_shown_in_turn(roll_out, batch, base, tokenizer, tmp_path):
    """Each of its own seed; the first is the one that a run with one drawing shows."""
    illustrator = Illustrator(
        lambda: base,
        tokenizer,
        checkpoint="digest",
        cache=DrawingCache(tmp_path),
        drawing=Drawing(num_timesteps=2, text_guidance=1.0),
        sampling=SAMPLING,
        seed=0,
    )
    alone = roll_out(batch, intervention="drawn_vt", illustrator=illustrator)
    found = roll_out(batch, intervention="drawn_vt", num_drawings=2, illustrator=illustrator)
    assert illustrator.num_drawn == 2 * len(batch)
    assert (len(alone.views), len(found.views)) == (1, 2)
    for first, second, one in zip(*found.views, alone.shown, strict=True):
        drawn, other, again = (p.visual_thoughts[0].pixels for p in (first, second, one))
        assert torch.equal(drawn, again)
        assert not torch.equal(drawn, other)
    with pytest.raises(ValueError, match="num_drawings 2 is for drawn_vt"):
        RolloutConfig(num_drawings=2)


def test_off_policy_completions_are_the_start_weights_own_whatever_the_step(
    roll_out, batch, module
):
    """A problem has one, however far the student has gone."""
    before = roll_out(batch, policy="start").completions
    with torch.no_grad():
        for weight in module.model.parameters():
            weight.mul_(1.5 if weight.requires_grad else 1)
    after = roll_out(batch, policy="start", step=3, batch_idx=7).completions
    student = roll_out(batch, policy="student", step=3, batch_idx=7).completions
    assert all(torch.equal(a, b) for a, b in zip(before.ids, after.ids, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(student.ids, after.ids, strict=True))


def test_gold_completions_are_the_solutions_end_mark_included(roll_out, batch, tokenizer):
    whole = roll_out(batch, policy="gold", sampling=Sampling(max_tokens=500)).completions
    for problem, ids in zip(batch.problems, whole.ids, strict=True):
        assert tokenizer.decode(ids[:-1].tolist()) == problem.solution
        assert ids[-1] == tokenizer.marks.end
    assert not any(whole.is_cut)
    assert torch.cat(whole.is_sampled).all()
    cut = roll_out(batch, policy="gold").completions
    assert all(cut.is_cut)
    assert set(cut.lengths) == {SAMPLING.max_tokens}


def test_the_students_gradient_does_not_run_through_its_rollout(roll_out, batch):
    assert not any(x.requires_grad for x in roll_out(batch).completions.log_probs)


def test_what_is_missing_is_said_before_training(tokenizer, roll_out, problems):
    with pytest.raises(ValueError, match="unknown intervention 'true_tv': did you mean 'true_vt'"):
        RolloutConfig(intervention="true_tv")
    with pytest.raises(ValueError, match="drawn_vt needs an illustrator"):
        RolloutCallback(RolloutConfig(intervention="drawn_vt"), tokenizer.encode)
    bare = ProblemBatch([replace(problems[0], visual_thoughts=())])
    with pytest.raises(ValueError, match=f"problem {problems[0].problem_id} has none"):
        roll_out(bare)
