"""How numbers are written in reports and tables."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from visual_opsd.rollouts.answering import Way
from visual_opsd.statistics import Estimate

WAY_NAMES: dict[Way, str] = {
    "drawn": "drawn",
    "text_only": "text only",
    "privileged": "privileged",
}
Unit = Literal["points", "share", "times", "nats"]
Row = Sequence[str]


def table(header: Row, rows: Iterable[Row]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def words(found: Estimate | None, unit: Unit = "points") -> str:
    """A value with its interval."""
    if found is None:
        return "-"
    write: Callable[[float], str] = {
        "points": lambda x: f"{100 * x:+.1f}",
        "share": lambda x: f"{100 * x:.1f}",
        "times": lambda x: f"{x:.1f}",
        "nats": lambda x: f"{x:.3f}",
    }[unit]
    name = {"points": " points", "share": " %", "times": " times", "nats": ""}[unit]
    return f"{write(found.value)}{name} [{write(found.low)}, {write(found.high)}]"


def percent(found: Estimate | None, *, with_interval: bool = False) -> str:
    """A share; the interval in whole numbers if asked for."""
    if found is None:
        return "-"
    interval = f" [{100 * found.low:.0f}, {100 * found.high:.0f}]" if with_interval else " %"
    return f"{100 * found.value:.1f}{interval}"


def p_value(p: float) -> str:
    """Two digits; 0 is what is under the smallest number of a computer."""
    return f"{p:.2g}" if p else "< 1e-300"


def difference(found: Estimate) -> str:
    """Points with what their interval lets one say."""
    sign = "above" if found.low > 0 else "below" if found.high < 0 else "no difference shown"
    return f"{words(found)} ({sign})"


def verdict(is_met: bool | None) -> str:  # noqa: FBT001 - a value to word, not a switch
    """A word for a table."""
    return {True: "met", False: "**missed**", None: ""}[is_met]


def estimate(value: dict[str, float] | None) -> Estimate | None:
    """Back from JSON."""
    return None if value is None else Estimate(**value)


def span(sizes: Sequence[int]) -> str:
    """Whole numbers, those without gaps by their ends."""
    is_whole = list(sizes) == list(range(min(sizes), max(sizes) + 1))
    return f"{min(sizes)} to {max(sizes)}" if is_whole else ", ".join(map(str, sizes))
