"""The projection for people: how good the model is where it can be checked, then the predictions.

In: a `Projection`. Out: rich tables and sentences.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table
from rich.text import Text

from cascade_bench.cells import numbers_right
from cascade_bench.project.fit import Fit
from cascade_bench.project.report import Projected, Projection, Row, Three
from cascade_calib.words import percent


def render(found: Projection) -> Iterator[Table | Text]:
    """Everything to print, in order."""
    if found.fit is not None:
        yield _validation(found.fit)
        yield Text(_fitted(found.fit))
    yield _devices(found)
    for name in found.asked.presets:
        yield _network(found, [row for row in found.rows if row.preset == name])
    yield from _said(found)


def _validation(fit: Fit) -> Table:
    table = Table(
        *("bundle", "stage", "batch", "measured, ms", "predicted, ms", "error"),
        title=f"Predicted from what is fitted without {fit.held_out}",
    )
    for x in fit.compared:
        table.add_row(
            Path(x.sample.bundle).name,
            str(x.sample.stage),
            str(x.sample.batch),
            f"{1000 * x.sample.seconds:.2f}",
            f"{1000 * x.predicted:.2f}",
            f"{100 * x.error:+.0f} %",
        )
    table.caption = (
        f"error: mean size {percent(fit.mean_error, 2)}, largest {percent(fit.largest_error, 2)}"
    )
    return numbers_right(table)


def _fitted(fit: Fit) -> str:
    x = fit.efficiency
    return (
        f"fitted to all of them: products at {percent(x.products, 2)} of the ceiling of their "
        f"precision, {1e6 * x.launch:.0f} us a layer; {fit.device.note}"
    )


def _devices(found: Projection) -> Table:
    table = Table(
        *("device", "precision", "dense TFLOP/s", "GB/s", "products reach"), title="Devices"
    )
    for each in found.devices:
        x = each.device
        table.add_row(
            f"{x.name}: {x.title}",
            each.precision,
            f"{x.peak(each.precision) / 1e12:,.3g}",
            f"{x.bandwidth / 1e9:,.4g}",
            _efficiency(each),
        )
    return numbers_right(table)


def _efficiency(each: Projected) -> str:
    slow, likely, fast = (x.products for x in each.efficiency)
    kind = "fitted" if each.device.measured else "assumed"
    return f"{100 * likely:.0f} % ({100 * slow:.0f} to {100 * fast:.0f}), {kind}"


def _network(found: Projection, rows: list[Row]) -> Table:
    first = rows[0]
    exits = ", ".join(map(str, first.exits)) or "none"
    rates = ", ".join(percent(rate) for rate in found.asked.exit_rates)
    table = Table(
        *("device", "batch", "always full, ms", "images/s", "cascade, ms", "images/s"),
        f"exit rate for {found.asked.min_rate:g}/s, %",
        title=f"{first.preset} at {first.image_size} px, exits after blocks {exits}; "
        f"leaving there: {rates}",
    )
    for row in rows:
        table.add_row(
            row.device,
            str(row.batch),
            _middle(row.always_full_ms),
            _three(row.always_full_rate),
            _middle(row.cascade_ms),
            _three(row.cascade_rate),
            _needed(row.needed_exit_rate),
        )
    table.caption = "likely (slow-fast); of a cascade's batch, what it takes on average"
    return numbers_right(table)


def _middle(figure: Three) -> str:
    return "" if figure.likely is None else _short(figure.likely)


def _three(figure: Three) -> str:
    slow, likely, fast = (_short(x) for x in figure.each() if x is not None)
    return f"{likely} ({slow}-{fast})"


def _short(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.2g}" if x < 10 else f"{x:.0f}"


def _needed(figure: Three) -> str:
    words = ["never" if x is None else f"{100 * x:.0f}" for x in figure.each()]
    return words[1] if len(set(words)) == 1 else f"{words[1]} ({words[0]}-{words[2]})"


def _said(found: Projection) -> Iterator[Text]:
    if any(not each.device.measured for each in found.devices):
        yield Text(
            "Devices that were not measured: peaks and bandwidths as published, dense; which share "
            "of them a network reaches is an assumption, and the range is its range."
        )
        for each in found.devices:
            if each.device.sources:
                said = f"{each.device.name}: {each.device.note}; {' '.join(each.device.sources)}"
                yield Text(said, "dim")
    yield Text("Engines alone: reading, decoding and resizing of images come on top.")
