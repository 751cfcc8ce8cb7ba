"""Certify one target of a bundle on this machine: run its engines, prove, record golden vectors.

In: the engines of a target and the pixels of `val_select` and `val_calib`. Out: a
`CertifiedTarget`, everything that a bundle says about it. The same code makes a first certificate
(`cascade-compile bundle`) and a later one (`cascade-calibrate certify`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from cascade_calib.certify_target import Request, certify_target
from cascade_calib.collect import Collected, collect
from cascade_calib.labelled import Loaded, Progress
from cascade_calib.report import Evidence
from cascade_calib.words import percent
from cascade_runtime import golden
from cascade_runtime.manifest import (
    Certificate,
    Decision,
    Preprocess,
    StageInfo,
    Target,
    stage_inputs,
)
from cascade_runtime.preprocess import Pixels
from cascade_runtime.stages import Stages

GOLDEN_IMAGES = 8
SPEED_IMAGES = 512
SPEED_BATCH = 32


@dataclass(frozen=True)
class CertifiedTarget:
    """One target with its certificate, the evidence for it, and its golden tensors."""

    target: Target
    decision: Decision
    certificate: Certificate
    evidence: Evidence
    tensors: golden.Tensors


def certify_engines(
    stages: Stages,
    name: str,
    target: Target,
    select: Loaded,
    calib: Loaded,
    *,
    infos: Sequence[StageInfo],
    request: Request,
    preprocess: Preprocess,
    engines: dict[str, str],
    calibration_uses: int,
    thumbnails: bool = True,
    progress: Progress | None = None,
) -> CertifiedTarget:
    """Run every exit on both splits, certify, and measure the speed of the certified cascade.

    Args:
        stages: the engines of `target`, whose files have the SHA-256 in `engines`.
        thumbnails: show the worst selection images in the report; False where whoever gets the
            bundle may not see them.
        infos: the network's stages, whose multiply-adds are the costs that the thresholds weigh.

    Raises:
        DataError: the two splits hold the same images.
    """
    evidence = Evidence(
        collected(stages, select, f"{name} val_select", progress),
        collected(stages, calib, f"{name} val_calib", progress),
        select.pixels if thumbnails else None,
    )
    decision, certificate = certify_target(
        evidence.select,
        evidence.calib,
        stage_costs=costs(infos),
        request=request,
        preprocess=preprocess,
        engines=engines,
        inputs=stage_inputs(infos),
        calibration_uses=calibration_uses,
    )
    speed = _images_per_s(stages, decision, select.pixels[:SPEED_IMAGES])
    target = msgspec.structs.replace(target, images_per_s=round(speed, 1))
    return record(stages, name, target, decision, certificate, evidence, select)


def record(
    stages: Stages,
    name: str,
    target: Target,
    decision: Decision,
    certificate: Certificate,
    evidence: Evidence,
    select: Loaded,
) -> CertifiedTarget:
    """A target that is decided upon, with its golden vectors."""
    tensors = golden.record(stages, decision, _golden_images(select), name)
    return CertifiedTarget(target, decision, certificate, evidence, tensors)


def costs(infos: Sequence[StageInfo]) -> list[float]:
    """What the thresholds weigh: each stage's multiply-adds an image."""
    return [float(info.macs) for info in infos]


def outcome(certificate: Certificate) -> str:
    """The certificate in one line, for whoever waits for it."""
    c = certificate
    if c.status != "CERTIFIED":
        return f"INFEASIBLE at alpha {percent(c.alpha, 6)}. {c.advice}"
    if c.sets is not None:
        return (
            f"CERTIFIED at alpha {percent(c.alpha, 6)}, {c.method}: {c.sets.misses} sets without "
            f"the true class among {c.sets.accepted} accepted of {c.n}, {c.sets.ambiguous} "
            f"ambiguous; acted on {100 * c.coverage:.1f} %, {c.errors} errors"
        )
    return (
        f"CERTIFIED at alpha {percent(c.alpha, 6)}: {c.errors} errors among {c.accepted} acted on "
        f"of {c.n}, coverage {100 * c.coverage:.1f} %"
    )


def collected(stages: Stages, data: Loaded, what: str, progress: Progress | None) -> Collected:
    """Every exit's outputs for a split, with the progress shown as `what`."""

    def step(_: str, done: int, total: int) -> None:
        if progress is not None:
            progress(what, done, total)

    return collect(stages, data, step)


def _images_per_s(stages: Stages, decision: Decision, pixels: Pixels) -> float:
    """Of the whole cascade with its early exits, best of three, for `--target auto`."""
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        for start in range(0, len(pixels), SPEED_BATCH):
            stages.forward(pixels[start : start + SPEED_BATCH], decision)
        best = max(best, len(pixels) / (time.perf_counter() - started))
    return best


def _golden_images(data: Loaded) -> Pixels:
    """The first few images of each class."""
    half = GOLDEN_IMAGES // 2
    rows = [np.flatnonzero(data.labels == label)[:half] for label in (0, 1)]
    return np.ascontiguousarray(data.pixels[np.concatenate(rows)])
