"""Reading and writing: scoring what was sampled gives the probability it was drawn with."""

from dataclasses import replace

import pytest
import torch

from tests import tiny
from visual_opsd.contexts import (
    IMAGE_START,
    Image,
    Text,
    drawing_context,
    student_context,
    teacher_context,
)
from visual_opsd.losses.divergence import DivergenceConfig, teacher_scores
from visual_opsd.models.bagel import decoder
from visual_opsd.models.bagel.model import BagelModel
from visual_opsd.models.interface import Attentive, Drawer, Reader, Sampling
from visual_opsd.rollouts.trajectories import rescoring_error

SEES = {
    "student": student_context,
    "teacher": teacher_context,
    "drawer": lambda problem, encode: drawing_context(problem, encode).main,
}


@pytest.fixture
def contexts(problems, tokenizer):
    return [student_context(problem, tokenizer.encode) for problem in problems]


@pytest.fixture
def asking(model, tokenizer, contexts):
    """A model that often asks for a drawing, and soon ends."""
    (asks,) = tokenizer.encode(tiny.ASKS)
    return tiny.inclined(model, contexts, {tokenizer.marks.end: 0.15, asks: 0.3})


def seeds_of(contexts, first=0):
    return list(range(first, first + len(contexts)))


def test_the_model_keeps_the_interface(model):
    assert isinstance(model, Reader)
    assert isinstance(model, Attentive)
    assert isinstance(model, Drawer)


@pytest.mark.parametrize("see", SEES.values(), ids=SEES)
def test_padded_and_packed_rows_score_alike(model, tokenizer, problems, see, monkeypatch):
    contexts = [see(problem, tokenizer.encode) for problem in problems[:4]]
    completions = [torch.arange(5, 5 + length) for length in (1, 7, 3, 12)]
    scored = []
    for is_padded in (True, False):
        monkeypatch.setattr(BagelModel, "is_padded", is_padded)
        scored.append(model.logits(model(contexts, completions)))
    assert scored[0].shape == (23, tiny.VOCABULARY_SIZE)
    torch.testing.assert_close(*scored, atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("see", SEES.values(), ids=SEES)
def test_scoring_gives_the_sampling_log_probabilities_back(
    model, tokenizer, problems, see, temperature
):
    contexts = [see(problem, tokenizer.encode) for problem in problems]
    sampling = Sampling(temperature=temperature, max_tokens=24)
    completions = model.sample(contexts, sampling, seeds_of(contexts))
    assert len(set(completions.lengths)) > 2  # ragged
    assert rescoring_error(model, contexts, completions, temperature) <= 1e-4


def test_a_completion_depends_on_its_own_seed_alone(model, contexts):
    """Not on its batch mates, not on their order, not on when they finish."""
    sampling = Sampling(max_tokens=24)
    seeds = seeds_of(contexts)
    together = model.sample(contexts, sampling, seeds)
    backwards = model.sample(contexts[::-1], sampling, seeds[::-1])
    for row, context in enumerate(contexts):
        alone = model.sample([context], sampling, [seeds[row]])
        for other, index in ((alone, 0), (backwards, len(contexts) - 1 - row)):
            assert torch.equal(together.ids[row], other.ids[index])
            torch.testing.assert_close(
                together.log_probs[row], other.log_probs[index], atol=1e-5, rtol=0
            )
    reseeded = model.sample(contexts, sampling, seeds_of(contexts, first=100))
    assert together.lengths != reseeded.lengths


def test_sampling_leaves_global_random_state_alone(model, contexts):
    before = torch.random.get_rng_state()
    model.sample(contexts, Sampling(max_tokens=4), seeds_of(contexts))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_greedy_decoding_is_the_chain_of_likeliest_tokens(model, tokenizer, contexts):
    tiny.inclined(model, contexts, {tokenizer.marks.end: 1 / tiny.VOCABULARY_SIZE})
    greedy = model.sample(contexts, Sampling(temperature=0, max_tokens=8), seeds_of(contexts))
    for context, written in zip(contexts, greedy.ids, strict=True):
        chain = torch.empty(0, dtype=torch.long)
        while len(chain) < len(written):
            scored = model.logits(model([context], [torch.cat([chain, torch.zeros(1).long()])]))
            chain = torch.cat([chain, scored[-1:].argmax(dim=-1)])
        assert torch.equal(chain, written)


def test_a_completion_that_the_budget_cuts_is_marked(model, tokenizer, contexts):
    end = tokenizer.marks.end
    free = model.sample(contexts, Sampling(max_tokens=200), seeds_of(contexts))
    assert not any(free.is_cut)
    for ids in free.ids:
        assert (ids == end).nonzero().tolist() == [[len(ids) - 1]]
    budget = sorted(free.lengths)[len(contexts) // 2]
    held = model.sample(contexts, Sampling(max_tokens=budget), seeds_of(contexts))
    assert 0 < sum(held.is_cut) < len(contexts)
    for whole, part, is_cut in zip(free.ids, held.ids, held.is_cut, strict=True):
        assert is_cut == (len(whole) > budget)
        assert torch.equal(part, whole[:budget])


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_a_completion_that_asks_for_a_drawing_goes_on_without_one(
    asking, tokenizer, contexts, limit
):
    """The end mark stays as sampled, a begin mark is injected, and is context, not loss."""
    marks, num_rows = tokenizer.marks, 48
    rows = [contexts[row % len(contexts)] for row in range(num_rows)]
    sampling = Sampling(max_tokens=40, max_drawings_skipped=limit)
    found = asking.sample(rows, sampling, range(num_rows))
    num_skipped = []
    for ids, is_sampled, log_probs, is_cut in zip(
        found.ids, found.is_sampled, found.log_probs, found.is_cut, strict=True
    ):
        seams = (~is_sampled).nonzero()[:, 0].tolist()
        num_skipped.append(len(seams))
        start = 0
        for seam in seams:
            assert ids[seam] == marks.begin
            assert log_probs[seam] == 0
            assert ids[seam - 1] == marks.end
            assert is_sampled[seam - 1]
            assert IMAGE_START in tokenizer.decode(ids[start:seam].tolist())
            start = seam + 1
        last = tokenizer.decode(ids[start:].tolist())
        if not is_cut and len(seams) < limit and len(ids) + 2 < sampling.max_tokens:
            assert IMAGE_START not in last  # else it would have gone on
    assert max(num_skipped) == limit
    assert rescoring_error(asking, rows, found) <= 1e-4


def test_without_skips_the_same_completion_ends_at_the_seam(asking, contexts):
    rows, seeds = contexts * 4, range(4 * len(contexts))
    without = asking.sample(rows, Sampling(max_tokens=40, max_drawings_skipped=0), seeds)
    once = asking.sample(rows, Sampling(max_tokens=40, max_drawings_skipped=1), seeds)
    num_longer = 0
    for short, long in zip(without.ids, once.ids, strict=True):
        assert torch.equal(short, long[: len(short)])
        num_longer += len(long) > len(short)
    assert num_longer


def test_scoring_moves_only_what_understands(model, contexts):
    """Training on text alone needs no gradient for, nor an optimiser state of, what draws."""
    completions = [torch.arange(4) for _ in contexts]
    model.logits(model(contexts, completions)).logsumexp(dim=-1).sum().backward()
    draws = ("_moe_gen", "vae2llm", "llm2vae", "time_embedder")
    for name, weight in model.named_parameters():
        is_drawing = any(part in name for part in draws)
        is_frozen = not weight.requires_grad
        assert (weight.grad is None) == (is_drawing or is_frozen), name


def test_the_teacher_sees_the_visual_thought(model, tokenizer, problems):
    """Two problems that differ in nothing else are scored differently."""
    (thought,) = problems[0].visual_thoughts
    blank = replace(thought, pixels=torch.zeros_like(thought.pixels))
    contexts = [
        teacher_context(replace(problems[0], visual_thoughts=(shown,)), tokenizer.encode)
        for shown in (thought, blank)
    ]
    ids = torch.arange(10, 15)
    one, other = model.logits(model(contexts, [ids, ids])).chunk(2)
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("chunk_size", [7, 39, 40, 512])
def test_logits_reduced_chunk_by_chunk_are_the_whole_reduced(
    model, contexts, monkeypatch, chunk_size
):
    """Value and gradient; and a whole that is too large is never handed out."""
    monkeypatch.setattr(decoder, "LOGITS_A_CHUNK", chunk_size * tiny.VOCABULARY_SIZE)
    hidden = model(contexts, [torch.arange(5) for _ in contexts]).detach().requires_grad_()
    whole = model.logits(hidden).logsumexp(dim=-1)
    (expected,) = torch.autograd.grad(whole.square().sum(), hidden, retain_graph=True)
    seen = []

    def reduce(logits, rows):
        seen.append((len(logits), rows.start))
        return logits.logsumexp(dim=-1)

    found = model.logits(hidden, reduce)
    torch.testing.assert_close(found, whole)
    assert seen == [(min(chunk_size, 40 - start), start) for start in range(0, 40, chunk_size)]
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), hidden)[0], expected)


@pytest.mark.parametrize("top_k", [None, 8])
def test_the_teacher_is_scored_the_same_in_chunks(model, contexts, monkeypatch, top_k):
    config = DivergenceConfig(top_k=top_k)
    with torch.no_grad():
        hidden = model(contexts, [torch.arange(5) for _ in contexts])
        whole = teacher_scores(model.logits(hidden), config)
        monkeypatch.setattr(decoder, "LOGITS_A_CHUNK", 7 * tiny.VOCABULARY_SIZE)
        chunked = model.logits(hidden, lambda logits, _: teacher_scores(logits, config))
    for one, other in zip(whole, chunked, strict=True):
        torch.testing.assert_close(one, other)


def test_what_does_not_fit_is_an_error_that_says_so(model, contexts):
    ids = torch.arange(3)
    with pytest.raises(ValueError, match="8 contexts for 1 completions"):
        model(contexts, [ids])
    with pytest.raises(ValueError, match="8 contexts for 2 seeds"):
        model.sample(contexts, Sampling(), [0, 1])
    odd = (Text((5, 6)), Image(torch.zeros(3, 32, 40)))
    with pytest.raises(ValueError, match="32 x 40 px does not divide into patches of 16 px"):
        model([odd], [ids])
    wide = (Text((5, 6)), Image(torch.zeros(3, 16, 16 * 5)))
    with pytest.raises(ValueError, match="1 x 5 exceeds the position table of 4"):
        model([wide], [ids])
    with pytest.raises(ValueError, match=r"temperature must be >= 0, got -0\.5"):
        Sampling(temperature=-0.5)
    with pytest.raises(ValueError, match="max_tokens must be >= 1, got 0"):
        Sampling(max_tokens=0)
