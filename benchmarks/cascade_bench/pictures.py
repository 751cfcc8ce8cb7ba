"""How every plot of the benchmark looks, and how it becomes a file or a part of a page.

In: a function that draws on axes, or a figure. Out: PNG or SVG bytes. Nothing global is touched: no
pyplot, and no display is needed.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade_calib import plots
from cascade_runtime.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
    **plots.STYLE,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "svg.hashsalt": "cascade-bench",
}
GRID: dict[str, Any] = {"color": "#e8edf1", "linewidth": 0.8}
PNG, SVG = "png", "svg"
_METADATA = {PNG: {"Software": None}, SVG: {"Date": None, "Creator": None}}


def check_path(path: Path | None, option: str = "--plot", suffix: str = ".png") -> None:
    """Say what is wrong with the name before a minute of measuring, not after it.

    Raises:
        ConfigError: of another kind, a folder, or in one that is not there or cannot be written to.
    """
    if path is None:
        return
    if path.suffix.lower() != suffix:
        raise ConfigError(f"{option} {str(path)!r} must end in {suffix}")
    if not path.parent.is_dir():
        raise ConfigError(f"{option}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise ConfigError(f"{option} {str(path)!r} is a folder, must be a file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{option}: nothing can be written to the folder {path.parent}")


@contextmanager
def drawing(width: float, height: float, title: str = "") -> Iterator[Figure]:
    """A figure of so many inches, in the style of all of them; `encoded` must be called within."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=9.5)
        yield figure


def encoded(figure: Figure, kind: str = PNG) -> bytes:
    """The bytes of its file, the same each time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=_METADATA[kind])
    return buffer.getvalue()


def png(
    draw: Sequence[Callable[[Axes], None]], title: str = "", widths: Sequence[float] = ()
) -> bytes:
    """One picture, the axes of which stand side by side, each drawn by its own function."""
    with drawing(9.6, 3.8, title) as figure:
        ratios = list(widths) or [1.0] * len(draw)
        grid = figure.subplots(1, len(draw), width_ratios=ratios, squeeze=False)
        for axes, one in zip(grid[0], draw, strict=True):
            one(axes)
            axes.grid(axis="y", **GRID)
            axes.set_axisbelow(True)
        return encoded(figure)


def write(path: Path, data: bytes) -> None:
    """Under a temporary name first, so that nobody reads half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
