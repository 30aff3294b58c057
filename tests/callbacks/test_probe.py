"""A probe looks on; without it not a bit of the run is another."""

import copy
import csv

import lightning as L
import pytest
import torch

from callbacks.monitor import CollapseMonitor
from callbacks.probe import Probe
from callbacks.rollout import RolloutCallback, RolloutConfig
from callbacks.saving import SavePoints, saved_steps
from callbacks.stopping import EarlyStop
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


def logged(folder):
    """The rows that a CSVLogger wrote."""
    with (folder / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_removing_the_collapse_monitor_changes_no_bit(train, tokenizer, tmp_path):
    """What it logs: completions are varied, and what is scored is what was sampled."""
    monitor = CollapseMonitor(tokenizer.encode, tokenizer.decode, every=1)
    logger = L.pytorch.loggers.CSVLogger(tmp_path)
    beside = train(monitor, logger=logger, log_every_n_steps=1, max_steps=2)
    without = train(max_steps=2)
    for name, one in without.model.state_dict().items():
        assert torch.equal(one, beside.model.state_dict()[name]), name
    rows = [row for row in logged(tmp_path) if row["monitor/distinct_2"]]
    assert len(rows) == 2
    for row in rows:
        assert 0 < float(row["monitor/distinct_2"]) <= 1
        assert float(row["monitor/format_rate"]) == 0  # random weights know no form
        assert float(row["monitor/rescoring_error"]) < 1e-4
        assert float(row["train/entropy"]) > 0


def test_a_probe_of_the_teacher_looks_at_the_teachers_weights(train):
    """The moving average halves the way; it is looked at before it follows its last step."""
    weights = []

    def measure(model):
        weights.append(model.language_model.lm_head.weight.clone())
        return {}

    module = train(Probe(measure, every=1), Probe(measure, every=1, of_teacher=True), max_steps=2)
    start, start_teacher, _, first_teacher, last, last_teacher = weights
    assert torch.equal(start, start_teacher)
    assert torch.equal(first_teacher, start)
    assert not torch.equal(last_teacher, last)
    (name,) = [name for name in module.teacher.weights if name.endswith("lm_head.weight")]
    torch.testing.assert_close(module.teacher.weights[name], (last_teacher + last) / 2)


def test_a_run_ends_when_its_score_has_not_risen_for_so_many_looks(train, tmp_path):
    """And leaves a checkpoint of where it ended."""
    scores = iter([0.3, 0.5, 0.6, 0.6, 0.4, 0.9, 0.9])
    probe = Probe(lambda model: {"score": next(scores)}, every=1)
    stop = EarlyStop(probe, "score", patience=2)
    train(probe, stop, SavePoints(tmp_path, 100), max_steps=6, enable_checkpointing=True)
    assert saved_steps(tmp_path) == [4]
    assert stop.state_dict() == {"best": 0.6, "num_worse": 2}
    resumed = EarlyStop(probe, "score", patience=2)
    resumed.load_state_dict(stop.state_dict())
    assert resumed.state_dict() == stop.state_dict()
