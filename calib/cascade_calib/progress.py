"""How far a long command has come, on stderr: bars on a terminal, a line a tenth elsewhere.

In: calls of `report(what, done, total)`. Out: what a person watching sees; stdout stays clean.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from cascade_calib.collect import Progress


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
    last: dict[str, int] = {}
    began: dict[str, float] = {}

    def report(what: str, done: int, total: int) -> None:
        start = began.setdefault(what, monotonic())
        tenth = 10 * done // max(1, total)
        if tenth == last.get(what, 0):
            return
        last[what] = tenth
        left = (monotonic() - start) * (total - done) / max(1, done)
        print(f"{what}: {done} of {total}, about {left:.0f} s left", file=sys.stderr, flush=True)

    return report
