"""What a soak writes down: how it began, a row a minute, and in the end what it came to.

The state is a JSONL file: a `Start`, then `Minute`s, with a `Process` before and after those of
every process. `--json` prints the `Soak` made of them.
Schemas: `cascade-bench schema soak-start`, `soak-process`, `soak-minute`, `soak`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
VERSION = 2

BEGAN, DONE, STOPPED, HUNG, LOST = "began", "done", "stopped", "hung", "lost"
"""What a `Process` says: it began; it did what was left; Ctrl-C, SIGTERM or an error stopped it; a
call gave no answer. LOST is none of its lines: there is none after BEGAN. It crashed, was killed
(the system does so when memory is short), or the power went."""


@dataclass(frozen=True)
class Start:
    """What is run; a state is only gone on with by the same.

    bundle_sha256: of its SHA256SUMS. data_sha256: of the readable images' names and contents.
    images: asked about; left out are unreadable ones, and unsteady ones, which are answered in
    several ways at different batch sizes. reference_sha256: of the answers.
    """

    bundle_sha256: str
    target: str
    runtime: str
    threads: int | None
    corrupt: float
    clients: int
    data_sha256: str
    images: int
    unreadable: int
    unsteady: int
    reference_sha256: str
    created: str

    def differs(self, other: Start) -> list[str]:
        """The fields, other than when, in which two starts differ."""
        names = [n for n in self.__dataclass_fields__ if n != "created"]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


ANSWERS = ("images", "unreadable", "unsteady", "reference_sha256")
"""The fields of a `Start` that follow, with all others the same, from the answers alone."""


@dataclass(frozen=True)
class Process:
    """The `segment`-th process of a soak, 1 the first; event: `BEGAN`, or how it ended."""

    segment: int
    event: str
    time: str


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

    wanted_hours, hours: asked for, done. ends: how each process that took part ended, `DONE`,
    `STOPPED`, `HUNG` or `LOST`. first, last: rows, for memory and open files then and now.
    """

    made_by: MadeBy
    bundle: str
    start: Start
    wanted_hours: float
    hours: float
    ends: tuple[str, ...]
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
    def segments(self) -> int:
        """Processes that took part."""
        return len(self.ends)

    @property
    def lost(self) -> int:
        """Those that ended without a word. Whether that was a crash or the plug, the user knows."""
        return self.ends.count(LOST)

    @property
    def passed(self) -> bool:
        """No wrong answer, no call that failed or hung, no drift beyond its limit."""
        return not (self.wrong or self.failed or any(x.alarm for x in self.drifts))

    def to_dict(self) -> dict[str, Any]:
        return marked(self)


@dataclass(frozen=True)
class State:
    """What a state file holds; `start` is None in an empty one."""

    start: Start | None
    rows: list[Minute]
    processes: list[Process]

    def ends(self) -> tuple[str, ...]:
        """How each process ended; one that still runs counts as lost."""
        last = {process.segment: process.event for process in self.processes}
        return tuple(LOST if event == BEGAN else event for event in last.values())


def marked(line: Start | Process | Minute | Soak) -> dict[str, Any]:
    """The JSON object of a line, or of the whole."""
    return {"format": FORMAT, "version": VERSION, **plain(line)}


def read(entries: list[dict[str, Any]], path: Path) -> State:
    """The lines of a state.

    Raises:
        ConfigError: they are of something else.
    """
    for number, entry in enumerate(entries, 1):
        if (entry.get("format"), entry.get("version")) != (FORMAT, VERSION):
            raise ConfigError(
                f"{path}: line {number} is no line of a soak's state, version {VERSION}"
            )
    found = State(None, [], [])
    try:
        for entry in entries[1:]:
            if "event" in entry:
                found.processes.append(parse(entry, Process))
            else:
                found.rows.append(parse(entry, Minute))
        return replace(found, start=parse(entries[0], Start)) if entries else found
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_file(path: Path) -> State:
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
