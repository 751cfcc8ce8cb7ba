"""Every stage's share of its ceiling as bars, one group a target.

In: rooflines. Out: SVG bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from performance_records import best, share

from cascade_bench.pictures import GRID, SVG, drawing, encoded
from cascade_bench.roofline.record import Record as Roofline
from cascade_calib.plots import COLOURS, LIMIT

_BAR = 0.8


def rooflines(records: Sequence[Roofline]) -> bytes:
    """The picture; goals are lines across their group."""
    title = f"{records[0].cpu}, {records[0].threads} threads"
    with drawing(2.4 + 1.9 * len(records), 3.6, title) as figure:
        axes = figure.subplots()
        for place, record in enumerate(records):
            stages = best(record)
            width = _BAR / len(stages)
            for k, x in enumerate(stages):
                at = place - _BAR / 2 + width * (k + 0.5)
                name = f"stage {x.stage}" if not place else None
                height = 100 * share(record, x)
                colour = COLOURS[x.stage % len(COLOURS)]
                axes.bar(at, height, width=0.92 * width, color=colour, label=name)
                axes.text(at, height + 1, f"{height:.0f}", ha="center", fontsize=8.5)
            goal = 100 * record.goals[record.target.split("/")[1]]
            label = "goal of a ViT-S stage" if not place else None
            ends = (place - _BAR / 2 - 0.05, place + _BAR / 2 + 0.05)
            axes.hlines(goal, *ends, color=LIMIT, linestyles="dashed", lw=1.2, label=label)
        names = [record.target.removesuffix("/cpu") for record in records]
        axes.set_xticks(range(len(records)), names)
        highest = max(share(record, x) for record in records for x in best(record))
        axes.set_ylim(0, max(115, 115 * highest))  # more than all of it: an uneven machine
        axes.set_ylabel("of the precision's ceiling, %")
        axes.grid(axis="y", **GRID)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=8.5, loc="upper left", ncols=3)
        return encoded(figure, SVG)
