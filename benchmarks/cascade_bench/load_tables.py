"""The tables of what takes longer: traffic, threads, energy.

In: what `load`, `pinning` and `energy` measured. Out: rich tables and sentences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from cascade_bench.cells import PERCENTILES, between, milliseconds, numbers_right, sureness
from cascade_bench.energy import Energy
from cascade_bench.load import Load, knee
from cascade_bench.pinning import ThreadPoint


def load_tables(load: Load) -> Iterator[Table | Text]:
    """The closed loop, the open loop, and up to where it kept up."""
    table = Table("clients", "images/s", *PERCENTILES, "images", title="Closed loop, ms")
    for loop in load.closed:
        row = (f"{loop.images_per_s:,.0f}", *milliseconds(loop.latency), str(loop.latency.repeats))
        table.add_row(str(loop.clients), *row)
    table.caption = "each sends its next image when it has its answer; file to decision"
    yield numbers_right(table)
    table = Table(
        *("offered, images/s", "answered", *PERCENTILES, "waited, p50", "images", "kept up"),
        title="Open loop, ms from due to answered",
    )
    for point in load.open:
        table.add_row(
            f"{point.offered:,.1f}",
            f"{point.achieved:,.1f}",
            *milliseconds(point.latency),
            f"{point.waited_p50_ms:.2f}",
            str(point.latency.repeats),
            "yes" if point.kept_up else "no",
        )
    table.caption = (
        f"arrivals at a fixed rate, at most {load.clients} being answered at once; where it is not "
        "kept up with, latency grows with the time measured"
    )
    yield numbers_right(table)
    highest = knee(load.open)
    kept = "no rate was" if math.isnan(highest) else f"up to {highest:,.1f} images/s was"
    yield Text(f"open loop: {kept} kept up with")


def thread_table(points: Sequence[ThreadPoint]) -> Table:
    table = Table(
        *("threads", "free, images/s", "p50, ms", "pinned, images/s", "p50, ms"),
        *("pinned over free", "interval", "first decision"),
        title="Threads, free and pinned to as many cores",
    )
    for x in points:
        table.add_row(
            f"{x.threads}, on cores {', '.join(map(str, x.cores))}",
            *(
                cell
                for s in (x.free, x.pinned)
                for cell in (f"{s.images_per_s:,.0f}", f"{s.p50_ms:.2f}")
            ),
            *between(x.gain),
            f"{x.free.first_decision_s:.2f} s",
        )
    sure = sureness(x.gain for x in points)
    table.caption = (
        f"medians of {points[0].processes} fresh processes of each kind, taking turns; "
        f"batch {points[0].gain.images} from files; intervals: {sure}"
    )
    return numbers_right(table)


def energy_line(e: Energy) -> Text:
    if not e.source:
        return Text(f"energy: not told on this machine ({e.reason})")
    return Text(
        f"energy: {1000 * e.joules_per_image:.3g} mJ an image, {e.watts:.1f} W, of the "
        f"whole device by {e.source}, idle power included; {e.images:,} images in {e.seconds:.1f} s"
    )
