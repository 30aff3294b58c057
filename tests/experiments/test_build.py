"""From a configuration to the objects of a run."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from datamodules.frozen_lake import MazeSettings
from datamodules.thinkmorph import write_mazes
from experiments import build, run_data, run_files
from experiments.draw_thoughts import batch_size
from experiments.evaluation import is_exact
from experiments.schema import ExperimentConfig, load_experiment
from lightning_modules.visual_opsd import VisualOPSDConfig
from tests import tiny
from visual_opsd.benchmarks.vsp import maze_of
from visual_opsd.contexts import Image, Role
from visual_opsd.losses.divergence import DivergenceConfig
from visual_opsd.models.bagel.preprocessing import PROTOCOLS


@pytest.fixture
def config_of(tmp_path, base_folder):
    yaml = tmp_path / "mine.yaml"
    yaml.write_text("name: mine\n")

    def make(*overrides):
        settings = [f"output_dir={tmp_path / 'runs'}", f"model={base_folder}", *overrides]
        return load_experiment(yaml, settings)

    return make


def test_a_run_folder_keeps_what_the_run_came_from(config_of, base_folder):
    config = config_of("seed=7")
    run_files.prepare_folder(config)
    facts = json.loads((config.folder / "run.json").read_text())
    assert facts["seed"] == 7
    assert facts["model_digest"] == run_files.digest(base_folder)
    assert {"torch", "lightning", "transformers", "diffusers"} <= facts["versions"].keys()
    assert load_experiment(config.folder / "config.yaml") == config
    run_files.prepare_folder(config)  # the same run again


def test_a_run_folder_of_another_configuration_is_refused_and_left_alone(config_of):
    run_files.prepare_folder(config_of())
    before = (config_of().folder / "config.yaml").read_text()
    message = r"data\.batch_size: 1 -> 3; seed: 42 -> 7"
    with pytest.raises(ValueError, match=message) as caught:
        run_files.prepare_folder(config_of("seed=7", "data.batch_size=3"))
    assert str(config_of().folder) in str(caught.value)
    assert (config_of().folder / "config.yaml").read_text() == before


def test_the_newest_whole_checkpoint_is_gone_on_from(tmp_path):
    """One that a kill cut short does not count, whatever its number."""
    folder = tmp_path / "checkpoints"
    assert run_files.last_checkpoint(tmp_path) is None
    folder.mkdir()
    for step in (9, 10, 100):
        torch.save({"step": step, "weights": torch.zeros(1000)}, folder / f"step={step}.ckpt")
    assert run_files.last_checkpoint(tmp_path) == folder / "step=100.ckpt"
    newest = folder / "step=100.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert run_files.last_checkpoint(tmp_path) == folder / "step=10.ckpt"


def test_a_models_digest_covers_every_file_that_makes_it(base_folder, tmp_path):
    folder = shutil.copytree(base_folder, tmp_path / "model")
    first = run_files.digest(folder)
    assert first == run_files.digest(base_folder)
    for name in ("config.json", "codec.safetensors", "model.safetensors", "tokenizer.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b" ")
        assert run_files.digest(folder) != first
        (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("not part of it")
    assert run_files.digest(folder) == first


def test_the_cache_is_where_the_user_wants_it(config_of, monkeypatch):
    monkeypatch.setenv("VISUAL_OPSD_CACHE", "/elsewhere")
    assert run_files.cache_folder(config_of()) == Path("/elsewhere")
    assert run_files.cache_folder(config_of("cache_dir=/mine")) == Path("/mine")
    monkeypatch.delenv("VISUAL_OPSD_CACHE")
    assert run_files.cache_folder(config_of()) == Path.home() / ".cache" / "visual_opsd"


def test_held_out_problems_are_the_same_for_everybody(config_of):
    settings = run_data.maze_settings(config_of())
    one, other = (run_data.held_out(settings, "validation", 6) for _ in range(2))
    assert [p.problem_id for p in one] == [p.problem_id for p in other]
    train = {p.problem_id for p in run_data.held_out(settings, "train", 6)}
    assert not train & {p.problem_id for p in one}


@pytest.mark.parametrize("method", ["visual_opsd", "sft"])
def test_every_method_builds_with_its_callbacks(config_of, tokenizer, method):
    mix = "sft.mix={text_only: 1.0}"
    config = config_of(f"method={method}", "held_out.num_problems=4", mix)
    found = [type(callback).__name__ for callback in build.callbacks(config, tokenizer, [])]
    assert ("RolloutCallback" in found) == (method == "visual_opsd")
    assert "Probe" in found
    assert build.module(config, tokenizer).encode is tokenizer.encode


def test_donors_are_made_only_for_controls_that_show_them(config_of):
    """A donor takes as long to make as a problem."""
    assert run_data.data(config_of()).donors is None
    assert run_data.data(config_of("rollout.intervention=other_vt")).donors == "same"
    wrong = config_of("rollout.intervention=wrong_vt", "data.donors=wrong")
    first = run_data.data(wrong).train_dataloader().batch(0)
    assert first.donors[0].problem_id == first.problems[0].problem_id
    mix = "sft.mix={text_only: 0.5, 'privileged:other_vt': 0.5}"
    assert run_data.data(config_of("method=sft", mix, "data.donors=any")).donors == "any"


def test_a_data_folder_that_is_not_there_is_an_error_before_training(config_of, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match="nowhere"):
        run_data.data(config_of(f"data.source={tmp_path / 'nowhere'}"))


@pytest.mark.parametrize("name", ["thinkmorph_7b", "thinkmorph_7b_paper", "thinkmorph_7b_lora"])
def test_what_has_to_be_downloaded_is_said_before_anything_is_made(name, tmp_path, base_folder):
    path = Path(__file__).parents[2] / "experiments" / f"{name}.yaml"
    here = [f"output_dir={tmp_path / 'runs'}", f"model={tmp_path / 'ThinkMorph-7B'}"]
    with pytest.raises(
        FileNotFoundError, match=r"model: no .*hf download ThinkMorph/ThinkMorph-7B"
    ):
        run_files.prepare_folder(load_experiment(path, here))
    here[1] = f"model={base_folder}"
    here.append(f"data.source={tmp_path / 'ThinkMorph'}")
    with pytest.raises(FileNotFoundError, match=r"data\.source: .*--repo-type dataset"):
        run_files.prepare_folder(load_experiment(path, here))
    assert not (tmp_path / "runs").exists()


def test_the_papers_7b_run_is_the_papers():
    path = Path(__file__).parents[2] / "experiments" / "thinkmorph_7b_paper.yaml"
    config = load_experiment(path)
    assert config.visual_opsd == VisualOPSDConfig(teacher="ema", divergence=DivergenceConfig.PAPER)
    assert (config.data.batch_size, config.trainer.accumulate) == (1, 2)


def test_a_folder_is_read_in_the_size_that_its_model_wants(config_of, tmp_path):
    """READ_IN_OPSD: at least 378 px, whole patches of 14 px; the tiny model's 16 px a cell."""
    write_mazes(tmp_path / "data", MazeSettings(sizes=(3,)), "train", 2)
    sizes = {}
    for protocol in ("reduced", "train"):
        source = run_data.data(
            config_of(f"data.source={tmp_path / 'data'}", f"data.protocol={protocol}")
        )
        problem = source.train.problem(0)
        sizes[protocol] = {
            image.pixels.shape for image in (problem.image, *problem.visual_thoughts)
        }
    assert sizes == {"reduced": {(3, 48, 48)}, "train": {(3, 378, 378)}}


def test_a_drawing_is_read_as_the_pictures_of_the_data_are(config_of, tokenizer, tmp_path):
    drawn = Image(torch.zeros(3, 512, 512), role=Role.VISUAL_THOUGHT)
    assert build.illustrator(config_of("data.protocol=train"), tokenizer).look(drawn) is drawn
    folder = config_of(f"data.source={tmp_path}", "data.protocol=train")
    read = build.illustrator(folder, tokenizer).look(drawn)
    assert read.pixels.shape == (3, 518, 518)
    assert read.drawn_pixels.shape == (3, 512, 512)
    assert read.role is Role.VISUAL_THOUGHT


def test_a_run_that_only_reads_says_how_to_get_the_drawings_that_it_lacks(
    config_of, tokenizer, problems, tmp_path
):
    settings = [f"cache_dir={tmp_path}", "rollout.intervention=drawn_vt", "reading_only=true"]
    settings += ["rollout.sampling.max_tokens=4", "drawing={num_timesteps: 2, text_guidance: 1.0}"]
    config = config_of(*settings)
    artist = build.rollout(config, tokenizer).illustrator
    with pytest.raises(ValueError, match=r"reading_only=true .* make draw-thoughts RUN="):
        artist.illustrate(problems[:2])
    build.illustrator(config, tokenizer).illustrate(problems[:2])
    assert len(artist.illustrate(problems[:2])) == 2


def test_a_rank_draws_on_its_own_gpu(config_of, monkeypatch):
    assert build.own_device(config_of("trainer.accelerator=cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert build.own_device(config_of()) == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert build.own_device(config_of()) == torch.device("cuda:3")


def test_only_the_tiny_model_draws_hundreds_at_once(config_of, tokenizer):
    config = config_of("data.batch_size=3")
    assert batch_size(config, tiny.configuration(tokenizer.marks)) == 256
    assert batch_size(config, tiny.make_autoencoder_model(tokenizer).config) == 3


def test_a_run_says_how_it_computes_and_its_checkpoints_do_not(config_of, tokenizer):
    settings = ["trainer.kernel=flex", "trainer.activation_checkpointing=true"]
    module = build.module(config_of(*settings), tokenizer)
    module.configure_model()
    decoder = module.model.language_model.model
    assert (decoder.kernel, decoder.recomputes_layers) == ("flex", True)
    assert "kernel" not in json.dumps(asdict(module.model.config))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_precision_is_lightnings(config_of, precision):
    assert build.lightning_precision(config_of(f"trainer.precision={precision}")) == precision


def test_rounded_weights_train_through_adapters_alone(config_of, tokenizer):
    rounded = "trainer.precision=bf16-true"
    with pytest.raises(ValueError, match=r"trainer\.precision=bf16-true .* visual_opsd\.lora"):
        build.lightning_precision(config_of(rounded))
    config = config_of(rounded, "visual_opsd.lora={rank: 4, alpha: 8}")
    assert build.lightning_precision(config) == "32-true"
    module = build.module(config, tokenizer)
    module.configure_model()
    assert module.config.lora.seed == config.seed
    dtypes = {(p.dtype, p.requires_grad) for p in module.model.parameters()}
    assert dtypes == {(torch.bfloat16, False), (torch.float32, True)}


def test_the_defaults_are_the_papers():
    """Appendix C; the teacher alone is ours (decision record 0003)."""
    config = ExperimentConfig(name="any")
    assert config.visual_opsd.optimiser.learning_rate == 1e-5
    assert config.visual_opsd.optimiser.num_warmup_steps == 200
    assert config.rollout.sampling.temperature == 1.0
    assert config.rollout.sampling.max_tokens == 1024
    assert config.trainer.accumulate == 2
    assert config.visual_opsd.teacher == "fixed"


def test_a_digest_covers_the_files_of_a_downloaded_folder_and_of_a_student_s_base(tmp_path):
    base, student = tmp_path / "base", tmp_path / "student"
    for folder in (base, student):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(folder.name.encode())
    for name in ("llm_config.json", "vit_config.json", "ae.safetensors", "vocab.json"):
        (base / name).write_text(name)
    (student / "base").symlink_to(base)
    for folder in (base, student):
        first = run_files.digest(folder)
        for path in (base / "llm_config.json", base / "ae.safetensors", base / "model.safetensors"):
            content = path.read_bytes()
            path.write_bytes(content + b" ")
            assert run_files.digest(folder) != first
            path.write_bytes(content)
        assert run_files.digest(folder) == first


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_mazes_are_scored_in_the_size_that_a_large_model_sees(protocol):
    """Maze and path are read back from pictures of 378 to 518 px, whatever was resized."""
    settings = MazeSettings(sizes=(3, 4, 5, 6, 7, 8))
    small = run_data.held_out(settings, "test", 12)
    large = run_data.held_out(settings, "test", 12, PROTOCOLS[protocol])
    for one, other in zip(small, large, strict=True):
        assert min(other.image.pixels.shape[1:]) > one.image.pixels.shape[1]
        assert maze_of(other) == maze_of(one)
        (drawn,) = other.visual_thoughts
        assert is_exact(drawn, maze_of(one))
        assert is_exact(Image(drawn.drawn_pixels), maze_of(one))
        assert not is_exact(other.image, maze_of(one))


def test_the_tiny_model_is_asked_as_evaluate_does_by_itself(config_of, tmp_path):
    assert run_data.asked(config_of()) == {}
    asked = run_data.asked(config_of(f"data.source={tmp_path}", "data.protocol=train"))
    config = config_of()
    assert asked["sampling"].temperature == 0
    assert asked["sampling"].max_tokens == config.rollout.sampling.max_tokens
    assert (asked["drawing"], asked["batch_size"]) == (config.drawing, config.data.batch_size)
