"""A soak for people: a table, sentences, a picture.

In: a `Soak` and its rows. Out: rich tables and sentences; PNG bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text

from cascade_bench.cells import numbers_right
from cascade_bench.drift import LEAST_HOURS, LEAST_ROWS, Drift
from cascade_bench.pictures import png
from cascade_bench.soak_record import HUNG, LOST, Minute, Soak
from cascade_calib.plots import COLOURS, LIMIT
from cascade_calib.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def render(found: Soak) -> Iterator[Table | Text]:
    """Everything to print, in order."""
    start = found.start
    yield Text(
        f"{found.bundle} on {start.target}, {start.runtime} runtime, {start.clients} clients: "
        f"{found.hours:.3g} of {found.wanted_hours:g} hours in {found.segments} "
        f"process{'es' if found.segments > 1 else ''}"
    )
    if start.unreadable:
        yield Text(f"{start.unreadable} images left out: unreadable")
    if start.unsteady:
        yield Text(
            f"{start.unsteady} of {start.images + start.unsteady} images left out: answered in "
            "several ways at different batch sizes",
            "yellow",
        )
    yield _counts(found)
    yield _drifts(found.drifts)
    for text in found.examples:
        yield Text(text, "red")
    yield Text(verdict(found), "" if found.passed else "bold red")


def verdict(found: Soak) -> str:
    """The last line."""
    if not found.lost:
        return _judged(found)
    return (
        f"{_judged(found)}; {found.lost} of {found.segments} processes ended without a word: a "
        "crash, a kill, no memory or no power"
    )


def _judged(found: Soak) -> str:
    faults = []
    if found.wrong:
        faults.append(f"{found.wrong:,} wrong answers")
    if found.failed:
        faults.append(f"{found.failed:,} calls failed")
    faults += [f"{x.name} grows" for x in found.drifts if x.alarm]
    if faults:
        return f"FAIL: {', '.join(faults)}"
    waiting = [x.name for x in found.drifts if not x.judged]
    if waiting:
        return f"no wrong answer; too short to judge the drift of {' and '.join(waiting)}"
    open_ = [f"{x.name} up to {x.high:+.3g} {x.unit} an hour" for x in found.drifts if x.undecided]
    if open_:
        return f"PASS: no wrong answer, no drift shown; not excluded: {', '.join(open_)}"
    return "PASS: no wrong answer, no drift beyond the limits"


def _counts(found: Soak) -> Table:
    table = Table("", "all", "first row", "last row", title="Traffic")
    first, last = found.first, found.last
    for name in ("requests", "images", "damaged", "wrong", "failed"):
        values = [f"{getattr(x, name):,}" for x in (found, first, last)]
        table.add_row({"wrong": "wrong answers", "failed": "calls failed"}.get(name, name), *values)
    for end, told in ((LOST, "without a word"), (HUNG, "by a hang")):
        table.add_row(f"processes ended {told}", str(found.ends.count(end)))
    words = {
        "p50_ms": "one image, p50, ms",
        "p99_ms": "one image, p99, ms",
        "memory_mib": "resident memory, MiB",
        "open_files": "open files",
        "threads": "threads",
    }
    for name, label in words.items():
        table.add_row(label, "", *(_told(getattr(x, name)) for x in (first, last)))
    return numbers_right(table)


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _drifts(drifts: Sequence[Drift]) -> Table:
    table = Table("drift, an hour", "slope", "interval", "limit", "rows", "", title="Drift")
    for x in drifts:
        if math.isnan(x.per_hour):
            cells = ("-", "-", f"{x.limit:g} {x.unit}", str(x.rows), "too few rows")
        else:
            cells = (
                f"{x.per_hour:+.3g} {x.unit}",
                f"{x.low:+.3g} to {x.high:+.3g}",
                f"{x.limit:g} {x.unit}",
                str(x.rows),
                _word(x),
            )
        table.add_row(x.name, *cells)
    table.caption = (
        f"Theil and Sen's slope, {percent(drifts[0].confidence)} interval from blocks of rows; an "
        f"alarm is an interval wholly above the limit; from {LEAST_ROWS} rows and "
        f"{60 * LEAST_HOURS:.0f} minutes on, without the first of every process"
    )
    return numbers_right(table)


def _word(x: Drift) -> str:
    if not x.judged:
        return "too short"
    return "ALARM" if x.alarm else "undecided" if x.undecided else "ok"


def draw(found: Soak, rows: Sequence[Minute]) -> bytes:
    """Latency, and memory, over the hours; a gap is a new process."""
    latency = partial(_latency, rows=rows)
    memory = partial(_memory, rows=rows, slope=found.drifts[0])
    name = f"{Path(found.bundle).name} on {found.start.target}; {verdict(found)}"
    return png([latency, memory], name)


def _latency(axes: Axes, rows: Sequence[Minute]) -> None:
    for name, colour in (("p99_ms", COLOURS[1]), ("p50_ms", COLOURS[0])):
        _over_hours(axes, rows, name, colour, name[:3])
    axes.set_yscale("log")
    axes.set(xlabel="hours", ylabel="ms, one image", title="Latency")
    axes.legend(frameon=False, fontsize=9, loc="best")


def _memory(axes: Axes, rows: Sequence[Minute], slope: Drift) -> None:
    _over_hours(axes, rows, "memory_mib", COLOURS[0], "resident")
    axes.set(xlabel="hours", ylabel="MiB", title="Memory")
    if not math.isnan(slope.per_hour):
        hours, memory = _finite(rows, "memory_mib")
        middle = np.median(memory - slope.per_hour * hours)
        axes.plot(hours, middle + slope.per_hour * hours, "--", color=LIMIT, label="slope")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9, loc="best")


def _over_hours(axes: Axes, rows: Sequence[Minute], name: str, colour: str, label: str) -> None:
    for segment in sorted({row.segment for row in rows}):
        own = [row for row in rows if row.segment == segment]
        said = label if segment == rows[0].segment else None
        axes.plot(*_finite(own, name), ".-", color=colour, linewidth=1.5, label=said)


def _finite(rows: Sequence[Minute], name: str) -> tuple[np.ndarray, np.ndarray]:
    told = [row for row in rows if getattr(row, name) is not None]
    return np.array([row.hours for row in told]), np.array([getattr(row, name) for row in told])
