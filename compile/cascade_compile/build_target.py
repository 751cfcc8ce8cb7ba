"""One target of a bundle: from exported stages to certified engines.

In: a `Job`, everything that the targets of a bundle share, and a target's name. Out: the engine
files in the bundle's folder and a `CertifiedTarget`. Engines are built, compared with the float32
network, and run over `val_select` and `val_calib` to be certified.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from cascade_calib.certify_engines import CertifiedTarget, certify_engines
from cascade_calib.certify_target import Request
from cascade_calib.labelled import Loaded, Progress
from cascade_compile import parity, targets
from cascade_compile.export import export_stages
from cascade_compile.parity import ParityError
from cascade_compile.stages import Stage, split
from cascade_compile.targets import StageSource, TargetName
from cascade_runtime.bundle import engine_files
from cascade_runtime.engines import unavailable
from cascade_runtime.errors import TargetError
from cascade_runtime.manifest import Preprocess, StageInfo, Target, TargetStage, stage_inputs
from cascade_runtime.stages import Stages, load_target
from cascade_train.exits import Network

PARITY_IMAGES = 128
SAMPLES = 128


@dataclass(frozen=True, kw_only=True)
class Build:
    """What engines are made from, and compared with. They go into `folder`."""

    folder: Path
    sources: Sequence[StageSource]
    infos: tuple[StageInfo, ...]
    model: Network
    preprocess: Preprocess
    select: Loaded
    threads: int | None = None
    force: bool = False
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class Job(Build):
    """What all targets of a bundle share. `folder` is the bundle while it is being made."""

    calib: Loaded
    promise: Request
    calibration_uses: int
    thumbnails: bool = True


def build_target(job: Job, name: TargetName) -> CertifiedTarget:
    """Build, compare, certify.

    Raises:
        ParityError: an engine is wrong (`force` goes on all the same, and the target says so).
        TargetError: the target cannot be run here, so nothing about it could be certified.
    """
    target = build_engines(job, name)
    stages = open_stages(job, name, target)
    target, compared = compare(job, name, target, stages)
    built = certify_engines(
        stages,
        str(name),
        target,
        job.select,
        job.calib,
        infos=job.infos,
        request=job.promise,
        preprocess=job.preprocess,
        engines=engine_hashes(job, target),
        calibration_uses=job.calibration_uses,
        thumbnails=job.thumbnails,
        progress=job.progress,
    )
    figures = compared.figures(built.decision)
    return replace(built, target=msgspec.structs.replace(built.target, parity=figures))


def build_engines(job: Build, name: TargetName) -> Target:
    """Write the engine files of every stage."""
    place = job.folder / "targets" / name.folder
    place.mkdir(parents=True)
    builder = targets.builder(name.backend)
    stages, islands, inspector = [], [], {}
    for source in job.sources:
        built = builder.build(source, place, name.precision, name.device)
        files = tuple(f"targets/{name.folder}/{file}" for file in built.files)
        stages.append(TargetStage(files=files))
        islands += [f"stage{source.index}:{layer}" for layer in built.islands]
        inspector |= {f"stage{source.index}:{key}": v for key, v in built.figures.items()}
    return Target(
        backend=name.backend,
        precision=name.precision,
        device=name.device,
        stages=tuple(stages),
        images_per_s=0.0,
        parity={},
        islands=tuple(islands),
        inspector=inspector,
    )


def open_stages(job: Build, name: TargetName, target: Target) -> Stages:
    """The engines, as the runtime loads them.

    Raises:
        TargetError: they cannot run here.
    """
    reason = unavailable(target)
    if reason is not None:
        raise TargetError(
            f"{name} cannot run on this machine, so it cannot be certified here: {reason}"
        )
    return load_target(
        target,
        lambda path: (job.folder / path).read_bytes(),
        job.threads,
        stage_inputs(job.infos),
    )


def compare(
    job: Build, name: TargetName, target: Target, stages: Stages
) -> tuple[Target, parity.Parity]:
    """The engines beside the network, on images of val_select.

    Raises:
        ParityError: they differ by more than the precision may, and nobody forces it.
    """
    pixels = spread(job.select.pixels, PARITY_IMAGES)
    compared = parity.measure(job.model, stages, pixels, name.precision)
    if not compared.finite:  # nothing that --force could record, or anyone could use
        raise ParityError(
            f"{name}: engine or network gives outputs that are not numbers on some of "
            f"{compared.images} images of val_select; choose another precision, or train again"
        )
    if not compared.ok and not job.force:
        raise ParityError(
            f"{name}: the engine is not what was trained: {compared.explain()}. Choose another "
            "precision, or --force to write it all the same"
        )
    return msgspec.structs.replace(target, forced=not compared.ok), compared


def engine_hashes(job: Job, target: Target) -> dict[str, str]:
    """Path in the bundle to SHA-256 of every engine file of a target."""
    return {path: _sha256(job.folder / path) for path in engine_files(target)}


def stage_sources(
    model: Network, image_size: int, folder: Path, pixels: npt.NDArray[np.uint8]
) -> list[StageSource]:
    """Export every stage into `folder`; `pixels` of val_select are what builders may measure on."""
    modules = split(model, image_size)
    files = export_stages(model, image_size, folder)
    return [
        StageSource(index, file, module, partial(_samples, modules, index, spread(pixels, SAMPLES)))
        for index, (file, module) in enumerate(zip(files, modules, strict=True))
    ]


def spread(pixels: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.uint8]:
    """Up to `count` images, evenly over all: files are often in the order of their classes."""
    if len(pixels) <= count:
        return pixels
    return pixels[np.linspace(0, len(pixels) - 1, count).astype(int)]


@torch.no_grad()
def _samples(
    modules: Sequence[Stage], index: int, pixels: npt.NDArray[np.uint8]
) -> npt.NDArray[np.generic]:
    """What stage `index` takes on these images, from the float32 network."""
    start = max(i for i in range(index + 1) if modules[i].is_first)
    if start == index:
        return pixels
    parts = []
    for at in range(0, len(pixels), 16):
        tokens = torch.from_numpy(pixels[at : at + 16])
        for module in modules[start:index]:
            tokens = module(tokens)[2]
        parts.append(tokens.numpy())
    return np.concatenate(parts)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
