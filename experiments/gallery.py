"""The paper's exhibits from our own runs, as pictures with captions: ``make gallery``.

``python -m experiments.gallery [RUN=...] [STUDY=...] [ATTENTION=...] [OUT=docs/gallery]``: of runs
or of what ships of them.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments import attention, attention_figures, drawings, exhibits, looking, results
from experiments.evaluation import FAST_DRAWING
from experiments.figures import save_figure
from experiments.latency import OFFICIAL_DRAWING
from experiments.schema import TINY_BASE
from experiments.study_figures import ARMS_CAPTION, doses, draw_arms, draw_doses
from experiments.study_report import claims_section
from experiments.wording import table

STUDENT_TEXT = "true_vt, text only"
DRAWN_PROBLEM = 3


@dataclass(frozen=True, slots=True)
class Picture:
    """One entry of the gallery."""

    name: str
    title: str
    caption: str
    figure: Figure


def of_demo(run: results.Results) -> Iterator[Picture]:
    """What a finished demo shows."""
    shown = exhibits.use_of_drawings(run)
    yield Picture(
        "use_of_drawings",
        "Accuracy with the visual thought kept, removed, noised (Fig. 3a)",
        f"The base on {exhibits.num_shown(run):,} held-out mazes, inference only, 95 % intervals: "
        + "; ".join(f"{who} {exhibits.shares(value)}" for who, value in shown.items())
        + ".",
        exhibits.draw_use_of_drawings(run),
    )
    others = ("base, drawn", "base, text only", "sft, text only")
    yield Picture(
        "wins_and_losses",
        "Wins and losses a problem (Fig. 5)",
        "Mazes that only the student (Visual-OPSD with true visual thoughts, in text alone) "
        "solves, and those that only the other does, with exact McNemar tests; Holm over sizes.",
        exhibits.draw_wins_and_losses(run, STUDENT_TEXT, others),
    )
    yield Picture(
        "token_gap",
        "KL of every token, on shared completions (Fig. 6)",
        "Measured, not drawn at random: completions of the base, the frozen base with the true "
        "visual thought as teacher; rows are the base before and every arm after training. Shown "
        f"are the 6 of {len(run.tokens)} completions on which the base's mean is largest.",
        exhibits.draw_token_strips(run),
    )
    yield Picture(
        "gap_by_category",
        "K_gen by category (Table 1), before and after (Table 5)",
        f"{len(run.lengths):,} fixed completions of the base, intervals over completions.\n\n"
        + exhibits.as_markdown(exhibits.gap_table(run)),
        exhibits.draw_gaps(run),
    )
    yield Picture(
        "where_it_closes",
        "Where the gap closes, and where not",
        exhibits.gap_seen(run),
        exhibits.draw_where_it_closes(run),
    )


def of_drawings() -> Iterator[Picture]:
    """The shipped base draws one maze by two protocols."""
    model, tokenizer = looking.open_model(TINY_BASE)
    problem = looking.open_problems(TINY_BASE, "", DRAWN_PROBLEM + 1)[DRAWN_PROBLEM]
    protocols = {"official": OFFICIAL_DRAWING, "fast": FAST_DRAWING}
    for name, drawing in protocols.items():
        watched = drawings.watch(model, tokenizer, problem, drawing)
        answer = drawings.verdict(problem, watched.reasoning.texts[-1])
        yield Picture(
            f"drawing_{name}",
            f"A visual thought being drawn, {name} protocol",
            f"Held-out maze {DRAWN_PROBLEM} (not chosen); {drawing.num_timesteps - 1} evaluations, "
            f"text guidance {drawing.text_guidance}, image guidance {drawing.image_guidance}. Each "
            "frame is what the drawing would become if the velocity stayed as it is (t = 1 is "
            f"noise). The answer after looking: {answer}.",
            drawings.draw_forecasts(watched),
        )


def of_study(summary: dict[str, Any]) -> Iterator[Picture]:
    """What a finished study shows."""
    yield Picture(
        "controls",
        "What the visual thoughts are replaced by: accuracy and closure",
        exhibits.as_markdown(exhibits.controls_table(summary))
        + "\n\n"
        + claims_section(summary)
        + "\n\n"
        + f"{exhibits.controls_seen(summary)} {ARMS_CAPTION}",
        draw_arms(summary),
    )
    if doses(summary):
        yield Picture(
            "dose_response",
            "Dose and response",
            "How well the base answers with in sight what an arm's teacher is shown, against what "
            "the student has learnt. Points: seeds.",
            draw_doses(summary),
        )


def of_attention(summary: dict[str, Any]) -> Iterator[Picture]:
    """Where the base looks."""
    made = f"Measured by `make attention`, commit `{summary['commit']}`."
    yield Picture(
        "attention_by_layer",
        "Attention share by layer (Fig. 3b)",
        f"{attention.seen(summary)}\n\n{made}",
        attention_figures.by_layer(summary),
    )
    yield Picture(
        "attention_knocked_out",
        "The visual thought's keys knocked out",
        f"The causal counterpart: hidden from the text alone, and from all behind it. {made}",
        attention_figures.knocked_out(summary),
    )


def write(pictures: Iterator[Picture], out: Path, notes: list[str]) -> Path:
    """Pictures, and a page with their captions."""
    sections = ["# Gallery", *notes]
    for picture in pictures:
        save_figure(picture.figure, out / picture.name)
        sections += [
            f"## {picture.title}",
            f"![{picture.title}]({picture.name}.png)",
            f"{picture.caption}",
            f"[PDF]({picture.name}.pdf)",
        ]
    page = out / "README.md"
    page.write_text("\n\n".join(sections) + "\n")
    return page


def main() -> None:
    """Command line; what is missing is one line."""
    options = {
        "RUN": str(results.SHIPPED / "demo.json"),
        "STUDY": str(results.SHIPPED / "ablate-noise.json"),
        "ATTENTION": str(results.SHIPPED / "attention"),
        "OUT": "docs/gallery",
    }
    for argument in sys.argv[1:]:
        key, found, value = argument.partition("=")
        if not found or key not in options:
            raise SystemExit(f"unknown option {argument!r}; there are {sorted(options)}, key=value")
        options[key] = value
    try:
        run, study = results.load(options["RUN"]), Path(options["STUDY"])
        rows = [[f"`{key}`", value] for key, value in options.items() if key != "OUT"]
        notes = [f"Made by `make gallery`. {run.origin}", table(["from", ""], rows)]
        parts = [of_demo(run), of_drawings()]
        if not study.exists():
            notes.append(f"No study at `{study}` ({results.STUDY_COMMAND}): its part is left out.")
        elif (summary := results.load_study(study))["differs"]:
            notes.append(
                "The study's part is left out, its run is not the command's own. "
                + results.origin_of(summary)
            )
        else:
            parts.append(of_study(summary))
        if Path(options["ATTENTION"]).is_dir():
            parts.append(of_attention(attention.load_summary(options["ATTENTION"])))
        page = write((picture for part in parts for picture in part), Path(options["OUT"]), notes)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(page)


if __name__ == "__main__":
    main()
