"""The figures of a study: arms with their seeds, dose and response, curves of the first seeds."""

from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from experiments import figures
from experiments.figures import Spread
from experiments.report import HELD_OUT, read_curve
from experiments.study import BASE, Study

_ACCURACY, _CLOSURE = "text-only accuracy", "share of the KL gap closed"
ARMS_CAPTION = (
    "Bars: 95 % intervals over seeds and problems; points: seeds. Dashed: the base an arm started "
    "from. A gap that has more than doubled is off the scale, its closure written at the edge."
)


def draw_figures(study: Study, summary: dict[str, Any]) -> dict[str, str]:
    """Draw and save; captions by file name."""
    arms, base = summary["arms"], summary["base"][BASE]
    figures.save_figure(draw_arms(summary), study.folder / "arms")
    captions = {
        "arms": ARMS_CAPTION,
    }
    if doses(summary):
        figures.save_figure(draw_doses(summary), study.folder / "dose_response")
        captions["dose_response"] = (
            "Dose and response: how well the base answers with in sight what an arm's teacher is "
            "shown, against what the student has learnt. Points: seeds."
        )
    firsts = {arm: next(run for run in study.runs if run.arm == arm) for arm in arms}
    curves = {arm: read_curve(run.config.folder, HELD_OUT) for arm, run in firsts.items()}
    divergence = {a: read_curve(r.config.folder, "train/divergence") for a, r in firsts.items()}
    figure = figures.curves(
        {arm: curve for arm, curve in curves.items() if curve.steps},
        {arm: curve for arm, curve in divergence.items() if curve.steps},
        {"base, drawn (test)": base["drawn"]["value"]},
    )
    figures.save_figure(figure, study.folder / "curves")
    captions["curves"] = "First seeds. Left: validation mazes, text only, greedy. Right: the loss."
    return captions


def draw_arms(summary: dict[str, Any]) -> Figure:
    """Accuracy and closure of every arm, with its seeds."""
    return figures.spreads(_panels(summary), {_CLOSURE: 0})


def draw_doses(summary: dict[str, Any]) -> Figure:
    """What an arm's teacher is shown, against what its student has learnt."""
    level = summary["base"][BASE]["text_only_of_dosed"]["value"]
    return figures.dose_response(doses(summary), _panels(summary), level)


def doses(summary: dict[str, Any]) -> dict[str, float]:
    """Accuracy of the base with that in sight, for the arms where it was measured."""
    arms = summary["arms"].items()
    return {n: a["dose"]["value"] for n, a in arms if a["dose"] and a["base"] == BASE}


def _panels(summary: dict[str, Any]) -> dict[str, list[Spread]]:
    arms, bases = summary["arms"].items(), summary["base"]
    starts = {name: bases[arm["base"]]["text_only"]["value"] for name, arm in arms}
    return {
        _ACCURACY: [replace(spread(n, arm, "accuracy"), start=starts[n]) for n, arm in arms],
        _CLOSURE: [spread(name, arm, "closure") for name, arm in arms],
    }


def spread(name: str, arm: dict[str, Any], key: str) -> Spread:
    """A row of the figure."""
    return Spread(name=name, **arm[key], seeds=arm[f"{key}_by_seed"])
