"""What has a name can be gone on from; who is told to leave saves and leaves."""

import copy
import os
import resource
import shutil
import signal
from collections import namedtuple

import lightning as L
import pytest
import torch

from callbacks.rollout import RolloutCallback, RolloutConfig
from callbacks.saving import SavePoints, saved_steps
from lightning_modules.visual_opsd import VisualOPSD, VisualOPSDConfig
from tests import tiny
from visual_opsd.models.interface import Sampling

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are trying to .self.log"),
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`"),
]


@pytest.fixture
def fit(base, tokenizer):
    def run(*callbacks, **options):
        module = VisualOPSD(lambda: copy.deepcopy(base), tokenizer.encode, VisualOPSDConfig())
        rollout = RolloutCallback(RolloutConfig(sampling=Sampling(max_tokens=4)), tokenizer.encode)
        tiny.fit(module, rollout, *callbacks, enable_checkpointing=True, **options)

    return run


def test_it_saves_behind_whole_steps_and_keeps_the_newest(fit, tmp_path):
    fit(SavePoints(tmp_path, 2, keep_last=2), max_steps=7, accumulate_grad_batches=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step=6.ckpt", "step=7.ckpt"]
    saved = torch.load(tmp_path / "step=7.ckpt", weights_only=False)
    assert saved["global_step"] == 7


def test_the_best_by_held_out_score_stay(fit, tmp_path):
    scores = iter([0.5, 0.9, 0.1, 0.9, 0.3])
    points = SavePoints(tmp_path, 1, keep_best=2, score=lambda: next(scores))
    fit(points, max_steps=5)
    assert set(saved_steps(tmp_path)) == {2, 4, 5}


def test_what_lies_beyond_the_run_is_let_go_of(tmp_path):
    """A damaged newer one was gone on from an older: it must not crowd out what is saved now."""
    for step in (4, 6, 100):
        (tmp_path / f"step={step}.ckpt").touch()
    points = SavePoints(tmp_path, 2)
    assert {p.name for p in points.superfluous(6)} == {"step=4.ckpt", "step=100.ckpt"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_leaves_between_two_steps(fit, tmp_path, number):
    class Tell(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 2:
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    points = SavePoints(tmp_path, 100)
    fit(points, Tell(), max_steps=9, accumulate_grad_batches=2)
    assert points.why_left == "told to leave: saved at step 3; the same command goes on"
    assert saved_steps(tmp_path) == [3]
    assert signal.getsignal(number) == before


def test_a_signal_behind_the_last_step_is_heeded_too(fit, tmp_path):
    """Nobody read the flag any more, and the run went on without its starter."""

    class Tell(L.Callback):
        def on_train_end(self, *_):  # checkpoint callbacks come last
            os.kill(os.getpid(), signal.SIGTERM)

    points = SavePoints(tmp_path, 100)
    fit(points, Tell(), max_steps=1)
    assert points.why_left == "told to leave behind step 1, the last; the same command goes on"
    assert saved_steps(tmp_path) == [1]


@pytest.mark.parametrize(("choice", "last_step"), [("go_on", 5), ("stop", 3)])
def test_a_full_disk_costs_no_good_checkpoint(fit, tmp_path, monkeypatch, choice, last_step):
    """Noticed before writing; the last good one stays, the run goes on or stops."""
    usage = namedtuple("usage", "free")
    free = iter([10**12, 10**12, 100, 100, 100])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(next(free)))
    seen = []

    class Count(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            seen.append(trainer.global_step)

    points = SavePoints(tmp_path, 1, on_full_disk=choice)
    with pytest.warns(UserWarning, match=r"no checkpoint at step 3.*GB free.*last good one stays"):
        fit(points, Count(), max_steps=5)
    assert seen[-1] == last_step
    assert saved_steps(tmp_path) == [2]
    assert (points.why_left or "").startswith("no checkpoint at step 3") == (choice == "stop")


@pytest.mark.parametrize(("choice", "saved"), [("go_on", {2, 5}), ("stop", {1, 2})])
def test_a_disk_that_fills_up_during_a_write_costs_no_good_checkpoint(fit, tmp_path, choice, saved):
    """There was room when it was asked for; a neighbour took it. The kernel refuses the write."""

    class Neighbour(L.Callback):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)

        def on_save_checkpoint(self, trainer, *_):
            if trainer.global_step in (3, 4):
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, self.before[1]))

        def on_train_batch_end(self, trainer, *_):
            resource.setrlimit(resource.RLIMIT_FSIZE, self.before)

    points = SavePoints(tmp_path, 1, keep_last=2, on_full_disk=choice)
    said = r"no checkpoint at step 3: .*step=3.tmp could not be written \(.*\); the last good one"
    with pytest.warns(UserWarning, match=said):
        fit(Neighbour(), points, max_steps=5)
    resource.setrlimit(resource.RLIMIT_FSIZE, Neighbour.before)
    assert set(saved_steps(tmp_path)) == saved
    assert not list(tmp_path.glob("*.tmp"))
    newest = max(saved_steps(tmp_path))
    assert torch.load(tmp_path / f"step={newest}.ckpt", weights_only=False)["global_step"] == newest
    assert (points.why_left or "").startswith("no checkpoint at step 3") == (choice == "stop")
