"""The benchmark as pictures: throughput over batch size, where images and time go, and load.

In: a `Record`. Out: PNG bytes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cascade_bench.load import Load
from cascade_bench.pictures import png
from cascade_bench.record import Record
from cascade_calib.plots import COLOURS, FAINT, INK, LIMIT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FULL = "#9aa5ae"
_SMALLEST_LABEL = 0.06


def draw(record: Record) -> bytes:
    """The picture of `--plot`."""
    both = [partial(_throughput, record=record), partial(_shares, record=record)]
    return png(both, _title(record), (3, 2))


def draw_load(load: Load) -> bytes:
    """What `--load` measured."""
    return png([partial(_load, load=load), partial(_clients, load=load)], widths=(3, 2))


def _title(record: Record) -> str:
    noisy = "  (noisy machine)" if record.noisy else ""
    name = Path(record.bundle).name
    return f"{name} on {record.target}; {record.machine.cpu}, {record.machine.cores} cores{noisy}"


def _throughput(axes: Axes, record: Record) -> None:
    batches = [rate.batch for rate in record.throughput]
    lines = {
        "cascade": ([rate.cascade for rate in record.throughput], COLOURS[0]),
        "always full": ([rate.always_full for rate in record.throughput], _FULL),
    }
    for name, (rates, colour) in lines.items():
        axes.plot(batches, rates, "o-", color=colour, linewidth=2, markersize=5, label=name)
    files = record.file_throughput
    axes.plot(
        [files.batch],
        [files.images_per_s],
        "D",
        color=COLOURS[1],
        markersize=6,
        label="cascade, files to decisions",
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    c = record.comparison
    axes.set(xlabel="batch size", ylabel="images a second")
    axes.set_title(
        f"Throughput; {c.ratio:.2f} times always full at batch {c.batch} "
        f"({c.ratio_low:.2f} to {c.ratio_high:.2f})"
    )
    axes.legend(frameon=False, fontsize=9, loc="best")


def _load(axes: Axes, load: Load) -> None:
    rates = [point.offered for point in load.open]
    for name, colour in (("p99_ms", COLOURS[1]), ("p50_ms", COLOURS[0])):
        values = [getattr(point.latency, name) for point in load.open]
        axes.plot(rates, values, "o-", color=colour, linewidth=2, markersize=5, label=name[:3])
    late = [point for point in load.open if not point.kept_up]
    axes.plot(
        [point.offered for point in late],
        [point.latency.p50_ms for point in late],
        "x",
        color=LIMIT,
        markersize=9,
        label="not kept up with",
    )
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set(xlabel="images offered a second", ylabel="ms from due to answered")
    axes.set_title("Open loop: latency over load")
    axes.legend(frameon=False, fontsize=9, loc="best")


def _clients(axes: Axes, load: Load) -> None:
    clients = [loop.clients for loop in load.closed]
    axes.plot(
        clients,
        [loop.images_per_s for loop in load.closed],
        "o-",
        color=COLOURS[0],
        linewidth=2,
        markersize=5,
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(clients, [str(n) for n in clients])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set(xlabel="clients", ylabel="images a second", title="Closed loop: rate over clients")


def _shares(axes: Axes, record: Record) -> None:
    total = record.stages[0].images
    deferred = sum(stage.final - stage.acted for stage in record.stages)
    bars = {
        "time": [(stage.time_share, COLOURS[i]) for i, stage in enumerate(record.stages)],
        "images\nthat stop": [
            (stage.acted / total, COLOURS[i]) for i, stage in enumerate(record.stages)
        ]
        + [(deferred / total, FAINT)],
    }
    for row, parts in enumerate(bars.values()):
        start = 0.0
        for share, colour in parts:
            axes.barh(row, 100 * share, left=100 * start, color=colour, height=0.55)
            if share >= _SMALLEST_LABEL:
                dark = INK if colour == FAINT else "white"
                middle = 100 * (start + share / 2)
                axes.text(middle, row, f"{100 * share:.0f} %", ha="center", va="center", color=dark)
            start += share
    axes.set_yticks(range(len(bars)), list(bars))
    axes.grid(visible=False)
    axes.set(xlim=(0, 100), xlabel="share, %", title="Where images stop and time goes")
    names = [f"stage {i}" for i in range(len(record.stages))]
    handles = [axes.barh(0, 0, color=COLOURS[i]) for i in range(len(names))]
    if deferred:
        handles.append(axes.barh(0, 0, color=FAINT))
        names.append("deferred")
    axes.legend(
        handles,
        names,
        frameon=False,
        fontsize=9,
        ncols=3,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
    )
