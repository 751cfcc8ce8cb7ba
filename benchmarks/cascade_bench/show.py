"""How a verb ends: tables or JSON on stdout, a picture, a page.

In: what was found, as functions that make each form of it; only those asked for are called.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cascade_bench import pictures

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

WIDTH = 100  # a log file has no width of its own; the widest table needs this much


def finish(
    to_dict: Callable[[], dict[str, Any]],
    render: Callable[[], Iterable[Table | Text]],
    draw: Callable[[], Mapping[str, bytes]],
    title: str,
    *,
    as_json: bool,
    plot: Path | None,
    report: Path | None,
) -> None:
    """Write and print what was asked for.

    Args:
        draw: pictures by what they show; the first is the one of --plot.
    """
    if plot is not None or report is not None:
        images = draw()
        if plot is not None:
            pictures.write(plot, next(iter(images.values())))
        if report is not None:
            from cascade_bench import page

            page.write(report, title, render(), images)
    if as_json:
        click.echo(json.dumps(to_dict(), allow_nan=False))
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
    for part in render():
        console.print(part)
