"""What an offline cache gives back is what it was given, or nothing."""

from dataclasses import replace

import pytest
import torch

from visual_opsd.contexts import student_context
from visual_opsd.interventions import intervene
from visual_opsd.losses.divergence import (
    DivergenceConfig,
    TeacherScores,
    divergence,
    teacher_scores,
)
from visual_opsd.models.interface import Sampling
from visual_opsd.rollouts.offline import OfflineCache
from visual_opsd.rollouts.trajectories import gold_trajectories, sample_trajectories

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path):
    return OfflineCache(tmp_path, checkpoint="c", seed=0)


@pytest.fixture
def written(base, tokenizer, problems):
    """What the base says about some problems, one of them cut by the budget."""
    sampling = Sampling(max_tokens=12)
    found = sample_trajectories(base, problems, tokenizer.encode, sampling, range(len(problems)))
    assert any(found.is_cut)
    assert len(set(found.lengths)) > 1
    return found


@pytest.fixture
def logits(base, tokenizer, problems, written):
    contexts = [student_context(problem, tokenizer.encode) for problem in problems]
    with torch.no_grad():
        return base.logits(base(contexts, written.ids))


def paths_of(cache, problems):
    return [cache.path(problem, problem) for problem in problems]


@pytest.mark.parametrize("config", [DivergenceConfig(), DivergenceConfig(top_k=5)])
def test_any_batch_of_what_was_kept_comes_back_bit_by_bit(cache, problems, written, logits, config):
    scores, paths = teacher_scores(logits, config), paths_of(cache, problems)
    assert cache.get(paths, CPU) is None
    cache.put(paths[:3], *_rows(written, scores, slice(3)))
    assert cache.get(paths, CPU) is None, "half a batch is none"
    cache.put(paths, written, scores)
    order = [5, 0, 2]
    found = cache.get([paths[row] for row in order], CPU)
    starts = torch.tensor([0, *written.lengths]).cumsum(0)
    tokens = torch.cat([torch.arange(starts[row], starts[row + 1]) for row in order])
    for name in ("ids", "is_sampled", "log_probs"):
        mine, its = (getattr(c, name) for c in (found.completions, written))
        assert all(torch.equal(a, its[row]) for a, row in zip(mine, order, strict=True))
    assert found.completions.is_cut == tuple(written.is_cut[row] for row in order)
    for mine, its in zip(found.scores, scores, strict=True):
        assert (mine is None) == (its is None)
        assert mine is None or torch.equal(mine, its[tokens])
    student = logits[tokens] + torch.linspace(-1, 1, logits.shape[1])
    its = TeacherScores(*(None if part is None else part[tokens] for part in scores))
    expected = divergence(student, its, config)
    assert torch.equal(divergence(student, found.scores, config), expected)
    assert expected.min() > 0


def _rows(completions, scores, part):
    """The first rows of both."""
    count = sum(completions.lengths[part])
    columns = (completions.ids, completions.is_sampled, completions.log_probs, completions.is_cut)
    return type(completions)(*(column[part] for column in columns)), scores.rows(slice(count))


def test_a_damaged_entry_is_none(cache, problems, written, logits):
    scores, paths = teacher_scores(logits, DivergenceConfig()), paths_of(cache, problems)
    cache.put(paths, written, scores)
    whole = paths[1].read_bytes()
    for spoilt in (whole[:-9], whole[:3], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        paths[1].write_bytes(spoilt)
        assert cache.get(paths, CPU) is None
    cache.put(paths[1:2], *_rows(written, scores, slice(1)))
    assert cache.get(paths, CPU) is not None


def test_solutions_have_no_log_probabilities_and_come_back_too(cache, problems, tokenizer, logits):
    gold = gold_trajectories(problems[:1], tokenizer.encode, tokenizer.marks.end, 12)
    scores = teacher_scores(logits[:12], DivergenceConfig())
    cache.put(paths_of(cache, problems[:1]), gold, scores)
    found = cache.get(paths_of(cache, problems[:1]), CPU)
    assert torch.equal(found.completions.ids[0], gold.ids[0])
    assert found.completions.log_probs[0].isnan().all()


def test_a_path_names_all_that_is_seen_and_whose_it_is(cache, problems):
    problem, other = problems[0], problems[1]
    noise = intervene("matched_noise", problem, None, 0)
    seen = [
        (problem, problem),
        (problem, noise),
        (problem, intervene("matched_noise", problem, None, 1)),
        (problem, noise, problem),
        (problem, replace(problem, hints=("left",))),
        (replace(problem, question="Where?"), problem),
        (replace(problem, image=other.image), problem),
        (replace(problem, text_only_thought="So:"), problem),
        (replace(problem, image=replace(problem.image, with_latents=True)), problem),
        (other, other),
    ]
    paths = {cache.path(*row) for row in seen}
    paths |= {OfflineCache(cache.folder, checkpoint="c", seed=1).path(problem, problem)}
    assert len(paths) == len(seen) + 1
    assert OfflineCache(cache.folder, seed=0, checkpoint="c").path(problem, noise) in paths
