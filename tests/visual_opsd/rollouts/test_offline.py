"""What an offline cache gives back is what it was given first, or nothing."""

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
from visual_opsd.models.interface import Completions, Sampling
from visual_opsd.rollouts.offline import OfflineCache, joined, replaced
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


def rows_of(completions, count):
    """The first rows."""
    columns = (completions.ids, completions.is_sampled, completions.log_probs, completions.is_cut)
    return Completions(*(column[:count] for column in columns))


@pytest.mark.parametrize("config", [DivergenceConfig(), DivergenceConfig(top_k=5)])
def test_any_batch_of_what_was_kept_comes_back_bit_by_bit(cache, problems, written, logits, config):
    scores, paths = teacher_scores(logits, config), paths_of(cache, problems)
    assert cache.rows(paths, CPU) == [None] * len(problems)
    cache.keep(paths, written, scores)
    order = [5, 0, 2]
    found = joined(cache.rows([paths[row] for row in order], CPU))
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


def test_what_is_there_first_stays(cache, problems, written, logits):
    """In another batch a score has other last bits: what a step trains on is what is kept."""
    config = DivergenceConfig()
    paths, first = paths_of(cache, problems), sum(written.lengths[:3])
    cache.keep(paths[:3], rows_of(written, 3), teacher_scores(logits[:first], config))
    others = teacher_scores(logits + 1e-3 * torch.linspace(0, 1, logits.shape[1]), config)
    given = cache.keep(paths, written, others).log_probs
    assert torch.equal(given[:first], teacher_scores(logits[:first], config).log_probs)
    assert torch.equal(given[first:], others.log_probs[first:])
    assert torch.equal(joined(cache.rows(paths, CPU)).scores.log_probs, given)
    # Whoever has sampled other tokens meanwhile trains on the scores of those.
    anew = replace(written, ids=tuple(ids.flip(0) for ids in written.ids))
    assert torch.equal(cache.keep(paths, anew, others).log_probs[:first], others.log_probs[:first])
    found = replaced(anew, [*cache.rows(paths[:3], CPU), *[None] * (len(paths) - 3)])
    assert [torch.equal(a, b) for a, b in zip(found.ids, written.ids, strict=True)][:3] == [
        True
    ] * 3
    assert all(torch.equal(a, b) for a, b in zip(found.ids[3:], anew.ids[3:], strict=True))


def test_a_damaged_entry_is_none_and_is_written_again(cache, problems, written, logits):
    scores, paths = teacher_scores(logits, DivergenceConfig()), paths_of(cache, problems)
    cache.keep(paths, written, scores)
    whole = paths[1].read_bytes()
    for spoilt in (whole[:-9], whole[:3], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        paths[1].write_bytes(spoilt)
        assert [row is None for row in cache.rows(paths[:3], CPU)] == [False, True, False]
    cache.keep(paths, written, scores)
    assert paths[1].read_bytes() == whole


def test_a_disk_that_is_full_is_said_and_stops_nothing(cache, problems, written, logits):
    scores, paths = teacher_scores(logits, DivergenceConfig()), paths_of(cache, problems)
    paths[0].parent.parent.mkdir(parents=True, exist_ok=True)
    paths[0].parent.write_text("no folder")
    with pytest.warns(UserWarning, match="not kept"):
        found = cache.keep(paths[:1], rows_of(written, 1), scores.rows(slice(written.lengths[0])))
    assert torch.equal(found.log_probs, scores.log_probs[: written.lengths[0]])


def test_solutions_have_no_log_probabilities_and_come_back_too(cache, problems, tokenizer, logits):
    gold = gold_trajectories(problems[:1], tokenizer.encode, tokenizer.marks.end, 12)
    paths = paths_of(cache, problems[:1])
    cache.keep(paths, gold, teacher_scores(logits[:12], DivergenceConfig()))
    (found,) = cache.rows(paths, CPU)
    assert torch.equal(found.completions.ids[0], gold.ids[0])
    assert found.completions.log_probs[0].isnan().all()


def test_a_path_names_all_that_is_seen_and_whose_it_is(cache, problems, monkeypatch):
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
    monkeypatch.setattr("visual_opsd.rollouts.offline.TRANSITION", "Now:")
    paths |= {OfflineCache(cache.folder, checkpoint="c", seed=0).path(problem, problem)}
    assert len(paths) == len(seen) + 2
    monkeypatch.undo()
    assert OfflineCache(cache.folder, seed=0, checkpoint="c").path(problem, noise) in paths
