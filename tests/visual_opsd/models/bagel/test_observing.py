"""Attention is the layers' own, added up by segment; and a knocked-out segment gets none of it."""

import math
from dataclasses import replace

import pytest
import torch
from transformers.models.qwen2.modeling_qwen2 import rotate_half

from visual_opsd.contexts import (
    Role,
    Text,
    drawing_context,
    images_in,
    knock_out,
    student_context,
    teacher_context,
)
from visual_opsd.models.bagel import observing
from visual_opsd.models.bagel.model import BagelModel
from visual_opsd.models.bagel.observing import attention_to_image
from visual_opsd.models.bagel.packing import Source, completed_rows, pack
from visual_opsd.models.interface import Drawing, Sampling
from visual_opsd.rollouts.trajectories import rescoring_error

LENGTHS = (3, 1, 7, 5)


@pytest.fixture
def contexts(problems, tokenizer):
    """Ragged: a student, a teacher, one that drew and thinks on, a teacher of another size."""
    encode = tokenizer.encode
    thought = replace(problems[2].visual_thoughts[0], with_latents=True)
    drawn = drawing_context(problems[2], encode, Text(encode("<think>"))).written(thought)
    return [
        student_context(problems[0], encode),
        teacher_context(problems[1], encode),
        drawn.main,
        teacher_context(problems[3], encode),
    ]


@pytest.fixture
def completions():
    return [torch.arange(5, 5 + length) for length in LENGTHS]


def heads(attention, name, which, x):
    """One expert's queries, keys or values [tokens, heads, 8], normalised but for values."""
    y = attention.expert(f"{name}_proj", which)(x).unflatten(1, (-1, 8))
    return y if name == "v" else attention.expert(f"{name}_norm", which)(y)


@torch.no_grad()
def eager(model, contexts, completions):
    """All layers' probabilities of a row alone, whole: [layers, heads, time, time] a row.

    From what goes into each layer; what comes out of it shows that they are the layer's own.
    """
    found = []
    for context, ids in zip(contexts, completions, strict=True):
        packed = pack(completed_rows([context], [ids], model.config)[0])
        layers = []

        def look(module, given, attended, packed=packed, layers=layers):
            streams, layout = given[:2]
            q, k, v = (
                layout.gather([heads(module, name, *part) for part in streams.items()])[0]
                for name in "qkv"
            )
            q, k = (x * layout.cos[0] + rotate_half(x) * layout.sin[0] for x in (q, k))
            k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
            scores = q.transpose(0, 1) @ k.permute(1, 2, 0) / math.sqrt(8)
            probabilities = scores.where(packed.mask[0], -math.inf).softmax(dim=-1)
            mixed = (probabilities @ v.transpose(0, 1)).transpose(0, 1).flatten(1)
            again = module.each("o_proj", layout.scatter(mixed[None], streams))
            for which, out in again.items():
                torch.testing.assert_close(out, attended[which], atol=1e-5, rtol=0)
            layers.append(probabilities)

        hooks = [
            layer.self_attn.register_forward_hook(look)
            for layer in model.language_model.model.layers
        ]
        model([context], [ids])
        for hook in hooks:
            hook.remove()
        found.append(torch.stack(layers))
    return found


@pytest.mark.parametrize("is_padded", [True, False])
@pytest.mark.parametrize("at_a_time", [2**26, 1000])
def test_shares_are_those_of_whole_matrices(
    model, contexts, completions, monkeypatch, is_padded, at_a_time
):
    """Ragged contexts in one batch, padded or packed, against each row's own dense softmax."""
    monkeypatch.setattr(BagelModel, "is_padded", is_padded)
    monkeypatch.setattr(observing, "PROBABILITIES_AT_A_TIME", at_a_time)
    found = model.attention(contexts, completions, by_head=True)
    assert found.shape == (2, 4, sum(LENGTHS), max(map(len, contexts)) + 1)
    rows = found.split(LENGTHS, dim=2)
    whole = eager(model, contexts, completions)
    for row, probabilities, context, length in zip(rows, whole, contexts, LENGTHS, strict=True):
        sizes = [*model.segment_lengths(context), length]
        assert sum(sizes) == probabilities.shape[-1]
        parts = probabilities[:, :, -length:].split(sizes, dim=-1)
        for segment, part in enumerate(parts):
            column = -1 if segment == len(context) else segment
            torch.testing.assert_close(row[..., column], part.sum(dim=-1), atol=1e-5, rtol=0)
        assert not row[..., len(context) : -1].any()
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(found.shape[:-1]), atol=1e-5, rtol=0)
    mean = model.attention(contexts, completions)
    torch.testing.assert_close(mean, found.mean(dim=1), atol=1e-6, rtol=0)


def test_forgetting_the_head_size_would_be_seen(model, contexts, completions):
    """The first release's recorder left out 1 / sqrt(head size): its shares were too sharp."""
    found = model.attention(contexts[:1], completions[:1])
    for layer in model.language_model.model.layers:  # queries sqrt(8) times as long
        layer.self_attn.q_norm.weight.data.mul_(math.sqrt(8))
    assert (model.attention(contexts[:1], completions[:1]) - found).abs().max() > 1e-2


def test_looking_changes_no_bit_of_what_is_said(model, contexts, completions):
    before = model(contexts, completions)
    model.attention(contexts, completions)
    assert torch.equal(model(contexts, completions), before)


def test_a_thought_looks_as_if_nothing_came_behind_it(model, tokenizer, contexts):
    """Given as a completion of what stands before it: row for row what it does in its place."""
    context = contexts[2]
    thought, place = context[3], sum(model.segment_lengths(context)[:3])
    ids = torch.tensor([*thought.ids, tokenizer.marks.end])
    (whole,) = eager(model, [context], [torch.arange(4)])
    parts = whole[:, :, place : place + len(ids)].split(
        [*model.segment_lengths(context), 4], dim=-1
    )
    found = model.attention([context[:3]], [ids], by_head=True)
    for segment in range(4):
        expected = parts[segment].sum(dim=-1)
        torch.testing.assert_close(found[..., segment], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("source", list(Source)[1:])
def test_what_goes_to_an_image_goes_to_its_cells_and_marks(model, contexts, source):
    context, ids = contexts[2], torch.arange(5, 12)
    (thought,) = images_in(context, Role.VISUAL_THOUGHT)
    (whole,) = eager(model, [context], [ids])
    cells = attention_to_image(model, context, ids, thought, source, by_head=True)
    assert cells.shape == (2, 4, 7, 3, 3)
    start = sum(model.segment_lengths(context)[:thought]) + (source is Source.PATCH) * 11 + 1
    expected = whole[:, :, -7:, start : start + 9]
    torch.testing.assert_close(cells.flatten(3), expected, atol=1e-5, rtol=0)


def test_an_image_that_is_not_shown_so_is_named(model, contexts):
    ids = torch.arange(3)
    with pytest.raises(ValueError, match="segment 0 of a context of 3 is a text"):
        attention_to_image(model, contexts[0], ids, 0)
    with pytest.raises(ValueError, match="segment 1 is not shown as latent"):
        attention_to_image(model, contexts[0], ids, 1, Source.LATENT)


# Knock-out


def thought_in(context):
    (segment,) = images_in(context, Role.VISUAL_THOUGHT)
    return segment


def without(model, context, segment, ids):
    """States of a completion in a row that lacks a segment, where all others keep their place."""
    (row,), _ = completed_rows([context], [ids], model.config)
    _, images = completed_rows([context[:segment] + context[segment + 1 :]], [ids], model.config)
    gone = [index for index, block in enumerate(row) if block.segment == segment]
    before = gone[0] - 1
    advance = row[before].advance + sum(row[index].advance for index in gone)
    row[before] = replace(row[before], advance=advance)
    packed, streams = model._run([[b for b in row if b.segment != segment]], images)
    return model._predicting(packed, streams)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
@pytest.mark.parametrize("row", [1, 2], ids=["teacher", "thinking on"])
@torch.no_grad()
def test_hidden_from_all_behind_it_is_not_there_but_for_its_place(model, contexts, row, kernel):
    """Positions stay, and nothing else does."""
    model.run_with(kernel=kernel)
    context, ids = contexts[row], torch.arange(5, 12)
    thought = thought_in(context)
    found = model([knock_out(context, [thought], "all_behind")], [ids])
    torch.testing.assert_close(found, without(model, context, thought, ids), atol=1e-5, rtol=0)
    assert (found - model([context], [ids])).abs().max() > 1e-3


@torch.no_grad()
def test_hidden_from_the_completion_texts_between_have_still_read_it(model, contexts):
    """The teacher's transition saw the visual thought and tells of it; with no text between,
    hiding it from the completion hides it from all.
    """
    context, ids = contexts[1], torch.arange(5, 12)
    thought = thought_in(context)
    for is_told, cut in ((True, context), (False, context[: thought + 1])):
        alone, from_all = (
            model([knock_out(cut, [thought], who)], [ids]) for who in ("completion", "all_behind")
        )
        assert ((alone - from_all).abs().max() > 1e-3) == is_told
    given = model.attention([knock_out(context, [thought], "completion")], [ids])
    assert not given[..., thought].any()
    torch.testing.assert_close(given.sum(dim=-1), torch.ones(2, 7), atol=1e-5, rtol=0)


@torch.no_grad()
def test_knocking_out_nothing_changes_no_bit(model, contexts, completions):
    same = [knock_out(context, [], "completion") for context in contexts]
    assert torch.equal(model(same, completions), model(contexts, completions))


@pytest.mark.parametrize("is_padded", [True, False])
@torch.no_grad()
def test_a_knock_out_stays_in_its_row(model, contexts, completions, monkeypatch, is_padded):
    monkeypatch.setattr(BagelModel, "is_padded", is_padded)
    cut = list(contexts)
    cut[1] = knock_out(contexts[1], [thought_in(contexts[1])], "all_behind")
    before, after = (model(c, completions).split(LENGTHS) for c in (contexts, cut))
    moved = [float((a - b).abs().max()) for a, b in zip(before, after, strict=True)]
    assert moved[1] > 1e-3
    assert max(moved[0], *moved[2:]) < 1e-5
    alone = model(cut[1:2], completions[1:2])
    torch.testing.assert_close(after[1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("hidden_from", ["completion", "all_behind"])
def test_sampling_looks_away_from_what_scoring_does(model, contexts, hidden_from):
    """Re-scored, a completion gives its sampling log-probabilities back: both hide the same."""
    cut = [
        knock_out(context, images_in(context, Role.VISUAL_THOUGHT), hidden_from)
        for context in contexts
    ]
    found = model.sample(cut, Sampling(max_tokens=16), range(4))
    assert rescoring_error(model, cut, found) <= 1e-4
    assert rescoring_error(model, contexts, found) > 1e-3


def test_what_cannot_be_hidden_is_refused(model, problems, tokenizer, contexts):
    start = drawing_context(problems[0], tokenizer.encode)
    start = replace(start, main=knock_out(start.main, [1], "all_behind"))
    with pytest.raises(ValueError, match="knock out nothing"):
        model.draw([start], Drawing(num_timesteps=2), [0])
    with pytest.raises(ValueError, match=r"no segments \[7\] in a context of 3"):
        knock_out(contexts[0], [7], "completion")
