"""The student's own completions, and what the teacher is shown beside them."""

from dataclasses import replace

import pytest
import torch

from visual_opsd.contexts import student_context
from visual_opsd.interventions import INTERVENTIONS
from visual_opsd.models.interface import Sampling
from visual_opsd.rollouts.trajectories import (
    log_probs,
    rescoring_error,
    sample_trajectories,
    show,
)

SAMPLING = Sampling(max_tokens=12)


def test_trajectories_are_the_students_own(base, tokenizer, problems):
    """Sampled in the student's context: whatever the visual thoughts are, they are the same."""
    encode, seeds = tokenizer.encode, range(len(problems))
    bare = [replace(problem, visual_thoughts=()) for problem in problems]
    one = sample_trajectories(base, problems, encode, SAMPLING, seeds)
    other = sample_trajectories(base, bare, encode, SAMPLING, seeds)
    assert all(torch.equal(a, b) for a, b in zip(one.ids, other.ids, strict=True))
    contexts = [student_context(problem, encode) for problem in problems]
    assert rescoring_error(base, contexts, one) <= 1e-4


def test_off_policy_tokens_are_noticed(base, model, tokenizer, problems):
    """The error of re-scoring is about 0 for the weights that sampled, and for no other."""
    encode = tokenizer.encode
    contexts = [student_context(problem, encode) for problem in problems]
    completions = sample_trajectories(base, problems, encode, SAMPLING, range(len(problems)))
    with torch.no_grad():
        model.language_model.lm_head.weight.mul_(1.01)
    assert rescoring_error(model, contexts, completions) > 1e-2


def test_scored_log_probabilities_are_normalised(base, tokenizer, problems):
    encode = tokenizer.encode
    contexts = [student_context(problem, encode) for problem in problems]
    completions = sample_trajectories(base, problems, encode, SAMPLING, range(len(problems)))
    scored = log_probs(base, contexts, completions)
    assert scored.shape[0] == sum(completions.lengths)
    torch.testing.assert_close(
        scored.logsumexp(dim=-1), torch.zeros(len(scored)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_what_is_shown_replaces_the_visual_thoughts_alone(problems, name):
    """Order, question and answer stay; the student's picture too."""
    own, donors = problems[::2], problems[2::2] + problems[:1]  # of one size
    if name == "wrong_vt":
        donors = tuple(replace(problem, answer="U") for problem in own)
    shown = show(name, own, donors, range(len(own)))
    for before, after in zip(own, shown, strict=True):
        for field in before.__dataclass_fields__:
            if field not in ("visual_thoughts", "hints"):
                assert getattr(after, field) is getattr(before, field)
    backwards = show(name, own[::-1], donors[::-1], range(len(own) - 1, -1, -1))[::-1]
    for one, other in zip(shown, backwards, strict=True):
        for a, b in zip(one.visual_thoughts, other.visual_thoughts, strict=True):
            assert torch.equal(a.pixels, b.pixels)


def test_without_donors_only_what_needs_one_fails(problems):
    assert show("true_vt", problems, (), range(8)) == problems
    with pytest.raises(ValueError, match="other_vt needs a donor"):
        show("other_vt", problems, (), range(8))
