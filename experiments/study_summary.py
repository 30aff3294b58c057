"""What a study's report says, as numbers: ``summary.json``, ``arms.csv`` and ``seeds.csv``.

Shares are fractions 0..1, intervals are over seeds and problems, at 95 % unless a name ends in 90.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from experiments import build, files, run_data, run_files
from experiments.latency import time_in_turn
from experiments.study import BASE, Study
from experiments.study_claims import DRAWN, PRIVILEGED, claims, decompose
from experiments.study_map import comparison
from experiments.study_results import (
    TEXT,
    TRUE,
    Key,
    Numbers,
    Results,
    arm_summaries,
    common_problems,
)
from visual_opsd.models.bagel import checkpoints

PROBLEM_IDS = "problem_ids"


def summarise(study: Study) -> dict[str, Any]:
    """Check, estimate, judge and write.

    Raises:
        ValueError: Results that cannot be compared; or there is none of the base, or of any arm.
    """
    results = Results(study)
    if BASE not in results.records or not results.arms:
        raise ValueError(
            f"{study.folder} has no result of {'any arm' if BASE in results.records else BASE}: "
            f"see {study.folder / 'logs'}"
        )
    numbers = Numbers(results)
    arms = arm_summaries(numbers)
    speed_up = measure_speed(study, results)
    cells, lacking = comparison(numbers)
    found = {
        "seeds": {arm: summary["seeds"] for arm, summary in arms.items()},
        "base": {name: _base(numbers, name) for name in study.bases if name in results.records},
        "arms": arms,
        "comparison": cells,
        "not_compared": lacking,
        "speed_up": speed_up,
        "claims": [asdict(claim) for claim in claims(numbers, arms, speed_up)],
        "missing": results.missing,
        "max_rescore_error": max(r["gap"]["max_rescore_error"] for r in results.records.values()),
        "settings": asdict(study.config),
        "commit": study.commit,
        "commits": commits(study, results),
        "wall_seconds": round(study.seconds, 1),
    }
    files.write(study.folder / "summary.json", json.dumps(found, indent=2) + "\n")
    files.write(study.folder / "arms.csv", as_csv(arm_rows(arms)))
    files.write(study.folder / "seeds.csv", as_csv(seed_rows(arms)))
    return found


def commits(study: Study, results: Results) -> dict[str, list[str]]:
    """What was done at each commit; "unknown" is that of results of before it was kept."""
    done = {study.commit: ["started"]}
    for name, record in results.records.items():
        for commit in record.get("trained_at", [] if name in study.bases else ["unknown"]):
            done.setdefault(commit, []).append(f"trained {name}")
        done.setdefault(record.get("measured_at", "unknown"), []).append(f"measured {name}")
    done.setdefault(run_files.commit(), []).append("summarised")
    return done


def measure_speed(study: Study, results: Results) -> dict[str, Any] | None:
    """The speed-up of the first student of ``true_vt``, one answer at a time on a free machine."""
    if TRUE not in results.arms or not results.has(BASE, DRAWN):
        return None
    student = study.run(results.arms[TRUE][0])

    def measure() -> dict[str, Any]:
        models = [study.bases[BASE], student.config.folder / "model"]
        device = build.own_device(study.shared)
        base, learnt = (checkpoints.load(folder, device) for folder in models)
        problems = study.problems("test")[: study.config.num_timed]
        pair = (base[0].eval(), base[1]), (learnt[0].eval(), learnt[1])
        timed = time_in_turn(*pair, problems, run_data.asked(study.shared))
        return {PROBLEM_IDS: [problem.problem_id for problem in problems], **timed}

    seconds = files.kept(study.folder / "latency.json", measure)
    answers = {
        "drawn": results.by_problem(BASE, DRAWN),
        "student": results.by_problem(student.name, TEXT),
    }
    # Before ids were kept beside them, seconds were of the first problems.
    firsts = list(answers["student"])[: len(seconds["drawn_official"])]
    timed = seconds.pop(PROBLEM_IDS, firsts)
    problems = common_problems(
        {"latency.json": timed, **{who: list(a) for who, a in answers.items()}}
    )
    tokens = {who: [float(a[p].num_tokens) for p in problems] for who, a in answers.items()}
    places = [timed.index(problem) for problem in problems]
    seconds = {key: [found[place] for place in places] for key, found in seconds.items()}
    return decompose(seconds, tokens, study.config.seed, study.config.num_resamples)


def _base(numbers: Numbers, name: str) -> dict[str, Any]:
    asked = {
        "text_only": TEXT,
        "drawn": DRAWN,
        "privileged": PRIVILEGED,
        "unseen_sizes": Key("unseen_sizes", "text_only"),
        "hard": Key("hard", "text_only"),
    }
    scored = (Key(*scored) for scored in numbers.results.records[name]["scored"])
    dose = next((key for key in scored if key.is_dose), None)
    beside = {"text_only_of_drawn": DRAWN, "text_only_of_dosed": dose}
    return {
        **{key: numbers.accuracy(name, value).as_dict() for key, value in asked.items()},
        **{k: numbers.text_beside(name, v).as_dict() for k, v in beside.items() if v is not None},
        "kl_gap": numbers.gap(name).as_dict(),
        "digest": numbers.results.records[name]["base_digest"],
    }


def arm_rows(arms: dict[str, Any]) -> list[dict[str, Any]]:
    """A row an arm: estimates in three columns each."""
    rows = []
    for arm, summary in arms.items():
        row: dict[str, Any] = {"arm": arm}
        for key, value in summary.items():
            if isinstance(value, dict) and set(value) == {"value", "low", "high"}:
                row |= {key if end == "value" else f"{key}_{end}": value[end] for end in value}
            elif value is None or isinstance(value, str | int | float):
                row[key] = value
        rows.append(row)
    return rows


def seed_rows(arms: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a run."""
    return [
        {"arm": arm, "seed": seed, "accuracy": accuracy, "closure": closure}
        for arm, summary in arms.items()
        for seed, accuracy, closure in zip(
            summary["seeds"],
            summary["accuracy_by_seed"],
            summary["closure_by_seed"],
            strict=True,
        )
    ]


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """A table with the columns of all rows."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
