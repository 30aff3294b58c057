"""The arms of a story differ in what they ask, and nothing is trained on a mistyped key."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from experiments import demo, reproduce_tiny
from experiments.demo import load_story, tell
from experiments.schema import TINY_BASE, ExperimentConfig, load_experiment, to_yaml


def flat(config: ExperimentConfig) -> dict[str, str]:
    def walk(prefix: str, value: object) -> dict[str, str]:
        if not isinstance(value, dict):
            return {prefix: str(value)}
        return {
            k: v for key, inner in value.items() for k, v in walk(f"{prefix}.{key}", inner).items()
        }

    return walk("", OmegaConf.to_container(OmegaConf.create(to_yaml(config))))


def differing(a: ExperimentConfig, b: ExperimentConfig) -> set[str]:
    left, right = flat(a), flat(b)
    return {
        key.lstrip(".") for key in left.keys() | right.keys() if left.get(key) != right.get(key)
    }


@pytest.mark.parametrize("command", [demo, reproduce_tiny])
def test_noise_arm_differs_in_what_the_teacher_is_shown_alone(command):
    true_vt, noise = (
        load_experiment(command.ARMS / f"{n}.yaml") for n in ("true_vt", "matched_noise")
    )
    assert differing(true_vt, noise) == {"name", "rollout.intervention"}
    assert noise.rollout.intervention == "matched_noise"


@pytest.mark.parametrize("command", [demo, reproduce_tiny])
def test_sft_arm_has_the_same_start_data_steps_and_optimiser(command):
    true_vt, sft = (load_experiment(command.ARMS / f"{n}.yaml") for n in ("true_vt", "sft"))
    parts = {key.partition(".")[0] for key in differing(true_vt, sft)}
    assert parts <= {"name", "method", "rollout", "visual_opsd", "sft"}
    assert sft.sft.optimiser == true_vt.visual_opsd.optimiser
    assert dict(sft.sft.mix) == {"text_only": 1.0}


def test_arm_on_smaller_mazes_differs_in_the_sizes_alone():
    all_sizes, small = (
        load_experiment(reproduce_tiny.ARMS / f"{n}.yaml") for n in ("true_vt", "true_vt_3to6")
    )
    assert differing(all_sizes, small) == {"name", "data.sizes"}
    assert tuple(small.data.sizes) == (3, 4, 5, 6)


def test_long_arms_start_from_the_base_that_is_made_first_by_the_shipped_recipe():
    base = load_experiment(reproduce_tiny.ARMS / "base.yaml")
    arms = [load_experiment(reproduce_tiny.ARMS / f"{n}.yaml") for n in reproduce_tiny.NAMES]
    assert {arm.model for arm in arms} == {str(base.folder / "model")}
    assert base.model == str(TINY_BASE)
    assert base.sft.mix == load_experiment(Path("experiments/pretrain_tiny.yaml")).sft.mix
    assert set(arms[0].data.sizes) <= set(base.data.sizes)


def test_mistyped_key_of_the_long_base_is_named(monkeypatch):
    monkeypatch.setattr("sys.argv", ["reproduce_tiny", "base.trainer.max_step=3"])
    with pytest.raises(SystemExit, match=r"error: (?s:.*)max_step"):
        reproduce_tiny.main()


def test_default_run_is_the_first_arm_of_the_demo():
    run = load_experiment(Path("experiments/visual_opsd.yaml"))
    assert differing(run, load_experiment(demo.ARMS / "true_vt.yaml")) == {"name", "output_dir"}


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("story.num_problem=3", "story.num_problem=3.*Did you mean: 'num_problems'"),
        ("story.num_problems=many", "story.num_problems=many"),
        ("trainer.max_step=3", "max_step.*Did you mean: 'max_steps'"),
        ("stroy.seed=3", "stroy"),
        ("name=mine", "arms are named as their files"),
    ],
)
def test_mistyped_argument_is_named(argument, said, start):
    with pytest.raises(ValueError, match=f"(?s){said}"):
        load_story(demo.ARMS, demo.NAMES, [f"model={start}", argument])


def test_missing_base_is_named():
    with pytest.raises(FileNotFoundError, match="no base at /nowhere"):
        load_story(demo.ARMS, demo.NAMES, ["model=/nowhere"])


def test_story_lies_beside_its_arms(start, tmp_path):
    story = load_story(demo.ARMS, demo.NAMES, [f"model={start}", f"output_dir={tmp_path}/arms"])
    assert story.folder == tmp_path
    assert story.arms["sft"].folder == tmp_path / "arms" / "sft"


def test_folder_of_another_story_is_refused_before_anything_is_measured(start, tmp_path):
    arguments = [f"model={start}", f"output_dir={tmp_path}/arms"]
    load_story(demo.ARMS, demo.NAMES, arguments).claim()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match=r"error: .*num_problems: 2048 -> 8"):
        tell(demo.ARMS, demo.NAMES, [*arguments, "story.num_problems=8"])
    with pytest.raises(SystemExit, match=r"error: .*trainer.max_steps: \d+ -> 3"):
        tell(demo.ARMS, demo.NAMES, [*arguments, "trainer.max_steps=3"])
    assert sorted(tmp_path.rglob("*")) == before
