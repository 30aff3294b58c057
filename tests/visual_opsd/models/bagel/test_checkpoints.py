"""A model folder gives back the very model, or an error that names what is wrong with it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from visual_opsd.contexts import drawing_context, teacher_context
from visual_opsd.models.bagel import checkpoints
from visual_opsd.models.bagel.tokenizer import MARK_NAMES
from visual_opsd.models.interface import Drawing, Sampling


@pytest.fixture
def folder(base_folder, tmp_path):
    """A folder to spoil."""
    return shutil.copytree(base_folder, tmp_path / "model")


def rewrite(path, change):
    """Apply ``change`` to a JSON or safetensors file."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        content = load_file(path)
        change(content)
        save_file(content, path)


def test_a_saved_model_reads_writes_and_draws_the_same(base, base_folder, problems):
    model, tokenizer = checkpoints.load(base_folder)
    assert model.config == base.config
    loaded, saved = checkpoints.weights(model), checkpoints.weights(base)
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], weight) for name, weight in saved.items())
    contexts = [teacher_context(problem, tokenizer.encode) for problem in problems[:2]]
    draws = [drawing_context(problem, tokenizer.encode) for problem in problems[:2]]
    for ours, theirs in zip(
        model.sample(contexts, Sampling(max_tokens=8), [0, 1]).log_probs,
        base.sample(contexts, Sampling(max_tokens=8), [0, 1]).log_probs,
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    drawing = Drawing(num_timesteps=3)
    for ours, theirs in zip(
        model.draw(draws, drawing, [0, 1]), base.draw(draws, drawing, [0, 1]), strict=True
    ):
        assert torch.equal(ours.pixels, theirs.pixels)


def test_a_model_without_codec_is_a_folder_too(model, tokenizer, tmp_path):
    model.codec = None
    checkpoints.save(model, tokenizer, tmp_path)
    loaded, _ = checkpoints.load(tmp_path)
    assert loaded.codec is None


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{folder} .*has no {name}"):
        checkpoints.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "codec.safetensors"])
def test_every_weight_that_does_not_fit_is_listed(folder, name):
    first = sorted(load_file(folder / name))[0]
    last = sorted(load_file(folder / name))[-1]

    def spoil(weights):
        weights["surplus"] = weights.pop(first)
        weights[last] = torch.zeros(1, 2, 3)

    rewrite(folder / name, spoil)
    message = rf"missing \['{first}'\], unexpected \['surplus'\], misshapen \['{last} \(1, 2, 3\) "
    with pytest.raises(ValueError, match=message) as caught:
        checkpoints.load(folder)
    assert str(folder / name) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda config: config["decoder"].update(hiden_size=1), "hiden_size"),
        (lambda config: config["decoder"].pop("num_layers"), "num_layers"),
        (lambda config: config.pop("vision"), "vision"),
        (lambda config: config.update(visoin={}), "visoin"),
        (lambda config: config["decoder"].update(num_heads=5), "no multiple of num_heads 5"),
    ],
    ids=["unknown", "missing", "missing-part", "unknown-part", "nonsense"],
)
def test_a_wrong_configuration_names_file_and_key(folder, change, named):
    rewrite(folder / "config.json", change)
    with pytest.raises(ValueError, match=named) as caught:
        checkpoints.load(folder)
    assert str(folder / "config.json") in str(caught.value)


def test_a_checkpoint_of_another_size_is_refused(folder):
    rewrite(folder / "config.json", lambda config: config["decoder"].update(num_layers=3))
    with pytest.raises(ValueError, match=r"missing \['language_model.model.layers.2"):
        checkpoints.load(folder)


def test_a_tokenizer_that_does_not_fit_is_refused(folder):
    rewrite(folder / "config.json", lambda config: config["tokens"].update(end=7))
    with pytest.raises(ValueError, match=r"tokenizer\.json .* does not fit config\.json"):
        checkpoints.load(folder)


def test_a_tokenizer_without_a_mark_names_it(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace(MARK_NAMES["end"], "<|other|>"))
    with pytest.raises(ValueError, match=r"lacks the marks .*\|im_end\|"):
        checkpoints.load(folder)
