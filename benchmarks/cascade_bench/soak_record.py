"""What a soak writes down: how it began, a row a minute, and in the end what it came to.

The state is a JSONL file: a `Start`, then `Minute`s. `--json` prints the `Soak` made of them.
Schemas: `cascade-bench schema soak-start`, `soak-minute`, `soak`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cascade_bench import journal
from cascade_bench.drift import Drift, drift
from cascade_bench.forms import parse, plain
from cascade_runtime.errors import ConfigError
from cascade_runtime.manifest import MadeBy

FORMAT = "cascade-edge.bench-soak"
VERSION = 1


@dataclass(frozen=True)
class Start:
    """What is run; a state is only gone on with by the same.

    bundle_sha256: of its SHA256SUMS. reference_sha256: of the images and their answers.
    """

    bundle_sha256: str
    target: str
    runtime: str
    threads: int | None
    corrupt: float
    clients: int
    images: int
    left_out: int
    reference_sha256: str
    created: str

    def differs(self, other: Start) -> list[str]:
        """The fields, other than when, in which two starts differ."""
        names = [n for n in self.__dataclass_fields__ if n != "created"]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


@dataclass(frozen=True)
class Minute:
    """One row: `seconds` of traffic, ending `hours` into the soak, in the `segment`-th process.

    requests, images, damaged: sent, damaged ones among the images. wrong, failed: answers that are
    not the reference's, calls that raised; `examples` has the first of them in words. Latency is of
    requests with one image, null without any. memory_mib: resident, at the end of the row.
    """

    segment: int
    hours: float
    seconds: float
    requests: int
    images: int
    damaged: int
    wrong: int
    failed: int
    examples: tuple[str, ...]
    singles: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    memory_mib: float | None
    open_files: int | None
    threads: int | None
    load: float | None


@dataclass(frozen=True)
class Limits:
    """What is allowed: memory in MiB an hour, latency in percent an hour."""

    memory_mib_per_hour: float = 10.0
    latency_percent_per_hour: float = 10.0


@dataclass(frozen=True)
class Soak:
    """What it came to.

    wanted_hours, hours: asked for, done. segments: processes that took part. first, last: rows,
    for memory and open files then and now.
    """

    made_by: MadeBy
    bundle: str
    start: Start
    wanted_hours: float
    hours: float
    segments: int
    rows: int
    requests: int
    images: int
    damaged: int
    wrong: int
    failed: int
    examples: tuple[str, ...]
    first: Minute
    last: Minute
    drifts: tuple[Drift, ...]

    @property
    def passed(self) -> bool:
        """No wrong answer, no call that failed, no drift beyond its limit."""
        return not (self.wrong or self.failed or any(x.alarm for x in self.drifts))

    def to_dict(self) -> dict[str, Any]:
        return marked(self)


def marked(line: Start | Minute | Soak) -> dict[str, Any]:
    """The JSON object of a line, or of the whole."""
    return {"format": FORMAT, "version": VERSION, **plain(line)}


def read(entries: list[dict[str, Any]], path: Path) -> tuple[Start | None, list[Minute]]:
    """The lines of a state.

    Raises:
        ConfigError: they are of something else.
    """
    for number, entry in enumerate(entries, 1):
        if (entry.get("format"), entry.get("version")) != (FORMAT, VERSION):
            raise ConfigError(
                f"{path}: line {number} is no line of a soak's state, version {VERSION}"
            )
    try:
        start = parse(entries[0], Start) if entries else None
        return start, [parse(entry, Minute) for entry in entries[1:]]
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_file(path: Path) -> tuple[Start | None, list[Minute]]:
    """The same, of a file that may still be written."""
    return read(journal.read(path), path)


def drifts(rows: list[Minute], limits: Limits) -> tuple[Drift, Drift]:
    """Of memory, and of the median latency."""
    hours = np.array([row.hours for row in rows])
    segments = np.array([row.segment for row in rows])

    def column(name: str) -> np.ndarray:
        return np.array([getattr(row, name) for row in rows], dtype=np.float64)  # None is NaN

    memory, latency = column("memory_mib"), 100 * np.log(column("p50_ms"))
    return (
        drift("memory", "MiB", memory, hours, segments, limits.memory_mib_per_hour),
        drift("latency, p50", "%", latency, hours, segments, limits.latency_percent_per_hour),
    )
