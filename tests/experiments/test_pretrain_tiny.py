"""The base is made from nothing and shipped by a rule that was fixed beforehand."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from experiments import pretrain_tiny
from experiments.pretrain_tiny import (
    CONSTANT_SENTENCES,
    EXPERIMENT,
    ShippingRule,
    pretrain,
    read_curve,
)
from experiments.schema import load_experiment
from visual_opsd.models.bagel import checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:.*")
GOOD = {"privileged": 0.96, "drawn": 0.70, "text_only": 0.71, "exact_drawings": 0.5}


def test_the_rule_asks_for_reading_drawing_and_no_head_start():
    rule = ShippingRule()
    assert rule.passes(GOOD)
    assert not rule.passes(GOOD | {"privileged": 0.94})
    assert not rule.passes(GOOD | {"exact_drawings": 0.49})
    assert not rule.passes(GOOD | {"drawn": 0.68})
    assert rule.passes(GOOD | {"drawn": 0.9})


@pytest.fixture
def config(tmp_path, start):
    return load_experiment(
        EXPERIMENT,
        [
            f"output_dir={tmp_path}",
            f"model={start}",
            "data.sizes=[3,4]",
            "data.num_problems=16",
            "data.batch_size=2",
            "trainer.max_steps=4",
            "trainer.checkpoint_every=1",
        ],
    )


@pytest.fixture
def set_rule(monkeypatch):
    """A rule for a run of four steps; nothing else is replaced."""

    def use(**changes):
        settings = {
            "every": 2,
            "num_problems": 4,
            "num_drawn": 2,
            "min_privileged": 0.0,
            "max_text_over_drawn": 1.0,
            "min_exact": 0.0,
        }
        rule = partial(ShippingRule, **{**settings, **changes})
        monkeypatch.setattr(pretrain_tiny, "ShippingRule", rule)

    return use


def test_the_first_step_that_passes_is_shipped_with_its_facts(config, set_rule):
    set_rule()
    facts = pretrain(config)
    base = config.folder / "base"
    assert facts["shipped"]["step"] == 2
    assert json.loads((base / "base.json").read_text()) == facts
    weights = load_file(base / "model.safetensors").values()
    assert facts["num_parameters"] == sum(weight.numel() for weight in weights)
    assert load_experiment(base / "experiment.yaml") == config
    assert [row["step"] for row in read_curve(base / "curve.jsonl")] == [2]
    assert (base / "curve.png").stat().st_size > 0
    _, tokenizer = checkpoints.load(base)
    for sentence in CONSTANT_SENTENCES:
        assert len(tokenizer.encode(sentence)) == 1
    # The curve scores averaged weights, and they are what is shipped.
    shipped, trained = (
        load_file(config.folder / name / "model.safetensors") for name in ("base", "model")
    )
    assert all(torch.equal(weight, trained[name]) for name, weight in shipped.items())
    # Again, and nothing is trained.
    written = (base / "model.safetensors").stat().st_mtime_ns
    assert pretrain(config)["shipped"] == facts["shipped"]
    assert (base / "model.safetensors").stat().st_mtime_ns == written


def test_a_kill_between_curve_and_base_does_not_end_it(config, set_rule, monkeypatch):
    """It did: with the base there and its row in the curve missing, no step had ever passed."""
    set_rule()

    def fail(*_):
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(pretrain_tiny.checkpoints, "save", fail)
        with pytest.raises(SystemExit, match="killed"):
            pretrain(config)
    assert not (config.folder / "base").exists()
    assert pretrain(config)["shipped"]["step"] == 2


def test_where_no_step_passes_it_says_how_far_it_came(config, set_rule):
    set_rule(min_exact=1.1)
    with pytest.raises(SystemExit, match=r"no step passed .*'step': 4") as caught:
        pretrain(config)
    assert "min_exact=1.1" in str(caught.value)
    assert not (config.folder / "base").exists()
