"""All four of ThinkMorph's tasks from generators, as one bank that is mixed by task."""

import numpy as np

from datamodules.frozen_lake import Donors, MazeSettings
from datamodules.sources import GeneratedMazes, ProblemSource
from datamodules.splits import Split
from datamodules.twins import FORMS, TWIN_TASKS, Twin, TwinSettings, form_of, generate_twin
from visual_opsd.benchmarks.jigsaw import JIGSAW_TASK
from visual_opsd.benchmarks.mazes import NAVIGATION_TASK
from visual_opsd.contexts import Problem

TRAINED_FORMS = {**FORMS, JIGSAW_TASK: ("1x2", "2x1")}
"""Jigsaws of two parts, which a tiny model can put together; all forms of the other tasks."""


class GeneratedTwins:
    """A bank of twins of one task; kept as what they are made of, their pictures drawn anew."""

    def __init__(self, settings: TwinSettings, split: Split, num_problems: int) -> None:
        """Nothing is generated before it is asked for."""
        if num_problems < 1:
            raise ValueError(f"num_problems: expected at least 1; got {num_problems}")
        self.settings = settings
        self.split: Split = split
        self._num_problems = num_problems
        self._twins: dict[int, Twin] = {}

    def __len__(self) -> int:
        return self._num_problems

    def twin(self, index: int) -> Twin:
        """The twin at ``index``."""
        if index not in self._twins:
            self._twins[index] = generate_twin(self.settings, self.split, index)
        return self._twins[index]

    def problem(self, index: int) -> Problem:
        """The problem at ``index``, words included."""
        return self.twin(index).problem()

    def donor(self, index: int, kind: Donors = "same") -> Problem:
        """Another twin of the same form."""
        if kind != "same":
            raise ValueError(f"data.donors={kind}: twins have donors of their own form, same, only")
        period = len(self.settings.forms or FORMS[self.settings.task])
        first, place = index % period, index // period
        count = len(range(first, len(self), period))
        if count < 2:
            raise ValueError(f"twin {index} of {len(self)} is the only one of its form: take more")
        shift = np.random.default_rng([self.settings.seed, index]).integers(1, count)
        return self.problem(first + period * ((place + int(shift)) % count))

    def group(self, index: int) -> str:
        """What is asked, where pictures differ in size by it."""
        return form_of(self.settings, index) if self.settings.task == JIGSAW_TASK else "all"


class SeveralTasks:
    """Banks of a task each, one behind the other."""

    def __init__(self, banks: dict[str, ProblemSource]) -> None:
        """Banks by the name of their task."""
        self.banks = banks
        self._starts = np.cumsum([0, *map(len, banks.values())])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def problem(self, index: int) -> Problem:
        """The problem at ``index``."""
        bank, place = self._find(index)
        return self.banks[bank].problem(place)

    def donor(self, index: int, kind: Donors = "same") -> Problem:
        """Another problem of the same bank."""
        bank, place = self._find(index)
        return self.banks[bank].donor(place, kind)

    def group(self, index: int) -> str:
        """Batches are of one task."""
        bank, place = self._find(index)
        return f"{bank} {self.banks[bank].group(place)}"

    def task(self, index: int) -> str:
        """The task, as mixture weights name it."""
        return self._find(index)[0]

    def _find(self, index: int) -> tuple[str, int]:
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        return list(self.banks)[place], index - int(self._starts[place])


def twin_settings(task: str, seed: int = 0) -> TwinSettings:
    """At 64 px a thing, a bar or a quarter of a part is one patch of the tiny model."""
    return TwinSettings(task=task, forms=TRAINED_FORMS[task], seed=seed)


def four_tasks(mazes: MazeSettings, split: Split, num_problems: int) -> SeveralTasks:
    """``num_problems`` of each task."""
    banks: dict[str, ProblemSource] = {NAVIGATION_TASK: GeneratedMazes(mazes, split, num_problems)}
    for task in TWIN_TASKS:
        settings = twin_settings(task, mazes.seed)
        banks[task] = GeneratedTwins(settings, split, num_problems)
    return SeveralTasks(banks)
