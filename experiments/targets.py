"""What is asked of a told story, and whether it was reached."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from experiments.story import Story
from experiments.wording import Unit, estimate, span, words
from visual_opsd.statistics import Estimate

VSP_SIZES = range(3, 9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A line of the issue's table with its verdict."""

    claim: str
    goal: str
    measured: str
    is_met: bool | None
    """None where nothing is asked, or nothing could be measured."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A number of the summary, and what is asked of it."""

    claim: str
    goal: str
    key: str
    unit: Unit
    is_met: Callable[[Estimate], bool] | None = None
    """None: it is reported."""

    def held_against(self, summary: dict[str, Any]) -> Target:
        """With what was measured."""
        found = estimate(summary[self.key])
        return Target(
            claim=self.claim,
            goal=self.goal,
            measured=words(found, self.unit) if found else "no VSP mazes on this machine",
            is_met=self.is_met(found) if self.is_met and found else None,
        )


def above(threshold: float, *, is_sure: bool = False) -> Callable[[Estimate], bool]:
    """At least so much; ``is_sure``: and the interval above 0."""
    return lambda found: found.value >= threshold and (not is_sure or found.low > 0)


ASKED = (
    Asked(
        "student text-only minus the base's drawn accuracy",
        ">= +3.4 points, interval above 0",
        "gain_over_drawn",
        "points",
        above(0.034, is_sure=True),
    ),
    Asked(
        "student text-only minus the base's own text-only, `true_vt`",
        ">= +10.28 points, interval above 0",
        "gain_over_own_text",
        "points",
        above(0.1028, is_sure=True),
    ),
    Asked(
        "the same, `matched_noise`",
        "between -3 and +3 points",
        "noise_gain_over_own_text",
        "points",
        lambda found: -0.03 <= found.value <= 0.03,
    ),
    Asked("student minus SFT at equal steps", "reported", "gain_over_sft", "points"),
    Asked(
        "closure on the base's completions, `true_vt`",
        ">= 58.4 %",
        "closure",
        "share",
        above(0.584),
    ),
    Asked(
        "the same, `matched_noise`",
        "<= 5 %",
        "noise_closure",
        "share",
        lambda found: found.value <= 0.05,
    ),
    Asked(
        "closure on the student's own trajectories, `true_vt`",
        "reported",
        "closure_own_trajectories",
        "share",
    ),
    Asked("the same, `matched_noise`", "reported", "noise_closure_own_trajectories", "share"),
    Asked(
        "seconds a sample at batch 1: drawn by the official protocol over student text-only",
        ">= 14.3 times",
        "latency_ratio",
        "times",
        above(14.3),
    ),
    Asked(
        "the same against our fastest drawing",
        "reported",
        "latency_ratio_fast_teacher",
        "times",
    ),
)
"""Of every story, whatever it was trained on."""


def judge(story: Story, summary: dict[str, Any]) -> list[Target]:
    """The issue's targets against the summary."""
    sizes = story.maze_settings.sizes
    is_trained_on_vsp_sizes = set(VSP_SIZES) <= set(sizes)
    vsp = Asked(
        f"real VSP mazes, student text-only, trained on sizes {span(sizes)}",
        ">= 85.83 %" if is_trained_on_vsp_sizes else "reported (asked of sizes 3 to 8)",
        "vsp_student_text",
        "share",
        above(0.8583) if is_trained_on_vsp_sizes else None,
    )
    error = summary["max_rescore_error"]
    return [
        *(asked.held_against(summary) for asked in (*ASKED, vsp)),
        Target(
            claim="re-scored against sampled log-probabilities, largest difference",
            goal="<= 1e-4",
            measured=f"{error:.1e}",
            is_met=error <= 1e-4,
        ),
    ]
