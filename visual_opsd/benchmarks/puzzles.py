"""What every procedural twin of a ThinkMorph task is: a question that its own pictures answer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from PIL import Image as PILImage
from PIL import ImageDraw

from visual_opsd.benchmarks.maze_pictures import RED

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; the last two are outside."""

# Far apart for the eye (CIELAB) and from white and greys; the red is not that of the markings.
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (200, 40, 40),
    "orange": (255, 150, 20),
    "yellow": (245, 225, 40),
    "green": (30, 150, 60),
    "cyan": (60, 200, 220),
    "blue": (40, 70, 210),
    "purple": (150, 40, 180),
    "black": (20, 20, 20),
}


class Puzzle(ABC):
    """A question about pictures, with the drawing that helps and the answer that is right."""

    task: ClassVar[str]
    """ThinkMorph's name of it."""

    @property
    @abstractmethod
    def category(self) -> str:
        """A finer class for tables, in the words of the benchmark."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Equal for two puzzles that give each other away: it decides the split."""

    @property
    @abstractmethod
    def stem(self) -> str:
        """The question alone, as a benchmark's TSV has it."""

    @property
    @abstractmethod
    def question(self) -> str:
        """The question with its options, as ThinkMorph words it."""

    @property
    @abstractmethod
    def options(self) -> tuple[str, ...]:
        """What A, B, C, D stand for; empty where the answer is free text."""

    @property
    @abstractmethod
    def answer(self) -> str:
        """A letter, or free text."""

    @property
    @abstractmethod
    def subject(self) -> str:
        """What to look at, in words that never hold the answer."""

    @property
    @abstractmethod
    def details(self) -> tuple[str, ...]:
        """Sentences about the rest of the picture; they never hold the answer either."""

    @property
    @abstractmethod
    def conclusion(self) -> str:
        """The sentence that states the answer."""

    @abstractmethod
    def pictures(self) -> tuple[PILImage.Image, ...]:
        """What the question is about."""

    @abstractmethod
    def visual_thought(self) -> PILImage.Image:
        """The drawing on the way to the answer."""

    @abstractmethod
    def seen_answer(self) -> str | None:
        """The answer by the pixels of ``pictures()`` alone; None where they leave it open."""


def letter_of(index: int) -> str:
    """A for the first option."""
    return "ABCDEF"[index]


def outlined(picture: PILImage.Image, boxes: Sequence[Box]) -> PILImage.Image:
    """The picture with a red frame around every box, a tenth of its short side away."""
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    for left, top, right, bottom in boxes:
        pad = max(1, round(0.1 * min(right - left, bottom - top)))
        frame = (
            max(left - pad, 0),
            max(top - pad, 0),
            min(right + pad, width) - 1,
            min(bottom + pad, height) - 1,
        )
        draw.rectangle(frame, outline=RED, width=max(1, width // 150))
    return picture
