"""Throughput against risk, one panel a batch size: who is not beaten in both by anybody.

In: a `Record`. Out: a PNG, or the same picture as SVG for the page. Everybody is numbered, since
peers with the same weights are wrong equally often and lie side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cascade_bench.compare.record import Record
from cascade_bench.compare.speed import Batch
from cascade_bench.peers.own import ALWAYS_FULL, CASCADE, IN_PYTHON
from cascade_bench.pictures import GRID, drawing, encoded
from cascade_calib.plots import COLOURS, FAINT, LIMIT
from cascade_calib.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]
_FAMILIES = ("transformers", "torch eager", "torch.compile", "onnxruntime", "openvino")
_OWN = {CASCADE: "#1f6b3a", IN_PYTHON: "#4f9a6a", ALWAYS_FULL: "#7f8b95"}
_OTHER = COLOURS[5]
FRONT = "#7fb894"
_MARGIN = 1.5
_HEIGHTS = (9, 19, 29, 39)  # of the numbers above their points, in points, in turn


def draw(record: Record, kind: str, abreast: int) -> bytes:
    """The picture's bytes, `PNG` or `SVG`, with so many panels side by side."""
    columns = min(abreast, len(record.batches))
    rows = math.ceil(len(record.batches) / columns)
    with drawing(2.4 + 3.7 * columns, 0.5 + 3.9 * rows, _title(record)) as figure:
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        numbers = {each.name: index for index, each in enumerate(record.contenders, start=1)}
        for axes, batch in zip(panels.flat, record.batches, strict=False):
            _panel(axes, record, batch, numbers)
        for axes in panels.flat[len(record.batches) :]:
            axes.set_axis_off()
        for axes in panels[:, 0]:
            axes.set_ylabel("risk: wrong of the images acted on, %")
        panels[0, 0].set_ylim(0, 100 * _top(record))
        _names(figure, record, numbers)
        return encoded(figure, kind)


def pareto(points: Sequence[Point]) -> list[Point]:
    """Of (throughput, risk), those that no other beats in one without losing in the other.

    Slowest first, so that both throughput and risk rise.
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (-p[0], p[1])):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front[::-1]


def colour(name: str) -> str:
    """One a family."""
    if name in _OWN:
        return _OWN[name]
    found = [index for index, family in enumerate(_FAMILIES) if name.startswith(family)]
    return COLOURS[found[0]] if found else _OTHER


def _panel(axes: Axes, record: Record, batch: Batch, numbers: dict[str, int]) -> None:
    speeds = sorted(batch.speeds, key=lambda speed: speed.files)
    points = {s.name: (s.files, 100 * record.of(s.name).risk.value) for s in speeds}
    front = pareto([point for point in points.values() if not math.isnan(point[1])])
    _front(axes, front, [x for x, _ in points.values()], 100 * _top(record))
    for place, (name, (x, y)) in enumerate(points.items()):
        if math.isnan(y):
            continue
        own, risk = name == CASCADE, record.of(name).risk
        axes.plot([x, x], [100 * risk.low, 100 * risk.high], color=colour(name), lw=1, alpha=0.4)
        axes.plot([x], [y], "*" if own else "o", color=colour(name), ms=15 if own else 6, zorder=3)
        axes.annotate(
            str(numbers[name]),
            (x, y),
            (0, _HEIGHTS[place % len(_HEIGHTS)]),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            fontweight="bold" if own else "normal",
            color=colour(name),
            arrowprops={"arrowstyle": "-", "color": FAINT, "lw": 0.6},
        )
    c = record.certificate
    if record.of(CASCADE).certified and c.sets is None:
        axes.axhline(100 * c.alpha, color=LIMIT, dashes=(4, 3), linewidth=1, zorder=0)
        text = f"certified: at most {percent(c.alpha, 6)}"
        at = axes.get_yaxis_transform()
        axes.text(0.01, 100 * c.alpha, text, color=LIMIT, fontsize=8.5, va="bottom", transform=at)
    _throughput_axis(axes, [x for x, _ in points.values()])
    axes.set_title(f"batch {batch.batch}{'  (noisy)' if batch.noisy else ''}")


def _front(axes: Axes, front: Sequence[Point], speeds: Sequence[float], top: float) -> None:
    """The border of what is beaten: to the left of its points, and above them."""
    border = [(min(speeds) / _MARGIN, front[0][1])]
    for x, y in front:
        border += [(border[-1][0], y), (x, y)]
    border.append((border[-1][0], top))
    axes.plot(*zip(*border, strict=True), color=FRONT, linewidth=5, alpha=0.35, zorder=1)


def _throughput_axis(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic, with ticks at 1, 2 and 5 times a power of ten."""
    low, high = min(values) / _MARGIN, max(values) * _MARGIN
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45 if high / low > 30 else 0)
    axes.minorticks_off()
    axes.set_xlim(low, high)
    axes.grid(**GRID)
    axes.set_axisbelow(True)
    axes.set_xlabel("images a second, files to decisions")


def _top(record: Record) -> float:
    highest = [q.risk.high for q in record.contenders if not math.isnan(q.risk.high)]
    limit = record.certificate.alpha if record.of(CASCADE).certified else 0.0
    return 1.25 * max([0.01, limit, *highest])


def _names(figure: Figure, record: Record, numbers: dict[str, int]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for name, number in numbers.items():
        own = name == CASCADE
        coverage = percent(record.of(name).coverage.value)
        word = "certified, " if record.of(name).certified else ""
        label = f"{number}  {name}" + (f"\n    {word}coverage {coverage}" if own else "")
        handles.append(
            Line2D([], [], ls="", marker="*" if own else "o", color=colour(name), label=label)
        )
    handles.append(Line2D([], [], color=FRONT, lw=5, alpha=0.35, label="Pareto front"))
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8.5)


def _title(record: Record) -> str:
    name, m = Path(record.bundle).name, record.machine
    return f"{name} on {record.target} and its peers; {m.cpu}, {m.threads} threads"
