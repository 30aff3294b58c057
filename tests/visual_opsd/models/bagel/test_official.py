"""Folders in the layouts that BAGEL, ThinkMorph and the first Visual-OPSD release are stored in."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen2Config, SiglipVisionConfig

from tests import tiny
from tests.oracle import load_oracle, oracle_files
from visual_opsd.contexts import Image, Text, drawing_context, student_context
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.bagel.autoencoder_file import official_weights
from visual_opsd.models.bagel.codec import LatentCodec, autoencoder_kl
from visual_opsd.models.bagel.model import BagelModel
from visual_opsd.models.bagel.official import is_latent, is_twin
from visual_opsd.models.bagel.tokenizer import MARK_NAMES, Tokenizer
from visual_opsd.models.bagel.vision import PositionTable
from visual_opsd.models.interface import Drawing, Sampling
from visual_opsd.weights import WholeWeights

LLM = {
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "tie_word_embeddings": True,  # the official loader overrules it
    "vocab_size": tiny.VOCABULARY_SIZE,
}
VISION = {
    "hidden_size": 16,
    "image_size": 64,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,  # one more than is built
    "patch_size": 16,
}


@pytest.fixture(scope="module")
def whole(tokenizer):
    """A small BAGEL with an autoencoder, its frozen tables as an official file has them."""
    config = tiny.configuration(tokenizer.marks)
    latent = replace(
        config.latent, downsample=2, patch_size=8, timestep_shift=1.0, codec="autoencoder_kl"
    )
    torch.manual_seed(0)  # diffusers draws its weights from the global state
    autoencoder = autoencoder_kl(
        channels=32, multipliers=(1, 2), num_residual_blocks=1, latent_channels=4
    )
    codec = LatentCodec(autoencoder, 0.3611, 0.1159)
    return BagelModel(replace(config, latent=latent), codec, tokenizer.decode).eval()


@pytest.fixture
def folder(whole, tokenizer, tmp_path):
    """What ThinkMorph's repository holds."""
    folder = tmp_path / "ThinkMorph"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["BagelForConditionalGeneration"]}')
    (folder / "llm_config.json").write_text(json.dumps(LLM))
    (folder / "vit_config.json").write_text(json.dumps(VISION))
    tokenizer.save(folder)
    save_file(official_weights(whole.codec.model), folder / "ae.safetensors")
    save_file(checkpoints.weights(whole), folder / "model.safetensors")
    return folder


def student_of_the_first_release(folder, tmp_path):
    """Gen twins, but nothing that latents pass through; and no other file."""
    student = tmp_path / "student"
    student.mkdir()
    weights = load_file(folder / "model.safetensors")
    trained = {
        k: x if checkpoints.is_table(k) else 2 * x for k, x in weights.items() if not is_latent(k)
    }
    save_file(trained, student / "model.safetensors")
    return student


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(x, other[k]) for k, x in one.items())


def test_a_downloaded_folder_reads_writes_and_draws(whole, folder, problems):
    model, tokenizer = checkpoints.load(folder)
    assert model.config == whole.config
    assert same(dict(model.state_dict()), dict(whole.state_dict()))
    contexts = [student_context(problem, tokenizer.encode) for problem in problems[:2]]
    ours, theirs = (m.sample(contexts, Sampling(max_tokens=4), [0, 1]) for m in (model, whole))
    assert all(map(torch.equal, ours.log_probs, theirs.log_probs))
    draws = [drawing_context(problems[0], tokenizer.encode)]
    ours, theirs = (m.draw(draws, Drawing(num_timesteps=2), [0])[0] for m in (model, whole))
    assert torch.equal(ours.pixels, theirs.pixels)


@pytest.mark.parametrize("name", ["ema.safetensors", "shards"])
def test_other_weight_files_hold_the_same(whole, folder, name):
    """BAGEL calls its file ema; ThinkMorph's may come in shards with an index."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    if name != "shards":
        save_file(weights, folder / name)
    else:
        weight_map = {k: f"model-{i % 3:05d}.safetensors" for i, k in enumerate(sorted(weights))}
        for shard in set(weight_map.values()):
            save_file({k: x for k, x in weights.items() if weight_map[k] == shard}, folder / shard)
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    model, _ = checkpoints.load(folder)
    assert same(checkpoints.weights(model), checkpoints.weights(whole))


@pytest.mark.oracle
@pytest.mark.parametrize("path", oracle_files(), ids=lambda path: f"{path.stem}-folder")
def test_official_weights_in_an_official_folder_give_the_official_logits(path, tmp_path):
    tensors, description = load_oracle(path)
    config = description["config"]
    vit = {**config["vit_config"]}
    vit["num_hidden_layers"] += 1  # as the released file counts
    (tmp_path / "llm_config.json").write_text(json.dumps(config["llm_config"]))
    (tmp_path / "vit_config.json").write_text(json.dumps(vit))
    marks = config["special_tokens"]
    ids = [marks[k] for k in ("bos_token_id", "eos_token_id", "start_of_image", "end_of_image")]
    words = {f"word{i}": i for i in range(config["llm_config"]["vocab_size"]) if i not in ids}
    words |= dict(zip(MARK_NAMES.values(), ids, strict=True))
    raw = RawTokenizer(WordLevel(words, unk_token="word0"))
    Tokenizer(PreTrainedTokenizerFast(tokenizer_object=raw)).save(tmp_path)
    for prefix, name in (("sd/", "ema"), ("ae/", "ae")):
        part = {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
        save_file(part, tmp_path / f"{name}.safetensors")

    model, _ = checkpoints.load(tmp_path)
    official = {k.removeprefix("ae/"): x for k, x in tensors.items() if k.startswith("ae/")}
    assert same(official_weights(model.codec.model), official)
    inputs = description["cases"]["student"]["in"]["ids"]
    context = (
        Text(tuple(inputs["system"])),
        Image(tensors["student/in/problem_image"]),
        Text(tuple(inputs["question"])),
    )
    completion = torch.tensor([*inputs["completion"], ids[1]])
    logits = model.eval().logits(model([context], [completion]))
    torch.testing.assert_close(logits, tensors["student/out/logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, None])
def test_weights_come_in_the_dtype_asked_for(folder, dtype):
    path = folder / "model.safetensors"
    stored = {name: weight.bfloat16() for name, weight in load_file(path).items()}
    save_file(stored, path)
    model, _ = checkpoints.load(folder, dtype=dtype)
    found = checkpoints.weights(model)
    assert {weight.dtype for weight in found.values()} == {dtype or torch.bfloat16}
    assert all(
        torch.equal(found[k].bfloat16(), x) for k, x in stored.items() if "pos_embed" not in k
    )
    assert {weight.dtype for weight in model.codec.state_dict().values()} == {torch.float32}


def test_reading_alone_builds_nothing_else(whole, folder, problems):
    (folder / "ae.safetensors").unlink()
    model, tokenizer = checkpoints.load(folder, reading_only=True)
    names = checkpoints.weights(model)
    assert not any(is_twin(name) or is_latent(name) for name in names)
    contexts = [student_context(problem, tokenizer.encode) for problem in problems[:2]]
    ids = [torch.arange(5), torch.arange(3)]
    assert torch.equal(model.eval()(contexts, ids), whole(contexts, ids))
    with pytest.raises(ValueError, match="without a codec: it cannot draw"):
        model.draw([drawing_context(problems[0], tokenizer.encode)], Drawing(), [0])


def test_a_student_of_the_first_release_takes_the_rest_from_its_base(folder, whole, tmp_path):
    student = student_of_the_first_release(folder, tmp_path)
    model, _ = checkpoints.load(student, base=folder)
    base = checkpoints.weights(whole)
    for name, weight in checkpoints.weights(model).items():
        is_borrowed = is_latent(name) or checkpoints.is_table(name)
        assert torch.equal(weight, base[name] if is_borrowed else 2 * base[name]), name
    assert same(dict(model.codec.state_dict()), dict(whole.codec.state_dict()))


def test_a_link_to_the_base_serves_every_command(folder, tmp_path):
    student = student_of_the_first_release(folder, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no config\.json and no llm_config\.json.*ln -s"):
        checkpoints.load(student)
    (student / "base").symlink_to(folder)
    assert same(
        checkpoints.weights(checkpoints.load(student)[0]),
        checkpoints.weights(checkpoints.load(student, base=folder)[0]),
    )


def test_save_load_save_gives_the_same_bytes(folder, tmp_path):
    model, tokenizer = checkpoints.load(folder)
    for name in ("one", "two"):
        checkpoints.save(model, tokenizer, tmp_path / name)
        model, tokenizer = checkpoints.load(tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    for name in ("model.safetensors", "ae.safetensors"):
        assert same(load_file(tmp_path / "two" / name), load_file(folder / name))


def test_a_saved_folder_has_what_official_code_opens(whole, folder, tmp_path):
    """transformers reads the configurations, as the official inferencer asks it to."""
    checkpoints.save(*checkpoints.load(folder), tmp_path / "saved")
    saved = tmp_path / "saved"
    llm = Qwen2Config.from_json_file(saved / "llm_config.json")
    vision = SiglipVisionConfig.from_json_file(saved / "vit_config.json")
    assert (llm.hidden_size, llm.num_key_value_heads, llm.tie_word_embeddings) == (32, 2, False)
    assert vision.num_hidden_layers == whole.config.vision.num_layers + 1
    assert (vision.image_size, vision.hidden_act) == (64, "gelu_pytorch_tanh")
    names = {path.name for path in saved.iterdir()}
    assert names >= {"model.safetensors", "ae.safetensors", "vocab.json", "merges.txt", "README.md"}
    assert "0.000 billion parameters in float32, 2 layers" in (saved / "README.md").read_text()


def test_shards_are_read_back(whole, folder, tmp_path):
    checkpoints.save(*checkpoints.load(folder), tmp_path / "saved", max_shard_bytes=40_000)
    index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    model, _ = checkpoints.load(tmp_path / "saved")
    assert same(checkpoints.weights(model), checkpoints.weights(whole))


def test_a_student_that_only_reads_is_whole_again_with_its_base(whole, folder, tmp_path):
    model, tokenizer = checkpoints.load(folder, reading_only=True)
    with torch.no_grad():
        model.connector.fc1.bias.add_(1)
    checkpoints.save(model, tokenizer, tmp_path / "alone")
    assert checkpoints.load(tmp_path / "alone")[0].config.can_draw is False
    assert "understanding expert alone" in (tmp_path / "alone" / "README.md").read_text()
    checkpoints.save(model, tokenizer, tmp_path / "student", base=folder)
    merged, _ = checkpoints.load(tmp_path / "student")
    changed = {k: x + 1 if k == "connector.fc1.bias" else x for k, x in whole.state_dict().items()}
    assert same(dict(merged.state_dict()), changed)
    assert "of `ThinkMorph`, untouched" in (tmp_path / "student" / "README.md").read_text()
    again, _ = checkpoints.load(tmp_path / "alone", base=folder)
    assert same(dict(again.state_dict()), changed)


@pytest.mark.parametrize("sides", [2, 6])
def test_frozen_tables_of_another_size_load(folder, sides):
    """The official loader rebuilds them, whatever size the file has."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["vit_pos_embed.pos_embed"] = torch.zeros(sides**2, 32)
    weights["latent_pos_embed.pos_embed"] = PositionTable(sides, 32).pos_embed.detach()
    save_file(weights, path)
    model, _ = checkpoints.load(folder)
    assert model.config.latent.tokens_per_side == sides
    assert model.vit_pos_embed.pos_embed.shape == (16, 32)


def test_tables_are_exact_where_torch_rounds_what_it_makes(monkeypatch):
    """As under ``deepspeed.zero.Init`` in bfloat16."""
    exact = get_2d_sincos_pos_embed(256, 70, base_size=70, output_type="pt").float()
    arange = torch.arange

    def rounded(*args, **options):
        made = arange(*args, **options)
        return made.bfloat16() if made.is_floating_point() else made

    monkeypatch.setattr(torch, "arange", rounded)
    assert torch.equal(PositionTable(70, 256).pos_embed, exact)


class Unfilled(WholeWeights):
    """Computes nothing where modules are made, as sharding leaves it to be put."""

    def built(self, build, dtype, device):
        model = build().to(device, dtype)
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(9)
        return model


def test_tables_are_put_like_weights(folder):
    model, _ = checkpoints.load(folder, place=Unfilled())
    usual, _ = checkpoints.load(folder)
    assert same(dict(model.state_dict()), dict(usual.state_dict()))


# What can be wrong


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("llm_config.json", "has no config.json|unknown"),
        ("vit_config.json", "has no vit_config.json"),
        ("ae.safetensors", "has no ae.safetensors: without it, load with reading_only=True"),
        (
            "model.safetensors",
            "has no model.safetensors, ema.safetensors or model.safetensors.index",
        ),
        ("tokenizer.json", "has no tokenizer.json, and not both vocab.json and merges.txt"),
    ],
)
def test_a_missing_file_is_named(folder, name, message):
    (folder / name).unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=message) as caught:
        checkpoints.load(folder)
    assert str(folder) in str(caught.value)


def test_a_missing_shard_is_named(folder):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"index\.json lists weights in \['model-2\.safe"):
        checkpoints.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "ae.safetensors"])
@pytest.mark.parametrize("kept", [0, 5, 500, -1])
def test_a_truncated_file_is_named(folder, name, kept):
    path = folder / name
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        checkpoints.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "ae.safetensors"])
def test_every_weight_that_does_not_fit_is_listed(folder, name):
    weights = load_file(folder / name)
    first, *_, last = sorted(k for k in weights if k.endswith("bias"))
    weights["surplus"] = weights.pop(first)
    weights[last] = torch.zeros(1, 2)
    save_file(weights, folder / name)
    message = rf"missing \['{first}'\], unexpected \['surplus'\], misshapen \['{last} \(1, 2\) "
    with pytest.raises(ValueError, match=message):
        checkpoints.load(folder)


def test_half_a_drawing_expert_is_no_reader(folder, tmp_path):
    """One lost twin must not be taken for a student that never had them, nor be lent silently."""
    base = shutil.copytree(folder, tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    lost = "language_model.model.norm_moe_gen.weight"
    del weights[lost]
    save_file(weights, folder / "model.safetensors")
    for options in ({}, {"base": base}):
        with pytest.raises(ValueError, match=rf"missing \['{lost}'\]"):
            checkpoints.load(folder, **options)
    checkpoints.load(folder, reading_only=True)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llm_config.json", {"hidden_size": 64}, "misshapen .*connector.fc1.bias"),
        ("llm_config.json", {"num_hidden_layers": 3}, r"missing \['language_model.model.layers.2"),
        ("llm_config.json", {"num_hidden_layers": "2"}, "num_hidden_layers must be a positive int"),
        ("llm_config.json", {"rope_theta": None}, "rope_theta must be a positive float, got None"),
        ("llm_config.json", {"hidden_act": "relu"}, "hidden_act must be 'silu', got 'relu'"),
        ("llm_config.json", {"vocab_size": 100}, "does not fit the configuration's 100"),
        ("vit_config.json", {"num_hidden_layers": 3}, r"missing \['vit_model.*layers.1"),
        ("vit_config.json", {"image_size": 128}, "misshapen .*position_embedding"),
        ("vit_config.json", {"patch_size": 0}, "patch_size must be a positive int, got 0"),
    ],
)
def test_a_configuration_that_contradicts_the_tensors_is_refused(folder, name, changes, message):
    edit(folder / name, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        checkpoints.load(folder)
    assert str(folder) in str(caught.value)


def test_a_table_that_is_not_the_formula_s_is_refused(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["vit_pos_embed.pos_embed"] += 0.1
    save_file(weights, path)
    with pytest.raises(ValueError, match=r"vit_pos_embed.pos_embed is 0\.1 away from its frozen"):
        checkpoints.load(folder)


def test_a_base_of_another_shape_lends_nothing(folder, tmp_path):
    model, tokenizer = checkpoints.load(folder, reading_only=True)
    model.config = replace(model.config, decoder=replace(model.config.decoder, num_layers=3))
    with pytest.raises(ValueError, match=r"the base .*ThinkMorph has .*num_layers=2"):
        checkpoints.save(model, tokenizer, tmp_path / "student", base=folder)


def test_what_official_files_cannot_say_is_not_written(whole, tokenizer, tmp_path):
    codec = LatentCodec(whole.codec.model, 0.5, 0.1)
    model = BagelModel(whole.config, codec)
    with pytest.raises(ValueError, match=r"this codec's by 0\.5 and 0\.1"):
        checkpoints.save(model, tokenizer, tmp_path)
