"""A told story as a page: the answer first, then targets, tables and figures.

Every word that judges is computed from the numbers beside it.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments import figures
from experiments.evaluation import Prediction, accuracy, by_category
from experiments.figures import Curve, Exhibit, Said, Strip
from experiments.story import Story, drawn_examples
from experiments.targets import Target, judge
from experiments.wording import (
    WAY_NAMES,
    Row,
    difference,
    estimate,
    percent,
    span,
    table,
    verdict,
    words,
)
from visual_opsd.benchmarks.answers import extract_answer, parse_moves
from visual_opsd.contexts import Image
from visual_opsd.rollouts.answering import Way
from visual_opsd.statistics import Estimate, bootstrap_ratio

HELD_OUT, DIVERGENCE = "held_out/text_only", "train/divergence"


def write_report(story: Story, summary: dict[str, Any]) -> Path:
    """``report.md`` and its figures in the story's folder."""
    targets = judge(story, summary)
    captions = draw_figures(story, summary)
    sections = [
        f"# Visual-OPSD: {story.folder.name}",
        answer_first(story, summary, targets),
        "## Targets",
        table(
            ["", "target", "measured (95 % interval)", ""],
            [[t.claim, t.goal, t.measured, verdict(t.is_met)] for t in targets],
        ),
        "## Accuracy",
        accuracy_section(story, summary),
        "## KL gap",
        gap_section(story, summary),
        "## Latency",
        latency_section(story, summary),
        "## Figures",
        *(
            f"![{name}]({name}.png)\n\n{words} ([PDF]({name}.pdf))"
            for name, words in captions.items()
        ),
        "## How this was made",
        making_section(story, summary),
    ]
    path = story.folder / "report.md"
    path.write_text("\n\n".join(sections) + "\n")
    return path


# The answer


def answer_first(story: Story, summary: dict[str, Any], targets: Sequence[Target]) -> str:
    """What was found, in one paragraph."""
    get = {key: Estimate(**value) for key, value in summary.items() if _is_estimate(value)}
    steps = story.arms["true_vt"].trainer.max_steps
    met = [t for t in targets if t.is_met]
    missed = [t for t in targets if t.is_met is False]
    seconds = summary["seconds_a_sample"]
    sentences = [
        f"On {len(story.problems):,} held-out mazes the base solves "
        f"{percent(get['base_text'])} answering in text alone, {percent(get['base_drawn'])} when "
        f"it draws first, and {percent(get['base_privileged'])} when it is given the true drawing.",
        f"After {steps} steps of Visual-OPSD the same model, which never draws, solves "
        f"{percent(get['student_text'])} in text alone: {difference(get['gain_over_own_text'])} "
        f"against its own start, {difference(get['gain_over_drawn'])} against the base with its "
        f"drawing, at {seconds['student_text_only'] * 1000:.0f} ms a sample against "
        f"{seconds['drawn_official'] * 1000:.0f} ms by the official drawing protocol "
        f"({words(get['latency_ratio'], 'times')}).",
        "With noise of the same mean and variance in place of the visual thoughts, the same "
        f"training moves accuracy by {difference(get['noise_gain_over_own_text'])}.",
        "Plain SFT on the gold answers, at equal steps, solves "
        f"{percent(get['sft_text'])}: the student stands at "
        f"{difference(get['gain_over_sft'])} against it.",
        f"Of the KL gap of {summary['kl_gap']:.3f} nats a token, "
        f"{words(get['closure'], 'share')} is closed on the base's own completions; with noise "
        f"{words(get['noise_closure'], 'share')}.",
        *(
            [
                f"On {len(story.vsp)} real VSP mazes the student solves "
                f"{percent(get['vsp_student_text'])} in text alone, the base "
                f"{percent(get['vsp_base_drawn'])} with its drawing."
            ]
            if story.vsp
            else []
        ),
        f"{len(met)} of {len(met) + len(missed)} targets that ask for a number are met"
        + (
            "; missed: " + "; ".join(f"{t.claim} ({t.goal}; {t.measured})" for t in missed) + "."
            if missed
            else "."
        ),
    ]
    return " ".join(sentences)


# Tables


def accuracy_section(story: Story, summary: dict[str, Any]) -> str:
    """Who solves how many: by way, by size, and on VSP by level."""
    rows = [_score_row(story, "base", way) for way in WAY_NAMES]
    rows += [_score_row(story, name, "text_only") for name in story.arms]
    rows += _trivial_rows(summary, "test", len(story.problems))
    exact = estimate(summary["base_exact_drawings"])
    recovered = estimate(summary["gap_recovered"])
    regained = (
        f"The student recovers {words(recovered, 'share')} of the distance from the base's text "
        "to its privileged accuracy."
        if recovered
        else "The base is not shown to answer better when given the true drawing, so there is no "
        "distance to recover."
    )
    parts = [
        f"Share of held-out mazes solved, sizes {span(story.maze_settings.sizes)}; the headline "
        "is greedy, T = 1 stands beside it. Drawing is scored on the first "
        f"{min(story.settings.num_drawn, len(story.problems)):,}.",
        table(["", "way", "mazes", "greedy (95 % interval)", "T = 1", "tokens"], rows),
        f"Drawings of the base that show a shortest path: {words(exact, 'share')}. {regained}",
        _category_table(
            "By size, text only, greedy",
            {name: story.predictions(name, "text_only") for name in ("base", *story.arms)}
            | {"base, drawn": story.predictions("base", "drawn")},
        ),
    ]
    if not story.vsp:
        parts.append(
            "The real VSP mazes are not on this machine (`VISUAL_OPSD_VSP`), so their rows are "
            "left out."
        )
        return "\n\n".join(parts)
    named = {
        **{f"{name}, text": story.predictions(name, "text_only", on="vsp") for name in story.arms},
        "base, text": story.predictions("base", "text_only", on="vsp"),
        "base, drawn": story.predictions("base", "drawn", on="vsp"),
    }
    rows = [
        [name, str(len(found)), words(accuracy(found), "share")] for name, found in named.items()
    ]
    rows += [[row[0], row[2], row[3]] for row in _trivial_rows(summary, "vsp", len(story.vsp))]
    left_out = summary["vsp_left_out"]
    said = f" {len(left_out)} pictures left out ({'; '.join(left_out)})." if left_out else ""
    return "\n\n".join(
        [
            *parts,
            f"Real VSP mazes, greedy.{said}",
            table(["", "mazes", "solved (95 % interval)"], rows),
            _category_table("By level, greedy", named),
        ]
    )


def _score_row(story: Story, name: str, way: Way) -> Row:
    found = story.predictions(name, way)
    sampled = "-"
    if way == "text_only":
        sampled = percent(accuracy(story.predictions(name, way, at="sampled")))
    tokens = float(np.mean([prediction.num_tokens for prediction in found]))
    measured = words(accuracy(found), "share")
    return [name, WAY_NAMES[way], f"{len(found):,}", measured, sampled, f"{tokens:.1f}"]


def _trivial_rows(summary: dict[str, Any], which: str, num_mazes: int) -> list[Row]:
    names = {
        "vertical_then_horizontal": "vertical, then horizontal, holes ignored",
        "best_constant": "the best constant answer",
    }
    return [
        [names[key], "no model", f"{num_mazes:,}", words(estimate(value), "share"), "-", "-"]
        for key, value in summary["trivial"][which].items()
    ]


def _category_table(title: str, named: dict[str, list[Prediction]]) -> str:
    cells = {name: by_category(found) for name, found in named.items()}
    categories = sorted({category for row in cells.values() for category in row})
    rows = [
        [name, *(percent(row[c], with_interval=True) if c in row else "-" for c in categories)]
        for name, row in cells.items()
    ]
    return f"{title}:\n\n" + table(["", *(c.replace("_", " ") for c in categories)], rows)


def gap_section(story: Story, summary: dict[str, Any]) -> str:
    """The gap before and after, and which side closed it."""
    base = story.gap("base")
    rows: list[Row] = [["base", _gap_words(story, base, "fixed"), "-", "-", "-", "-", "-"]]
    for name in story.arms:
        gap = story.gap(name)
        cells = [name]
        for of in ("fixed", "own", "both_moved"):
            closed = story.closure(name, of)
            cells += [_gap_words(story, gap, of), words(closed, "share")]
        rows.append(cells)
    return "\n\n".join(
        [
            "KL(teacher || student) in nats a token; the teacher sees the true visual thoughts, "
            "the student none. T0 and S0 are the base, T1 and S1 the arm's weights. Fixed: "
            f"{len(base['fixed_sums']):,} completions sampled once from the base (Eq. 4); own: "
            "sampled from the arm; moved teacher: what closure would be if the teacher were "
            "allowed to drift with the student. Closure is 1 - after / before.",
            table(
                [
                    "",
                    "K(T0, S), fixed",
                    "closure",
                    "K(T0, S1), own",
                    "closure",
                    "K(T1, S1), moved teacher",
                    "closure",
                ],
                rows,
            ),
        ]
    )


def _gap_words(story: Story, gap: dict[str, Any], of: str) -> str:
    found = bootstrap_ratio(gap[f"{of}_sums"], gap[f"{of}_lengths"], story.settings.seed, 2000)
    return words(found, "nats")


def latency_section(story: Story, summary: dict[str, Any]) -> str:
    """Seconds a sample, one by one."""
    names = {
        "drawn_official": "base, drawn, official protocol (49 evaluations, three calls a step)",
        "drawn_fast": "base, drawn, our fastest (8 evaluations, no guidance)",
        "base_text_only": "base, text only",
        "student_text_only": "student, text only",
    }
    ratios = {"drawn_official": "latency_ratio", "drawn_fast": "latency_ratio_fast_teacher"}
    rows = []
    for key, values in story.latency().items():
        ratio = estimate(summary[ratios[key]]) if key in ratios else None
        median, late = np.percentile(values, [50, 95]) * 1000
        mean = float(np.mean(values)) * 1000
        over = words(ratio, "times") if ratio else "-"
        rows.append([names[key], f"{mean:.1f}", f"{median:.1f}", f"{late:.1f}", over])
    return "\n\n".join(
        [
            f"Milliseconds a sample at batch 1, greedy, over {story.settings.num_timed} mazes.",
            table(["", "mean", "p50", "p95", "over student text-only"], rows),
        ]
    )


def making_section(story: Story, summary: dict[str, Any]) -> str:
    """What it takes to make it again."""
    arms = [
        f"`{name}`: {arm.trainer.max_steps} steps of {arm.data.batch_size} problems, "
        f"sizes {span(arm.data.sizes)}, method {arm.method}"
        + (f", teacher sees `{arm.rollout.intervention}`" if arm.method == "visual_opsd" else "")
        for name, arm in story.arms.items()
    ]
    trained_at = summary["commits"]
    if set(trained_at.values()) != {summary["commit"]}:
        named = "; ".join(f"`{name}` `{commit}`" for name, commit in trained_at.items())
        arms.append(f"Trained at the commits: {named}")
    return "\n".join(
        [
            f"- Commit `{summary['commit']}`, seed {summary['seed']}, base `{story.base_folder}`.",
            *(f"- {arm}." for arm in arms),
            f"- {summary['wall_seconds']:,.0f} seconds in all, installation not included.",
            "- Intervals: Wilson's for shares, percentile bootstrap over problems for the rest.",
            "- Every number: `summary.json`; every answer: `predictions/`.",
        ]
    )


# Figures


def draw_figures(story: Story, summary: dict[str, Any]) -> dict[str, str]:
    """Draw and save; captions by file name."""
    folder = story.folder
    held_out = {name: read_curve(arm.folder, HELD_OUT) for name, arm in story.arms.items()}
    divergence = {name: read_curve(arm.folder, DIVERGENCE) for name, arm in story.arms.items()}
    figures.save_figure(
        figures.curves(
            {name: curve for name, curve in held_out.items() if curve.steps},
            {name: curve for name, curve in divergence.items() if curve.steps},
            {
                "base, drawn (test)": summary["base_drawn"]["value"],
                "base, given the true drawing (test)": summary["base_privileged"]["value"],
            },
        ),
        folder / "curves",
    )
    strip = story.token_strip()
    shown = [
        Strip(f"{row['category'].replace('_', ' ')}, {name}", row["tokens"], row["gaps"])
        for name, row in strip.items()
    ]
    figures.save_figure(figures.kl_strip(shown), folder / "kl_strip")
    examples = drawn_examples(story)
    figures.save_figure(
        figures.contact_sheet(
            [
                Exhibit(
                    problem.category.replace("_", " "),
                    _bytes(problem.image),
                    None if drawn is None else _bytes(drawn),
                    _said(story, problem.problem_id, answers),
                )
                for problem, drawn, answers in examples
            ]
        ),
        folder / "contact_sheet",
    )
    num_watched = next(iter(story.arms.values())).held_out.num_problems
    return {
        "curves": f"Left: {num_watched} mazes of the validation split, text only, greedy; level "
        "lines are the base's test accuracy. Right: what is trained on, for the arms that have it.",
        "kl_strip": "KL of every token, teacher = the frozen base that sees the true visual "
        "thought: before (base) and after each arm, on the same completions of the base. Shown "
        f"are the {len(shown)} of the first 64 problems on which the base's mean is largest.",
        "contact_sheet": f"The first {len(examples)} held-out mazes, not chosen: picture, the "
        "base's own drawing, and who solved them (greedy).",
    }


def read_curve(run_folder: Path, metric: str) -> Curve:
    """A metric by step over all sessions of a run; a resumed session overrides equal steps."""
    found: dict[int, float] = {}
    sessions = run_folder.glob("metrics/session_*/metrics.csv")
    for path in sorted(sessions, key=lambda path: int(path.parent.name.rpartition("_")[2])):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row.get(metric):
                    found[int(row["step"])] = float(row[metric])
    steps = sorted(found)
    return Curve(steps, [found[step] for step in steps])


def _said(story: Story, problem_id: str, answers: dict[str, str]) -> list[Said]:
    """Base in text, base drawn, then the students."""
    order = {
        "base, text": ("base", "text_only"),
        "base, drawn": ("base", "drawn"),
        **{name: (name, "text_only") for name in story.arms},
    }
    said = []
    for who, (name, way) in order.items():
        text = answers.get("base" if who == "base, text" else who)
        if text is None:
            continue
        solved = {p.problem_id: p.is_solved for p in story.predictions(name, way)}  # type: ignore[arg-type]
        said.append(Said(who, _moves(text), solved[problem_id]))
    return said


def _moves(text: str) -> str:
    value = extract_answer(text).value
    moves = None if value is None else parse_moves(value)
    return f"no path: {text}" if moves is None else ",".join(moves)


def _bytes(image: Image) -> NDArray[np.uint8]:
    pixels = ((image.pixels + 1) * 127.5).round().clamp(0, 255)
    return pixels.permute(1, 2, 0).cpu().numpy().astype(np.uint8)


def _is_estimate(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"value", "low", "high"}
