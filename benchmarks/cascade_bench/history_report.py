"""A history for people: one comparison, or all of them over the commits.

In: `Entry`s. Out: rich tables and sentences; PNG bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from textwrap import shorten
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from cascade_bench.cells import between, numbers_right, sureness
from cascade_bench.history import ERROR, METRICS, Entry, Finding
from cascade_bench.pictures import png
from cascade_calib.plots import COLOURS, INK, LIMIT
from cascade_calib.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHORT = 10
SUBJECT = 30


def render(entry: Entry) -> Iterator[Table | Text]:
    """One comparison."""
    for name, side in (("baseline", entry.baseline), ("revision", entry.revision)):
        yield Text(f"{name} {side.commit[:SHORT]} of {side.date[:10]}: {side.subject}")
    table = Table(
        *("metric", "baseline", "revision", "ratio", "interval", "allowed", ""),
        title=f"{entry.bundle} on {entry.target}",
    )
    for x in entry.findings:
        table.add_row(
            x.metric,
            f"{x.baseline:,.3g} {x.unit}",
            f"{x.revision:,.3g} {x.unit}",
            *between(x.ratio, 3),
            f"{x.allowed:g}",
            x.verdict,
        )
    table.caption = (
        f"{entry.pairs} pairs of fresh processes in turns, ABBA; intervals "
        f"{sureness(x.ratio for x in entry.findings)} each, {percent(1 - ERROR)} for all at once"
    )
    yield numbers_right(table)
    yield Text(conclusion(entry), "" if entry.passed else "bold red")


def conclusion(entry: Entry) -> str:
    """The last line."""
    worse = [x.metric for x in entry.findings if x.verdict == "regression"]
    if worse:
        return f"REGRESSION: {', '.join(worse)}"
    open_ = [x for x in entry.findings if x.verdict == "undecided"]
    if not open_:
        return f"no slowdown beyond {percent(entry.findings[0].allowed - 1)}"
    most = max(x.ratio.high for x in open_)
    return (
        f"no regression shown; up to {percent(most - 1)} cannot be excluded for "
        f"{', '.join(x.metric for x in open_)}: give more --pairs, or a quieter machine"
    )


def render_all(history: Sequence[Entry]) -> Iterator[Table | Text]:
    """All comparisons, in the order of the file."""
    table = Table(
        "revision", "against", "made", *METRICS, "", title="Ratios, revision over baseline"
    )
    for entry in history:
        table.add_row(
            f"{entry.revision.commit[:SHORT]} {shorten(entry.revision.subject, SUBJECT)}",
            entry.baseline.commit[:SHORT],
            entry.made_by.created[:10],
            *(_cell(x) for x in entry.findings),
            "ok" if entry.passed else "REGRESSION",
        )
    yield numbers_right(table)
    yield Text(
        f"{len(history)} comparisons, {sum(not x.passed for x in history)} with a regression"
    )


def _cell(x: Finding) -> str:
    return "{} ({})".format(*between(x.ratio))


def draw(history: Sequence[Entry]) -> bytes:
    """A panel a metric: ratios and intervals over the comparisons."""
    return png([partial(_metric, history=history, index=i) for i in range(len(METRICS))])


def _metric(axes: Axes, history: Sequence[Entry], index: int) -> None:
    found = [entry.findings[index] for entry in history]
    for place, x in enumerate(found):
        colour = LIMIT if x.verdict == "regression" else COLOURS[0]
        axes.plot([place, place], [x.ratio.low, x.ratio.high], "-", color=colour, linewidth=2)
        axes.plot([place], [x.ratio.ratio], "o", color=colour, markersize=5)
    axes.plot(range(len(found)), [x.allowed for x in found], "_--", color=LIMIT, linewidth=1)
    axes.axhline(1.0, color=INK, linewidth=0.8)
    names = [entry.revision.commit[:7] for entry in history]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_title(list(METRICS)[index])
