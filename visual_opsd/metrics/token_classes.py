"""What a token of a completion is for: thinking, answering, or holding the two apart."""

import re
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

TOKEN_CLASSES = ("thought", "answer", "delimiter", "end")
_ANSWER = re.compile(r"<answer>.*?(?:</answer>|\Z)", re.DOTALL)
_DELIMITER = re.compile(r"</?think>|</?answer>|<image_(?:start|end)>|\\boxed\{|\}(?=\s*</answer>)")


def token_classes(texts: Sequence[str]) -> Int[Tensor, " tokens"]:
    """Index into ``TOKEN_CLASSES`` of every token of one completion, given what each decodes to.

    A tag may be one token or several, and a token may reach over its edge: most of its characters
    decide. What lies in no answer is thought; a mark, which has no text, is the end.
    """
    text = "".join(texts)
    of_characters = ["thought"] * len(text)
    for name, pattern in (("answer", _ANSWER), ("delimiter", _DELIMITER)):
        for found in pattern.finditer(text):
            of_characters[found.start() : found.end()] = [name] * len(found.group())
    classes, start = [], 0
    for token in texts:
        counts = Counter(of_characters[start : start + len(token)])
        classes.append(counts.most_common(1)[0][0] if token else "end")
        start += len(token)
    return torch.tensor([TOKEN_CLASSES.index(name) for name in classes], dtype=torch.long)
