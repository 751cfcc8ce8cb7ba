"""`cascade-bench targets`: the four gates and nothing else, measured or read from a record.

In: a `Plan`, or the JSON of `cascade-bench run --json` (or of `targets --json`, whose fields are a
part of it). Out: a `Gates`. Latency, throughput and quality come from the code that `run` has; only
the sweep over batch sizes is left out, the batch being given.

The JSON object, `"format": "cascade-edge.targets"`, `"version": 1`: made_by, bundle, runtime,
target, latency, file_throughput, quality, checks and passed, each as in `record`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from cascade_bench import latency, record, throughput
from cascade_bench.limits import Check, Limits, judge
from cascade_bench.quality import Quality, Share
from cascade_bench.run import Plan, labelled, quality_of
from cascade_bench.workload import SEED, open_workload
from cascade_calib.progress import Progress
from cascade_calib.provenance import made_by
from cascade_runtime.cascade import Cascade
from cascade_runtime.errors import DataError
from cascade_runtime.manifest import MadeBy

FORMAT = "cascade-edge.targets"
VERSION = 1
BATCH = 32
_READ = {record.FORMAT: record.VERSION, FORMAT: VERSION}


@dataclass(frozen=True)
class Gates:
    """What the targets are judged by, the checks, and the JSON object that says both."""

    quality: Quality
    checks: tuple[Check, ...]
    said: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every target was met."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of the module's text."""
        checks = [asdict(check) | {"passed": check.passed} for check in self.checks]
        found: dict[str, Any] = record.json_safe(
            self.said | {"checks": checks, "passed": self.passed}
        )
        return found


def measure(plan: Plan, batch: int = BATCH, progress: Progress | None = None) -> Gates:
    """Latency and throughput, `plan.seconds` each, and the quality.

    Raises:
        BundleError, TargetError: the bundle cannot be opened or run here.
        DataError: the labelled images cannot be used.
    """
    cascade = Cascade.open(plan.bundle, plan.target, threads=plan.threads, warm_up=False)
    images = labelled(plan, cascade)
    with open_workload(cascade, images, progress) as work:
        alone = latency.measure(cascade, cascade, work, plan.seconds)
        guess = 1000 / alone.engine.p50_ms
        files = throughput.from_files(cascade, work, batch, guess, plan.seconds)
    quality = quality_of(plan, cascade, images, progress)
    said = {
        "format": FORMAT,
        "version": VERSION,
        "made_by": msgspec.to_builtins(made_by(SEED)),
        "bundle": str(plan.bundle),
        "runtime": plan.runtime,
        "target": cascade.target,
        "latency": asdict(alone),
        "file_throughput": asdict(files),
        "quality": record.quality_dict(quality),
    }
    checks = judge(
        plan.limits,
        p95_ms=alone.decision.p95_ms,
        rate=files.images_per_s,
        batch=files.batch,
        quality=quality,
    )
    return Gates(quality, checks, said)


class _Decision(msgspec.Struct):
    p95_ms: float | None


class _Latency(msgspec.Struct):
    decision: _Decision


class _Files(msgspec.Struct):
    batch: int
    images_per_s: float | None


class _Share(msgspec.Struct):
    value: float | None
    part: int
    of: int
    low: float | None
    high: float | None


class _Quality(msgspec.Struct):
    source: str
    bounds: str
    coverage: _Share
    error: _Share


class _Said(msgspec.Struct):
    """Of a record, what the gates need; null is a figure that is undefined."""

    format: str
    version: int
    made_by: MadeBy
    bundle: str
    runtime: str
    target: str
    latency: _Latency
    file_throughput: _Files
    quality: _Quality


def read(path: Path, limits: Limits) -> Gates:
    """Judge what an earlier run measured, by limits of today.

    Raises:
        DataError: no such file, or not the JSON of `run` or `targets`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"--from {str(path)!r} cannot be read: {error.strerror}") from error
    try:
        whole = msgspec.json.decode(data, type=dict[str, Any])
        if whole.get("format") not in _READ:
            raise DataError(
                f"{path}: format is {whole.get('format')!r}, must be one of "
                f"{', '.join(map(repr, _READ))}; write it with cascade-bench run --json"
            )
        said = msgspec.convert(whole, _Said)
    except msgspec.DecodeError as error:  # a ValidationError too
        raise DataError(f"{path}: not the JSON of cascade-bench run ({error})") from error
    if said.version != _READ[said.format]:
        raise DataError(
            f"{path}: {said.format} version {said.version}, this reader knows "
            f"{_READ[said.format]}; upgrade cascade-edge"
        )
    quality = Quality(
        source=said.quality.source,
        bounds=said.quality.bounds,
        coverage=_share(said.quality.coverage),
        error=_share(said.quality.error),
        evaluation=None,
    )
    files = said.file_throughput
    checks = judge(
        limits,
        p95_ms=_number(said.latency.decision.p95_ms),
        rate=_number(files.images_per_s),
        batch=files.batch,
        quality=quality,
    )
    kept = ("made_by", "bundle", "runtime", "target", "latency", "file_throughput", "quality")
    head = {"format": FORMAT, "version": VERSION}
    return Gates(quality, checks, head | {name: whole[name] for name in kept})


def _share(share: _Share) -> Share:
    return Share(
        _number(share.value), share.part, share.of, _number(share.low), _number(share.high)
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
