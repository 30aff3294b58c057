"""The shipped base is what its papers say."""

import json
from dataclasses import asdict

import pytest
import torch

from experiments import run_data
from experiments.pretrain_tiny import EXPERIMENT, ShippingRule, count_parameters, read_curve
from experiments.schema import TINY_BASE, load_experiment
from visual_opsd.contexts import student_context
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.interface import Sampling

BASE = json.loads((TINY_BASE / "base.json").read_text())


@pytest.mark.parametrize("part", ["method", "seed", "data", "trainer", "sft"])
def test_the_recipe_in_the_tree_made_it(part):
    """Keys that came into the schema since have their defaults, or it would be another recipe."""
    shipped = asdict(load_experiment(TINY_BASE / "experiment.yaml"))
    assert shipped[part] == asdict(load_experiment(EXPERIMENT))[part]


def test_it_is_the_first_step_that_passed_the_rule():
    rule, curve = ShippingRule(), read_curve(TINY_BASE / "curve.jsonl")
    assert [rule.passes(row) for row in curve] == [False] * (len(curve) - 1) + [True]
    assert curve[-1] == BASE["shipped"]


def test_it_is_small_and_a_drawing_depends_on_its_maze():
    size = sum(file.stat().st_size for file in TINY_BASE.glob("*.safetensors"))
    assert size <= 8 * 2**20
    assert count_parameters(TINY_BASE) == BASE["num_parameters"]
    assert BASE["swapped"]["another_maze"] < 0.1 < BASE["swapped"]["own_maze"]


def test_it_seldom_asks_for_a_drawing_in_the_student_context():
    """A base trained to ask there would look weak when answering in text alone."""
    model, tokenizer = checkpoints.load(TINY_BASE)
    config = load_experiment(EXPERIMENT)
    problems = run_data.held_out(run_data.maze_settings(config), "validation", 64)
    contexts = [student_context(problem, tokenizer.encode) for problem in problems]
    greedy = Sampling(temperature=0, max_tokens=64)
    with torch.no_grad():
        found = model.eval().sample(contexts, greedy, list(range(len(contexts))))
    asked = [not mask.all() for mask in found.is_sampled]
    assert sum(asked) <= 0.05 * len(asked)
