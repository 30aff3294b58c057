"""A run is a function of its configuration: killed anywhere and started again, it ends the same."""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from datamodules.frozen_lake import MazeSettings, generate, generate_problem
from datamodules.sources import ThinkMorphRows
from datamodules.thinkmorph import maze_row, write_rows
from experiments.build import offline_cache
from experiments.schema import load_experiment
from experiments.train import main, note_left_out, train

ROOT = Path(__file__).parents[2]
YAML = """
data: {sizes: [3, 4], num_problems: 12, batch_size: 2}
trainer: {max_steps: 6, accumulate: 2, checkpoint_every: 2, num_threads: 1}
held_out: {num_problems: 0}
rollout: {sampling: {max_tokens: 8}}
drawing: {num_timesteps: 3, text_guidance: 1.0}
visual_opsd:
  ema_decay: 0.9
  optimiser: &quick {learning_rate: 1.0e-2, final_learning_rate: 1.0e-3, num_warmup_steps: 2}
sft: {optimiser: *quick}
"""

ADAPTER = "adapter/adapter_model.safetensors"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`"),
]


class KilledError(Exception):
    """Stands for a kill that leaves Python no time; the real one is below."""


class KillAt(L.Callback):
    """Ends the run after so many batches."""

    def __init__(self, num_batches):
        self.left = num_batches

    def on_train_batch_end(self, *_):
        self.left -= 1
        if self.left == 0:
            raise KilledError


@pytest.fixture(scope="module")
def yaml(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment") / "mine.yaml"
    path.write_text(YAML)
    return path


@pytest.fixture
def arguments_of(yaml, base_folder, tmp_path):
    """Overrides of a run; its drawings are its own unless it is told where they are."""

    def make(name, *overrides, cache=None):
        return [
            f"name={name}",
            f"model={base_folder}",
            f"output_dir={tmp_path}",
            f"cache_dir={tmp_path / (cache or name)}",
            *overrides,
        ]

    return make


@pytest.fixture
def config_of(yaml, arguments_of):
    return lambda name, *overrides, **options: load_experiment(
        yaml, arguments_of(name, *overrides, **options)
    )


def assert_same_model(one, other):
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


def assert_has_learnt(folder, base_folder):
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    start, end = (load_file(path / "model.safetensors")[name] for path in (base_folder, folder))
    assert (start - end).abs().max() > 1e-3


METHODS = {
    "fixed": ["visual_opsd.teacher=fixed"],
    "ema": ["visual_opsd.teacher=ema"],
    "current": ["visual_opsd.teacher=current", "rollout.intervention=other_vt"],
    "drawn": ["visual_opsd.teacher=ema", "rollout.intervention=drawn_vt"],
    "off-policy": [
        "rollout.policy=start",
        "rollout.intervention=drawn_vt",
        "rollout.num_drawings=2",
        "visual_opsd.pooling=log_mean",
        "visual_opsd.uncertain_share=0.5",
        "visual_opsd.divergence.kind=reverse_kl",
    ],
    "offline": [
        "data.num_problems=14",  # a pass leaves two out: batches of the next are there in part
        "rollout.policy=start",
        "rollout.cache_scores=true",
        "rollout.intervention=matched_noise",
        "visual_opsd.divergence.top_k=20",
    ],
    "averaged": ["trainer.average_decay=0.9"],
    "lora": [
        "visual_opsd.teacher=adapter_off",
        "visual_opsd.lora={rank: 4, alpha: 8}",
        "trainer.precision=bf16-true",
        "trainer.activation_checkpointing=true",
    ],
    "lora-ema": ["visual_opsd.teacher=ema", "visual_opsd.lora={rank: 4, alpha: 8}"],
    "between-passes": ["trainer.checkpoint_every=3"],
    "sft": ["method=sft", "sft.mix={interleaved: 0.5, text_only: 0.1, privileged: 0.4}"],
}


# A step takes two batches, a pass six, and a checkpoint is written behind every fourth: 3, 5 and 7
# are within a step, 7 and 8 in the second pass, 4, 8 and 12 just before a checkpoint is written.
# Between passes, the checkpoint is written behind the last batch of the first.
@pytest.mark.parametrize(
    ("method", "kills"),
    [
        ("fixed", [3]),
        ("ema", [5, 8]),
        ("current", [4]),
        ("drawn", [7]),
        ("off-policy", [5]),
        ("offline", [8, 11]),
        ("averaged", [5]),
        ("lora", [5]),
        ("lora-ema", [5]),
        ("between-passes", [7]),
        ("sft", [5, 12]),
    ],
)
def test_a_run_that_was_killed_ends_with_the_same_weights(config_of, base_folder, method, kills):
    settings = METHODS[method]
    straight = train(config_of("straight", *settings))
    assert_has_learnt(straight, base_folder)
    config, done = config_of("killed", *settings), 0
    for kill in kills:
        with pytest.raises(KilledError):
            train(config, [KillAt(kill - done)])
        done = kill // 4 * 4  # four batches between two checkpoints
    assert not (config.folder / "model").exists()
    assert_same_model(train(config), straight)
    if "lora" in method:
        one, other = (load_file(f.parent / ADAPTER) for f in (straight, config.folder / "model"))
        assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_offline_distillation_asks_the_teacher_once(config_of, base_folder, monkeypatch):
    """The second run neither samples nor scores, and ends as one that always does."""
    settings = ["rollout.policy=start", "rollout.seed=0"]
    anew = train(config_of("anew", *settings))
    assert_has_learnt(anew, base_folder)
    settings.append("rollout.cache_scores=true")
    filled = train(config_of("filled", *settings, cache="shared"))

    def fail(*_, **__):
        raise AssertionError("asked again")

    monkeypatch.setattr("callbacks.rollout.sample_trajectories", fail)
    monkeypatch.setattr("lightning_modules.visual_opsd.teacher_context", fail)
    read = train(config_of("read", *settings, cache="shared"))
    for folder in (filled, read):
        ours, theirs = (load_file(f / "model.safetensors") for f in (folder, anew))
        for name, weight in ours.items():
            torch.testing.assert_close(weight, theirs[name], atol=1e-4, rtol=1e-3)
    assert_has_learnt(read, base_folder)
    with pytest.raises(AssertionError, match="asked again"):
        train(config_of("other", *settings, "visual_opsd.divergence.temperature=2", cache="shared"))


def test_what_scores_depend_on_is_in_the_caches_identity(config_of):
    """Of each of these, another run's scores would be the wrong ones."""
    offline = ["rollout.policy=start", "rollout.cache_scores=true", "rollout.seed=0"]
    changes = [
        "rollout.policy=gold",
        "rollout.seed=1",
        "rollout.sampling.temperature=0.5",
        "visual_opsd.divergence.temperature=2",
        "visual_opsd.divergence.top_k=5",
        "visual_opsd.pooling=log_mean",
        "trainer.precision=bf16-mixed",
    ]

    def identity(*overrides):
        config = config_of("mine", *offline, *overrides)
        return offline_cache(config, config.rollout).identity

    assert len({identity(), *map(identity, changes)}) == 1 + len(changes)
    assert identity("seed=7", "visual_opsd.uncertain_share=0.5") == identity()


def test_what_an_offline_cache_cannot_keep_is_said_before_training(config_of, monkeypatch):
    monkeypatch.setattr("experiments.build.MOST_KEPT", 100)
    offline = ["rollout.policy=gold", "rollout.cache_scores=true"]
    with pytest.raises(ValueError, match=r"would keep \d+ entries.*divergence.top_k"):
        train(config_of("whole", *offline))
    with pytest.raises(ValueError, match=r"would keep 101 entries.*top_k to 100 at most"):
        train(config_of("many", *offline, "visual_opsd.divergence.top_k=101"))
    with pytest.raises(ValueError, match="set policy to start or gold"):
        config_of("mine", "rollout.cache_scores=true")
    with pytest.raises(ValueError, match=r"visual_opsd.teacher=ema changes"):
        config_of("moving", *offline, "visual_opsd.teacher=ema")


def test_killed_by_the_system_at_a_random_moment(
    config_of, arguments_of, yaml, base_folder, tmp_path
):
    """Another process, SIGKILL, a moving teacher, drawn thoughts: the same weights to the bit."""
    settings = [*METHODS["drawn"], "trainer.max_steps=20", "trainer.checkpoint_every=3"]
    straight = train(config_of("straight", *settings))
    command = [sys.executable, "-m", "experiments.train", str(yaml)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, *arguments_of("killed", *settings)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
        config = config_of("killed", *settings)
        deadline = time.monotonic() + 240
        while not list((config.folder / "checkpoints").glob("*.ckpt")):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, "no checkpoint in four minutes"
            time.sleep(0.02)
        time.sleep(random.uniform(0, 0.4))
        process.kill()
        assert process.wait() == -9, "it was through before it could be killed"
    assert not (config.folder / "model" / "model.safetensors").exists()
    assert_same_model(train(config), straight)
    assert_has_learnt(straight, base_folder)


def test_a_checkpoint_that_a_kill_cut_short_costs_steps_and_no_bits(config_of):
    straight = train(config_of("straight"))
    config = config_of("torn")
    with pytest.raises(KilledError):
        train(config, [KillAt(9)])
    (newest,) = (config.folder / "checkpoints").iterdir()
    assert newest.name == "step=4.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert_same_model(train(config), straight)
    assert [path.name for path in (config.folder / "checkpoints").iterdir()] == ["step=6.ckpt"]


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_run_killed_before_it_wrote_its_model_writes_it(config_of, decay):
    """Also where that is an average, though not a step is left to take."""
    config = config_of("run", f"trainer.average_decay={decay}")
    folder = train(config)
    kept = shutil.copytree(folder, folder.with_name("kept"))
    shutil.rmtree(folder)
    assert_same_model(train(config), kept)


def test_what_is_saved_is_the_average_and_training_never_sees_it(config_of):
    plain = train(config_of("plain"))
    config = config_of("averaged", "trainer.average_decay=0.9")
    averaged = load_file(train(config) / "model.safetensors")
    (last,) = (config.folder / "checkpoints").iterdir()
    trained = torch.load(last, weights_only=False)["state_dict"]
    name = "language_model.lm_head.weight"
    assert torch.equal(trained[f"model.{name}"], load_file(plain / "model.safetensors")[name])
    assert not torch.equal(averaged[name], trained[f"model.{name}"])


def test_a_finished_run_returns_at_once(config_of):
    folder = train(config_of("run"))
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert train(config_of("run"), [KillAt(1)]) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_a_second_run_draws_nothing_and_learns_the_same(config_of, tmp_path):
    settings = [*METHODS["drawn"], "trainer.max_steps=10"]  # the first whose loss is logged
    one = train(config_of("one", *settings, cache="cache"))
    drawings = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.png")}
    assert len(drawings) == 12  # each problem once, though each was trained on twice
    other = train(config_of("other", *settings, cache="cache"))
    assert_same_model(one, other)
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.png")}
    assert again == drawings
    losses = [
        [row["train/divergence"] for row in csv.DictReader(path.open())]
        for path in sorted(tmp_path.rglob("metrics.csv"))
    ]
    assert len(losses) == 2
    assert any(losses[0])
    assert losses[0] == losses[1]


def test_whoever_starts_from_another_model_draws_for_itself(config_of, tmp_path):
    settings = METHODS["drawn"]
    train(config_of("one", *settings, cache="cache"))
    num_first = len(list((tmp_path / "cache").rglob("*.png")))
    moved = shutil.copytree(tmp_path / "one" / "model", tmp_path / "moved")
    train(config_of("two", *settings, f"model={moved}", cache="cache"))
    assert len(list((tmp_path / "cache").rglob("*.png"))) == 2 * num_first


def test_a_start_that_is_not_there_is_named(config_of, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train(config_of("run", f"model={tmp_path / 'nowhere'}"))


def test_rows_that_are_not_trained_on_are_counted_and_kept_by_reason(tmp_path, capsys):
    settings = MazeSettings(sizes=(3,))
    made = [
        maze_row(generate(settings, "train", index), generate_problem(settings, "train", index))
        for index in range(4)
    ]
    for index, change in enumerate(({}, {"question": ""}, {"answer": "up and away"})):
        made[index].update(change)
    path = tmp_path / "data" / "train-0.parquet"
    write_rows(path, made)
    note_left_out(ThinkMorphRows(tmp_path / "data"), tmp_path)
    said = "2 of 4 rows are trained on; left out: 1 no question; 1 answer that no rule parses\n"
    assert capsys.readouterr().out == said
    assert json.loads((tmp_path / "left_out.json").read_text()) == {
        "no question": [f"{path}:1 ({made[1]['pid']})"],
        "answer that no rule parses": [f"{path}:2 ({made[2]['pid']})"],
    }
    write_rows(path, made[1:3])
    with pytest.raises(ValueError, match="no usable row; left out: 1 no question; 1 answer"):
        note_left_out(ThinkMorphRows(tmp_path / "data"), tmp_path)


def test_the_command_line_says_what_is_wrong(monkeypatch, yaml, capsys):
    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(SystemExit, match=r"usage: python -m experiments\.train"):
        main()
    monkeypatch.setattr(sys, "argv", ["train", str(yaml), "name=x", "sede=3"])
    with pytest.raises(SystemExit, match=r"(?s)error: .*Did you mean.*seed"):
        main()


def test_a_run_that_only_reads_ends_as_the_whole_one_does(yaml, start, tmp_path):
    """The drawing half takes no gradient: leaving it out changes nothing but memory."""
    folders = []
    for reading_only in (False, True):
        options = [f"name=only_{reading_only}", f"reading_only={reading_only}", f"model={start}"]
        options += [f"output_dir={tmp_path}", "trainer.max_steps=2", "rollout.intervention=true_vt"]
        folders.append(train(load_experiment(yaml, options)))
    whole, read = (load_file(folder / "model.safetensors") for folder in folders)
    assert whole.keys() == read.keys()
    assert all(torch.equal(weight, read[name]) for name, weight in whole.items())
    first = load_file(start / "model.safetensors")
    assert any(not torch.equal(weight, first[name]) for name, weight in read.items())
