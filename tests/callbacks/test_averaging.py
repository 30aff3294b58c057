"""A moving average of the weights, for scoring and shipping."""

import copy

import lightning as L
import pytest
import torch

from callbacks.averaging import AveragedWeights
from lightning_modules.optimisation import OptimiserConfig
from lightning_modules.sft import SFTConfig, SupervisedFineTuning
from tests import tiny

QUICK = OptimiserConfig(learning_rate=1e-2, final_learning_rate=1e-2, num_warmup_steps=0)
NAME = "language_model.lm_head.weight"


@pytest.fixture
def train(base, tokenizer):
    def run(*callbacks, **options):
        config = SFTConfig(mix={"text_only": 1.0}, optimiser=QUICK)
        module = SupervisedFineTuning(lambda: copy.deepcopy(base), tokenizer.encode, config)
        tiny.fit(module, *callbacks, **options)
        return module.model.language_model.lm_head.weight.detach()

    return run


class Weights(L.Callback):
    """The weights before every batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(pl_module.model.language_model.lm_head.weight.detach().clone())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_follows_once_an_optimiser_step(train, accumulate):
    averaged, weights = AveragedWeights(0.8), Weights()
    last = train(averaged, weights, max_steps=3, accumulate_grad_batches=accumulate)
    steps = [*weights.seen[::accumulate], last]
    expected = steps[0]
    for weight in steps[1:]:
        expected = 0.8 * expected + 0.2 * weight
    torch.testing.assert_close(averaged.memory.weights[NAME], expected)


def test_training_never_sees_it(train):
    assert torch.equal(train(max_steps=3), train(AveragedWeights(0.8), max_steps=3))


def test_it_goes_on_where_a_checkpoint_left_it(train):
    whole, first = AveragedWeights(0.8), AveragedWeights(0.8)
    train(whole, max_steps=3)
    train(first, max_steps=3)
    second = AveragedWeights(0.8)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, max_steps=3)
    steps = Weights()
    last = train(steps, max_steps=3)
    expected = first.memory.weights[NAME]
    for weight in [*steps.seen[1:], last]:
        expected = 0.8 * expected + 0.2 * weight
    torch.testing.assert_close(second.memory.weights[NAME], expected)
