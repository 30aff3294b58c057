"""Text to ids and back: any fast tokenizer of transformers, and how the tiny one is made."""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from visual_opsd.contexts import Encode
from visual_opsd.models.bagel.config import SpecialTokens

MARK_NAMES = {
    "begin": "<|im_start|>",
    "end": "<|im_end|>",
    "start_of_image": "<|vision_start|>",
    "end_of_image": "<|vision_end|>",
}
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")


class Tokenizer:
    """Encodes without marks, decodes with the marks left out."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Wrap a fast tokenizer; a missing mark is an error that names it."""
        self.fast = tokenizer
        vocabulary = tokenizer.get_vocab()
        missing = [name for name in MARK_NAMES.values() if name not in vocabulary]
        if missing:
            raise ValueError(f"the tokenizer lacks the marks {missing}")
        self.marks = SpecialTokens(**{key: vocabulary[name] for key, name in MARK_NAMES.items()})
        # Prompts and questions repeat by the thousand.
        self.encode: Encode = lru_cache(maxsize=4096)(self._encode)

    def __len__(self) -> int:
        return len(self.fast)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.fast.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, marks left out."""
        marks = set(vars_of(self.marks))
        return str(self.fast.decode([i for i in ids if i not in marks]))

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read ``tokenizer.json``, else Qwen's ``vocab.json`` and ``merges.txt``.

        Without a ``tokenizer.json`` the marks stand in ``tokenizer_config.json``.
        """
        path = folder / "tokenizer.json"
        if path.is_file():
            build: Callable[[], Any] = partial(PreTrainedTokenizerFast, tokenizer_file=str(path))
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            path = folder / "vocab.json"
            build = partial(Qwen2Tokenizer.from_pretrained, str(folder), local_files_only=True)
        else:
            raise FileNotFoundError(
                f"{folder} has no tokenizer.json, and not both vocab.json and merges.txt"
            )
        try:
            fast = build()
        except Exception as error:  # tokenizers raises nothing more precise
            raise ValueError(f"{path} is no tokenizer: {error}") from error
        try:
            return cls(fast)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json``."""
        self.fast.backend_tokenizer.save(str(folder / "tokenizer.json"))

    def save_official(self, folder: Path) -> None:
        """Write all that official code may read: older transformers want vocabulary and merges."""
        self.save(folder)
        raw = json.loads(self.fast.backend_tokenizer.to_str())
        model, added = raw["model"], raw["added_tokens"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        config = {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(token["id"]): {flag: token[flag] for flag in flags} for token in added
            },
            "additional_special_tokens": list(MARK_NAMES.values()),
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": MARK_NAMES["end"],
            "model_max_length": 131072,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        }
        vocabulary = json.dumps(model["vocab"], ensure_ascii=False)
        (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
        (folder / "merges.txt").write_text(
            "\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8"
        )
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def vars_of(marks: SpecialTokens) -> tuple[int, int, int, int]:
    """The four ids."""
    return (marks.begin, marks.end, marks.start_of_image, marks.end_of_image)


def train_tiny_tokenizer(
    corpus: Iterable[str], constant_sentences: Sequence[str], vocab_size: int = 1024
) -> Tokenizer:
    """A byte-level BPE whose constant sentences are one token each (decision record 0001).

    Digits and single moves stand alone, so that coordinates and paths are spelt the same way
    everywhere; between them whole phrases may merge.
    """
    raw = RawTokenizer(BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|,?[LRUD](?=[,}])"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(constant_sentences),
        special_tokens=list(MARK_NAMES.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(corpus, trainer)
    raw.add_tokens(list(constant_sentences))
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=raw))
