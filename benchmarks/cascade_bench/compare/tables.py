"""A comparison for people: what was compared, speed a batch size, quality, and what it comes to.

In: a `Record`. Out: rich tables and sentences, in the order in which they are to be read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from cascade_bench.cells import numbers_right
from cascade_bench.compare.record import Record
from cascade_bench.compare.speed import Batch, Ratio
from cascade_bench.compare.words import (
    conclusions,
    how_batch,
    how_deep,
    how_measured,
    interval,
    machine_line,
    promised,
)
from cascade_bench.peers.own import CASCADE
from cascade_bench.quality import Share
from cascade_calib.words import percent


def render(record: Record) -> Iterator[Table | Text]:
    """Everything to print, in order."""
    yield Text(f"{record.bundle} on {record.target}; peers with the weights of {record.run}")
    yield Text(machine_line(record))
    yield Text(how_measured(record))
    yield Text(how_deep(record))
    for batch in record.batches:
        yield _speed(batch)
    yield _quality(record)
    for one in record.absent:
        yield Text(f"not here: {one.name}: {one.reason}")
    for sentence in conclusions(record):
        yield Text(sentence, "bold")
    if record.noisy:
        worst = max(batch.spread for batch in record.batches)
        yield Text(
            f"noisy: the same work took {worst:.2f} times as long in one round as in another; "
            "ratios are of the same round and stand, measure rates again on a quiet machine",
            "yellow",
        )


def _speed(batch: Batch) -> Table:
    table = Table(
        "",
        "from files",
        "cascade is faster by",
        "engine alone",
        "faster by",
        title=f"Images a second, batch {batch.batch}",
    )
    for speed in batch.speeds:
        own = speed.name == CASCADE
        table.add_row(
            speed.name,
            rate(speed.files),
            "" if own else times(speed.over_files),
            rate(speed.engine),
            "" if own else times(speed.over_engine),
            style="bold" if own else None,
        )
    table.caption = how_batch(batch)
    table.columns[0].no_wrap = True
    return numbers_right(table)


def _quality(record: Record) -> Table:
    table = Table("", "coverage", "wrong when acting", "right of all", "as full", "promised risk")
    table.title = f"Quality on {record.sample.images} images"
    for q in record.contenders:
        table.add_row(
            q.name,
            percent(q.coverage.value),
            share(q.risk),
            share(q.right),
            "-" if math.isnan(q.agreement.value) else percent(q.agreement.value),
            promised(record, q.name),
            style="bold" if q.name == CASCADE else None,
        )
    table.caption = "in brackets: 95 % intervals; peers answer every image and promise nothing"
    table.columns[0].no_wrap = True
    return numbers_right(table)


def share(x: Share) -> str:
    """A share with its interval."""
    if math.isnan(x.value):
        return "-"
    return f"{percent(x.value)} ({100 * x.low:.3g} to {100 * x.high:.3g})"


def rate(value: float) -> str:
    """Images a second, to a sensible digit."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def times(ratio: Ratio) -> str:
    """How many times, with its interval if there is one."""
    if math.isnan(ratio.value):
        return "-"
    between = interval(ratio)
    return f"{ratio.value:.2f} ({between})" if between else f"{ratio.value:.2f}"
