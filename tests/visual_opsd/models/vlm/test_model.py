"""Random tiny Qwen3-VL and InternVL: the standing tests of every family, and their folders."""

import pytest
import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests import tiny
from visual_opsd.contexts import Image, Text
from visual_opsd.models.bagel.stored import read_json
from visual_opsd.models.interface import Reader, Sampling
from visual_opsd.models.vlm import loading

SEEN = {"qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>", "internvl": "<IMG_CONTEXT>\n"}
TEXT = {
    "vocab_size": 330,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
VISION = {"hidden_size": 16, "intermediate_size": 16}


def make(family, folder):
    """A folder as it is downloaded, with random weights."""
    fast = tiny.make_tokenizer().fast
    names = ["<|image_pad|>", "<|video_pad|>", "<img>", "</img>", "<IMG_CONTEXT>"]
    fast.add_special_tokens({"additional_special_tokens": names})
    fast.eos_token = "<|im_end|>"
    fast.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% for part in message.content %}{% if part.type == 'image' %}"
        + SEEN[family]
        + "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n"
    )
    to_id = fast.convert_tokens_to_ids
    torch.manual_seed(0)
    if family == "qwen3_vl":
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
        vision = VISION | {"depth": 2, "num_heads": 2, "patch_size": 8, "out_hidden_size": 32}
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
        config = Qwen3VLConfig(
            text_config=TEXT | {"rope_parameters": rope},
            vision_config=vision,
            image_token_id=to_id("<|image_pad|>"),
            video_token_id=to_id("<|video_pad|>"),
            vision_start_token_id=to_id("<|vision_start|>"),
            vision_end_token_id=to_id("<|vision_end|>"),
        )
        vlm = Qwen3VLForConditionalGeneration(config)
        process = Qwen2VLImageProcessorPil(
            patch_size=8, size={"shortest_edge": 256, "longest_edge": 4096}
        )
    else:
        vision = VISION | {"num_hidden_layers": 1, "num_attention_heads": 2}
        config = InternVLConfig(
            text_config=TEXT | {"model_type": "qwen3"},
            vision_config=vision | {"image_size": [32, 32], "patch_size": [8, 8]},
            image_token_id=to_id("<IMG_CONTEXT>"),
            image_seq_length=4,
        )
        vlm = InternVLForConditionalGeneration(config)
        process = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=True)
    for part in (vlm, fast, process):
        part.save_pretrained(folder)


@pytest.fixture(scope="module", params=sorted(SEEN))
def loaded(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    make(request.param, folder)
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
