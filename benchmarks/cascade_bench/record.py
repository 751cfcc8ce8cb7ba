"""The whole benchmark as one record, and its JSON form.

`--json` prints one object, `"format": "cascade-edge.bench"`, `"version": 1`; fields are only ever
added within a version. Times end in `_ms` or `_s`, rates are images a second, shares are 0..1, and
a figure that is undefined is null. `cascade-bench schema run` prints its JSON Schema.

    format, version, made_by      which form this is; versions, command, commit, machine, time
    bundle, bundle_sha256         what ran, and the hash of its SHA256SUMS
    runtime, target, why          who asked its engines, which of its targets, and why this one
    machine                       cpu, device, cores, affinity, clocks, threads, system, versions,
                                  load_before, load_after
    noisy                         the machine was too uneven: comparison.spread is above 1.3
    workload                      description, images, distinct, mean_file_bytes
    latency                       decision and engine: repeats, mean, p50, p95, p99, p999 (null
                                  below 2000 repeats), max in ms; warm_up, the calls before
    throughput                    a list: batch, repeats, cascade, always_full, ratio
    file_throughput               batch, images, repeats, images_per_s
    comparison                    batch, images, ratio, ratio_low, ratio_high, confidence, spread,
                                  the pairs
    stages                        a list: images, final, acted, seconds, their shares, ms_per_image
    energy                        source, joules, watts, joules_per_image; or the reason for none
    load                          closed and open loops; null without --load
    thread_sweep                  threads free and pinned to cores; null without --sweep
    footprint                     peak_memory_mib, import_s, open_s, first_decision_s
    own                           a list: batch, calls, own (the runtime's share: neither engine nor
                                  decoding), low, high, confidence, ms_per_image, engine_ms,
                                  decode_ms, idle; null when the runtime is native
    native                        libcascade beside the bare engine and the Python runtime; null
                                  unless the runtime is native
    quality                       source, bounds, coverage, error, evaluation (null without data)
    certificate                   the bundle's own, of this target
    checks, passed                the targets: name, of, value, limit, at_most, unit, passed; all
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cascade_bench.comparison import Comparison
from cascade_bench.energy import Energy
from cascade_bench.footprint import Footprint
from cascade_bench.forms import plain
from cascade_bench.latency import Latencies
from cascade_bench.limits import Check
from cascade_bench.load import Load
from cascade_bench.machine import Machine
from cascade_bench.native import Native
from cascade_bench.own_share import OwnShare
from cascade_bench.pinning import ThreadPoint
from cascade_bench.quality import Quality
from cascade_bench.stage_shares import StageShare
from cascade_bench.throughput import FileRate, Rate
from cascade_runtime.manifest import Certificate, MadeBy

FORMAT = "cascade-edge.bench"
VERSION = 1


@dataclass(frozen=True)
class WorkloadRecord:
    """What the timings ran on."""

    description: str
    images: int
    distinct: int
    mean_file_bytes: float


@dataclass(frozen=True)
class Record:
    """Everything that one run of the benchmark found."""

    made_by: MadeBy
    bundle: str
    bundle_sha256: str
    runtime: str
    target: str
    why: str
    machine: Machine
    workload: WorkloadRecord
    latency: Latencies
    throughput: tuple[Rate, ...]
    file_throughput: FileRate
    comparison: Comparison
    stages: tuple[StageShare, ...]
    energy: Energy
    load: Load | None
    thread_sweep: tuple[ThreadPoint, ...] | None
    footprint: Footprint
    own: tuple[OwnShare, ...] | None
    native: Native | None
    quality: Quality
    certificate: Certificate
    checks: tuple[Check, ...]

    @property
    def noisy(self) -> bool:
        """Whether the machine was too uneven for timings that are not of pairs."""
        return self.comparison.noisy

    @property
    def passed(self) -> bool:
        """Whether every target was met."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of the module's text."""
        return {"format": FORMAT, "version": VERSION, **plain(self)}
