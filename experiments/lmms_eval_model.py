"""lmms-eval asks our models through its entry points, without a fork of it.

With both installed: ``lmms-eval --model visual_opsd --model_args model=FOLDER --tasks mmvp``. One
process, one question at a time; ``protocol`` and ``way`` are those of ``make evaluate``.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image as PILImage

from experiments import respond
from visual_opsd.benchmarks.answers import extract_answer
from visual_opsd.benchmarks.items import Wording
from visual_opsd.models.bagel.preprocessing import on_white
from visual_opsd.seeds import row_seed


def manifest() -> Any:
    """What the entry point ``lmms_eval.models`` hands over."""
    path = f"{VisualOPSD.__module__}.{VisualOPSD.__qualname__}"
    return ModelManifest(model_id="visual_opsd", chat_class_path=path)


class VisualOPSD(lmms):  # type: ignore[misc]
    """Any checkpoint folder that ``make evaluate`` takes."""

    is_simple = False

    def __init__(
        self,
        model: str,
        protocol: Wording = "paper",
        way: Literal["text_only", "drawn"] = "text_only",
        max_new_tokens: int = 0,
        seed: int = 42,
        answer_only: bool = True,  # noqa: FBT001, FBT002 - lmms-eval hands over keywords
        **others: Any,
    ) -> None:
        """Load the model.

        Args:
            model: Its folder.
            protocol: Words around the question, pictures and decoding.
            way: ``text_only`` or ``drawn``.
            max_new_tokens: Budget of a text; 0 for the protocol's. That of a task is not read:
                it is 16 in most, and no thought ends there.
            seed: Of sampling and drawing.
            answer_only: Give back what was answered, not the thoughts before it: most tasks take
                the first letter of a reply for its answer.
            others: ``batch_size`` and ``device``, which lmms-eval always hands over.
        """
        super().__init__()
        if unknown := sorted(set(others) - {"batch_size", "device", "max_batch_size"}):
            raise ValueError(f"model_args: {', '.join(unknown)} are unknown to visual_opsd")
        respondent = respond.load(model, protocol, way)
        limit = int(max_new_tokens)
        self.respondent = respondent.limited(limit) if limit else respondent
        self.seed = int(seed)
        self.answer_only = answer_only

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """A reply to each request, in order."""
        return [self._reply(*request.args) for request in requests]

    def _reply(
        self, words: str, doc_to_messages: Any, kwargs: Any, doc_id: Any, task: str, split: str
    ) -> str:
        del words, kwargs  # the messages hold the words
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        asked = question(messages, row_seed(self.seed, task, str(doc_id)))
        text = self.respondent.answer([asked])[0].text
        return (extract_answer(text).value or "") if self.answer_only else text

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not for tasks that are answered in words."""
        raise NotImplementedError("visual_opsd answers in words: choose a task of generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """No task of the nine has several rounds."""
        raise NotImplementedError("visual_opsd answers once: choose a task of generate_until")


def question(messages: Iterable[dict[str, Any]], seed: int) -> respond.Asked:
    """Pictures first, then all words, as everywhere here.

    Raises:
        ValueError: A message holds something else than pictures and text.
    """
    pictures: list[PILImage.Image] = []
    words: list[str] = []
    for message in messages:
        for part in message["content"]:
            if part["type"] == "text":
                words.append(part["text"])
            elif part["type"] == "image":
                pictures.append(on_white(part["url"]))
            else:
                raise ValueError(f"visual_opsd reads pictures and text, not {part['type']}")
    return respond.Asked(pictures=tuple(pictures), prompt="".join(words), seed=seed)
