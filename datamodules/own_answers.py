"""Problems whose answers are a model's own, wrong ones included: self-training without labels."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from datamodules.frozen_lake import Donors
from datamodules.sources import DamageNoted, ProblemSource
from visual_opsd.contexts import Problem
from visual_opsd.rollouts.own_answers import OwnAnswer


class OwnAnswers:
    """A bank with a model's answers in place of the gold ones, and no visual thoughts.

    What it answered out of form is left out, and counted.
    """

    def __init__(self, source: ProblemSource, answers: Sequence[OwnAnswer], path: Path) -> None:
        """``answers`` are to all problems of ``source``, as kept at ``path``.

        Raises:
            ValueError: Some are missing, or none is in form.
        """
        if len(answers) != len(source):
            raise ValueError(
                f"{path} has own answers to {len(answers)} of {len(source)} problems: make "
                "own-answers RUN=(this experiment) with the same settings goes on"
            )
        self.source = source
        self.path = path
        self._kept = [own for own in answers if own.answer is not None]
        self.num_left_out = len(answers) - len(self._kept)
        if not self._kept:
            raise ValueError(f"{path}: not one of {len(answers)} own answers is in form")

    def __len__(self) -> int:
        return len(self._kept)

    def problem(self, index: int) -> Problem:
        """The problem as the model has answered it; nothing of the gold solution is left."""
        own = self._kept[index]
        problem = self.source.problem(own.index)
        if problem.problem_id != own.problem_id:
            raise ValueError(
                f"{self.path} answers {own.problem_id} where the data has {problem.problem_id}"
            )
        return replace(
            problem,
            answer=own.answer or "",
            answer_template="{answer}",
            text_only_thought=own.thought,
            text_thoughts=(),
            visual_thoughts=(),
        )

    def donor(self, index: int, kind: Donors = "same") -> Problem:
        """None that shows anything: the problem itself."""
        return self.problem(index)

    def group(self, index: int) -> str:
        """The source's."""
        return self.source.group(self._kept[index].index)

    @property
    def failed(self) -> Mapping[int, str]:
        """The source's."""
        return self.source.failed if isinstance(self.source, DamageNoted) else {}

    def note_failed(self, failed: Mapping[int, str]) -> None:
        """As the source does."""
        if isinstance(self.source, DamageNoted):
            self.source.note_failed(failed)
