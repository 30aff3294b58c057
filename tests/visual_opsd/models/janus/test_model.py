"""A second family keeps the interface honest: a random tiny Janus does all that a Reader does."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)

from callbacks.rollout import RolloutCallback, RolloutConfig
from lightning_modules.optimisation import OptimiserConfig
from lightning_modules.visual_opsd import VisualOPSD, VisualOPSDConfig
from tests import tiny
from visual_opsd.contexts import knock_out, student_context, teacher_context
from visual_opsd.losses.divergence import DivergenceConfig, teacher_scores
from visual_opsd.models.interface import Attentive, Drawer, Reader, Sampling
from visual_opsd.models.janus import model as janus_model
from visual_opsd.models.janus.model import JanusReader
from visual_opsd.rollouts.trajectories import rescoring_error

SEES = {"student": student_context, "teacher": teacher_context}


@pytest.fixture(scope="module")
def base(tokenizer, problems):
    marks = tokenizer.marks
    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=tiny.VOCABULARY_SIZE,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
        vision_config=JanusVisionConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            mlp_ratio=2.0,
            projection_dim=32,
            num_image_tokens=16,
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=8,
            num_embeddings=8,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
            projection_dim=32,
            image_token_embed_dim=32,
        ),
        image_token_id=marks.start_of_image,
    )
    torch.manual_seed(0)
    janus = JanusForConditionalGeneration(config).eval()
    with torch.no_grad():  # as drawn, logits hardly differ
        for weight in janus.parameters():
            weight.mul_(4 if weight.ndim == 2 else 1)
    reader = JanusReader(
        janus,
        begin=marks.begin,
        end=marks.end,
        start_of_image=marks.start_of_image,
        end_of_image=marks.end_of_image,
        decode=tokenizer.decode,
    )
    return inclined(reader, problems, tokenizer, {marks.end: 0.1})


def inclined(reader, problems, tokenizer, shares):
    """As :func:`tests.tiny.inclined`, for another name of the output projection."""
    contexts = [student_context(problem, tokenizer.encode) for problem in problems]
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(tiny.VOCABULARY_SIZE, (32,), generator=generator) for _ in contexts]
    with torch.no_grad():
        mean = reader(contexts, ids).mean(dim=0)
        for token, share in shares.items():
            logit = torch.tensor(share * tiny.VOCABULARY_SIZE).log()
            reader.janus.lm_head.weight[token] = logit * mean / mean.square().sum()
    return reader


def test_it_is_a_reader_and_no_drawer(base):
    assert isinstance(base, Reader)
    assert isinstance(base, Attentive)
    assert not isinstance(base, Drawer)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("see", SEES.values(), ids=SEES)
def test_scoring_gives_the_sampling_log_probabilities_back(
    base, tokenizer, problems, see, temperature
):
    contexts = [see(problem, tokenizer.encode) for problem in problems]
    sampling = Sampling(temperature=temperature, max_tokens=16)
    completions = base.sample(contexts, sampling, range(len(contexts)))
    assert len(set(completions.lengths)) > 2
    assert rescoring_error(base, contexts, completions, temperature) <= 1e-4


def test_a_row_depends_on_no_other(base, tokenizer, problems):
    """Students and teachers in one batch: contexts of three lengths."""
    contexts = [
        *(student_context(problem, tokenizer.encode) for problem in problems[:3]),
        *(teacher_context(problem, tokenizer.encode) for problem in problems[:3]),
        student_context(problems[0], tokenizer.encode)[:1],
    ]
    sampling, seeds = Sampling(max_tokens=12), list(range(7))
    together = base.sample(contexts, sampling, seeds)
    backwards = base.sample(contexts[::-1], sampling, seeds[::-1])
    scored = base(contexts, together.ids).split(list(together.lengths))
    for row, context in enumerate(contexts):
        alone = base.sample([context], sampling, seeds[row : row + 1])
        assert torch.equal(together.ids[row], alone.ids[0])
        assert torch.equal(together.ids[row], backwards.ids[-1 - row])
        expected = base([context], [together.ids[row]])
        torch.testing.assert_close(scored[row], expected, atol=1e-4, rtol=0)


def test_the_drawing_skipped_rule_holds_here_too(base, tokenizer, problems):
    (asks,) = tokenizer.encode(tiny.ASKS)
    shares = {tokenizer.marks.end: 0.15, asks: 0.3}
    asking = inclined(copy.deepcopy(base), problems, tokenizer, shares)
    contexts = [student_context(problem, tokenizer.encode) for problem in problems] * 3
    found = asking.sample(contexts, Sampling(max_tokens=24), range(24))
    assert any(not is_sampled.all() for is_sampled in found.is_sampled)
    assert rescoring_error(asking, contexts, found) <= 1e-4


def test_attention_is_that_of_whole_matrices(base, tokenizer, problems):
    """Ragged contexts in one batch against transformers' own output, a row alone."""
    contexts = [
        see(problem, tokenizer.encode)
        for see, problem in zip(SEES.values(), problems, strict=False)
    ]
    ids = [torch.arange(5, 9), torch.arange(5, 12)]
    before = base(contexts, ids)
    found = base.attention(contexts, ids, by_head=True)
    assert torch.equal(base(contexts, ids), before)  # nothing stays behind
    assert found.shape == (2, 4, 11, max(map(len, contexts)) + 1)
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(2, 4, 11), atol=1e-5, rtol=0)
    language_model = copy.deepcopy(base.janus.model.language_model)
    language_model.set_attn_implementation("eager")
    for row, context, own in zip(found.split([4, 7], dim=2), contexts, ids, strict=True):
        (start,) = base._embed_contexts([context])
        embedded = torch.cat([start, base._embed((base.begin, *own[:-1].tolist()))])[None]
        whole = language_model(inputs_embeds=embedded, output_attentions=True).attentions
        lengths = [*base.segment_lengths(context), len(own)]
        parts = torch.cat(whole)[:, :, -len(own) :].split(lengths, dim=-1)
        for segment, part in enumerate(parts):
            column = -1 if segment == len(context) else segment
            torch.testing.assert_close(row[..., column], part.sum(dim=-1), atol=1e-5, rtol=0)
    mean = base.attention(contexts, ids)
    torch.testing.assert_close(mean, found.mean(dim=1), atol=1e-6, rtol=0)


def test_image_marks_are_never_sampled(base, tokenizer, problems):
    """A finite mask: probability 0, and no NaN in a divergence."""
    marks = tokenizer.marks
    contexts = [student_context(problem, tokenizer.encode) for problem in problems]
    logits = base.logits(base(contexts, [torch.arange(9)] * 8))
    probabilities = logits.softmax(dim=-1)
    assert not probabilities[:, [marks.start_of_image, marks.end_of_image]].any()
    assert logits.isfinite().all()
    assert (probabilities * logits.log_softmax(dim=-1)).isfinite().all()


def test_logits_reduced_chunk_by_chunk_are_the_whole_reduced(
    base, tokenizer, problems, monkeypatch
):
    monkeypatch.setattr(janus_model, "CHUNK_SIZE", 5)
    contexts = [student_context(problem, tokenizer.encode) for problem in problems[:2]]
    hidden = base(contexts, [torch.arange(6)] * 2)
    found = base.logits(hidden, lambda logits, rows: logits.logsumexp(dim=-1) + rows.start)
    starts = torch.tensor([0] * 5 + [5] * 5 + [10] * 2)
    torch.testing.assert_close(found, base.logits(hidden).logsumexp(dim=-1) + starts)
    config = DivergenceConfig(top_k=16)
    chunked = base.logits(hidden, lambda logits, _: teacher_scores(logits, config))
    for one, other in zip(chunked, teacher_scores(base.logits(hidden), config), strict=True):
        torch.testing.assert_close(one, other)


def test_the_teacher_sees_the_visual_thought(base, tokenizer, problems):
    ids = [torch.arange(5)]
    swapped = replace(problems[0], visual_thoughts=problems[2].visual_thoughts)
    own, other = (
        base([teacher_context(problem, tokenizer.encode)], ids)
        for problem in (problems[0], swapped)
    )
    assert (own - other).abs().max() > 1e-3


def test_the_method_trains_it_without_knowing_its_name(base, tokenizer):
    quick = OptimiserConfig(learning_rate=1e-3, final_learning_rate=1e-3, num_warmup_steps=0)
    config = VisualOPSDConfig(optimiser=quick, teacher="ema")
    module = VisualOPSD(lambda: copy.deepcopy(base), tokenizer.encode, config)
    rollout = RolloutCallback(RolloutConfig(sampling=Sampling(max_tokens=8)), tokenizer.encode)
    tiny.fit(module, rollout, max_steps=2)
    before, after = (m.janus.lm_head.weight for m in (base, module.model))
    assert after.isfinite().all()
    assert not torch.equal(before, after)


def test_what_does_not_fit_is_an_error(base, tokenizer, problems):
    contexts = [student_context(problem, tokenizer.encode) for problem in problems]
    with pytest.raises(ValueError, match="8 contexts for 1 completions"):
        base(contexts, [torch.arange(3)])
    with pytest.raises(ValueError, match="8 contexts for 1 seeds"):
        base.sample(contexts, Sampling(), [0])
    with pytest.raises(ValueError, match="hides no segment"):
        base([knock_out(contexts[0], [1], "completion")], [torch.arange(3)])
