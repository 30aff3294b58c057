"""The paper's exhibits, from results: each function computes one and draws it, or tabulates it.

Shares are fractions of problems, gaps are nats a token, intervals are at 95 %.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.figures import RIGHT, WIDTH_INCHES, WRONG, Strip, in_style, kl_strip
from experiments.results import PILOT, Results, origin_of
from experiments.wording import p_value, table
from visual_opsd.statistics import (
    Estimate,
    bootstrap_closure,
    bootstrap_ratio,
    holm,
    mcnemar_exact,
    paired_bootstrap_difference,
    wilson,
)

SEED, RESAMPLES = 0, 10_000
BASE, STUDENT, NOISE = "base", "true_vt", "matched_noise"
KEPT = "base, drawn"
PILOT_ROWS = {
    "base, privileged": "given the true drawing",
    KEPT: "kept: draws, looks, answers",
    "base, text only": "removed: answers in text alone",
    **{f"base, shown {name}": f"draws, then is shown {name}" for name in PILOT},
}
_MARKERS = "osD^v"


# Fig. 3a


def use_of_drawings(results: Results) -> dict[str, Estimate]:
    """Accuracy of the base with its visual thought kept, removed and replaced, on one set."""
    count = num_shown(results)
    found = {words: results.is_solved(who, count) for who, words in PILOT_ROWS.items()}
    return {words: wilson(int(solved.sum()), count) for words, solved in found.items()}


def use_of_drawings_table(results: Results) -> pd.DataFrame:
    """The same with the paired difference to the drawing kept."""
    count = num_shown(results)
    kept = results.is_solved(KEPT, count)
    differences = {
        words: paired_bootstrap_difference(results.is_solved(who, count), kept, SEED, RESAMPLES)
        for who, words in PILOT_ROWS.items()
    }
    return pd.DataFrame(
        {
            "solved": {w: shares(found) for w, found in use_of_drawings(results).items()},
            "minus kept": {
                w: "" if w == PILOT_ROWS[KEPT] else shares(found, sign="+")
                for w, found in differences.items()
            },
        }
    )


def draw_use_of_drawings(results: Results) -> Figure:
    """Fig. 3a on mazes."""
    return forest({"": use_of_drawings(results)}, "share of mazes solved (greedy)", limits=(0, 1))


def num_shown(results: Results) -> int:
    """Problems that every way was asked."""
    return min(len(results.solved[who]) for who in PILOT_ROWS)


# Fig. 5


def wins_and_losses(results: Results, ours: str, theirs: str) -> pd.DataFrame:
    """Problems that only one of two solves, by category and in all, with exact McNemar tests.

    Holm's correction is over the categories; the row of all stands outside it.
    """
    count = min(len(results.solved[ours]), len(results.solved[theirs]))
    is_ours, is_theirs = (results.is_solved(who, count) for who in (ours, theirs))
    categories = np.array(results.categories[:count])
    rows = {}
    for category in ("all", *sorted(set(categories))):
        chosen = np.ones(count, dtype=bool) if category == "all" else categories == category
        rows[category.replace("_", " ")] = {
            "problems": int(chosen.sum()),
            "wins": int((is_ours > is_theirs)[chosen].sum()),
            "losses": int((is_ours < is_theirs)[chosen].sum()),
        }
    table = pd.DataFrame(rows).T
    table["p"] = [mcnemar_exact(*pair) for pair in zip(table.wins, table.losses, strict=True)]
    table["p, Holm"] = [np.nan, *holm(table["p"][1:].tolist())]
    return table


@in_style
def draw_wins_and_losses(results: Results, ours: str, others: Sequence[str]) -> Figure:
    """Fig. 5: shares of problems that one side alone solves, against each of the others."""
    figure = Figure(figsize=(WIDTH_INCHES, 3.0), layout="constrained")
    panels = figure.subplots(1, len(others), sharey=True, sharex=True, squeeze=False)[0]
    for axes, theirs in zip(panels, others, strict=True):
        table = wins_and_losses(results, ours, theirs)[::-1]
        wins, losses = (100 * table[key] / table.problems for key in ("wins", "losses"))
        places = np.arange(len(table))
        axes.barh(places, wins, color=RIGHT, label=f"only {ours}")
        axes.barh(places, -losses, color=WRONG, hatch="///", edgecolor="white", label="only other")
        for place, (row, win) in enumerate(zip(table.itertuples(), wins, strict=True)):
            p = row[-2] if np.isnan(row[-1]) else row[-1]
            words = f" {row.wins:.0f} : {row.losses:.0f}, p {_p(p)}"
            axes.text(win, place, words, va="center", fontsize=6.5)
        axes.axvline(0, color="0.2", linewidth=0.8)
        axes.set_yticks(places, table.index)
        axes.set(title=f"against {theirs}", xlabel="share of mazes (%)")
        axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):.0f}")
    low, high = panels[0].get_xlim()
    panels[0].set_xlim(low, high + 0.5 * (high - low))  # room for the words
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}".lstrip("0")


# Fig. 6


def token_strips(results: Results, num_shown: int = 6) -> list[Strip]:
    """Completions on which the base's mean KL is largest, with every model's KL a token."""
    rows = results.tokens.values()
    ranked = sorted(rows, key=lambda row: -float(np.mean(row["gaps"][BASE])))
    return [
        Strip(row["category"].replace("_", " "), row["tokens"], row["gaps"])
        for row in ranked[:num_shown]
    ]


def draw_token_strips(results: Results, num_shown: int = 6) -> Figure:
    """Fig. 6, of measured values."""
    return kl_strip(token_strips(results, num_shown))


def tokens_table(results: Results, num_shown: int = 12) -> pd.DataFrame:
    """Which tokens carry the gap: share of all nats, mean before and after, by what they say."""
    flat = pd.DataFrame(
        [
            {"token": token, **{name: gaps[index] for name, gaps in row["gaps"].items()}}
            for row in results.tokens.values()
            for index, token in enumerate(row["tokens"])
        ]
    )
    groups = flat.groupby("token")
    table = groups.mean().rename(columns=lambda name: f"{name} (nats a token)")
    table.insert(0, "count", groups.size())
    table.insert(1, "share of the gap", groups[BASE].sum() / flat[BASE].sum())
    return table.sort_values("share of the gap", ascending=False).head(num_shown)


@dataclass(frozen=True, slots=True)
class Concentration:
    """How few tokens carry how much of the gap."""

    num_tokens: int
    share_of_tokens: float
    """The smallest share of tokens with half of all nats."""
    first_half: float
    """Of the nats, what lies in the first half of its completion."""


def concentration(results: Results) -> Concentration:
    """Of the base's gap, over the completions whose tokens are kept."""
    rows = [np.array(row["gaps"][BASE]) for row in results.tokens.values()]
    flat = np.concatenate(rows)
    carried = np.cumsum(np.sort(flat)[::-1]) / flat.sum()
    first = sum(float(row[: (len(row) + 1) // 2].sum()) for row in rows)
    half = int(np.searchsorted(carried, 0.5)) + 1
    return Concentration(len(flat), half / len(flat), first / float(flat.sum()))


@in_style
def draw_where_it_closes(results: Results) -> Figure:
    """Left: gap by place in the completion. Right: every token's KL before and after."""
    figure = Figure(figsize=(WIDTH_INCHES, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    bins = np.linspace(0, 1, 11)
    rows = list(results.tokens.values())
    places = np.concatenate([(np.arange(len(r["tokens"])) + 0.5) / len(r["tokens"]) for r in rows])
    which = np.digitize(places, bins) - 1
    palette = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    flat = {name: np.concatenate([r["gaps"][name] for r in rows]) for name in rows[0]["gaps"]}
    for number, (name, values) in enumerate(flat.items()):
        means = [float(values[which == index].mean()) for index in range(10)]
        left.plot(
            100 * (bins[:-1] + 0.05), means, color=palette[number], marker=_MARKERS[number],
            markersize=4, label=name,
        )  # fmt: skip
    left.set(xlabel="place in the completion (%)", ylabel="KL(T0 || S) (nats a token)")
    left.set(title="Before (base) and after", ylim=(0, None))
    left.legend(fontsize=7)
    largest = 1.1 * max(float(values.max()) for values in flat.values())
    right.plot([1e-4, largest], [1e-4, largest], color="0.5", linewidth=0.8, linestyle="--")
    for number, name in ((1, STUDENT), (2, NOISE)):
        right.scatter(
            flat[BASE] + 1e-4, flat[name] + 1e-4, s=9, alpha=0.6, color=palette[number],
            marker=_MARKERS[number], linewidths=0, label=name,
        )  # fmt: skip
    right.set(xscale="log", yscale="log", xlabel="base (nats + 0.0001)", ylabel="after (nats)")
    right.set(title="A mark a token; below the line the gap closes")
    right.legend(fontsize=7)
    return figure


# Tables 1 and 5


def gaps_by_category(results: Results) -> dict[str, dict[str, Estimate]]:
    """K(T0 || S) in nats a token by model, by category and in all."""
    return {
        model: {
            category: bootstrap_ratio(
                np.array(sums)[chosen], np.array(results.lengths)[chosen], SEED, RESAMPLES
            )
            for category, chosen in _categories(results).items()
        }
        for model, sums in results.gaps.items()
    }


def gap_table(results: Results) -> pd.DataFrame:
    """Tables 1 and 5: the gap before, after each arm, and how much of it each closed."""
    chosen = _categories(results)
    columns: dict[str, dict[str, str]] = {
        "completions": {category: f"{rows.sum():,}" for category, rows in chosen.items()}
    }
    before = np.array(results.gaps[BASE])
    for model, found in gaps_by_category(results).items():
        columns[model] = {category: nats(value) for category, value in found.items()}
        if model == BASE:
            continue
        after = np.array(results.gaps[model])
        columns[f"{model}, closed"] = {
            category: shares(bootstrap_closure(before[rows], after[rows], SEED, RESAMPLES))
            for category, rows in chosen.items()
        }
    return pd.DataFrame(columns)


def draw_gaps(results: Results) -> Figure:
    """Table 1 and Table 5 as a picture."""
    return forest(gaps_by_category(results), "KL(T0 || S) on the base's completions (nats a token)")


def _categories(results: Results) -> dict[str, NDArray[np.bool_]]:
    owners = np.array(results.categories[: len(results.lengths)])
    found = {name.replace("_", " "): owners == name for name in sorted(Counter(owners))}
    return {"all": np.ones(len(owners), dtype=bool), **found}


# What was seen


def gap_seen(results: Results) -> str:
    """The last words of the notebook on the gap; what they say follows from the numbers."""
    before = np.array(results.gaps[BASE])
    closed = {
        name: bootstrap_closure(before, np.array(sums), SEED, RESAMPLES)
        for name, sums in results.gaps.items()
        if name != BASE
    }
    few, whole = concentration(results), gaps_by_category(results)[BASE]["all"]
    found = "; ".join(f"`{name}` closed {shares(value)}" for name, value in closed.items())
    most = tokens_table(results, 1)
    return (
        f"The true visual thought moves the base by {nats(whole)} nats a token. Held against the "
        f"frozen start, {found}. Half of all nats lie on {100 * few.share_of_tokens:.1f} % of "
        f"{few.num_tokens:,} tokens, {100 * few.first_half:.0f} % in the first halves of the "
        f"completions; most of them on `{most.index[0]}` "
        f"({100 * most['share of the gap'].iloc[0]:.0f} %). {results.origin}"
    )


def controls_table(summary: dict[str, Any]) -> pd.DataFrame:
    """Every arm of a study: seeds, accuracy, gain over its base, closure, against ``true_vt``."""
    return pd.DataFrame(
        {
            name: {
                "seeds": arm["num_seeds"],
                "solved": shares(Estimate(**arm["accuracy"])),
                "over its base": shares(Estimate(**arm["gain"]), sign="+"),
                "KL gap closed": shares(Estimate(**arm["closure"])),
                "p against true_vt (Holm)": p_value(arm["p_holm"]) if "p_holm" in arm else "-",
                "tokens": f"{arm['tokens']['value']:.1f}",
            }
            for name, arm in summary["arms"].items()
        }
    ).T


def controls_seen(summary: dict[str, Any]) -> str:
    """The last words of the notebook on the controls."""
    claims = [(claim["verdict"], claim["claim"]) for claim in summary["claims"]]
    counts = Counter(verdict for verdict, _ in claims)
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    held = [claim for verdict, claim in claims if verdict == "supported"]
    missing = f" Missing: {', '.join(summary['missing'])}." if summary["missing"] else ""
    return (
        f"Of {len(claims)} claims of the paper, conditional on this base: {said}. "
        f"Supported: {'; '.join(held) or 'none'}.{missing} "
        f"{sum(arm['num_seeds'] for arm in summary['arms'].values())} runs, "
        f"{summary['settings']['num_problems']:,} mazes. {origin_of(summary)}"
    )


# Drawing and words


@in_style
def forest(
    series: Mapping[str, Mapping[str, Estimate]],
    label: str,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A row a name, a mark with its 95 % interval a series; rows read from the top."""
    names = list(next(iter(series.values())))
    height = 0.9 + len(names) * max(0.3, 0.17 * len(series))
    figure = Figure(figsize=(WIDTH_INCHES * 0.8, height), layout="constrained")
    axes = figure.subplots()
    palette = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    for number, (who, found) in enumerate(series.items()):
        offset = (number - (len(series) - 1) / 2) * 0.17
        _marks(axes, found, offset, palette[number % len(palette)], _MARKERS[number % 5], who)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=label, ylim=(len(names) - 0.5, -0.5))
    if limits is None:
        axes.set_xlim(left=0)
    else:
        axes.set_xlim(*limits)
    if len(series) > 1:
        axes.legend(fontsize=7)
    return figure


def _marks(
    axes: Axes, found: Mapping[str, Estimate], offset: float, color: str, marker: str, who: str
) -> None:
    values = np.array([(e.value, e.low, e.high) for e in found.values()])
    errors = np.abs(values[:, :1] - values[:, 1:]).T
    axes.errorbar(
        values[:, 0], np.arange(len(found)) + offset, xerr=errors, fmt=marker, color=color,
        markersize=4.5, capsize=2.5, elinewidth=1.1, label=who or None,
    )  # fmt: skip


def shares(found: Estimate, sign: str = "") -> str:
    """A share or a difference of shares in per cent, with its interval."""
    value, low, high = (f"{100 * x:{sign}.1f}" for x in (found.value, found.low, found.high))
    return f"{value} % [{low}, {high}]"


def as_markdown(frame: pd.DataFrame) -> str:
    """A table of a report."""
    rows = [
        [str(name), *map(str, row)] for name, row in zip(frame.index, frame.values, strict=True)
    ]
    return table(["", *frame.columns], rows)


def nats(found: Estimate) -> str:
    """A gap with its interval."""
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
