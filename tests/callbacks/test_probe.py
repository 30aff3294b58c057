"""A probe looks on; without it not a bit of the run is another."""

import copy

import lightning as L
import pytest
import torch

from callbacks.probe import Probe
from callbacks.rollout import RolloutCallback, RolloutConfig
from lightning_modules.optimisation import OptimiserConfig
from lightning_modules.visual_opsd import VisualOPSD, VisualOPSDConfig
from tests import tiny
from visual_opsd.contexts import student_context
from visual_opsd.models.interface import Sampling

QUICK = OptimiserConfig(learning_rate=1e-2, final_learning_rate=1e-2, num_warmup_steps=0)
SAMPLING = Sampling(max_tokens=6)


@pytest.fixture
def train(base, tokenizer):
    def run(*callbacks, **options):
        config = VisualOPSDConfig(optimiser=QUICK, teacher="ema", ema_decay=0.5)
        module = VisualOPSD(lambda: copy.deepcopy(base), tokenizer.encode, config)
        rollout = RolloutCallback(RolloutConfig(sampling=SAMPLING), tokenizer.encode)
        tiny.fit(module, rollout, *callbacks, **options)
        return module

    return run


class Dice(L.Callback):
    """Whatever else in a run may draw from the global random state."""

    def __init__(self):
        self.thrown = []

    def on_train_batch_start(self, *_):
        self.thrown.append(torch.rand(()).item())


class Steps(Probe):
    """Keeps the steps at which it looked."""

    def __init__(self, every):
        super().__init__(lambda model: {}, every)
        self.steps = []

    def _look(self, trainer, pl_module):
        self.steps.append(trainer.global_step)
        super()._look(trainer, pl_module)


def test_removing_a_probe_changes_no_bit(train, tokenizer, problems):
    """Though it samples, draws random numbers and forgets to put anything back."""
    looks = []

    def measure(model):
        looks.append(torch.is_grad_enabled())
        contexts = [student_context(problem, tokenizer.encode) for problem in problems]
        found = model.sample(contexts, SAMPLING, range(len(contexts)))
        torch.rand(3)
        torch.manual_seed(len(looks))
        return {"tokens": float(sum(found.lengths))}

    without_dice, beside_dice = Dice(), Dice()
    torch.manual_seed(0)
    without = train(without_dice, max_steps=3)
    torch.manual_seed(0)
    beside = train(beside_dice, Probe(measure, every=1), max_steps=3)
    assert without_dice.thrown == beside_dice.thrown
    assert looks == [False] * 4  # before the first step and after each
    for (name, one), other in zip(
        without.model.state_dict().items(), beside.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    for name, weight in without.teacher.weights.items():
        assert torch.equal(weight, beside.teacher.weights[name]), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_looks_at_the_start_and_every_so_many_steps(train, accumulate):
    probe = Steps(every=2)
    train(probe, max_steps=5, accumulate_grad_batches=accumulate)
    assert probe.steps == [0, 2, 4]


def test_it_looks_where_a_pass_ends_in_the_middle_of_a_step(train):
    """It did not: six batches by four end with a step of two, which it took for none."""
    probe = Steps(every=1)
    train(probe, max_steps=4, accumulate_grad_batches=4)
    assert probe.steps == [0, 1, 2, 3, 4]


def test_what_it_finds_is_logged_at_its_step(train, tmp_path):
    logger = L.pytorch.loggers.CSVLogger(tmp_path)
    train(Probe(lambda model: {"held_out/found": 0.25}, every=2), logger=logger, max_steps=2)
    lines = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    header = lines[0].split(",")
    rows = [dict(zip(header, line.split(","), strict=True)) for line in lines[1:]]
    found = {row["step"]: row["held_out/found"] for row in rows if row["held_out/found"]}
    assert found == {"0": "0.25", "2": "0.25"}
