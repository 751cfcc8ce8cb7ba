"""What a verb prints: one JSON object, or tables as wide as they need.

In: what was found, in both forms. Out: stdout.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

WIDTH = 100


def show(
    as_json: bool, found: Callable[[], dict[str, Any]], parts: Callable[[], Iterable[Table | Text]]
) -> None:
    """Print `found` as one JSON object, or `parts` one below the other."""
    if as_json:
        import json

        click.echo(json.dumps(found(), allow_nan=False))
        return
    from rich.console import Console

    # A log file has no width of its own; the widest table needs this much.
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
    for part in parts():
        console.print(part)
