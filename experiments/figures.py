"""Figures of reports and notebooks in one style that printers and colour blindness keep.

A function here takes what it shows and returns a figure; it reads no run and decides nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

P = ParamSpec("P")

DPI = 130
WIDTH_INCHES = 9.5
RIGHT, WRONG = "#006BA4", "#C85200"
"""Blue and orange of the colour-blind palette, each with a word beside it."""
_MARKERS = "os^Dvp"
_SUFFIXES = (".png", ".pdf")
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "pdf.fonttype": 42,  # text stays text
}


@dataclass(frozen=True, slots=True)
class Curve:
    """A quantity by optimiser step."""

    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Spread:
    """A quantity of an arm: its estimate, and the value of every seed."""

    name: str
    value: float
    low: float
    high: float
    seeds: Sequence[float]
    start: float | None = None
    """Where it began."""


@dataclass(frozen=True, slots=True)
class Strip:
    """One completion with the KL of each of its tokens, a row of values a model."""

    title: str
    tokens: Sequence[str]
    gaps: Mapping[str, Sequence[float]]
    """Nats, by the name of the row."""


@dataclass(frozen=True, slots=True)
class Said:
    """An answer and whether it solves the maze."""

    who: str
    answer: str
    is_solved: bool


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One maze of the contact sheet."""

    title: str
    problem: NDArray[np.uint8]
    drawn: NDArray[np.uint8] | None
    """None where the base was to draw and did not."""
    answers: Sequence[Said]


def in_style(make: Callable[P, Figure]) -> Callable[P, Figure]:
    """Make a figure under the one style, whatever the user's own is."""

    @wraps(make)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style.context(["default", "tableau-colorblind10", _STYLE]):
            return make(*args, **kwargs)

    return styled


def save_figure(figure: Figure, path_without_suffix: Path) -> Path:
    """Write a PNG and a PDF, whatever else the name holds dots for; returns the PNG's path."""
    path_without_suffix.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = (path_without_suffix.with_name(path_without_suffix.name + s) for s in _SUFFIXES)
    with mpl.rc_context({"pdf.fonttype": _STYLE["pdf.fonttype"]}):
        figure.savefig(png, dpi=DPI)
        # No date: the same numbers give the same file.
        figure.savefig(pdf, metadata={"CreationDate": None})
    return png


@in_style
def curves(
    accuracy: Mapping[str, Curve],
    divergence: Mapping[str, Curve],
    references: Mapping[str, float],
) -> Figure:
    """Held-out accuracy and training divergence by step; ``references`` are level lines."""
    figure = Figure(figsize=(WIDTH_INCHES, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys((*accuracy, *divergence)))
    _lines(left, accuracy, names)
    for dashes, (name, level) in zip(("--", ":", "-."), references.items(), strict=False):
        left.axhline(level, color="0.35", linestyle=dashes, linewidth=1.2, label=name)
    left.set(
        title="Held-out mazes answered in text alone",
        xlabel="optimiser step",
        ylabel="share solved (greedy)",
        ylim=(0, 1),
    )
    left.legend(fontsize=8)
    _lines(right, divergence, names)
    right.set(
        title="Student against teacher, on the student's tokens",
        xlabel="optimiser step",
        ylabel="Jensen-Shannon divergence (nats a token)",
    )
    right.set_ylim(bottom=0)
    if divergence:
        right.legend(fontsize=8)
    return figure


def _lines(axes: Axes, series: Mapping[str, Curve], names: Sequence[str]) -> None:
    """The same name has the same colour and marker in every panel."""
    # By value: "C0" would be looked up when the figure is drawn, in the style of then.
    palette = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    for number, name in enumerate(names):
        if name not in series:
            continue
        curve = series[name]
        axes.plot(
            curve.steps,
            curve.values,
            color=palette[number % len(palette)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4,
            markevery=max(1, len(curve.steps) // 8),
            label=name,
        )


@in_style
def spreads(panels: Mapping[str, Sequence[Spread]], references: Mapping[str, float]) -> Figure:
    """Arms as rows: the interval as a line, the seeds as points; one panel a quantity.

    ``references`` are level lines, by the title of their panel; a row may have its own. One that
    moves far would hide the others: it is written at the edge.
    """
    num_rows = max(map(len, panels.values()))
    figure = Figure(figsize=(WIDTH_INCHES, 0.36 * num_rows + 1.1), layout="constrained")
    for axes, (title, rows) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for line, row in enumerate(rows):
            if _is_far(row):
                place = {"xy": (0.02, line), "xycoords": ("axes fraction", "data")}
                axes.annotate(
                    f"\N{LEFTWARDS ARROW} {row.value:.1f}", va="center", fontsize=8, **place
                )
                continue
            if row.start is not None:
                ends = [line - 0.42, line + 0.42]
                axes.plot([row.start] * 2, ends, color="0.35", linestyle="--", linewidth=1.2)
            axes.plot([row.low, row.high], [line, line], color="0.6", linewidth=5, zorder=1)
            axes.plot([row.value] * 2, [line - 0.28, line + 0.28], color=RIGHT, zorder=2)
            axes.scatter(row.seeds, [line] * len(row.seeds), s=16, color=WRONG, zorder=3)
        if title in references:
            axes.axvline(references[title], color="0.35", linestyle="--", linewidth=1.2)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set(title=title, ylim=(len(rows) - 0.5, -0.5))
    return figure


def _is_far(row: Spread) -> bool:
    """Whether it is so far off that the others would fall on a point."""
    return row.low < -1


@in_style
def dose_response(
    doses: Mapping[str, float], responses: Mapping[str, Sequence[Spread]], base: float
) -> Figure:
    """How well the base reads what an arm's teacher is shown, against what the student learnt.

    ``doses`` by arm, for those that have one; ``responses`` by title, a spread an arm; ``base`` is
    its text-only accuracy.
    """
    figure = Figure(figsize=(WIDTH_INCHES, 3.8), layout="constrained")
    palette = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    for axes, (title, rows) in zip(
        figure.subplots(1, len(responses), squeeze=False)[0], responses.items(), strict=True
    ):
        for number, row in enumerate(rows):
            if row.name not in doses or _is_far(row):
                continue
            color, marker = palette[number % len(palette)], _MARKERS[number % len(_MARKERS)]
            dose = doses[row.name]
            axes.plot([dose, dose], [row.low, row.high], color=color, linewidth=2, alpha=0.5)
            axes.scatter(
                [dose] * len(row.seeds), row.seeds, color=color, marker=marker, s=22, label=row.name
            )
        far = [f"{r.name} {r.value:.1f}" for r in rows if r.name in doses and _is_far(r)]
        if far:
            title += f" (below: {', '.join(far)})"
        axes.axvline(base, color="0.35", linestyle="--", linewidth=1.2)
        axes.set(
            title=title, xlabel="accuracy of the base with that in sight (dashed: with nothing)"
        )
    # An arm may be off the scale of a panel, and is named by the other.
    named = [axes.get_legend_handles_labels() for axes in figure.axes]
    handles, labels = max(named, key=lambda found: len(found[1]))
    axes.legend(handles, labels, fontsize=7)
    return figure


@in_style
def kl_strip(strips: Sequence[Strip], characters_a_line: int = 146) -> Figure:
    """KL of every token of a few completions: a cell as wide as its text, a row a model."""
    lines = [(strip, part) for strip in strips for part in _wrap(strip.tokens, characters_a_line)]
    num_rows = len(strips[0].gaps)
    height = sum(0.17 * num_rows + (0.5 if part.start == 0 else 0.3) for _, part in lines) + 0.7
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    panels = figure.subplots(
        len(lines),
        1,
        squeeze=False,
        gridspec_kw={"height_ratios": [1.2 if part.start == 0 else 1 for _, part in lines]},
    )[:, 0]
    largest = max(max(map(max, strip.gaps.values())) for strip in strips)
    # The square root keeps small gaps apart on paper.
    norm = PowerNorm(0.5, vmin=0, vmax=max(largest, 1e-6))
    for axes, (strip, part) in zip(panels, lines, strict=True):
        texts = [_shown(token) for token in strip.tokens[part]]
        edges = np.concatenate([[0.0], np.cumsum([_cell_width(text) for text in texts])])
        values = np.array([row[part] for row in strip.gaps.values()])
        axes.pcolormesh(
            edges,
            np.arange(num_rows + 1),
            values,
            cmap="cividis_r",
            norm=norm,
            edgecolors="white",
            linewidth=0.8,
        )
        for text, start, end in zip(texts, edges, edges[1:], strict=False):
            axes.text(
                (start + end) / 2,
                num_rows + 0.15,
                text,
                family="monospace",
                fontsize=6,
                ha="center",
                va="top",
                parse_math=False,
            )
        axes.set(xlim=(0, characters_a_line), ylim=(num_rows + 1.4, 0), xticks=[])
        axes.set_yticks(np.arange(num_rows) + 0.5, list(strip.gaps), fontsize=7)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        if part.start == 0:
            axes.set_title(strip.title, fontsize=8.5, loc="left", pad=3)
    bar = figure.colorbar(
        ScalarMappable(norm=norm, cmap="cividis_r"),
        ax=panels,
        location="bottom",
        aspect=60,
        fraction=0.04,
        pad=0.01,
    )
    bar.set_label("KL(teacher || student), nats a token; darker: the visual thought says more")
    return figure


def _wrap(tokens: Sequence[str], characters: int) -> list[slice]:
    """Runs of whole tokens that fit a line."""
    parts, start, width = [], 0, 0.0
    for index, token in enumerate(tokens):
        needed = _cell_width(_shown(token))
        if index > start and width + needed > characters:
            parts.append(slice(start, index))
            start, width = index, 0.0
        width += needed
    return [*parts, slice(start, len(tokens))]


def _shown(token: str) -> str:
    """Spaces that can be seen, nothing that no font has, and no more than tells tokens apart."""
    return _shortened(token.replace(" ", "·").replace("\n", "↵"), 13)


def _cell_width(text: str) -> float:
    """In characters, with air around."""
    return max(2.4, len(text) + 0.8)


@in_style
def contact_sheet(exhibits: Sequence[Exhibit]) -> Figure:
    """Mazes, what the base drew for them, and who solved them."""
    num_rows = (len(exhibits) + 1) // 2
    figure = Figure(figsize=(WIDTH_INCHES, 1.75 * num_rows + 0.3), layout="constrained")
    grid = figure.subplots(
        num_rows, 6, squeeze=False, gridspec_kw={"width_ratios": [1, 1, 1.25] * 2}
    )
    for axes in grid.flat:
        axes.axis("off")
    for number, exhibit in enumerate(exhibits):
        row, half = divmod(number, 2)
        problem, drawn, words = grid[row, 3 * half : 3 * half + 3]
        problem.imshow(exhibit.problem, interpolation="nearest")
        problem.set_title(exhibit.title, fontsize=8)
        drawn.set_title("drawn by the base", fontsize=8)
        if exhibit.drawn is None:
            drawn.set_box_aspect(1)
            drawn.text(0.5, 0.5, "nothing", ha="center", va="center", fontsize=8)
        else:
            drawn.imshow(exhibit.drawn, interpolation="nearest")
        step = min(0.25, 1 / max(len(exhibit.answers), 1))
        for line, said in enumerate(exhibit.answers):
            words.text(
                0,
                1 - line * step,
                f"{said.who}: {'solved' if said.is_solved else 'not solved'}",
                fontsize=7,
                va="top",
                weight="bold",
                color=RIGHT if said.is_solved else WRONG,
            )
            words.text(
                0.04,
                1 - (line + 0.45) * step,
                _shortened(said.answer, 26),
                fontsize=6.5,
                va="top",
                family="monospace",
                parse_math=False,
            )
    return figure


def _shortened(text: str, characters: int) -> str:
    plain = "".join(c if c.isprintable() and c != "\ufffd" else "▯" for c in text)
    return plain if len(plain) <= characters else plain[: characters - 1] + "…"
