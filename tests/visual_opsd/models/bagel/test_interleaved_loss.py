"""Interleaved SFT: cross-entropy on texts and a flow loss on drawings, in one pass."""

from dataclasses import replace

import pytest
import torch

from tests import tiny
from visual_opsd.contexts import Image, Text, student_context
from visual_opsd.demonstrations import interleaved, privileged, text_only
from visual_opsd.models.bagel.model import BagelModel


def rows_of(problems, tokenizer, num_noised=1):
    return [interleaved(problem, tokenizer.encode, num_noised) for problem in problems]


def test_padded_and_packed_rows_cost_alike(base, tokenizer, problems, monkeypatch):
    rows = [
        *rows_of(problems[:3], tokenizer, num_noised=2),
        text_only(problems[3], tokenizer.encode),
        privileged(problems[4], tokenizer.encode),
    ]
    losses = []
    for is_padded in (True, False):
        monkeypatch.setattr(BagelModel, "is_padded", is_padded)
        losses.append(base.interleaved_loss(rows, range(5)))
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=0)
    assert all(loss > 0 for loss in losses[0].values())


def test_the_text_loss_is_the_negative_log_probability_of_scoring(base, tokenizer, problems):
    """The target's own ids and its end mark, a mean over tokens."""
    contexts = [student_context(problem, tokenizer.encode) for problem in problems[:3]]
    targets = [tuple(range(10, 10 + length)) for length in (3, 8, 1)]
    rows = [
        (*context, Text(ids, is_target=True))
        for context, ids in zip(contexts, targets, strict=True)
    ]
    completions = [torch.tensor([*ids, tokenizer.marks.end]) for ids in targets]
    log_probs = base.logits(base(contexts, completions)).log_softmax(dim=-1)
    expected = -log_probs.gather(-1, torch.cat(completions)[:, None]).mean()
    losses = base.interleaved_loss(rows, range(3))
    torch.testing.assert_close(losses["text"], expected)
    assert losses["drawing"] == 0


def test_noised_copies_are_invisible_to_everything_else(base, tokenizer, problems):
    """However many copies of the drawing are noised, the text that follows reads the same."""
    none = [
        tuple(
            replace(part, num_noised=0, with_latents=True) if isinstance(part, Image) else part
            for part in row
        )
        for row in rows_of(problems[:3], tokenizer)
    ]
    expected = base.interleaved_loss(none, range(3))["text"]
    for num_noised in (1, 2, 5):
        rows = rows_of(problems[:3], tokenizer, num_noised)
        losses = base.interleaved_loss(rows, range(3))
        torch.testing.assert_close(losses["text"], expected, atol=1e-5, rtol=0)


def test_every_row_has_its_own_noise(base, tokenizer, problems):
    rows = rows_of(problems[:4], tokenizer)
    loss = base.interleaved_loss(rows, [5, 6, 7, 8])
    backwards = base.interleaved_loss(rows[::-1], [8, 7, 6, 5])
    torch.testing.assert_close(loss, backwards, atol=1e-5, rtol=0)
    other = base.interleaved_loss(rows, [5, 6, 7, 9])
    assert (loss["drawing"] - other["drawing"]).abs() > 1e-3
    torch.testing.assert_close(loss["text"], other["text"])


def test_the_gradient_reaches_both_experts_and_no_codec(model, tokenizer, problems):
    losses = model.interleaved_loss(rows_of(problems[:2], tokenizer, num_noised=2), [0, 1])
    (losses["text"] + losses["drawing"]).backward()
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            assert weight.grad is None, name
        else:
            assert weight.grad is not None, name
            assert weight.grad.isfinite().all(), name
    assert model.llm2vae.weight.grad.abs().sum() > 0
    assert model.vae2llm.weight.grad.abs().sum() > 0
    assert not [weight for weight in model.codec.parameters() if weight.requires_grad]


def test_a_row_without_targets_costs_nothing(base, tokenizer, problems):
    losses = base.interleaved_loss([student_context(problems[0], tokenizer.encode)], [0])
    assert losses == {"text": 0, "drawing": 0}


@pytest.mark.parametrize("experts", ["separate", "shared"])
def test_both_kinds_of_experts_learn(tokenizer, problems, experts):
    """Shared weights are the Transfusion architecture: no weight of a second expert is left."""
    config = tiny.with_experts(tiny.configuration(tokenizer.marks), experts)
    model = tiny.make_model(tokenizer, problems, config)
    names = [name for name in model.state_dict() if "_moe_gen" in name]
    assert bool(names) == (experts == "separate")
    rows = rows_of(problems[:4], tokenizer)
    optimiser = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=3e-3)
    history = []
    for _ in range(6):
        losses = model.interleaved_loss(rows, range(4))
        history.append({key: loss.item() for key, loss in losses.items()})
        (losses["text"] + losses["drawing"]).backward()
        optimiser.step()
        optimiser.zero_grad()
    for key in ("text", "drawing"):
        assert history[-1][key] < 0.95 * history[0][key]


def test_the_autoencoder_of_the_7b_trains_too(tokenizer, problems):
    model = tiny.make_autoencoder_model(tokenizer)
    rows = rows_of(problems[:2], tokenizer, num_noised=2)
    losses = model.interleaved_loss(rows, [0, 1])
    (losses["text"] + losses["drawing"]).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert model.llm2vae.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in model.codec.parameters())


def test_reading_a_drawing_afterwards_changes_nothing_about_drawing_it(base, tokenizer, problems):
    """Text to image: the target ends the row, and costs what it costs in a longer one."""
    starts = [row[:-1] for row in rows_of(problems[:3], tokenizer)]
    alone = [
        (*row[:-1], replace(row[-1], with_latents=False, with_patches=False)) for row in starts
    ]
    losses = [base.interleaved_loss(rows, range(3)) for rows in (starts, alone)]
    torch.testing.assert_close(losses[0]["text"], losses[1]["text"], atol=1e-5, rtol=0)
    # The clean copy takes noise from the row's stream after the target has.
    torch.testing.assert_close(losses[0]["drawing"], losses[1]["drawing"], atol=1e-5, rtol=0)
    assert losses[1]["drawing"] > 0


def test_padded_encoding_lets_batch_mates_of_another_size_in(tokenizer, problems):
    """The official trainer's quirk; off by default."""
    model = tiny.make_autoencoder_model(tokenizer)
    assert problems[0].image.pixels.shape == problems[2].image.pixels.shape
    same, mixed = rows_of((problems[0], problems[2]), tokenizer), rows_of(problems[:2], tokenizer)
    for rows, has_changed in ((same, False), (mixed, True)):
        one, padded = (
            model.interleaved_loss(rows, [0, 1], pads_images=pads)["drawing"]
            for pads in (False, True)
        )
        assert torch.allclose(one, padded, atol=1e-5, rtol=0) != has_changed
