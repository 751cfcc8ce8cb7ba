"""A comparison as one HTML page that needs nothing else, in the look of a bundle's report.

In: a `Record`. Out: HTML; the plot is inside as an image.
"""

from __future__ import annotations

from base64 import b64encode
from html import escape
from pathlib import Path

from cascade_bench import page, pictures
from cascade_bench.compare import plot
from cascade_bench.compare.record import Record
from cascade_bench.compare.speed import Batch
from cascade_bench.compare.tables import rate, share, times
from cascade_bench.compare.words import (
    conclusions,
    headline_peers,
    how_batch,
    how_deep,
    how_measured,
    interval,
    machine_line,
)
from cascade_bench.compare.words import promised as promise_of
from cascade_bench.peers.own import CASCADE
from cascade_calib.report_html import facts, figures, table
from cascade_calib.words import percent


def write(record: Record, path: Path) -> None:
    """Write the page under a temporary name, then rename it."""
    pictures.write(path, render(record).encode())


def render(record: Record) -> str:
    """The page."""
    title = f"{Path(record.bundle).name} beside its peers"
    speeds = "".join(_speed(batch) for batch in record.batches)
    parts = (_head(record, title), _key_figures(record), _plot(record), _quality(record), speeds)
    body = "\n".join([*parts, _contenders(record), _origin(record)])
    return page.document(title, body.replace(" %", "\u00a0%"))  # unbroken between number and unit


def _head(record: Record, title: str) -> str:
    status = record.certificate.status
    noisy = (
        '<p class="advice">The machine was uneven while this was measured. Ratios are of the same '
        "round and stand; measure rates again on a quiet machine.</p>"
        if record.noisy
        else ""
    )
    return (
        f"<header><h1>{escape(title)}</h1><p>The same images and the same trained weights, "
        f"classified in turn, from files to decisions.</p></header>"
        f'<div class="card {status.lower()}"><p class="status">{escape(status)}</p>'
        f'<p class="promise">{escape(record.certificate.promise)}</p>'
        f'<p class="where"><code>{escape(record.target)}</code></p></div>{noisy}'
    )


def _key_figures(record: Record) -> str:
    rows = [
        (
            f"times {title}, batch {size}",
            f"{speed.over_files.value:.2f}",
            "; ".join(filter(None, (speed.name, interval(speed.over_files)))),
        )
        for size, title, speed in headline_peers(record)
    ]
    own, c = record.of(CASCADE), record.certificate
    rows += [
        ("coverage", percent(own.coverage.value), f"{own.coverage.part:,} of {own.coverage.of:,}"),
        (
            "wrong when acting",
            percent(own.risk.value) if own.risk.of else "–",
            f"{own.risk.part:,} of {own.risk.of:,} images; {promise_of(record, CASCADE)}, "
            f"coverage at least {percent(c.coverage_lower)}",
        ),
    ]
    return f"<section><h2>What it comes to</h2>{figures(rows)}</section>"


def _plot(record: Record) -> str:
    picture = b64encode(plot.draw(record, pictures.SVG, abreast=2)).decode()
    said = escape(" ".join(f"{sentence}." for sentence in conclusions(record)))
    return (
        "<section><h2>Speed against risk</h2><figure>"
        f'<img alt="{said}" src="data:image/svg+xml;base64,{picture}">'
        "<figcaption>Right and low is better. Thin vertical lines: 95 % intervals of the risk. "
        "Peers answer every image; the cascade defers what it may not answer.</figcaption>"
        "</figure></section>"
    )


def _quality(record: Record) -> str:
    head = ("", "coverage", "wrong when acting", "right of all", "as always full", "promised risk")
    rows = [
        (
            q.name,
            percent(q.coverage.value),
            share(q.risk),
            share(q.right),
            percent(q.agreement.value) if q.agreement.of else "–",
            promise_of(record, q.name),
        )
        for q in record.contenders
    ]
    note = f'<p class="note">On {record.sample.images:,} images; in brackets 95 % intervals.</p>'
    return f"<section><h2>Quality</h2>{table(head, rows, 'Quality')}{note}</section>"


def _speed(batch: Batch) -> str:
    head = ("", "images/s from files", "cascade faster by", "images/s, engine alone", "by")
    rows = [
        (
            s.name,
            rate(s.files),
            "" if s.name == CASCADE else times(s.over_files),
            rate(s.engine),
            "" if s.name == CASCADE else times(s.over_engine),
        )
        for s in batch.speeds
    ]
    note = (
        f'<p class="note">Rates and ratios are {how_batch(batch)}. The same work took '
        f"{batch.spread:.2f} times as long in one round as in another.</p>"
    )
    title = f"Batch {batch.batch}"
    return f"<section><h2>{title}</h2>{table(head, rows, title)}{note}</section>"


def _contenders(record: Record) -> str:
    present = [(each.name, each.note) for each in record.contenders]
    absent = [(one.name, f"not here: {one.reason}") for one in record.absent]
    return f"<section><h2>Who took part</h2>{facts([*present, *absent])}</section>"


def _origin(record: Record) -> str:
    by = record.made_by
    rows = [
        ("images", how_measured(record)),
        ("depth", how_deep(record)),
        ("weights of the peers", record.run),
        ("made", f"{by.created}, cascade-edge {by.version}, commit {by.git_commit}"),
        ("command", by.command),
        ("machine", machine_line(record)),
    ]
    return f"<section><h2>Where it comes from</h2>{facts(rows)}</section>"
