"""How the next token is chosen, on logits small enough to follow by hand."""

import math

import pytest
import torch

from visual_opsd.models.interface import Sampling
from visual_opsd.models.sampling import choose, decode_rows, row_noise

BEGIN, END, ASK, WORD = range(4)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_every_token_comes_as_often_as_its_probability(temperature):
    """Inverting the distribution function at even noise hits every token its share of times."""
    logits = torch.tensor([1.0, -2.0, 0.5, 3.0, -50.0])
    noise = (torch.arange(10_000) + 0.5) / 10_000
    ids, log_probs = choose(logits.expand(10_000, 5), temperature, noise)
    expected = (logits / temperature).softmax(dim=-1)
    shares = ids.bincount(minlength=5) / 10_000
    torch.testing.assert_close(shares, expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(log_probs, expected.log()[ids])


def test_greedy_takes_the_likeliest_and_reports_temperature_one():
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    ids, log_probs = choose(logits, 0, torch.rand(6))
    assert torch.equal(ids, logits.argmax(dim=-1))
    torch.testing.assert_close(log_probs, logits.log_softmax(dim=-1).amax(dim=-1))


@pytest.mark.parametrize("noise", [0.0, 1 - 2**-24])
def test_noise_at_either_end_stays_inside_the_vocabulary(noise):
    """An impossible token is never drawn, however the sum of probabilities is rounded."""
    logits = torch.full((1, 100_000), -1e9)
    logits[0, 7] = logits[0, 70_000] = 0.0
    ids, log_probs = choose(logits, 1.0, torch.tensor([noise]))
    assert ids.item() in (7, 70_000)
    assert log_probs.item() == pytest.approx(math.log(0.5))


def test_a_row_has_its_own_noise():
    noise = row_noise([3, 5], 8)
    assert torch.equal(noise[1:], row_noise([5], 8))
    assert not torch.equal(noise[0], noise[1])
    assert ((noise >= 0) & (noise < 1)).all()


def script_of(*scripts, **settings):
    """Decode rows whose model says word for word what is written; what it was told besides."""
    told: list[list[int]] = [[] for _ in scripts]
    alive = list(range(len(scripts)))

    def step(tokens):
        logits = torch.zeros(len(alive), 4)
        for slot, row in enumerate(alive):
            told[row].append(int(tokens[slot]))
            position = len(told[row]) - 1
            logits[slot, scripts[row][position]] = 100.0
        return logits

    def keep_rows(kept):
        alive[:] = [alive[slot] for slot in kept.tolist()]

    found = decode_rows(
        step,
        keep_rows,
        begin=BEGIN,
        end=END,
        sampling=Sampling(**{"temperature": 0, "max_tokens": 12, **settings}),
        seeds=range(len(scripts)),
        asks_for_drawing=lambda ids: ASK in ids,
        device=torch.device("cpu"),
    )
    return found, told


def test_a_model_reads_what_it_wrote():
    found, told = script_of([WORD, WORD, END], [END], [WORD, END])
    assert [ids.tolist() for ids in found.ids] == [[WORD, WORD, END], [END], [WORD, END]]
    assert told == [[BEGIN, WORD, WORD], [BEGIN], [BEGIN, WORD]]
    assert found.is_cut == (False, False, False)


def test_where_a_drawing_is_skipped_the_model_reads_a_begin_mark():
    # What the model says where the mark is injected is not heard.
    found, told = script_of([ASK, END, WORD, WORD, END], [WORD, END])
    assert found.ids[0].tolist() == [ASK, END, BEGIN, WORD, END]
    assert found.is_sampled[0].tolist() == [True, True, False, True, True]
    assert found.log_probs[0][2] == 0
    assert told[0] == [BEGIN, ASK, END, BEGIN, WORD]
    assert found.is_sampled[1].all()


def test_every_round_must_ask_again():
    script = [ASK, END, WORD, WORD, END, WORD, WORD]
    found, _ = script_of(script, max_drawings_skipped=5)
    assert found.ids[0].tolist() == [ASK, END, BEGIN, WORD, END]
    again = [ASK, END, WORD, ASK, END, WORD, WORD, END]
    found, _ = script_of(again, max_drawings_skipped=5)
    assert found.ids[0].tolist() == [ASK, END, BEGIN, ASK, END, BEGIN, WORD, END]


def test_the_last_skip_is_the_last():
    script = [ASK, END, WORD, ASK, END, WORD, WORD, END]
    found, _ = script_of(script, max_drawings_skipped=1)
    assert found.ids[0].tolist() == [ASK, END, BEGIN, ASK, END]
    found, _ = script_of(script, max_drawings_skipped=0)
    assert found.ids[0].tolist() == [ASK, END]


@pytest.mark.parametrize("budget", [2, 3, 4])
def test_a_begin_mark_is_injected_only_where_a_token_still_fits_behind(budget):
    found, _ = script_of([ASK, END, WORD, WORD], max_tokens=budget)
    expected = [ASK, END, BEGIN, WORD] if budget == 4 else [ASK, END]
    assert found.ids[0].tolist() == expected
    assert found.is_cut == (budget == 4,)
