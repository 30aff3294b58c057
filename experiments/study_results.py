"""From the files of a study to its numbers: checked for comparability, with intervals.

Nothing here knows a model: per-problem answers and gaps of fixed completions are all it reads.
Matrices are [seeds, problems]; intervals are over both levels.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.evaluation import Prediction, load_predictions
from experiments.kl_gap import other_completions
from experiments.study import BASE, Study
from visual_opsd.statistics import (
    Estimate,
    benjamini_hochberg,
    bootstrap_ratio,
    holm,
    mcnemar_exact,
    problem_differences,
    seeds_bootstrap_closure,
    seeds_bootstrap_difference,
    smallest_detectable_difference,
    wins_and_losses,
)

Matrix = NDArray[np.float64]
TRUE, NOISE, SFT = "true_vt", "matched_noise", "sft"


@dataclass(frozen=True, slots=True)
class Key:
    """One set of problems answered in one way."""

    on: str
    way: str

    @property
    def is_dose(self) -> bool:
        """The base's answers with in sight what an arm's teacher is shown."""
        return self.on.startswith("dose_")


TEXT = Key("test", "text_only")


class Results:
    """What is there of a study."""

    def __init__(self, study: Study) -> None:
        """Read every result.

        Raises:
            ValueError: Arms that cannot be compared, or answers that are not there; named.
        """
        self.study = study
        names = (*study.bases, *(run.name for run in study.runs))
        self.records: dict[str, dict[str, Any]] = {
            name: json.loads(study.result(name).read_text())
            for name in names
            if study.result(name).is_file()
        }
        self.missing = [name for name in names if name not in self.records]
        self._answers: dict[tuple[str, Key], list[Prediction]] = {}
        for name, record in self.records.items():
            self._check(name, record)

    @cached_property
    def arms(self) -> dict[str, list[str]]:
        """Runs by arm, in the order of seeds; arms and bases without a result left out."""
        found: dict[str, list[str]] = {}
        for run in self.study.runs:
            if run.name in self.records and run.base in self.records:
                found.setdefault(run.arm, []).append(run.name)
        return found

    def base_of(self, arm: str) -> str:
        """The base an arm was trained from."""
        return next(run.base for run in self.study.runs if run.arm == arm)

    def answers(self, name: str, key: Key) -> list[Prediction]:
        """Of one model, in the order of the problems."""
        if (name, key) not in self._answers:
            path = self.study.predictions(name, key.on, key.way)
            if not path.is_file():
                raise ValueError(f"{path}: missing predictions of {name}; remove its result file")
            self._answers[name, key] = load_predictions(path)
        return self._answers[name, key]

    def by_problem(self, name: str, key: Key) -> dict[str, Prediction]:
        """Answers of one model by the problem's id, in the order of the problems."""
        answers = self.answers(name, key)
        found = {answer.problem_id: answer for answer in answers}
        if len(found) < len(answers):
            path = self.study.predictions(name, key.on, key.way)
            raise ValueError(f"{path}: {len(answers)} answers to {len(found)} problems")
        return found

    def common(self, *asked: tuple[str, Key]) -> list[str]:
        """The ids that all ``asked`` share, so that ways are compared on the same problems."""
        return common_problems(
            {
                f"{who} ({key.on}, {key.way})": list(self.by_problem(self.rows(who)[0], key))
                for who, key in asked
            }
        )

    def rows(self, who: str) -> list[str]:
        """The runs of an arm, or a base."""
        return self.arms.get(who, [who])

    def matrix(
        self,
        who: str,
        key: Key,
        of: Callable[[Prediction], float] = lambda p: p.is_solved,
        problems: Sequence[str] | None = None,
    ) -> Matrix:
        """A value a problem, a row a seed of an arm, or one row of a base."""
        rows = [self.by_problem(row, key) for row in self.rows(who)]
        ids = list(rows[0]) if problems is None else problems
        return np.array([[of(row[problem]) for problem in ids] for row in rows], dtype=float)

    def nats(self, who: str) -> Matrix:
        """KL sums of the fixed completions, in the same layout."""
        return np.array([self.records[row]["gap"]["fixed_sums"] for row in self.rows(who)])

    def has(self, who: str, key: Key) -> bool:
        """Whether all rows of ``who`` were asked this."""
        return all(
            row in self.records and [key.on, key.way] in self.records[row]["scored"]
            for row in self.rows(who)
        )

    def _check(self, name: str, record: dict[str, Any]) -> None:
        """Hold a record against its base's and against the first run's."""
        base = self.records.get(record["base"])
        if base is None:
            return
        say = f"{self.study.result(name)}: {name}"
        if record["base_digest"] != base["base_digest"]:
            raise ValueError(
                f"{say} started from another base: {record['base_digest']}, and "
                f"{record['base']} is {base['base_digest']}"
            )
        if said := other_completions(record["gap"], base["gap"]):
            raise ValueError(f"{say} was scored on other completions than {record['base']}: {said}")
        keys = [Key(*scored) for scored in record["scored"]]
        doses = [key for key in keys if key.is_dose]
        for key in keys:
            # Doses are the base's alone, and held against each other.
            like = (name, doses[0]) if key.is_dose else (record["base"], key)
            self._check_problems(say, name, key, *like)
        runs = [r for r in self.records.values() if "steps" in r]
        for field in ("steps", "samples_a_step") if "steps" in record else ():
            if record[field] != runs[0][field]:
                raise ValueError(
                    f"{say} has {field} {record[field]}, and {runs[0]['arm']}-{runs[0]['number']} "
                    f"has {runs[0][field]}: arms see as many"
                )

    def _check_problems(self, say: str, name: str, key: Key, base: str, than: Key) -> None:
        mine, its = (
            [prediction.problem_id for prediction in self.answers(who, of)]
            for who, of in ((name, key), (base, than))
        )
        if mine == its:
            return
        extra, lacking = sorted(set(mine) - set(its)), sorted(set(its) - set(mine))
        what = (
            f"it lacks {lacking[:3]} and has {extra[:3]} besides" if extra or lacking else "order"
        )
        raise ValueError(
            f"{say} answered other problems ({key.on}, {key.way}) than {base} ({than.on}): "
            f"{len(mine)} against {len(its)}; {what}"
        )


def common_problems(sets: Mapping[str, Sequence[str]]) -> list[str]:
    """The ids of the smallest set, in its order; all the others have them, and may have more.

    Raises:
        ValueError: One lacks some; named with it.
    """
    smallest = min(sets, key=lambda name: len(sets[name]))
    for name, ids in sets.items():
        known = set(ids)
        if lacking := [problem for problem in sets[smallest] if problem not in known]:
            raise ValueError(
                f"{smallest} and {name} are of different problems: of {len(sets[smallest])} of the "
                f"former, the latter lacks {len(lacking)}, {lacking[:3]} among them"
            )
    return list(sets[smallest])


# Numbers


class Numbers:
    """Estimates of a study's results, as its summary keeps them."""

    def __init__(self, results: Results) -> None:
        """All resampling follows the study's seed."""
        self.results = results
        self.seed = results.study.config.seed
        self.resamples = results.study.config.num_resamples

    def mean(self, values: Matrix) -> Estimate:
        """With its interval over seeds and problems."""
        return self.difference(values, np.zeros((1, values.shape[1])))

    def difference(self, a: Matrix, b: Matrix, confidence: float = 0.95) -> Estimate:
        """Paired over problems."""
        return seeds_bootstrap_difference(a, b, self.seed, self.resamples, confidence)

    def accuracy(self, who: str, key: Key = TEXT) -> Estimate:
        """Share solved."""
        return self.mean(self.results.matrix(who, key))

    def text_beside(self, base: str, key: Key) -> Estimate:
        """Text-only accuracy of a base on the problems that it was asked in another way."""
        problems = self.results.common((base, TEXT), (base, key))
        return self.mean(self.results.matrix(base, TEXT, problems=problems))

    def between(self, one: str, other: str, key: Key = TEXT) -> Estimate:
        """Difference of two shares."""
        return self.difference(self.results.matrix(one, key), self.results.matrix(other, key))

    def between_ways(
        self, one: str, of: Key, other: str, than: Key, confidence: float = 0.95
    ) -> Estimate:
        """Difference of two shares on the problems of the smaller set: the larger one has them."""
        problems = self.results.common((one, of), (other, than))
        a = self.results.matrix(one, of, problems=problems)
        b = self.results.matrix(other, than, problems=problems)
        return self.difference(a, b, confidence)

    def gap(self, base: str) -> Estimate:
        """K_gen (Eq. 4) of a base, in nats a token."""
        gap = self.results.records[base]["gap"]
        return bootstrap_ratio(gap["fixed_sums"], gap["fixed_lengths"], self.seed, self.resamples)

    def closure(self, arm: str) -> Estimate:
        """Of an arm's students, frozen start teacher with true visual thoughts."""
        before = self.results.nats(self.results.base_of(arm))
        after = self.results.nats(arm)
        return seeds_bootstrap_closure(before, after, self.seed, self.resamples)

    def smallest_detectable(self, one: str, other: str) -> float | None:
        """The smallest difference of accuracy that the test of one against the other finds.

        Over several seeds a problem is won by a part of them: what the test finds is a surplus of
        problems, and accuracy moves by as much of each as separates the arms there.
        """
        differences = problem_differences(*(self.results.matrix(n, TEXT) for n in (one, other)))
        discordant = np.abs(differences[differences != 0])
        if not len(discordant):
            return None
        found = smallest_detectable_difference(len(differences), len(discordant) / len(differences))
        return None if found is None else found * float(discordant.mean())


def arm_summaries(numbers: Numbers) -> dict[str, dict[str, Any]]:
    """Every arm that has a run, with Holm over all comparisons with ``true_vt`` of its base."""
    results = numbers.results
    found = {arm: _arm(numbers, arm) for arm in results.arms}
    others = [arm for arm in found if results.base_of(arm) == BASE and arm != TRUE]
    others = others if TRUE in found else []
    raw = []
    for arm in others:
        wins, losses = wins_and_losses(results.matrix(TRUE, TEXT), results.matrix(arm, TEXT))
        raw.append(mcnemar_exact(wins, losses))
        found[arm]["true_vt_wins"], found[arm]["true_vt_losses"] = wins, losses
        found[arm]["smallest_detectable"] = numbers.smallest_detectable(TRUE, arm)
        found[arm]["true_vt_minus"] = numbers.between(TRUE, arm).as_dict()
    adjusted = zip(others, raw, holm(raw), benjamini_hochberg(raw), strict=True)
    for arm, p, p_holm, p_bh in adjusted:
        found[arm] |= {"p": p, "p_holm": p_holm, "p_bh": p_bh}
    return found


def _arm(numbers: Numbers, arm: str) -> dict[str, Any]:
    results = numbers.results
    base, names = results.base_of(arm), results.arms[arm]
    records = [results.records[name] for name in names]
    solved, before = results.matrix(arm, TEXT), results.nats(base)
    dose = Key(f"dose_{arm}", "privileged")
    seconds = [r["cpu_seconds"] for r in records if r["cpu_seconds"] is not None]
    return {
        "base": base,
        "seeds": [results.study.run(name).config.seed for name in names],
        "num_seeds": len(names),
        "accuracy": numbers.accuracy(arm).as_dict(),
        "accuracy_by_seed": solved.mean(axis=1).tolist(),
        "gain": numbers.between(arm, base).as_dict(),
        "closure": numbers.closure(arm).as_dict(),
        "closure_by_seed": (1 - results.nats(arm).sum(axis=1) / before.sum()).tolist(),
        "kl_by_class": _by_class([r["gap"] for r in records], results.records[base]["gap"]),
        "tokens": numbers.mean(results.matrix(arm, TEXT, lambda p: p.num_tokens)).as_dict(),
        "train_cpu_seconds": float(np.median(seconds)) if seconds else None,
        "seconds_a_sample": float(results.matrix(arm, TEXT, lambda p: p.seconds).mean()),
        # Not known of what was measured before it was kept.
        "left_out_by_seed": [record.get("left_out") for record in records],
        "dose": numbers.accuracy(base, dose).as_dict() if results.has(base, dose) else None,
    }


def _by_class(
    gaps: Sequence[dict[str, Any]], before: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Nats a token of every class, before and after (mean over seeds)."""
    found = {}
    for kind, (nats, count) in before["classes"].items():
        if count:
            after = float(np.mean([gap["classes"][kind][0] for gap in gaps]))
            found[kind] = {"tokens": count, "before": nats / count, "after": after / count}
    return found
