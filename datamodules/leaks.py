"""How far the splits of a twin are apart, and how far one gets without doing what is asked."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from datamodules.splits import Split
from datamodules.twins import Twin, TwinSettings, generate_twin, side_by_side

_THUMBNAIL = (8, 8)


def leak_report(settings: TwinSettings, num_problems: Mapping[Split, int]) -> dict[str, Any]:
    """Overlaps of splits, and the accuracy of baselines that learn from split ``train``.

    ``constant`` gives the commonest answer; ``question`` the commonest to these very words;
    ``picture`` and ``visual_thought`` that of the twin with the most similar thumbnail among those
    asked the same, so they tell how much a look without a thought is worth. ``hard`` is a part of
    ``test``: an overlap of these two is no leak.
    """
    twins = {
        split: [generate_twin(settings, split, index) for index in range(count)]
        for split, count in num_problems.items()
    }
    if "train" not in twins:
        raise ValueError(f"num_problems: the baselines need split train; got {list(twins)}")
    keys = {split: {twin.puzzle.key for twin in found} for split, found in twins.items()}
    return {
        "splits": {
            split: {
                "num_problems": len(found),
                "num_unique": len(keys[split]),
                "chance": float(np.mean([_chance(twin) for twin in found])),
                **_baselines(twins["train"], found),
            }
            for split, found in twins.items()
            if split != "train"
        },
        "canonical_overlap": {
            f"{one}/{other}": len(keys[one] & keys[other]) for one, other in combinations(twins, 2)
        },
    }


def _baselines(known: Sequence[Twin], asked: Sequence[Twin]) -> dict[str, float]:
    commonest = Counter(twin.puzzle.answer for twin in known).most_common(1)[0][0]
    by_words: dict[str, Counter[str]] = defaultdict(Counter)
    for twin in known:
        by_words[twin.puzzle.question][twin.puzzle.answer] += 1
    by_question = [
        by_words[twin.puzzle.question].most_common(1)[0][0]
        if twin.puzzle.question in by_words
        else commonest
        for twin in asked
    ]
    return {
        "constant": _accuracy([commonest] * len(asked), asked),
        "question": _accuracy(by_question, asked),
        "picture": _accuracy(_by_look(known, asked, drawn=False), asked),
        "visual_thought": _accuracy(_by_look(known, asked, drawn=True), asked),
    }


def _by_look(known: Sequence[Twin], asked: Sequence[Twin], *, drawn: bool) -> list[str]:
    groups: dict[str, list[tuple[NDArray[np.float32], str]]] = defaultdict(list)
    for twin in known:
        groups[_form(twin)].append((_thumbnail(twin, drawn=drawn), twin.puzzle.answer))
    answers = []
    for twin in asked:
        look = _thumbnail(twin, drawn=drawn)
        near = min(groups[_form(twin)], key=lambda other: float(np.square(other[0] - look).sum()))
        answers.append(near[1])
    return answers


def _form(twin: Twin) -> str:
    return twin.problem_id.split("px_")[0]


def _thumbnail(twin: Twin, *, drawn: bool) -> NDArray[np.float32]:
    puzzle = twin.puzzle
    picture = puzzle.visual_thought() if drawn else side_by_side(puzzle.pictures())
    small = picture.resize(_THUMBNAIL, PILImage.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)


def _chance(twin: Twin) -> float:
    return 1 / len(twin.puzzle.options) if twin.puzzle.options else 0.0


def _accuracy(answers: Sequence[str], asked: Sequence[Twin]) -> float:
    pairs = zip(answers, asked, strict=True)
    return sum(answer == twin.puzzle.answer for answer, twin in pairs) / len(asked)
