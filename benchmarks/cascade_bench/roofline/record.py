"""A roofline as one record, and its JSON form; `cascade-bench schema roofline` has its schema.

The JSON object, `"format": "cascade-edge.roofline"`, `"version": 1`:

    made_by, bundle, bundle_sha256 (of its SHA256SUMS), target
    cpu, threads, load_before, load_after
    spread     of the same products, the 90th over the 10th percentile
    memory     bytes a second of copy and triad
    ceilings   a list: precision, shape, flops_per_s, best
    cpu_peaks  FLOPs a second of processor time, on all threads together, by precision
    stages     a list: stage, batch, rounds, ms_per_image, flops_per_image, intensity, flops_per_s,
               share, paired, paired_low, paired_high, cpu_share, cpu_ms_per_image, best
    profiles   a list: stage, batch, ms_per_image, layers (name, kind, precision, ms_per_image,
               flops_per_s, share, lost_ms)
    goals      by precision, the share that a ViT-S stage is to reach
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cascade_bench.forms import plain
from cascade_bench.roofline.layers import Layer
from cascade_bench.roofline.measure import GOALS, Ceiling, Profile, Reached, Roofline
from cascade_runtime.manifest import MadeBy

FORMAT = "cascade-edge.roofline"
VERSION = 1


@dataclass(frozen=True)
class LayerRecord:
    """One layer, an image; `share` is null where it computes no products."""

    name: str
    kind: str
    precision: str
    ms_per_image: float
    flops_per_s: float
    share: float | None
    lost_ms: float


@dataclass(frozen=True)
class ProfileRecord:
    """The layers of one stage at one batch size."""

    stage: int
    batch: int
    ms_per_image: float
    layers: tuple[LayerRecord, ...]


@dataclass(frozen=True)
class Record:
    """The JSON object of the module's text."""

    made_by: MadeBy
    bundle: str
    bundle_sha256: str
    target: str
    cpu: str
    threads: int
    load_before: float | None
    load_after: float | None
    spread: float
    memory: dict[str, float]
    cpu_peaks: dict[str, float]
    ceilings: tuple[Ceiling, ...]
    stages: tuple[Reached, ...]
    profiles: tuple[ProfileRecord, ...]
    goals: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **plain(self)}


def record_of(found: Roofline) -> Record:
    """What of a roofline is kept."""
    return Record(
        made_by=found.made_by,
        bundle=found.bundle,
        bundle_sha256=found.bundle_sha256,
        target=found.target,
        cpu=found.cpu,
        threads=found.threads,
        load_before=found.load_before,
        load_after=found.load_after,
        spread=found.spread,
        memory=found.memory,
        cpu_peaks=found.cpu_peaks,
        ceilings=found.ceilings,
        stages=found.stages,
        profiles=tuple(_profile(found, profile) for profile in found.profiles),
        goals=GOALS,
    )


def _profile(found: Roofline, profile: Profile) -> ProfileRecord:
    said = tuple(_layer(found, layer, profile.batch) for layer in profile.layers)
    return ProfileRecord(profile.stage, profile.batch, profile.ms_per_image, said)


def _layer(found: Roofline, layer: Layer, batch: int) -> LayerRecord:
    return LayerRecord(
        name=layer.name,
        kind=layer.kind,
        precision=layer.precision,
        ms_per_image=1000 * layer.seconds / batch,
        flops_per_s=layer.flops / layer.seconds,
        share=found.share(layer),
        lost_ms=1000 * found.lost(layer) / batch,
    )
