"""The KL gap and its closure: means over the right things, the same on one rank or many."""

import math

import pytest
import torch

from visual_opsd.losses.divergence import kl_divergence_per_token
from visual_opsd.metrics.kl_gap import KLGap, KLGapClosure, sum_per_completion
from visual_opsd.statistics import bootstrap_ratio

KL = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 8.0])
LENGTHS = torch.tensor([2, 3, 1])
CATEGORIES = ["maze", "jigsaw", "maze"]


def floats(values):
    return {name: value.item() for name, value in values.items()}


def split(metric_of, *rows):
    """The metric fed in two updates on each of two ranks, joined as ranks are."""
    first, second = metric_of(), metric_of()
    for metric, parts in ((first, rows[:1]), (second, rows[1:])):
        for part in parts:
            metric.update(*part)
    first.merge_state(second)
    return first


def test_the_gap_is_a_mean_over_tokens():
    gap = KLGap(["maze", "jigsaw", "chart"])
    gap.update(KL, LENGTHS, CATEGORIES)
    values = floats(gap.compute())
    assert math.isnan(values.pop("kl_gap/chart"))
    assert values == pytest.approx(
        {
            "kl_gap": 18 / 6,
            "kl_gap_completion_mean": (2 + 2 + 8) / 3,
            "kl_gap/maze": 12 / 3,
            "kl_gap/jigsaw": 2,
        }
    )


CLASSES = torch.tensor([0, 1, 0, 0, 1, 1])


def test_the_gap_by_token_class():
    gap = KLGap(["maze", "jigsaw"], ["thought", "answer", "end"])
    gap.update(KL[:2], LENGTHS[:1], CATEGORIES[:1], CLASSES[:2])
    gap.update(KL[2:], LENGTHS[1:], CATEGORIES[1:], CLASSES[2:])
    values = floats(gap.compute())
    assert math.isnan(values.pop("kl_gap/end"))
    assert values == pytest.approx(
        {
            "kl_gap": 18 / 6,
            "kl_gap_completion_mean": (2 + 2 + 8) / 3,
            "kl_gap/maze": 12 / 3,
            "kl_gap/jigsaw": 2,
            "kl_gap/thought": (1 + 2 + 2) / 3,
            "kl_gap/answer": (3 + 2 + 8) / 3,
        }
    )
    completions = gap.completions()
    assert completions["kl_sum"].tolist() == [4, 6, 8]
    assert completions["kl_sum/answer"].tolist() == [3, 2, 8]
    assert completions["num_tokens/thought"].tolist() == [1, 2, 0]


def test_the_gap_follows_equation_4():
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 6, 9, generator=generator).log_softmax(-1)
    gap = KLGap()
    gap.update(kl_divergence_per_token(teacher, student), LENGTHS)
    expected = (teacher.exp() * (teacher - student)).sum() / 6
    assert gap.compute()["kl_gap"].item() == pytest.approx(expected.item())


def test_ranks_and_batches_change_nothing():
    whole = KLGap(["maze", "jigsaw"])
    whole.update(KL, LENGTHS, CATEGORIES)
    parts = split(
        lambda: KLGap(["maze", "jigsaw"]),
        (KL[:2], LENGTHS[:1], CATEGORIES[:1]),
        (KL[2:5], LENGTHS[1:2], CATEGORIES[1:2]),
        (KL[5:], LENGTHS[2:], CATEGORIES[2:]),
    )
    assert floats(parts.compute()) == pytest.approx(floats(whole.compute()))


def test_a_rank_that_saw_nothing_changes_nothing():
    gap = KLGap()
    gap.update(KL, LENGTHS)
    expected = floats(gap.compute())
    gap.merge_state(KLGap())
    assert floats(gap.compute()) == expected


def test_an_empty_completion_has_no_mean_to_add():
    gap = KLGap()
    gap.update(KL, torch.tensor([2, 0, 3, 1]))
    assert gap.compute()["kl_gap_completion_mean"].item() == pytest.approx(4)


def test_nothing_seen_is_not_a_gap_of_zero():
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert math.isnan(KLGap().compute()["kl_gap"])


def test_completions_are_what_an_interval_needs():
    gap = KLGap()
    gap.update(KL[:5], LENGTHS[:2])
    gap.update(KL[5:], LENGTHS[2:])
    completions = gap.completions()
    assert completions["kl_sum"].tolist() == [4, 6, 8]
    assert completions["num_tokens"].tolist() == [2, 3, 1]
    interval = bootstrap_ratio(completions["kl_sum"], completions["num_tokens"], seed=0)
    assert interval.value == pytest.approx(gap.compute()["kl_gap"].item())


def test_a_reset_forgets():
    gap = KLGap()
    gap.update(100 * KL, LENGTHS)
    gap.reset()
    gap.update(KL, LENGTHS)
    assert gap.compute()["kl_gap"].item() == pytest.approx(3)


def test_many_small_tokens_do_not_get_lost():
    """A float32 sum of a million steps of 1e-4 is off in the fourth digit."""
    sums = sum_per_completion(torch.full((1_000_000,), 1e-4), torch.tensor([1_000_000]))
    assert sums.item() == pytest.approx(100, rel=1e-6)


def test_lengths_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="add up to 5, but 6 tokens"):
        KLGap().update(KL, torch.tensor([2, 3]))


def test_unknown_categories_are_refused():
    with pytest.raises(ValueError, match=r"unknown categories \['maze'\]"):
        KLGap(["jigsaw"]).update(KL, LENGTHS, CATEGORIES)
    with pytest.raises(ValueError, match="1 categories for 3 completions"):
        KLGap(["maze"]).update(KL, LENGTHS, ["maze"])


def test_token_classes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="token class 1 is none of the 1"):
        KLGap(token_classes=["thought"]).update(KL, LENGTHS, token_classes=CLASSES)
    with pytest.raises(ValueError, match="of None tokens, and 6 tokens"):
        KLGap(token_classes=["thought"]).update(KL, LENGTHS)
    with pytest.raises(ValueError, match=r"at once: \['maze'\]"):
        KLGap(["maze"], ["maze"])


def test_closure_and_its_parts():
    closure = KLGapClosure()
    closure.update(KL, KL * 0.7, KL * 0.4, LENGTHS)
    assert floats(closure.compute()) == pytest.approx(
        {
            "kl_gap_before": 3,
            "kl_gap_student_moved": 2.1,
            "kl_gap_after": 1.2,
            "closure": 0.6,
            "closure_student_moved": 0.3,
            "closure_teacher_moved": 0.3,
        }
    )


def test_a_teacher_that_drifts_to_a_still_student_is_not_counted_as_learning():
    """The first release moves both sides and reports this as closure of the student."""
    closure = KLGapClosure()
    closure.update(KL, KL, KL * 0.5, LENGTHS)
    values = floats(closure.compute())
    assert values["closure"] == pytest.approx(0.5)
    assert values["closure_student_moved"] == pytest.approx(0)
    assert values["closure_teacher_moved"] == pytest.approx(0.5)


def test_closure_by_category_and_token_class():
    """Where the teacher moved on answers alone, the thoughts' closure is the student's."""
    closure = KLGapClosure(["maze", "jigsaw"], ["thought", "answer"])
    moved = KL * torch.where(CLASSES == 1, 1.0, 0.5)
    closure.update(
        KL, moved, moved * torch.where(CLASSES == 1, 0.4, 1.0), LENGTHS, CATEGORIES, CLASSES
    )
    values = floats(closure.compute())
    assert values["kl_gap_before/maze"] == pytest.approx(12 / 3)
    for name in ("closure", "closure_student_moved"):
        assert values[f"{name}/thought"] == pytest.approx(0.5)
    for name in ("closure", "closure_teacher_moved"):
        assert values[f"{name}/answer"] == pytest.approx(0.6)
    assert values["closure/jigsaw"] == pytest.approx(1 - (1 + 1 + 0.8) / 6)


def test_ranks_change_nothing_in_a_closure():
    whole = KLGapClosure()
    rows = (KL, KL.flip(0), KL.sqrt())
    whole.update(*rows, LENGTHS)
    parts = split(
        KLGapClosure,
        (*(row[:2] for row in rows), LENGTHS[:1]),
        (*(row[2:] for row in rows), LENGTHS[1:]),
    )
    assert floats(parts.compute()) == pytest.approx(floats(whole.compute()))
    rows_of = [sorted(zip(*m.completions().values(), strict=True)) for m in (parts, whole)]
    assert rows_of[0] == rows_of[1]  # in whatever order the ranks came
