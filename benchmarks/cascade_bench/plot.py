"""The benchmark as a picture: throughput over batch size, and where images and time go.

In: a `Record`. Out: a PNG. Nothing global is touched: no pyplot, and no display is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade_bench.record import Record
from cascade_calib.plots import COLOURS, FAINT, INK
from cascade_runtime.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FULL = "#9aa5ae"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.0,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_SMALLEST_LABEL = 0.06


def check_path(path: Path | None, option: str = "--plot", suffix: str = ".png") -> None:
    """Say what is wrong with the name before a minute of measuring, not after it.

    Raises:
        ConfigError: it ends otherwise, or is in a folder that is not there.
    """
    if path is None:
        return
    if path.suffix.lower() != suffix:
        raise ConfigError(f"{option} {str(path)!r} must end in {suffix}")
    if not path.parent.is_dir():
        raise ConfigError(f"{option}: the folder {path.parent} does not exist; make it first")


def write(record: Record, path: Path) -> None:
    """Draw and write the PNG."""
    with drawing(path, 9.6, 3.8) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _throughput(left, record)
        _shares(right, record)
        figure.suptitle(_title(record), x=0.01, ha="left", fontsize=9.5)


@contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches, in the style of all of them; `path` is written when it ends."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        temporary = path.with_name(f".{path.name}.tmp")
        figure.savefig(temporary, format="png", metadata={"Software": None})
    temporary.replace(path)


def _title(record: Record) -> str:
    noisy = "  (noisy machine)" if record.comparison.noisy else ""
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
    axes.grid(axis="y", color="#e8edf1", linewidth=0.8)
    axes.set_axisbelow(True)
    c = record.comparison
    axes.set(xlabel="batch size", ylabel="images a second")
    axes.set_title(
        f"Throughput; {c.ratio:.2f} times always full at batch {c.batch} "
        f"({c.ratio_low:.2f} to {c.ratio_high:.2f})"
    )
    axes.legend(frameon=False, fontsize=9, loc="best")


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
