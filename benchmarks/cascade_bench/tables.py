"""The benchmark for people: one table a measurement, the four targets last.

In: a `Record`. Out: rich tables and sentences, in the order in which they are to be read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from cascade_bench.cells import PERCENTILES, between, milliseconds, numbers_right, sureness
from cascade_bench.limits import Check
from cascade_bench.load_tables import energy_line, load_tables, thread_table
from cascade_bench.native import Native
from cascade_bench.own_share import OwnShare
from cascade_bench.quality import Quality, Share
from cascade_bench.record import Record
from cascade_bench.throughput import BATCHES
from cascade_bench.timing import LEAST_P999
from cascade_calib import evaluate
from cascade_calib.words import percent


def render(record: Record) -> Iterator[Table | Text]:
    """Everything to print, in order."""
    yield from _machine(record)
    yield _latency(record)
    yield _throughput(record)
    yield _against(record)
    yield _stages(record)
    if record.own is not None:
        yield _own(record.own)
    if record.load is not None:
        yield from load_tables(record.load)
    if record.thread_sweep:
        yield thread_table(record.thread_sweep)
    yield _footprint(record)
    yield energy_line(record.energy)
    if record.native is not None:
        yield _native(record.native, record.footprint.first_decision_s)
    if record.quality.evaluation is not None:
        yield evaluate.tables(record.quality.evaluation)[0]
        yield Text(evaluate.conclusion(record.quality.evaluation))
    yield checks_table(record.checks, record.quality)
    yield from _conclusion(record)


def _machine(record: Record) -> Iterator[Text]:
    m = record.machine
    threads = "every core" if m.threads is None else f"{m.threads} threads"
    loads = [f"{x:.2f}" for x in (m.load_before, m.load_after) if x is not None]
    versions = ", ".join(f"{name} {version}" for name, version in m.versions.items())
    runtime = ", libcascade" if record.native is not None else ""
    yield Text(f"{record.bundle} on {record.target}{runtime}: {record.why}")
    yield Text(
        f"{m.cpu}, {m.cores} cores, {threads}; {m.system}; "
        f"load {' before, '.join(loads)} after; {versions}"
        if loads
        else f"{m.cpu}, {m.cores} cores, {threads}; {m.system}; {versions}"
    )
    size = record.workload.mean_file_bytes / 1000
    yield Text(f"timed on {record.workload.description}; {size:.1f} kB a file")
    if m.clocks.reason:
        yield Text(f"clocks: {m.clocks.reason}")
    else:
        span = ", ".join(f"{mhz:.0f}" for mhz in m.clocks.mhz)
        boost = {True: ", boost on", False: ", boost off", None: ""}[m.clocks.boost]
        yield Text(f"clocks: {' and '.join(m.clocks.governors)}; {span} MHz afterwards{boost}")


def _latency(record: Record) -> Table:
    table = Table("batch 1, ms", *PERCENTILES, "mean", "most", "repeats", title="Latency")
    rows = {"file to decision": record.latency.decision, "engines only": record.latency.engine}
    for name, x in rows.items():
        table.add_row(name, *milliseconds(x), f"{x.mean_ms:.2f}", f"{x.max_ms:.2f}", str(x.repeats))
    table.caption = f"after {record.latency.warm_up} calls of each that are not counted"
    if min(x.repeats for x in rows.values()) < LEAST_P999:
        table.caption += f"; p99.9 needs {LEAST_P999:,} repeats, give more --seconds"
    return numbers_right(table)


def _throughput(record: Record) -> Table:
    table = Table(
        *("batch", "cascade", "always full", "ratio", "interval", "repeats"),
        title="Throughput, images/s",
    )
    for rate in record.throughput:
        table.add_row(
            f"{rate.batch}, engines only",
            f"{rate.cascade:,.0f}",
            f"{rate.always_full:,.0f}",
            *between(rate.ratio),
            f"{rate.repeats}",
        )
    files = record.file_throughput
    table.add_row(
        f"{files.batch}, files to decisions",
        f"{files.images_per_s:,.0f}",
        *("", "", ""),
        f"{files.repeats} x {files.images}",
    )
    sure = sureness(rate.ratio for rate in record.throughput)
    table.caption = f"ratios: of totals, over interleaved pairs; intervals: {sure}"
    if files.batch < max(BATCHES):
        table.caption += f"; larger batches than {files.batch} take too long for --seconds"
    return numbers_right(table)


def _against(record: Record) -> Table:
    c = record.comparison
    table = Table(
        *("", "images/s", "slowest to fastest"),
        title="The cascade against the network run to the end",
    )
    for name, times in (("cascade", c.cascade_s), ("always full", c.always_full_s)):
        rates = sorted(c.images / t for t in times)
        mean = c.images * len(times) / sum(times)
        table.add_row(name, f"{mean:,.0f}", f"{rates[0]:,.0f} to {rates[-1]:,.0f}")
    table.add_row("ratio", f"{c.ratio:.2f}", f"{c.ratio_low:.2f} to {c.ratio_high:.2f}")
    table.caption = (
        f"ratio with its {percent(c.confidence)} interval; totals of {len(c.cascade_s)} "
        f"interleaved pairs, {c.images} images each in batches of {c.batch}; engines only"
    )
    return numbers_right(table)


def _stages(record: Record) -> Table:
    table = Table(
        "stage",
        "images that reach it",
        "final there",
        "acted on there",
        "time",
        "ms an image",
        title=f"Where images stop and time goes, batch {record.comparison.batch}",
    )
    total = record.stages[0].images
    for index, stage in enumerate(record.stages):
        table.add_row(
            str(index),
            percent(stage.image_share),
            percent(stage.final_share),
            percent(stage.acted / total),
            percent(stage.time_share),
            "-" if math.isnan(stage.ms_per_image) else f"{stage.ms_per_image:.3f}",
        )
    return numbers_right(table)


def _own(shares: Sequence[OwnShare]) -> Table:
    table = Table(
        *("batch", "ms an image", "engines", "decoding", "the runtime's own", "interval", "calls"),
        title="Where the time goes, files to decisions",
    )
    for x in shares:
        table.add_row(
            str(x.batch),
            f"{x.ms_per_image:.3f}",
            percent(x.engine_ms / x.ms_per_image),
            percent(x.decode_ms / x.ms_per_image),
            percent(x.own),
            f"{percent(x.low)} to {percent(x.high)}",
            str(x.calls),
        )
    sure = percent(shares[0].confidence)
    idle = percent(max(x.idle for x in shares))
    table.caption = (
        f"medians over calls, all three parts of the same call; intervals: {sure}; left out is the "
        f"end of a call, where threads stand idle while others finish: at most {idle}"
    )
    return numbers_right(table)


def _footprint(record: Record) -> Table:
    f = record.footprint
    table = Table("figure", "median", title="A fresh process, cold start")
    table.add_row("peak resident memory", f"{f.peak_memory_mib:,.0f} MiB")
    table.add_row("import of cascade_runtime", f"{f.import_s:.2f} s")
    table.add_row("opening the bundle, not warmed up", f"{f.open_s:.2f} s")
    table.add_row("import, open and first decision", f"{f.first_decision_s:.2f} s")
    table.caption = (
        f"medians of {f.processes} processes, {f.images} images each; the system may have had the "
        "files in memory"
    )
    return numbers_right(table)


def _native(n: Native, python_first_s: float) -> Table:
    table = Table("figure", "found", "", title="libcascade")
    for name, x in (("over the bare engine, batch 1", n.overhead), ("over Python", n.speedup)):
        table.add_row(name, *between(x, 3))
    speed = (f"{n.images_per_s:,.0f} images/s", f"Python {n.python_images_per_s:,.0f}")
    table.add_row(f"files to decisions, batch {n.batch}", *speed)
    memory = (f"{n.memory_mib:.1f} MiB", f"engine {n.engine_memory_mib:,.0f}")
    table.add_row("resident memory beyond the engine's", *memory)
    first = (f"{1e3 * n.first_decision_s:.0f} ms", f"Python {1e3 * python_first_s:.0f}")
    table.add_row("open and first decision", *first)
    table.caption = (
        f"ratios with their {sureness((n.overhead, n.speedup))} intervals, "
        f"{n.overhead.pairs} pairs of {n.overhead.images} frames, {n.speedup.pairs} of "
        f"{n.speedup.images} files; the rest: fresh processes"
    )
    return numbers_right(table)


def checks_table(checks: Sequence[Check], quality: Quality) -> Table:
    """The targets, their limits, what was found, and PASS or FAIL."""
    table = Table(
        "target",
        "limit",
        "found",
        quality.bounds,
        "measured as",
        "",
        title="Targets",
        title_style="bold",
    )
    bounds = {
        "coverage": _bounds(quality.coverage),
        "exit error": _bounds(quality.error),
    }
    for check in checks:
        verdict = Text("PASS", "bold green") if check.passed else Text("FAIL", "bold red")
        sign = "<=" if check.at_most else ">="
        table.add_row(
            check.name,
            f"{sign} {_value(check, check.limit)}",
            _value(check, check.value),
            bounds.get(check.name, ""),
            check.of,
            verdict,
        )
    return table


def _value(check: Check, value: float) -> str:
    if math.isnan(value):
        return "-"
    if check.unit == "share":
        return percent(value)
    digits = f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
    return f"{digits} {check.unit}"


def _bounds(share: Share) -> str:
    if math.isnan(share.low):
        return "-" if math.isnan(share.high) else f"at most {percent(share.high)}"
    if math.isnan(share.high):
        return f"at least {percent(share.low)}"
    return f"{percent(share.low)} to {percent(share.high)}"


def _conclusion(record: Record) -> Iterator[Text]:
    c = record.certificate
    delta = "" if c.delta is None else f", delta = {percent(c.delta, 6)}"
    yield Text(
        f"{c.status} at alpha = {percent(c.alpha, 6)}{delta}: {c.errors} wrong of {c.accepted} "
        f"acted on, of {c.n} calibration images. "
        f"{c.promise}{' ' + c.advice if c.advice else ''}"
    )
    if record.noisy:
        yield Text(
            "noisy: the same work took "
            f"{record.comparison.spread:.2f} times as long in one repeat as in another; the "
            "ratio is of pairs and stands, measure the rest again on a quiet machine",
            "yellow",
        )
    yield verdict_line(record.checks)


def verdict_line(checks: Sequence[Check]) -> Text:
    """How many targets were missed, and which."""
    missed = [check.name for check in checks if not check.passed]
    if missed:
        return Text(f"{len(missed)} of {len(checks)} targets missed: {', '.join(missed)}")
    return Text(f"all {len(checks)} targets met")
