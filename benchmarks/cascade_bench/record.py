"""The whole benchmark as one record, and its JSON form.

`--json` prints one object, `"format": "cascade-edge.bench"`, `"version": 1`; fields are only ever
added within a version. Times end in `_ms` or `_s`, rates are images a second, shares are 0..1, and
a figure that is undefined is null.

    format, version, made_by      which form this is; versions, command, commit, machine, time
    bundle, runtime, target, why  what ran, and why this target
    machine                       cpu, cores, threads, system, load_before, load_after, versions
    noisy                         the machine was too uneven: comparison.spread is above 1.3
    workload                      description, images, distinct, mean_file_bytes
    latency                       decision and engine: repeats, mean, p50, p95, p99, max in ms
    throughput                    a list: batch, repeats, cascade, always_full
    file_throughput               batch, images, repeats, images_per_s
    comparison                    batch, images, ratio, ratio_low, ratio_high, spread, the pairs
    stages                        a list: images, final, acted, seconds, their shares, ms_per_image
    footprint                     peak_memory_mib, import_s, open_s, first_decision_s
    native                        libcascade beside the bare engine and the Python runtime; null
                                  unless the runtime is native
    quality                       source, bounds, coverage, error, evaluation (null without data)
    certificate                   status, alpha, delta, coverage_floor, risk_upper, coverage_lower
    checks, passed                the targets: name, of, value, limit, at_most, unit, passed; all
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from cascade_bench.comparison import Comparison
from cascade_bench.footprint import Footprint
from cascade_bench.latency import Latencies
from cascade_bench.limits import Check
from cascade_bench.machine import Machine
from cascade_bench.native import Native
from cascade_bench.quality import Quality
from cascade_bench.stage_shares import StageShare
from cascade_bench.throughput import FileRate, Rate
from cascade_runtime.manifest import Certificate, MadeBy

FORMAT = "cascade-edge.bench"
VERSION = 1
PROVEN = (
    "status",
    "method",
    "promise",
    "alpha",
    "delta",
    "claims",
    "coverage_floor",
    "risk_upper",
    "coverage_lower",
    "sets",
)


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
    footprint: Footprint
    native: Native | None
    quality: Quality
    certificate: Certificate
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every target was met."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of the module's text."""
        plain = {name: getattr(self, name) for name in ("bundle", "runtime", "target", "why")}
        whole = ("machine", "workload", "latency", "file_throughput", "comparison", "footprint")
        found: dict[str, Any] = json_safe(
            {
                "format": FORMAT,
                "version": VERSION,
                "made_by": msgspec.to_builtins(self.made_by),
                **plain,
                "noisy": self.comparison.noisy,
                **{name: asdict(getattr(self, name)) for name in whole},
                "throughput": [asdict(rate) for rate in self.throughput],
                "stages": [asdict(s) | {"ms_per_image": s.ms_per_image} for s in self.stages],
                "native": None if self.native is None else asdict(self.native),
                "quality": quality_dict(self.quality),
                "certificate": {name: getattr(self.certificate, name) for name in PROVEN},
                "checks": [asdict(check) | {"passed": check.passed} for check in self.checks],
                "passed": self.passed,
            }
        )
        return found


def quality_dict(quality: Quality) -> dict[str, Any]:
    """The `quality` of the JSON object."""
    evaluation = quality.evaluation
    return {
        "source": quality.source,
        "bounds": quality.bounds,
        "coverage": asdict(quality.coverage),
        "error": asdict(quality.error),
        "evaluation": evaluation.to_dict() if evaluation else None,
    }


def json_safe(value: Any) -> Any:
    """`value` with null for every float that JSON has no word for."""
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
