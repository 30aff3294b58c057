"""Every second of a run belongs to one phase."""

import copy
import time

import lightning as L
import pytest

from callbacks.phases import PhaseClock, Throughput
from callbacks.rollout import RolloutCallback, RolloutConfig
from datamodules.mazes import MazeData
from lightning_modules.visual_opsd import VisualOPSD, VisualOPSDConfig
from tests import tiny
from visual_opsd.models.interface import Sampling

pytestmark = pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")


def test_what_starts_within_a_phase_interrupts_it():
    clock = PhaseClock()
    with clock.profile("[Strategy]Any.training_step"):
        time.sleep(0.02)
        with clock.profile("teacher"):
            time.sleep(0.05)
        with clock.profile("something of no interest"):
            time.sleep(0.01)
    assert clock.phase == "other"
    assert 0.05 <= clock.seconds["teacher"] < 0.08
    assert 0.03 <= clock.seconds["student"] < 0.05


@pytest.fixture
def trained(base, tokenizer, tmp_path):
    """Four steps; what was logged."""
    module = VisualOPSD(lambda: copy.deepcopy(base), tokenizer.encode, VisualOPSDConfig())
    clock = PhaseClock()
    watch = Throughput(clock, 2, tmp_path, patience_seconds=60)
    rollout = RolloutCallback(RolloutConfig(sampling=Sampling(max_tokens=8)), tokenizer.encode)
    trainer = tiny.quiet_trainer(rollout, watch, max_steps=4, profiler=clock, log_every_n_steps=1)
    trainer.fit(module, MazeData.generated(tiny.SETTINGS, batch_size=2, num_problems=12))
    return trainer.callback_metrics


def test_a_report_has_every_phase_and_they_fill_the_time(trained):
    shares = {k: float(v) for k, v in trained.items() if k.startswith("share/")}
    assert {"share/sampling", "share/teacher", "share/student", "share/optimiser"} <= shares.keys()
    for phase in ("sampling", "teacher", "student"):
        assert shares[f"share/{phase}"] > 0
    assert sum(shares.values()) == pytest.approx(1, abs=0.05)
    assert trained["speed/tokens_a_second"] > trained["speed/samples_a_second"] > 0
    assert 0.01 < trained["peak_gb/rank_0"] < 64


def test_a_rank_that_stands_still_names_itself_and_its_phase(tmp_path, capfd):
    clock = PhaseClock()
    watch = Throughput(clock, 1, tmp_path, patience_seconds=0.1)
    trainer = tiny.quiet_trainer()
    watch.on_train_start(trainer, L.LightningModule())
    with clock.profile("sampling"):
        time.sleep(0.4)
    watch.on_train_end(trainer, L.LightningModule())
    text = (tmp_path / "stuck_rank_0.txt").read_text()
    assert text.startswith("rank 0 has been in phase 'sampling' for ")
    assert capfd.readouterr().err.count("phase 'sampling'") == 1
