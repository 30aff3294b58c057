"""Supervised fine-tuning on demonstrations of several kinds."""

import copy
from collections import Counter

import lightning as L
import pytest
import torch

from lightning_modules.optimisation import OptimiserConfig
from lightning_modules.sft import SFTConfig, SupervisedFineTuning
from tests import tiny
from visual_opsd import demonstrations
from visual_opsd.contexts import Image, Text

QUICK = OptimiserConfig(learning_rate=1e-2, final_learning_rate=1e-2, num_warmup_steps=0)


@pytest.fixture
def module_of(base, tokenizer):
    def make(**settings):
        config = SFTConfig(**{"optimiser": QUICK, **settings})
        return SupervisedFineTuning(lambda: copy.deepcopy(base), tokenizer.encode, config)

    return make


def kind_of(row):
    pictures = [part for part in row if isinstance(part, Image)]
    if any(picture.num_noised for picture in pictures):
        return "interleaved"
    if len(pictures) == 1:
        return "text_only or no_vt"
    return "blank" if not pictures[1].pixels.any() else "privileged"


def test_rows_come_in_the_shares_of_the_mix(module_of, problems):
    mix = {
        "interleaved": 0.4,
        "text_only": 0.1,
        "privileged": 0.3,
        "privileged:no_vt": 0.1,
        "privileged:blank": 0.1,
    }
    module = module_of(mix=mix)
    kinds = Counter(
        kind_of(module.demonstrate(problems[0], problems[2], seed)) for seed in range(600)
    )
    shares = {kind: count / 600 for kind, count in kinds.items()}
    expected = {"interleaved": 0.4, "privileged": 0.3, "text_only or no_vt": 0.2, "blank": 0.1}
    assert shares == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("kind", ["interleaved", "text_only", "privileged", "privileged:other_vt"])
def test_every_kind_of_row_trains(module_of, problems, kind):
    """A row is a function of its seed, and what it is trained to write ends with the answer."""
    module = module_of(mix={kind: 1.0}, num_noised=2)
    row = module.demonstrate(problems[0], problems[2], 5)
    again = module.demonstrate(problems[0], problems[2], 5)
    for one, other in zip(row, again, strict=True):
        if isinstance(one, Text):
            assert one == other
        else:
            assert torch.equal(one.pixels, other.pixels)
    assert row[-1].is_target
    module.configure_model()
    losses = module.model.interleaved_loss([row], [5])
    assert losses["text"] > 0
    assert (losses["drawing"] > 0) == (kind == "interleaved")


def test_training_lowers_both_losses(module_of):
    class Losses(L.Callback):
        def __init__(self):
            self.text, self.drawing = [], []

        def on_train_batch_end(self, trainer, *_):
            self.text.append(float(trainer.callback_metrics["train/text_loss"]))
            self.drawing.append(float(trainer.callback_metrics["train/drawing_loss"]))

    losses = Losses()
    tiny.fit(module_of(mix={"interleaved": 1.0}), losses, max_steps=12)
    for history in (losses.text, losses.drawing):
        assert sum(history[-4:]) < 0.9 * sum(history[:4])


def test_the_drawing_weight_scales_the_drawing_alone(module_of, base, tokenizer):
    """At weight 0 the first step leaves alone what only draws."""
    module = module_of(mix={"interleaved": 1.0}, drawing_weight=0.0)
    tiny.fit(module, max_steps=1)
    before, after = base.llm2vae.weight, module.model.llm2vae.weight
    torch.testing.assert_close(before, after, atol=1e-6, rtol=0)
    assert not torch.equal(
        base.language_model.lm_head.weight, module.model.language_model.lm_head.weight
    )


@pytest.mark.parametrize(
    ("mix", "named"),
    [
        ({"text_only": 0.5}, r"must sum to 1, got \{'text_only': 0\.5\}"),
        ({"text_only": 1.5, "privileged": -0.5}, "negative"),
        ({"textonly": 1.0}, "unknown kind of row: 'textonly'"),
        ({"privileged:blurry": 1.0}, "unknown intervention 'blurry': did you mean 'blurred'"),
        ({"privileged:": 1.0}, "unknown intervention ''"),
        ({"text_only:blank": 1.0}, "unknown kind of row: 'text_only:blank'"),
    ],
)
def test_a_mix_that_makes_no_sense_is_refused(mix, named):
    with pytest.raises(ValueError, match=named):
        SFTConfig(mix=mix)


def test_without_a_mix_there_is_nothing_to_imitate(module_of):
    """Other methods' configurations carry an empty one."""
    with pytest.raises(ValueError, match=r"sft\.mix is empty"):
        module_of(mix={})


def test_rows_scored_apart_weigh_as_they_would_together(module_of, problems):
    """Rows that draw are batched apart for speed; the losses are those of one batch."""
    module = module_of(mix={"interleaved": 0.5, "text_only": 0.25, "privileged": 0.25})
    module.configure_model()
    seeds = list(range(12))
    rows = [module.demonstrate(problems[0], problems[2], seed) for seed in seeds]
    assert 0 < sum(demonstrations.draws(row) for row in rows) < len(rows)
    together = module.model.interleaved_loss(rows, seeds)
    apart = module._losses(rows, seeds)
    for key in ("text", "drawing"):
        assert torch.allclose(apart[key], together[key], atol=1e-5)
