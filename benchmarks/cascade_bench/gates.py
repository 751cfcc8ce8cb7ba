"""`cascade-bench targets`: the four gates and nothing else, measured or read from a record.

In: a `Plan`, or the JSON of `cascade-bench run --json` (or of `targets --json`, whose fields are a
part of it). Out: a `Gates`. Latency, throughput and quality come from the code that `run` has; only
the sweep over batch sizes is left out, the batch being given.

The JSON object, `"format": "cascade-edge.targets"`, `"version": 1`: made_by, bundle, runtime,
target, latency, file_throughput, quality, checks and passed, each as in `record`.
`cascade-bench schema targets` prints its JSON Schema.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cascade_bench import latency, record, throughput
from cascade_bench.forms import parse, plain
from cascade_bench.latency import Latencies
from cascade_bench.limits import Check, Limits
from cascade_bench.quality import Quality
from cascade_bench.run import Plan, checks_of, labelled, quality_of
from cascade_bench.throughput import FileRate
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
    """What the targets are judged by, and the checks."""

    made_by: MadeBy
    bundle: str
    runtime: str
    target: str
    latency: Latencies
    file_throughput: FileRate
    quality: Quality
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every target was met."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of the module's text."""
        return {"format": FORMAT, "version": VERSION, **plain(self)}


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
    return Gates(
        made_by=made_by(SEED),
        bundle=str(plan.bundle),
        runtime=plan.runtime,
        target=cascade.target,
        latency=alone,
        file_throughput=files,
        quality=quality,
        checks=checks_of(plan.limits, alone, files, quality),
    )


@dataclass(frozen=True)
class _Measured:
    """Of a record, what the gates need."""

    version: int
    made_by: MadeBy
    bundle: str
    runtime: str
    target: str
    latency: Latencies
    file_throughput: FileRate
    quality: Quality


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
        if whole.get("format") not in [*_READ]:  # compared, not hashed: it may be any JSON value
            raise DataError(
                f"{path}: format is {whole.get('format')!r}, must be one of "
                f"{', '.join(map(repr, _READ))}; write it with cascade-bench run --json"
            )
        kind = whole["format"]
        found = parse(whole, _Measured)
    except msgspec.DecodeError as error:  # a ValidationError too
        raise DataError(f"{path}: not the JSON of cascade-bench run ({error})") from error
    if found.version != _READ[kind]:
        raise DataError(
            f"{path}: {kind} version {found.version}, this reader knows {_READ[kind]}; "
            "upgrade cascade-edge"
        )
    said = {name: value for name, value in vars(found).items() if name != "version"}
    checks = checks_of(limits, found.latency, found.file_throughput, found.quality)
    return Gates(**said, checks=checks)
