"""How a verb ends: tables or one JSON object on stdout, then what is kept, a picture, a page.

In: what was found, as functions that make each form of it; only those asked for are called. What
took minutes to measure is printed before any file is written, so that a full disk does not lose it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

WIDTH = 100


def check_paths(plot: Path | None, report: Path | None) -> None:
    """Say what is wrong with their names before a minute of measuring, not after it.

    Raises:
        ConfigError: of another kind, a folder, or in one that is not there or cannot be written to.
    """
    from cascade_bench.pictures import check_path

    check_path(plot, "--plot", ".png")
    check_path(report, "--report", ".html")


def finish(
    to_dict: Callable[[], dict[str, Any]],
    render: Callable[[], Iterable[Table | Text]],
    draw: Callable[[], Mapping[str, bytes]],
    title: str,
    *,
    as_json: bool,
    plot: Path | None,
    report: Path | None,
    keep: Callable[[], None] | None = None,
) -> None:
    """Print and write what was asked for.

    Args:
        draw: pictures by what they show; the first is the one of --plot.
        keep: what else is to be done, whether or not it could be printed.
    """
    try:
        show(to_dict, render, as_json=as_json)
    finally:
        if keep is not None:
            keep()
    if plot is not None or report is not None:
        from cascade_bench import page, pictures

        images = draw()
        if plot is not None:
            pictures.write(plot, next(iter(images.values())))
        if report is not None:
            page.write(report, title, render(), images)


def show(
    to_dict: Callable[[], dict[str, Any]],
    render: Callable[[], Iterable[Table | Text]],
    *,
    as_json: bool,
    width: int = WIDTH,
) -> None:
    """Print one JSON object, or the tables one below the other.

    Args:
        width: a log file has none of its own; what the widest table needs.
    """
    if as_json:
        import json

        click.echo(json.dumps(to_dict(), allow_nan=False))
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else width)
    for part in render():
        console.print(part)
