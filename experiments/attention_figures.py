"""The figures of ``experiments.attention``, from its summary: where thoughts look, by layer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from experiments.figures import WIDTH_INCHES, in_style
from visual_opsd.contexts import Image

Summary = Mapping[str, Any]
_MARKERS = "os^Dvp"
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
SERIES = {
    "thought before the VT to the problem image": ("thought_before", "problem_image"),
    "thought after it to the VT": ("thought_after", "visual_thought"),
    "thought after it to the problem image": ("thought_after", "problem_image"),
}
"""Of Figure 3b in the paper."""
PANELS = {
    "to the visual thought": "visual_thought",
    "to the problem image": "problem_image",
    "to all other text": "text",
}


@in_style
def by_layer(summary: Summary) -> Figure:
    """Fig. 3b: interleaved reasoning with the model's own drawings; and each per image token."""
    figure = Figure(figsize=(WIDTH_INCHES, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (label, (text, target)) in enumerate(SERIES.items()):
        found = summary["shares"][text]["drawn_vt"][target]
        _band(left, found["by_layer"], label, number)
        _line(right, found["per_token_by_layer"], label, number)
    left.set(title="Share of a thought's attention", ylabel="share of attention (%)")
    right.set(title="The same, per token of the picture", ylabel="share per image token (%)")
    for axes in (left, right):
        axes.set_xlabel("layer")
        axes.set_ylim(bottom=0)
    left.legend(fontsize=8)
    return figure


@in_style
def by_intervention(summary: Summary, text: str = "completion") -> Figure:
    """One text behind several contexts, side by side: what a VT's content does to attention."""
    figure = Figure(figsize=(WIDTH_INCHES, 3.4), layout="constrained")
    panels = figure.subplots(1, len(PANELS))
    views = summary["shares"][text]
    for axes, (title, target) in zip(panels, PANELS.items(), strict=True):
        for number, (name, found) in enumerate(views.items()):
            if target == "visual_thought" and name == "no_vt":
                continue  # there is none to look at
            _band(axes, found[target]["by_layer"], name, number)
        axes.set(title=title, xlabel="layer")
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel(f"share of a {text.replace('_', ' ')}'s attention (%)")
    panels[-1].legend(fontsize=8)
    return figure


@in_style
def by_head(summary: Summary, text: str = "completion", name: str = "true_vt") -> Figure:
    """Which heads look at the visual thought, and which at the problem image."""
    targets = ("visual_thought", "problem_image")
    values = [100 * np.array(summary["shares"][text][name][t]["by_head"]) for t in targets]
    num_layers = len(values[0])
    figure = Figure(figsize=(WIDTH_INCHES, 1.2 + 0.3 * num_layers), layout="constrained")
    for axes, target, shown in zip(figure.subplots(1, 2), targets, values, strict=True):
        picture = axes.imshow(
            shown, cmap="cividis", vmin=0, vmax=max(x.max() for x in values), aspect="auto"
        )
        axes.set(title=f"{text} to the {target.replace('_', ' ')} ({name})".replace("_", " "))
        axes.set(xlabel="head", ylabel="layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_yticks(range(num_layers))
        axes.grid(visible=False)
    figure.colorbar(picture, ax=figure.axes).set_label("share of attention (%)")
    return figure


@in_style
def knocked_out(summary: Summary) -> Figure:
    """What hiding a visual thought's keys does to the next token, and to the answers."""
    found = summary["knock_out"]
    figure = Figure(figsize=(WIDTH_INCHES, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = {
        "shown": "shown",
        "completion": "hidden from\nthe text alone",
        "all_behind": "hidden from\nall behind it",
        "removed": "not there",
    }
    for number, (text, values) in enumerate(found.items()):
        for axes, kind, scale in ((left, "kl", 1), (right, "solved", 100)):
            for place, cut in enumerate(names):
                estimate = values.get(kind, {}).get(cut)
                if estimate is not None:
                    _point(axes, place + 0.16 * (number - 0.5), estimate, scale, number, text)
    left.set(title="Next token", ylabel="KL(shown || cut), nats a token")
    right.set(title="Answers", ylabel="solved (%)")
    for axes in (left, right):
        axes.set_xticks(range(len(names)), list(names.values()), fontsize=7)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(bottom=0)
    handles, labels = left.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    left.legend(unique.values(), unique.keys(), fontsize=8)
    return figure


FIGURES: dict[str, Callable[[Summary], Figure]] = {
    "by_layer": by_layer,
    "by_intervention": by_intervention,
    "by_head": by_head,
    "knocked_out": knocked_out,
}
"""By the name of their files."""


@in_style
def overlay(
    images: Sequence[Image],
    masses: Sequence[Float[Tensor, "rows columns"]],
) -> Figure:
    """Pictures, and over each of them what every image token is given; one scale for all."""
    figure = Figure(figsize=(2.9 * len(images), 3.2), layout="constrained")
    largest = max(float(mass.max()) for mass in masses)
    panels = np.atleast_1d(figure.subplots(1, len(images)))
    for axes, image, mass in zip(panels, images, masses, strict=True):
        height, width = image.pixels.shape[1:]
        picture = (image.pixels.permute(1, 2, 0).numpy() + 1) / 2
        axes.imshow(picture.mean(axis=2), cmap="gray", vmin=-0.6, vmax=1.2)
        shown = axes.imshow(
            100 * mass.numpy(),
            cmap="cividis",
            alpha=0.6,
            vmin=0,
            vmax=100 * largest,
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            interpolation="nearest",
        )
        title = image.role.value.replace("_", " ")
        axes.set_title(f"{title}: {100 * float(mass.sum()):.1f} %", fontsize=8)
        axes.axis("off")
    figure.colorbar(shown, ax=list(panels), shrink=0.8).set_label("share per image token (%)")
    return figure


def _band(axes: Axes, layers: Sequence[Mapping[str, float]], label: str, number: int) -> None:
    """Values by layer with their intervals, in percent."""
    low, high = ([100 * layer[end] for layer in layers] for end in ("low", "high"))
    axes.fill_between(range(len(layers)), low, high, color=_colour(number), alpha=0.2, linewidth=0)
    _line(axes, [layer["value"] for layer in layers], label, number)


def _line(axes: Axes, layers: Sequence[float], label: str, number: int) -> None:
    axes.plot(
        range(len(layers)),
        [100 * layer for layer in layers],
        color=_colour(number),
        linestyle=_DASHES[number % len(_DASHES)],
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=4,
        label=label,
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _point(
    axes: Axes, place: float, found: Mapping[str, float], scale: float, number: int, label: str
) -> None:
    value, low, high = (scale * found[key] for key in ("value", "low", "high"))
    axes.errorbar(
        place,
        value,
        [[value - low], [high - value]],
        color=_colour(number),
        marker=_MARKERS[number],
        capsize=3,
        linestyle="none",
        label=label.replace("_", " "),
    )


def _colour(number: int) -> str:
    palette = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    return str(palette[number % len(palette)])
