"""Which runs exist, and what is said of one that does not."""

from pathlib import Path

import pytest

from experiments.ablate_noise import TABLE
from experiments.schema import ExperimentConfig, differences, load_experiment, to_yaml

ROOT = Path(__file__).parents[2]
YAMLS = sorted((ROOT / "experiments").rglob("*.yaml"))


@pytest.fixture
def yaml(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntrainer:\n  max_steps: 7\n")
    return path


def shipped():
    """The experiments; a base carries its resolved one, and a study is a table of many."""
    return [path for path in YAMLS if "bases" not in path.parts and path != ROOT / TABLE]


@pytest.mark.parametrize("path", shipped(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_experiment_loads_and_says_what_it_asks(path):
    config = load_experiment(path)
    assert config.name
    assert path.read_text().startswith("# ")


def test_a_yaml_is_a_difference_from_the_defaults(yaml):
    config = load_experiment(yaml)
    assert config == ExperimentConfig(name="mine", trainer=type(config.trainer)(max_steps=7))
    assert config.folder == Path("runs/mine")


def test_an_override_beats_the_yaml(yaml):
    config = load_experiment(yaml, ["trainer.max_steps=9", "visual_opsd.teacher=ema", "seed=7"])
    assert (config.trainer.max_steps, config.visual_opsd.teacher, config.seed) == (9, "ema", 7)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("sede=1", "seed"),
        ("trainer.max_step=1", "max_steps"),
        ("rollout.sampling.temprature=1", "temperature"),
        ("visual_opsd.divergence.topk=4", "top_k"),
        ("data.bach_size=3", "batch_size"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_right_one(yaml, override, named):
    with pytest.raises(ValueError, match=rf"Did you mean.*{named}") as caught:
        load_experiment(yaml, [override])
    assert str(yaml) in str(caught.value)
    wrong = override.partition("=")[0].rpartition(".")[2]
    assert wrong in str(caught.value)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("trainer.max_steps=many", "max_steps"),
        ("method=magic", "magic"),
        ("visual_opsd.teacher=frozen", "frozen"),
        ("rollout.intervention=true_tv", "true_tv"),
        ("rollout.sampling.temperature=-1", "temperature must be >= 0"),
        ("visual_opsd.divergence.teacher_weight=2", "teacher_weight must lie in"),
        ("visual_opsd.optimiser.final_learning_rate=1", "final_learning_rate 1"),
        ("drawing.num_timesteps=1", "num_timesteps must be >= 2"),
        ("sft.mix.text_only=0.5", "must sum to 1"),
        ("visual_opsd.teacher=adapter_off", "adapter_off switches adapters off"),
        ("visual_opsd.lora.rank=0", "rank must be at least 1"),
        ("trainer.precision=16-true", "16-true"),
        ("trainer.kernel=flash", "flash"),
    ],
)
def test_a_value_that_makes_no_sense_names_file_and_value(yaml, override, named):
    with pytest.raises(ValueError, match=named) as caught:
        load_experiment(yaml, [override])
    assert str(yaml) in str(caught.value)


def test_a_wrong_key_in_the_file_names_the_file(yaml):
    yaml.write_text("name: mine\nmetod: sft\n")
    with pytest.raises(ValueError, match=r"mine\.yaml.*method"):
        load_experiment(yaml)


def test_an_experiment_without_name_is_refused(yaml):
    yaml.write_text("seed: 3\n")
    with pytest.raises(ValueError, match=r"mine\.yaml.*name"):
        load_experiment(yaml)


def test_an_experiment_that_is_not_there_is_answered_with_those_that_are(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(FileNotFoundError, match=r"experiments/visual_opsd\.yaml"):
        load_experiment(tmp_path / "none.yaml")


def test_what_a_run_folder_keeps_is_the_whole_configuration(yaml, tmp_path):
    config = load_experiment(yaml, ["data.sizes=[3,4]", "cache_dir=here"])
    saved = tmp_path / "config.yaml"
    saved.write_text(to_yaml(config))
    assert load_experiment(saved) == config
    assert differences(config, saved) == []
    other = load_experiment(yaml, ["data.sizes=[3]", "cache_dir=here", "seed=7"])
    assert differences(other, saved) == ["data.sizes: [3, 4] -> [3]", "seed: 42 -> 7"]


@pytest.mark.parametrize("method", ["visual_opsd", "sft"])
def test_muon_is_refused_where_matrices_are_cut(yaml, method):
    settings = ["trainer.strategy=zero3", f"method={method}", f"{method}.optimiser.name=muon"]
    with pytest.raises(ValueError, match=rf"{method}\.optimiser\.name=muon.*strategy=zero3"):
        load_experiment(yaml, settings)
    assert load_experiment(yaml, settings[1:]).optimiser.name == "muon"


def test_the_same_batches_over_other_ranks_are_the_same_run(yaml, tmp_path):
    """As long as an optimiser step sees as many problems; else the keys are named."""
    one = load_experiment(yaml, ["data.batch_size=4", "trainer.strategy=zero3"])
    saved = tmp_path / "config.yaml"
    saved.write_text(to_yaml(one))
    spread = ["trainer.strategy=zero3", "trainer.devices=2", "resume_changed=true"]
    assert differences(load_experiment(yaml, [*spread, "data.batch_size=2"]), saved) == []
    assert differences(load_experiment(yaml, [*spread, "data.batch_size=4"]), saved) == [
        "trainer.devices: 1 -> 2"
    ]


def test_a_run_from_before_a_key_was_there_has_its_default(yaml, tmp_path):
    saved = tmp_path / "config.yaml"
    saved.write_text("name: mine\ntrainer:\n  max_steps: 7\n")
    assert differences(load_experiment(yaml), saved) == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.devices=2", "strategy single is one process: got devices 2"),
        ("trainer.num_nodes=0", "must be at least 1"),
        ("trainer.keep_last=0", "keep_last must be at least 1, got 0"),
        ("trainer.loggers=[cvs]", "cvs"),
        ("trainer.zero3.gather=all", "all"),
        ("trainer.zero3.offload_optimizer=nvme", "nvme needs nvme_path"),
    ],
)
def test_a_spread_that_makes_no_sense_is_refused(yaml, override, said):
    with pytest.raises(ValueError, match=said):
        load_experiment(yaml, [override])


def test_rows_that_draw_are_not_sharded(yaml):
    """They hung: ranks of ZeRO-3 must call the same modules."""
    drawing = ["method=sft", "trainer.strategy=zero3", "sft.mix={interleaved: 1.0}"]
    with pytest.raises(ValueError, match=r"interleaved rows and trainer\.strategy is zero3"):
        load_experiment(yaml, drawing)
    load_experiment(yaml, ["method=sft", "trainer.strategy=zero3", "sft.mix={text_only: 1.0}"])


def test_weights_rounded_by_hand_are_not_sharded(yaml):
    """DeepSpeed keeps what trains in float32 itself."""
    sharded = "trainer.strategy=zero3"
    with pytest.raises(ValueError, match=r"bf16-true is one process's: take bf16-mixed"):
        load_experiment(yaml, [sharded, "trainer.precision=bf16-true"])
    load_experiment(yaml, [sharded, "trainer.precision=bf16-mixed"])
    load_experiment(yaml, ["trainer.precision=bf16-true"])


def test_a_control_that_shows_donors_says_which_it_needs(yaml):
    """A wrong solution is no other problem's, and the other way round."""
    wrong = ["rollout.intervention=wrong_vt"]
    with pytest.raises(ValueError, match=r"wrong_vt needs data\.donors=wrong, got same"):
        load_experiment(yaml, wrong)
    with pytest.raises(ValueError, match=r"other_vt needs data\.donors=same, other or any"):
        load_experiment(yaml, ["rollout.intervention=other_vt", "data.donors=wrong"])
    assert load_experiment(yaml, [*wrong, "data.donors=wrong"]).data.donors == "wrong"
    mixed = ["method=sft", "sft.mix={privileged:wrong_vt: 1.0}"]
    with pytest.raises(ValueError, match="wrong_vt needs"):
        load_experiment(yaml, mixed)
    assert load_experiment(yaml, [*mixed, "data.donors=wrong"]).sft.mix


def test_off_policy_sampling_needs_somebody_who_kept_the_start_weights(yaml):
    off_policy = "rollout.policy=start"
    assert load_experiment(yaml, [off_policy]).rollout.policy == "start"
    with pytest.raises(ValueError, match="take fixed or adapter_off, not ema"):
        load_experiment(yaml, [off_policy, "visual_opsd.teacher=ema"])
