"""What a comparison says in sentences, the same on a terminal and on the page."""

from __future__ import annotations

from collections.abc import Iterator

from cascade_bench.compare.record import Record
from cascade_bench.compare.speed import Batch, Ratio, Speed
from cascade_bench.peers.own import CASCADE, IN_PYTHON
from cascade_bench.peers.transformers import NAME as TRANSFORMERS
from cascade_calib.words import percent


def machine_line(record: Record) -> str:
    """Where it ran, with what, and how busy that was."""
    m = record.machine
    loads = [f"{x:.2f}" for x in (m.load_before, m.load_after) if x is not None]
    load = f"; load {' before, '.join(loads)} after" if loads else ""
    versions = ", ".join(f"{name} {version}" for name, version in record.made_by.versions.items())
    return f"{m.cpu}, {m.cores} cores, {m.threads} threads; {m.system}{load}; {versions}"


def how_measured(record: Record) -> str:
    """What everybody classified."""
    size = record.sample.mean_file_bytes / 1000
    return f"everybody classifies the same files: {record.sample.drawn}; {size:.1f} kB a file"


def how_deep(record: Record) -> str:
    """After which blocks the bundle and its peers answer."""
    if not record.exits:
        return "how deep the cascade and its peers went was not recorded"
    *early, last = map(str, record.exits)
    exits = f"{', '.join(early)} or {last}" if early else last
    return f"the cascade answers after block {exits}, peers after block {record.peers_exit}"


def how_batch(batch: Batch) -> str:
    """What the figures of a batch size are of."""
    said = f"totals of {batch.rounds} interleaved rounds of {batch.images:,} files"
    sure = max(speed.over_files.confidence for speed in batch.speeds)
    return f"{said}; in brackets {percent(sure)} intervals" if sure else said


def interval(ratio: Ratio) -> str:
    """A ratio's interval, "1.92 to 6.23"; empty where it has none."""
    return f"{ratio.low:.2f} to {ratio.high:.2f}" if ratio.confidence else ""


def promised(record: Record, name: str) -> str:
    """What is promised of a contender's risk; of a peer nothing."""
    if name not in (CASCADE, IN_PYTHON):
        return "none"
    c = record.certificate
    if c.status == "INFEASIBLE":
        return f"{c.status}: nothing is promised, every image is deferred"
    what = " of sets" if c.sets is not None else ""
    return f"{c.status}, at most {percent(c.alpha, 6)}{what}"


def headline_peers(record: Record) -> Iterator[tuple[int, str, Speed]]:
    """At each batch size: the transformers pipeline as it comes, and the best of all peers."""
    for batch in record.batches:
        names = [f"{TRANSFORMERS} fp32", batch.best_peer]
        known = {speed.name for speed in batch.speeds}
        for name in dict.fromkeys(names):
            if name in known:
                title = "the best peer" if name == batch.best_peer else "the pipeline"
                yield batch.batch, title, batch.of(str(name))


def conclusions(record: Record) -> Iterator[str]:
    """What it comes to: speed beside the two peers that matter, and the promise."""
    for size, title, speed in headline_peers(record):
        x = speed.over_files
        between = f" ({interval(x)})" if interval(x) else ""
        yield (
            f"batch {size}: {x.value:.2f} times {title}, {speed.name}{between}, "
            "from files to decisions"
        )
    own, c = record.of(CASCADE), record.certificate
    delta = "" if c.delta is None else f", delta = {percent(c.delta, 6)}"
    yield (
        f"{c.status} at alpha = {percent(c.alpha, 6)}{delta}; here {own.risk.part} wrong of "
        f"{own.risk.of} acted on, coverage {percent(own.coverage.value)}"
    )
