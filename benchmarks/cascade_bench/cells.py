"""What the tables of the verbs have in common: how times, ratios and intervals are written.

In: figures. Out: cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.table import Table

from cascade_bench.ratios import Ratio
from cascade_bench.timing import Latency
from cascade_calib.words import percent

PERCENTILES = ("p50", "p95", "p99", "p99.9")


def milliseconds(x: Latency) -> list[str]:
    """The columns `PERCENTILES`."""
    values = (x.p50_ms, x.p95_ms, x.p99_ms, x.p999_ms)
    return ["-" if math.isnan(value) else f"{value:.2f}" for value in values]


def between(x: Ratio, digits: int = 2) -> tuple[str, str]:
    """A ratio and its interval, a cell each."""
    return f"{x.ratio:.{digits}f}", f"{x.low:.{digits}f} to {x.high:.{digits}f}"


def sureness(ratios: Iterable[Ratio]) -> str:
    """How sure their intervals are: "96.1 %", or the range of it."""
    found = sorted({percent(x.confidence) for x in ratios}, key=lambda text: float(text.split()[0]))
    return found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}"


def numbers_right(table: Table) -> Table:
    for column in table.columns[1:]:
        column.justify = "right"
    return table
