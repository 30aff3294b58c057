"""Random tiny Qwen3-VL and InternVL: the standing tests of every family, and their folders."""

import pytest
import torch

from tests import vlms
from visual_opsd.contexts import Image, Text
from visual_opsd.models.bagel.stored import read_json
from visual_opsd.models.interface import Reader, Sampling
from visual_opsd.models.vlm import loading


@pytest.fixture(scope="module", params=sorted(vlms.SEEN))
def loaded(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    vlms.make(request.param, folder)
    assert loading.is_vlm(folder)
    assert read_json(folder / "config.json")["model_type"] == request.param
    return loading.load(folder)


def contexts(words):
    generator = torch.Generator().manual_seed(0)

    def image(height, width):
        return Image(torch.rand(3, height, width, generator=generator) * 2 - 1)

    ask = Text(words.encode("Which one is it?"))
    return [(image(24, 40), ask), (ask,), (image(32, 32), image(48, 32), ask)]


@torch.no_grad()
def test_scoring_again_gives_the_log_probabilities_of_sampling(loaded):
    """A text alone stands between two with pictures: what one row leaves behind would show."""
    reader, words = loaded
    assert isinstance(reader, Reader)
    given = contexts(words)
    written = reader.sample(given, Sampling(max_tokens=6), seeds=[1, 2, 3])
    hidden = reader(given, written.ids)
    log_probs = reader.logits(hidden).log_softmax(dim=-1)
    scored = log_probs.gather(-1, torch.cat(written.ids)[:, None])[:, 0]
    assert torch.allclose(scored, torch.cat(written.log_probs), atol=1e-4)


@torch.no_grad()
def test_a_row_is_what_it_is_alone_and_its_picture_matters(loaded):
    reader, words = loaded
    given = contexts(words)
    sampling = Sampling(temperature=0, max_tokens=4)
    together = reader.sample(given, sampling, seeds=[1, 2, 3])
    alone = reader.sample(given[2:], sampling, seeds=[3])
    assert torch.equal(together.ids[2], alone.ids[0])
    ids = [together.ids[0]]
    other = (Image(-given[0][0].pixels), given[0][1])
    assert not torch.allclose(reader(given[:1], ids), reader([other], ids), atol=1e-4)


@torch.no_grad()
def test_logits_in_chunks_are_the_logits(loaded):
    reader, words = loaded
    hidden = reader(contexts(words)[:1], [torch.arange(5)])
    parts = reader.logits(hidden, lambda logits, rows: logits)
    assert torch.equal(parts, reader.logits(hidden))


def test_a_folder_without_its_files_is_named(tmp_path):
    assert not loading.is_vlm(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "internvl"}')
    with pytest.raises(ValueError, match=str(tmp_path)):
        loading.load(tmp_path)


def test_pictures_and_places_have_to_agree(loaded):
    reader, words = loaded
    reader.tokenizer.chat_template, kept = "none here", reader.tokenizer.chat_template
    try:
        with pytest.raises(ValueError, match="1 pictures, and 0 places"):
            reader.sample(contexts(words)[:1], Sampling(max_tokens=1), [0])
    finally:
        reader.tokenizer.chat_template = kept
