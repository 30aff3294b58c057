"""The start weights answer a run's problems once, and SFT imitates what they said."""

from dataclasses import replace

import pytest

from experiments import build, run_data
from experiments.own_answers import collect
from experiments.schema import load_experiment
from visual_opsd.rollouts.own_answers import read_answers, write_answers

YAML = """
name: own
method: sft
data: {answers: own, sizes: [3, 4], num_problems: 8, batch_size: 2}
rollout: {sampling: {max_tokens: 12}}
drawing: {num_timesteps: 2, text_guidance: 1.0, image_guidance: 1.0}
sft: {mix: {text_only: 1.0}}
"""


@pytest.fixture
def config(start, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(YAML)
    return load_experiment(path, [f"model={start}", f"cache_dir={tmp_path / 'cache'}"])


def test_a_killed_collection_goes_on_and_says_the_same(config):
    path = collect(config)
    whole = {own.index: own for own in read_answers(path)}
    assert sorted(whole) == list(range(8))
    path.write_text(path.read_text()[:-30])
    assert len(read_answers(path)) == 7
    with pytest.raises(ValueError, match=r"7 of 8 problems: make own-answers"):
        run_data.data(config)
    assert {own.index: own for own in read_answers(collect(config))} == whole


def test_another_model_seed_or_drawing_has_another_file(config):
    path = run_data.own_answers_path(config)
    assert path != run_data.own_answers_path(replace(config, seed=7))
    drawing = replace(config.drawing, num_timesteps=3)
    assert path != run_data.own_answers_path(replace(config, drawing=drawing))
    gold = replace(config, data=replace(config.data, answers="gold", batch_size=4))
    assert path == run_data.own_answers_path(gold)


def test_sft_imitates_what_is_there(config, tokenizer):
    """A random model keeps no form, so its answers are put in by hand: half of them."""
    path = collect(config)
    found = read_answers(path)
    assert all(own.answer is None for own in found)
    path.unlink()
    write_answers(path, [replace(o, answer="U,U") if o.index < 4 else o for o in found])
    source = run_data.data(config).train
    assert (len(source), source.num_left_out) == (4, 4)
    module = build.module(config, tokenizer)
    problem = source.problem(0)
    row = module.demonstrate(problem, source.donor(0), seed=0)
    assert tokenizer.decode(row[-1].ids) == problem.solution
    assert "<answer>U,U</answer>" in problem.solution
    assert row[-1].is_target


def test_what_has_no_pictures_trains_on_text_alone(config, tmp_path):
    for change in ("method=visual_opsd", "sft.mix={text_only: 0.5, privileged: 0.5}"):
        path = tmp_path / "other.yaml"
        path.write_text(YAML)
        with pytest.raises(ValueError, match=r"data\.answers=own is for method=sft"):
            load_experiment(path, [change])
