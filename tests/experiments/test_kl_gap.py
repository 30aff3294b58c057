"""K_gen on one fixed set of completions."""

from dataclasses import replace

import pytest
import torch

from experiments.kl_gap import (
    closure_of,
    sample_fixed,
    stabiliser_costs,
    sums_and_lengths,
    token_gaps,
)
from tests import tiny
from visual_opsd.contexts import student_context, teacher_context
from visual_opsd.interventions import intervene
from visual_opsd.losses.divergence import DivergenceConfig
from visual_opsd.models.interface import Sampling

SAMPLING = Sampling(max_tokens=12)


@pytest.fixture(scope="module")
def fixed(base, tokenizer, problems):
    return sample_fixed(base, tokenizer, problems, SAMPLING, seed=0)


def test_completions_are_on_policy_and_each_problem_has_one(fixed, problems):
    assert fixed.max_rescore_error <= 1e-4
    assert fixed.problems == problems
    assert sorted(index for batch in fixed.batches for index in batch) == list(range(8))


def test_a_problem_keeps_its_completion_whatever_it_stands_beside(fixed, base, tokenizer, problems):
    alone = sample_fixed(base, tokenizer, problems[3:4], SAMPLING, seed=0)
    for batch, completions in zip(fixed.batches, fixed.completions, strict=True):
        if 3 in batch:
            assert torch.equal(completions.ids[batch.index(3)], alone.completions[0].ids[0])


def test_the_gap_is_the_kl_of_teacher_to_student(fixed, base, tokenizer, problems):
    """Problem by problem, in their order, against torch.distributions."""
    gaps = token_gaps(base, base, tokenizer, fixed)
    ids = {
        index: ids
        for batch, completions in zip(fixed.batches, fixed.completions, strict=True)
        for index, ids in zip(batch, completions.ids, strict=True)
    }
    for index, problem in enumerate(problems):
        teacher, student = (
            torch.distributions.Categorical(
                logits=base.logits(base([see(problem, tokenizer.encode)], [ids[index]]))
            )
            for see in (teacher_context, student_context)
        )
        expected = torch.distributions.kl_divergence(teacher, student)
        torch.testing.assert_close(gaps[index], expected.detach(), atol=1e-5, rtol=1e-3)
        assert (gaps[index] >= -1e-6).all()
    totals, lengths = sums_and_lengths(gaps)
    assert lengths == [len(ids[index]) for index in range(8)]
    assert totals == pytest.approx([float(gap.sum()) for gap in gaps], rel=1e-5)


def test_stabilisers_cost_nothing_where_nothing_is_cut(fixed, base, tokenizer):
    exact = DivergenceConfig(top_k=tiny.VOCABULARY_SIZE + 99, token_clip=1e9)
    assert set(stabiliser_costs(base, tokenizer, fixed, exact).values()) == {0.0}
    found = stabiliser_costs(base, tokenizer, fixed, DivergenceConfig.PAPER)
    few = stabiliser_costs(base, tokenizer, fixed, replace(DivergenceConfig.PAPER, top_k=3))
    assert 0 < found["top_k_error"] < few["top_k_error"] < few["top_k_max_error"]
    assert 0 < found["student_outside"] < few["student_outside"] < 1


def test_closure_is_split_by_who_moved(fixed, base, model, tokenizer):
    student, teacher = "closure (frozen start teacher)", "by the teacher's move"
    assert closure_of(base, base, tokenizer, fixed)[student] == 0
    tiny.inclined(
        model,
        [student_context(p, tokenizer.encode) for p in fixed.problems],
        {tokenizer.marks.end: 0.4},
    )
    found = closure_of(base, model, tokenizer, fixed)
    parts = [found[student], found[teacher]]
    assert sum(parts) == pytest.approx(found["both"])
    before, moved = (
        sum(sums_and_lengths(token_gaps(base, learnt, tokenizer, fixed))[0])
        for learnt in (base, model)
    )
    assert found[student] == pytest.approx(1 - moved / before, rel=1e-4)
    assert all(abs(part) > 1e-3 for part in parts)


def test_who_is_teacher_and_who_is_student_matters(fixed, base, model, tokenizer):
    """The cross terms of Eq. 4: another student, or another teacher, is another gap."""
    tiny.inclined(
        model,
        [student_context(p, tokenizer.encode) for p in fixed.problems],
        {tokenizer.marks.end: 0.4},
    )
    pairs = [(base, base), (base, model), (model, base), (model, model)]
    totals = [sum(sums_and_lengths(token_gaps(*pair, tokenizer, fixed))[0]) for pair in pairs]
    assert len({round(total, 4) for total in totals}) == 4


def test_the_teacher_may_be_shown_something_else(fixed, base, tokenizer, problems):
    blank = [intervene("blank", problem, None, 0) for problem in problems]
    true, other = (token_gaps(base, base, tokenizer, fixed, shown) for shown in (problems, blank))
    assert any(not torch.allclose(a, b, atol=1e-5) for a, b in zip(true, other, strict=True))
