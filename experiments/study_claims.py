"""What a study says: the paper's claims with a verdict each, and where the speed comes from.

Every verdict is computed from the numbers beside it, and holds for the base it was measured on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from experiments.run_data import protocol_of
from experiments.study import BASE, OTHER_BASE, TOLD_BASE, UNDRAWN_BASE
from experiments.study_results import NOISE, SFT, TEXT, TRUE, Key, Matrix, Numbers
from visual_opsd.statistics import (
    Estimate,
    bootstrap_statistic,
    equivalence,
)

Verdict = Literal["supported", "not supported", "not testable here", "not measured"]
CONTENT_FREE = (NOISE, "blank", "no_vt")
MARGIN = 0.03
"""What counts as no change of accuracy."""
MIN_SEEDS = 2
"""Runs of an arm that it takes to judge it: the interval of one knows no spread over seeds."""
MIN_CLOSURE, MAX_FREE_CLOSURE = 0.584, 0.05
DRAWN, PRIVILEGED = Key("test", "drawn"), Key("test", "privileged")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A sentence of the paper, and what became of it here."""

    claim: str
    paper: str
    """Its number there."""
    rule: str
    """What would support it here."""
    verdict: Verdict
    numbers: dict[str, Any]
    """Estimates by name, and p-values."""


def claims(numbers: Numbers, arms: dict[str, Any], speed_up: dict[str, Any] | None) -> list[Claim]:
    """The list; what cannot be asked of this study says so."""
    is_tiny = protocol_of(numbers.results.study.shared) is None
    return [
        *_about_the_base(numbers),
        *_about_the_student(numbers),
        _about_the_answer(numbers),
        *_about_controls(numbers, arms),
        _noise(numbers, NOISE, "base", "on the shipped base"),
        _noise(numbers, f"{NOISE}_{OTHER_BASE}", OTHER_BASE, "on a base that saw no corrupted VTs"),
        *_about_closure(arms),
        _about_speed(speed_up),
        Claim(
            claim="nine benchmarks: better than the drawing teacher on average, on six of nine",
            paper="74.03 against 70.63 %",
            rule="no study scores them: `make evaluate MODEL= DATA=` of a student and of its base",
            verdict="not testable here" if is_tiny else "not measured",
            numbers={},
        ),
    ]


def _measured(
    numbers: Numbers, needed: Sequence[tuple[str, Key]], decide: Callable[[], tuple[bool, Any]]
) -> tuple[Verdict, dict[str, Any]]:
    """A verdict, or that something it needs was not measured: numbers may be there of one seed."""
    if not all(numbers.results.has(who, key) for who, key in needed):
        return "not measured", {}
    is_supported, found = decide()
    if not all(has_seeds(numbers, who) for who, _ in needed):
        return "not measured", found
    return ("supported" if is_supported else "not supported"), found


def has_seeds(numbers: Numbers, who: str) -> bool:
    """Whether it is a base, or trained often enough to be judged."""
    arms = numbers.results.arms
    return who not in arms or len(arms[who]) >= MIN_SEEDS


def _about_the_base(numbers: Numbers) -> list[Claim]:
    def drawing() -> tuple[bool, Any]:
        found = numbers.between_ways("base", DRAWN, "base", TEXT, confidence=0.9)
        return is_within(found, MARGIN), {"drawn_minus_text_only_90": found.as_dict()}

    def gap() -> tuple[bool, Any]:
        told = numbers.between_ways("base", PRIVILEGED, "base", TEXT)
        nats = numbers.gap("base")
        found = {"kl_gap_nats": nats.as_dict(), "privileged_minus_text_only": told.as_dict()}
        return nats.low > 0 and told.low > 0, found

    verdict, found = _measured(numbers, [("base", DRAWN)], drawing)
    informative, told = _measured(numbers, [("base", PRIVILEGED)], gap)
    return [
        Claim(
            claim="at inference, drawing hardly changes accuracy",
            paper="70.85 with, 69.90 without",
            rule=f"base drawn minus text-only within +-{MARGIN}: 90 % interval (TOST)",
            verdict=verdict,
            numbers=found,
        ),
        Claim(
            claim="yet a visual thought in the context moves the next token",
            paper="K_gen 4.64 nats a token",
            rule="gap above 0, and accuracy with the true VT in sight above text-only",
            verdict=informative,
            numbers=told,
        ),
    ]


def _about_the_student(numbers: Numbers) -> list[Claim]:
    def ahead(other: str, key: Key) -> Callable[[], tuple[bool, Any]]:
        def decide() -> tuple[bool, Any]:
            found = numbers.between_ways(TRUE, TEXT, other, key)
            said = {"difference": found.as_dict()}
            start = results.base_of(other) if other in results.arms else BASE
            if start != BASE:  # what either has gained over its own start, and how far those are
                said["starts_differ_by"] = numbers.between(BASE, start).as_dict()
                said["gain"] = numbers.between(TRUE, BASE).as_dict()
                said["its_gain"] = numbers.between(other, start).as_dict()
            dose = Key(f"dose_{other}", PRIVILEGED.way)
            if results.has(BASE, dose):
                said["accuracy_of_its_teacher"] = numbers.accuracy(BASE, dose).as_dict()
            return found.low > 0, said

        return decide

    results = numbers.results
    imitations = [other for one, other in results.study.pairs if one == TRUE] or [SFT]
    rows = [
        ("the student passes the teacher that draws", "+3.40 points", "base", DRAWN),
        ("the student passes its own start, text-only", "+4.13 points", "base", TEXT),
        *(
            (f"the student passes text-only SFT: `{other}`", "-", other, TEXT)
            for other in imitations
        ),
        (
            "the student passes text-only SFT from a base that never drew",
            "+10.28 points",
            f"{SFT}_{UNDRAWN_BASE}",
            TEXT,
        ),
        ("the true VTs do more than the answer in text", "-", "answer_text", TEXT),
        ("the data set's VTs do more than the model's own", "-", "drawn_vt", TEXT),
    ]
    found = []
    for claim, paper, other, key in rows:
        verdict, values = _measured(numbers, [(TRUE, TEXT), (other, key)], ahead(other, key))
        rule = f"`{TRUE}` minus `{other}` ({key.way}): interval above 0"
        teacher = values.get("accuracy_of_its_teacher")
        if teacher is not None:
            rule += "; testable where the base reads what the other's teacher is shown"
            dose = Key(f"dose_{other}", PRIVILEGED.way)
            if numbers.between_ways(BASE, dose, BASE, TEXT).high < 0:
                verdict = "not testable here"
        found.append(Claim(claim=claim, paper=paper, rule=rule, verdict=verdict, numbers=values))
    return found


def _about_the_answer(numbers: Numbers) -> Claim:
    one, other = (f"{arm}_{TOLD_BASE}" for arm in (TRUE, "answer_text"))
    needed = [(one, TEXT), (other, TEXT)]
    needed += [(TOLD_BASE, Key(f"dose_{arm}", PRIVILEGED.way)) for arm in (one, other)]

    def decide() -> tuple[bool, Any]:
        found = numbers.between(one, other)
        (_, true), (_, told) = needed[2:]
        return found.low > 0, {
            "difference": found.as_dict(),
            "gain": numbers.between(one, TOLD_BASE).as_dict(),
            "gain_of_the_told": numbers.between(other, TOLD_BASE).as_dict(),
            "its_teacher": numbers.accuracy(TOLD_BASE, true).as_dict(),
            "teacher_told_minus_its": numbers.between_ways(
                TOLD_BASE, told, TOLD_BASE, true
            ).as_dict(),
        }

    verdict, values = _measured(numbers, needed, decide)
    # Who is told, reads it worse and yet learns more, has answered; who learns less has not.
    if verdict == "supported" and values["teacher_told_minus_its"]["high"] < 0:
        verdict = "not testable here"
    return Claim(
        claim="the true VTs do more than the answer in text, on a base taught to read it",
        paper="-",
        rule=f"`{one}` minus `{other}`: interval above 0; testable where the base reads the answer "
        "as well as the true VTs",
        verdict=verdict,
        numbers=values,
    )


def _about_controls(numbers: Numbers, arms: dict[str, Any]) -> list[Claim]:
    found = []
    for name in CONTENT_FREE:

        def decide(name: str = name) -> tuple[bool, Any]:
            arm = arms[name]
            is_ahead = arm["p_holm"] < 0.05 and arm["true_vt_minus"]["low"] > 0
            said = {"difference": arm["true_vt_minus"], "p_holm": arm["p_holm"]}
            # A control that harms is easily passed: beside it stands what it does to its base.
            said["control_minus_base"] = arm["gain"]
            dose = Key(f"dose_{name}", PRIVILEGED.way)
            if numbers.results.has(BASE, dose):
                teacher = numbers.between_ways(BASE, dose, BASE, TEXT)
                said["its_teacher_minus_base"] = teacher.as_dict()
            return is_ahead, said

        verdict, values = _measured(numbers, [(TRUE, TEXT), (name, TEXT)], decide)
        found.append(
            Claim(
                claim=f"what helps is what the VTs show: `{TRUE}` against `{name}`",
                paper="+9.88 points against noise" if name == NOISE else "-",
                rule="exact McNemar, Holm-adjusted: p < .05, and interval above 0",
                verdict=verdict,
                numbers=values,
            )
        )
    return found


def _noise(numbers: Numbers, arm: str, base: str, where: str) -> Claim:
    def decide() -> tuple[bool, Any]:
        found = numbers.between_ways(arm, TEXT, base, TEXT, confidence=0.9)
        said: dict[str, Any] = {"noise_minus_base_90": found.as_dict()}
        one, other = (numbers.results.matrix(who, TEXT).mean(axis=0) for who in (arm, base))
        if np.ptp(one - other) > 0:  # no spread, no test
            said["p_tost_over_problems"] = equivalence(one, other, MARGIN).p_value
        dose = Key(f"dose_{arm}", PRIVILEGED.way)
        if numbers.results.has(base, dose):
            # Where noise harms, this is why: a teacher that sees it answers worse than the start.
            teacher = numbers.between_ways(base, dose, base, TEXT)
            said["its_teacher_minus_base"] = teacher.as_dict()
        return is_within(found, MARGIN), said

    verdict, values = _measured(numbers, [(arm, TEXT), (base, TEXT)], decide)
    return Claim(
        claim=f"noise for VTs moves accuracy by under {100 * MARGIN:.0f} points, {where}",
        paper="+0.40 points against SFT; -5.75 against its own start",
        rule=f"noise minus its base within +-{MARGIN}: 90 % interval (TOST)",
        verdict=verdict,
        numbers=values,
    )


def _about_closure(arms: dict[str, Any]) -> list[Claim]:
    found = []
    for name in (TRUE, *CONTENT_FREE):
        value = arms[name]["closure"] if name in arms else None
        is_judged = name in arms and arms[name]["num_seeds"] >= MIN_SEEDS
        if name == TRUE:
            claim = f"the KL gap closes with true VTs: `{name}`"
            paper, rule = "58.4 % closed", f"closure: interval from {MIN_CLOSURE} up"
            is_met = value is not None and value["low"] >= MIN_CLOSURE
        else:
            claim = f"the KL gap stays open without content: `{name}`"
            paper = "3.5 % closed" if name == NOISE else "-"
            rule = f"closure: interval up to {MAX_FREE_CLOSURE}"
            is_met = value is not None and value["high"] <= MAX_FREE_CLOSURE
        verdict: Verdict = "supported" if is_met else "not supported"
        found.append(
            Claim(
                claim=claim,
                paper=paper,
                rule=rule,
                verdict=verdict if is_judged else "not measured",
                numbers={} if value is None else {"closure": value},
            )
        )
    return found


def _about_speed(speed_up: dict[str, Any] | None) -> Claim:
    is_met = speed_up is not None and speed_up["whole"]["low"] >= 14.3
    verdict: Verdict = "supported" if is_met else "not supported"
    return Claim(
        claim="text-only answers come 14.3 times as fast as drawn ones",
        paper="14.3 times: no images 6.4, fewer tokens 2.2",
        rule="official drawing protocol over student, batch 1: interval from 14.3 up",
        verdict="not measured" if speed_up is None else verdict,
        numbers=speed_up or {},
    )


def is_within(found: Estimate, margin: float) -> bool:
    """Equivalence by two one-sided tests: the 90 % interval lies within the margin."""
    return -margin < found.low and found.high < margin


# Speed


def decompose(
    seconds: dict[str, list[float]], tokens: dict[str, list[float]], seed: int, resamples: int
) -> dict[str, Any]:
    """The speed-up a sample as a product: fewer tokens, and fewer seconds a token (no drawing).

    ``seconds`` as :func:`experiments.latency.time_in_turn` gives them; ``tokens`` written for the
    same problems, ``drawn`` by the base and ``student`` in text alone.
    """
    columns = {name: np.array(values) for name, values in seconds.items()}
    columns |= {f"{who}_tokens": np.array(values) for who, values in tokens.items()}

    def ratio(a: Matrix, b: Matrix) -> float:
        return float(a.mean() / b.mean())

    def resampled(statistic: Callable[..., float], *names: str) -> dict[str, float]:
        chosen = [columns[name] for name in names]
        found = bootstrap_statistic(statistic, *chosen, seed=seed, resamples=min(resamples, 2000))
        return found.as_dict()

    whole = ("drawn_official", "student_text_only")
    fewer = ("drawn_tokens", "student_tokens")
    return {
        "whole": resampled(ratio, *whole),
        "fewer_tokens": resampled(ratio, *fewer),
        "no_drawing": resampled(lambda a, b, c, d: ratio(a, b) / ratio(c, d), *whole, *fewer),
        "whole_against_fast_drawing": resampled(ratio, "drawn_fast", "student_text_only"),
        "base_text_only_over_student": resampled(ratio, "base_text_only", "student_text_only"),
    }
