"""A projection as one record, and its JSON form; `cascade-bench schema project` has its schema.

The JSON object, `"format": "cascade-edge.project"`, `"version": 1`:

    made_by, min_rate, exit_rates
    devices    a list: name, title, measured, peaks, bandwidth, sources, note, efficiency (slow,
               likely, fast: products, memory, launch)
    rows       a list: device, preset, image_size, precision, exits, batch; always_full_ms,
               cascade_ms, always_full_rate, cascade_rate and needed_exit_rate (slow, likely, fast;
               null where no exit rate suffices)
    fit        null, or held_out, mean_error, largest_error, compared (bundle, stage, batch,
               measured_ms, predicted_ms, error)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cascade_bench.forms import plain
from cascade_bench.project.devices import Device
from cascade_bench.project.fit import Fit
from cascade_bench.project.predict import Efficiency
from cascade_bench.project.report import Projection, Row
from cascade_runtime.manifest import MadeBy

FORMAT = "cascade-edge.project"
VERSION = 1


@dataclass(frozen=True)
class Efficiencies:
    """The three that a device's figures are computed with."""

    slow: Efficiency
    likely: Efficiency
    fast: Efficiency


@dataclass(frozen=True)
class DeviceRecord(Device):
    """A device, and what is assumed of it or was fitted to it."""

    efficiency: Efficiencies


@dataclass(frozen=True)
class ComparedRecord:
    """A stage that was timed, and its prediction by a fit that had not seen it."""

    bundle: str
    stage: int
    batch: int
    measured_ms: float
    predicted_ms: float
    error: float


@dataclass(frozen=True)
class FitRecord:
    """How well this machine was predicted."""

    held_out: str
    mean_error: float
    largest_error: float
    compared: tuple[ComparedRecord, ...]


@dataclass(frozen=True)
class Record:
    """The JSON object of the module's text."""

    made_by: MadeBy
    min_rate: float
    exit_rates: tuple[float, ...]
    devices: tuple[DeviceRecord, ...]
    rows: tuple[Row, ...]
    fit: FitRecord | None

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **plain(self)}


def record_of(found: Projection) -> Record:
    """What of a projection is kept."""
    return Record(
        made_by=found.made_by,
        min_rate=found.asked.min_rate,
        exit_rates=found.asked.exit_rates,
        devices=tuple(
            DeviceRecord(**vars(x.device), efficiency=Efficiencies(*x.efficiency))
            for x in found.devices
        ),
        rows=found.rows,
        fit=None if found.fit is None else _fit(found.fit),
    )


def _fit(found: Fit) -> FitRecord:
    compared = tuple(
        ComparedRecord(
            bundle=x.sample.bundle,
            stage=x.sample.stage,
            batch=x.sample.batch,
            measured_ms=1000 * x.sample.seconds,
            predicted_ms=1000 * x.predicted,
            error=x.error,
        )
        for x in found.compared
    )
    return FitRecord(found.held_out, found.mean_error, found.largest_error, compared)
