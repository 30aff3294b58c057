"""Random tiny Qwen3-VL and InternVL in folders as they are downloaded."""

from pathlib import Path

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


def make(family: str, folder: Path) -> None:
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
