"""A study as a page, in Markdown and as one HTML file: the answer first, then what it rests on."""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import markdown
from rich.console import Console
from rich.table import Table

from experiments import files
from experiments.study import BASE, Study
from experiments.study_claims import CONTENT_FREE, MIN_SEEDS
from experiments.study_figures import draw_figures
from experiments.study_results import SFT, TRUE
from experiments.wording import estimate, p_value, percent, table, words
from visual_opsd.statistics import Estimate

QUICK_WARNING = "**A few steps of every arm, to check the machinery: no verdict below counts.**"
STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;font-size:14px;margin:1rem 0}"
    "td,th{border-bottom:1px solid #ccc;padding:.25rem .6rem;text-align:left;vertical-align:top}"
    "img{max-width:100%}code{background:#f3f3f3}"
)


def write_report(study: Study, summary: dict[str, Any]) -> Path:
    """``report.md`` with its figures, and the same as ``report.html`` that holds them."""
    captions = draw_figures(study, summary)
    sections = [
        f"# {study.config.name}: is it the visual thoughts?",
        answer_first(study, summary),
        *missing_section(summary),
        "## Arms",
        arms_section(study, summary),
        "## Claims",
        claims_section(summary),
        "## Visual-OPSD against SFT",
        comparison_section(summary),
        "## Where the speed comes from",
        speed_section(summary),
        "## KL by class of token",
        classes_section(summary),
        "## Figures",
        *(f"![{name}]({name}.png)\n\n{said}" for name, said in captions.items()),
        "## How this was made",
        making_section(study, summary),
    ]
    path = study.folder / "report.md"
    files.write(path, "\n\n".join(sections) + "\n")
    files.write(path.with_suffix(".html"), as_html(path))
    return path


def as_html(path: Path) -> str:
    """A Markdown file as one page, with the pictures it shows inside."""
    text = path.read_text()
    body = markdown.markdown(text, extensions=["tables"])

    def embed(found: re.Match[str]) -> str:
        data = base64.b64encode((path.parent / found[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(r'src="([^":]+\.png)"', embed, body)
    title = html.escape(text.partition("\n")[0].lstrip("# "))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style>{body}</html>\n"
    )


def answer_first(study: Study, summary: dict[str, Any]) -> str:
    """What was found, in one paragraph; every word that judges follows from the numbers."""
    base, arms = summary["base"][BASE], summary["arms"]
    count = study.config.num_problems
    drawn = min(study.config.num_drawn, count)
    is_quick = study.config.name.endswith("-quick")
    said = [
        *([QUICK_WARNING] if is_quick else []),
        f"Conditional on this base (`{study.bases[BASE]}`, which solves "
        f"{percent(estimate(base['text_only']))} of {count:,} held-out mazes in text alone; of the "
        f"first {drawn:,} {percent(estimate(base['text_only_of_drawn']))} in text, "
        f"{percent(estimate(base['drawn']))} drawing, {percent(estimate(base['privileged']))} with "
        "the true drawing in sight):",
    ]
    for name in (TRUE, *CONTENT_FREE, SFT):
        if name in arms:
            arm = arms[name]
            said.append(
                f"`{name}` moves text-only accuracy by {words(estimate(arm['gain']))} and "
                f"{closing(Estimate(**arm['closure']))};"
            )
    verdicts = [claim["verdict"] for claim in summary["claims"]]
    counts = [f"{verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts)]
    said.append(f"of {len(verdicts)} claims: {', '.join(counts)}.")
    return " ".join([*said, *map_finding(summary), *noise_finding(summary)])


def closing(closure: Estimate) -> str:
    """What became of the gap."""
    if closure.value >= 0:
        return f"closes {words(closure, 'share')} of the KL gap"
    wider = Estimate(-closure.value, -closure.high, -closure.low)
    return f"widens the KL gap by {words(wider, 'share')}"


def map_finding(summary: dict[str, Any]) -> list[str]:
    """Who is ahead in how many cells, for each pair of the map."""
    said = []
    for one, other in dict.fromkeys(tuple(cell["arms"]) for cell in summary["comparison"]):
        cells = [cell for cell in summary["comparison"] if cell["arms"] == [one, other]]
        of = {
            who: [cell["question"] for cell in cells if cell["decided_by"] == who]
            for who in (one, other, None)
        }
        named = f" ({'; '.join(of[one])})" if of[one] else ""
        said.append(
            f"Of {len(cells)} cells of the map against `{other}`, `{one}` is ahead in "
            f"{len(of[one])}{named} and behind in {len(of[other])}; {len(of[None])} are open."
        )
    return said


def noise_finding(summary: dict[str, Any]) -> list[str]:
    """What noise does to a student, and why, where it is shown to do anything."""
    said = []
    for claim in summary["claims"]:
        found, why = (
            estimate(claim["numbers"].get(key))
            for key in ("noise_minus_base_90", "its_teacher_minus_base")
        )
        if found is None or found.low <= 0 <= found.high:
            continue
        verb = "harms" if found.high < 0 else "helps"
        reason = f"; with noise in sight the base itself moves by {words(why)}" if why else ""
        where = claim["claim"].rpartition(", ")[2]  # there may be two bases
        said.append(f"Noise {verb} {where}: {words(found)} (90 %){reason}.")
    return said


def missing_section(summary: dict[str, Any]) -> list[str]:
    """What is not there, if anything."""
    if not summary["missing"]:
        return []
    named = ", ".join(f"`{name}`" for name in summary["missing"])
    return [f"**Missing**: {named}. The numbers below are of the runs that are there."]


def arms_section(study: Study, summary: dict[str, Any]) -> str:
    """The table of arms."""
    rows = [
        [
            f"`{name}`{' (not tuned)' if study.is_untuned(name) else ''}",
            ", ".join(map(str, arm["seeds"])),
            words(estimate(arm["accuracy"]), "share"),
            words(estimate(arm["gain"])),
            words(estimate(arm.get("true_vt_minus"))),
            _p(arm),
            _gap(Estimate(**arm["closure"])),
            percent(estimate(arm["dose"])),
            f"{arm['tokens']['value']:.1f}",
            "-" if arm["train_cpu_seconds"] is None else f"{arm['train_cpu_seconds']:.0f}",
        ]
        for name, arm in summary["arms"].items()
    ]
    header = ["arm", "seeds", "solved", "over its base", f"`{TRUE}` ahead by", "p (Holm)"]
    header += ["KL gap closed", "dose", "tokens", "CPU-s"]
    settings = study.config
    return "\n\n".join(
        [
            f"{settings.num_problems:,} held-out mazes, greedy, text-only, the same for all. Gain: "
            "over the text-only accuracy of the base an arm started from. p: exact McNemar over "
            f"problems, `{TRUE}` against the arm; of several seeds (as many of either) the means, "
            "which is the sign test and speaks of these seeds; Holm over all arms. KL gap closed: "
            "on "
            f"{settings.num_trajectories:,} fixed completions of the base, frozen start teacher "
            f"with the true VTs. Dose: accuracy of the base on {settings.num_dosed} mazes with in "
            "sight what the arm's teacher is shown. CPU-s: of a training, median.",
            table(header, rows),
            *untuned(study, summary),
            *own_answers_left_out(summary),
            *widened(summary),
            *detectable(summary),
        ]
    )


def _p(arm: dict[str, Any]) -> str:
    if "p_holm" not in arm:
        return "-"
    said = p_value(arm["p_holm"])
    return said if arm["num_seeds"] > 1 else f"{said} (one seed)"


def _gap(closure: Estimate) -> str:
    """A closure; where the gap has more than doubled, how wide it has become."""
    if closure.value >= -1:
        return words(closure, "share")
    return (
        f"{words(Estimate(1 - closure.value, 1 - closure.high, 1 - closure.low), 'times')} as wide"
    )


def widened(summary: dict[str, Any]) -> list[str]:
    """Where the gap went, of arms that more than doubled it."""
    said = []
    for name, arm in summary["arms"].items():
        if arm["closure"]["value"] < -1:
            cells = arm["kl_by_class"]
            kind = max(cells, key=lambda kind: _nats_more(cells[kind]))
            before, after = (cells[kind][when] for when in ("before", "after"))
            said.append(
                f"`{name}` widens the gap most in tokens of class {kind}: {before:.4f} to "
                f"{after:.4f} nats a token."
            )
    return [" ".join(said)] if said else []


def untuned(study: Study, summary: dict[str, Any]) -> list[str]:
    """Which baselines might do better by themselves."""
    names = [f"`{name}`" for name in summary["arms"] if study.is_untuned(name)]
    if not names:
        return []
    rate = study.shared.optimiser.learning_rate
    return [
        f"Not tuned: {', '.join(names)} ran with Visual-OPSD's optimiser and its learning rate of "
        f"{rate:g}, so that another might do better. An arm with a change of "
        "`sft.optimiser.learning_rate` shows it."
    ]


def _nats_more(cell: dict[str, float]) -> float:
    return cell["tokens"] * (cell["after"] - cell["before"])


def own_answers_left_out(summary: dict[str, Any]) -> list[str]:
    """What an arm did not imitate of the base's own answers."""
    said = []
    for name, arm in summary["arms"].items():
        found = [f"{left['num']:,} of {left['of']:,}" for left in arm["left_out_by_seed"] if left]
        if found:
            named = " and ".join(dict.fromkeys(found))  # seeds mostly share their answers
            said.append(f"`{name}` leaves out {named} of the base's own answers: out of form.")
    return [" ".join(said)] if said else []


def detectable(summary: dict[str, Any]) -> list[str]:
    """How small a difference would have been found."""
    found = [arm.get("smallest_detectable") for arm in summary["arms"].values()]
    sizes = [100 * size for size in found if size is not None]
    if not sizes:
        return []
    return [
        f"The test against `{TRUE}` finds a difference of {min(sizes):.1f} to {max(sizes):.1f} "
        "points, by arm, eight times in ten; what is smaller may be there unseen."
    ]


def claims_section(summary: dict[str, Any]) -> str:
    """What the paper says, and what became of it."""
    rows = [
        [
            claim["claim"],
            claim["paper"],
            claim["rule"],
            f"**{claim['verdict']}**" if claim["verdict"] == "not supported" else claim["verdict"],
            "; ".join(_number(name, value) for name, value in claim["numbers"].items()) or "-",
        ]
        for claim in summary["claims"]
    ]
    said = (
        "Conditional on this base, this model's size and these mazes. A difference of accuracy is "
        f"not measured where an arm in it has fewer than {MIN_SEEDS} seeds. There is one base of "
        "each kind, so that its kind and its own seed are not told apart."
    )
    return f"{said}\n\n" + table(["claim", "in the paper", "supported if", "here", "numbers"], rows)


def _number(name: str, value: Any) -> str:
    if not isinstance(value, dict):
        return f"{name.replace('_', ' ')} {p_value(value)}"
    found = Estimate(**value)
    said = f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
    return f"{name.removesuffix('_90').replace('_', ' ')} {said}" + (
        " (90 %)" if name.endswith("_90") else ""
    )


def comparison_section(summary: dict[str, Any]) -> str:
    """The map, cell by cell."""
    rows = []
    for cell in summary["comparison"]:
        one, other = (_valued(Estimate(**value), cell["unit"]) for value in cell["values"])
        rows.append(
            [
                cell["question"],
                f"`{cell['arms'][0]}` {one}",
                f"`{cell['arms'][1]}` {other}",
                _only(cell),
                _valued(Estimate(**cell["difference"]), cell["unit"], is_difference=True),
                "-" if cell["p_holm"] is None else p_value(cell["p_holm"]),
                f"`{cell['decided_by']}`" if cell["decided_by"] else "open",
            ]
        )
    if not rows:
        return "Not measured: it takes a run of both."
    lacking = summary.get("not_compared", [])
    said = (
        "A cell is decided where the 95 % interval of the difference leaves out 0 and p < .05, "
        "Holm-adjusted over the cells of a pair; one seed of an arm leaves it open. p: exact "
        "McNemar as above. Calibration and costs are a number a run: Welch's interval and test "
        "over seeds. Costs are up to the highest accuracy that all runs of a pair reach, "
        "at most the study's target. CPU-seconds are of trainings, without what the base drew or "
        "answered for them, once for all seeds."
    )
    return "\n\n".join(
        [
            said,
            table(["", "Visual-OPSD", "SFT", "base", "difference", "p (Holm)", "ahead"], rows),
            *([f"Not compared: {'; '.join(lacking)}."] if lacking else []),
        ]
    )


def _only(cell: dict[str, Any]) -> str:
    """The base's value, where it has one."""
    if cell["base"] is None:
        return "-"
    value = cell["base"]["value"]
    return f"{value:.3f}" if cell["unit"] == "error" else f"{100 * value:.1f} %"


def _valued(found: Estimate, unit: str, *, is_difference: bool = False) -> str:
    if unit == "share":
        return words(found, "points" if is_difference else "share")
    digits = 3 if unit == "error" else 0
    low, high = (f"{end:,.{digits}f}" for end in (found.low, found.high))
    return f"{found.value:,.{digits}f} [{low}, {high}]"


def speed_section(summary: dict[str, Any]) -> str:
    """The speed-up as a product."""
    found = summary["speed_up"]
    if found is None:
        return f"Not measured: it takes a run of `{TRUE}`."
    names = {
        "whole": "base drawn by the official protocol, over student in text",
        "no_drawing": "of it, no drawing: seconds a token",
        "fewer_tokens": "of it, fewer tokens",
        "whole_against_fast_drawing": "base drawn by our fastest protocol, over student in text",
        "base_text_only_over_student": "base in text, over student in text",
    }
    rows = [[said, words(Estimate(**found[key]), "times")] for key, said in names.items()]
    return (
        "Batch 1, the ways in turn on a machine at rest; whole = no drawing x fewer tokens.\n\n"
        + (table(["seconds a sample", "ratio"], rows))
    )


def classes_section(summary: dict[str, Any]) -> str:
    """Where the gap is, and where it closed."""
    arms = summary["arms"]
    kinds = list(dict.fromkeys(kind for arm in arms.values() for kind in arm["kl_by_class"]))
    rows = []
    for base in dict.fromkeys(arm["base"] for arm in arms.values()):
        of_base = {name: arm["kl_by_class"] for name, arm in arms.items() if arm["base"] == base}
        first = next(iter(of_base.values()))  # all of a base are scored on its completions
        for name, value in ((f"tokens of {base}", "tokens"), (base, "before")):
            rows.append([name, *(_of_class(first, kind, value) for kind in kinds)])
        for name, cells in of_base.items():
            rows.append([f"`{name}`", *(_of_class(cells, kind, "after") for kind in kinds)])
    return "K(T0, S), nats a token, fixed completions, mean over seeds.\n\n" + table(
        ["", *kinds], rows
    )


def _of_class(cells: dict[str, dict[str, float]], kind: str, value: str) -> str:
    if kind not in cells:
        return "-"
    return f"{cells[kind][value]:{',' if value == 'tokens' else '.4f'}}"


def making_section(study: Study, summary: dict[str, Any]) -> str:
    """What it takes to make it again."""
    shared = study.shared
    return "\n".join(
        [
            f"- {commits_said(summary)}; {summary['wall_seconds']:,.0f} seconds, those of "
            "sessions that were killed outright left out.",
            f"- All arms: `experiments/{study.config.experiment}.yaml`, {shared.trainer.max_steps} "
            f"steps of {shared.sequences_a_batch * shared.trainer.accumulate} problems"
            f"{''.join(f', `{change}`' for change in study.config.shared)}.",
            *(
                f"- `{name}`: {' '.join(f'`{change}`' for change in arm.changes) or 'no change'}"
                for name, arm in study.config.arms.items()
                if arm.seeds
            ),
            "- Intervals: percentile bootstrap over problems, with Student's t for what an arm's "
            "seeds spread beyond that. A single seed adds nothing.",
            "- Every number: `summary.json`, `arms.csv`, `seeds.csv`; answers: `predictions/`.",
        ]
    )


def commits_said(summary: dict[str, Any]) -> str:
    """The commit, or what was done at each, where a study went on at another."""
    if len(summary["commits"]) == 1:
        return f"Commit `{summary['commit']}`"
    done = (f"`{commit}` ({', '.join(names)})" for commit, names in summary["commits"].items())
    return f"Commits: {', '.join(done)}"


def show(summary: dict[str, Any], console: Console) -> None:
    """Arms and verdicts on the terminal."""
    shown = Table(title="Held-out mazes solved in text alone, greedy")
    for column in ("arm", "seeds", "solved", "over its base", "KL gap closed"):
        shown.add_column(column)
    for name, arm in summary["arms"].items():
        cells = (
            words(estimate(arm["accuracy"]), "share"),
            words(estimate(arm["gain"])),
            words(estimate(arm["closure"]), "share"),
        )
        shown.add_row(name, str(arm["num_seeds"]), *(c.replace("[", r"\[") for c in cells))
    console.print(shown)
    verdicts = Table(title="Claims, conditional on this base", show_lines=True)
    for column in ("", "verdict"):
        verdicts.add_column(column)
    for claim in summary["claims"]:
        verdicts.add_row(claim["claim"], claim["verdict"])
    console.print(verdicts)
    missing: Sequence[str] = summary["missing"]
    if missing:
        console.print(f"missing: {', '.join(missing)}")
