"""How far a long command has come, on stderr: bars on a terminal, elsewhere a line now and then.

In: calls of `report(what, done, total)`. Out: what a person watching sees; stdout stays clean.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (what is being done, how many are done, how many there are)."""

LINE_EVERY_S = 10.0


@contextmanager
def shown() -> Iterator[Progress]:
    """A `Progress` to hand to long work; its bars are gone when the block ends."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        tasks: dict[str, int] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        yield report


def _lines() -> Progress:
    """A plain line at the start of what takes long, then every `LINE_EVERY_S` seconds."""
    began: dict[str, float] = {}
    said: dict[str, float] = {}

    def report(what: str, done: int, total: int) -> None:
        now = monotonic()
        start = began.setdefault(what, now)
        if now - said.setdefault(what, now) < LINE_EVERY_S:
            return
        said[what] = now
        left = (now - start) * (total - done) / max(1, done)
        print(f"{what}: {done} of {total}, about {left:.0f} s left", file=sys.stderr, flush=True)

    return report
