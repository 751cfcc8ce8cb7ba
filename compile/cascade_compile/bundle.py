"""`cascade-compile bundle`: from a run folder to a certified bundle.

In: a run, a target list, the promise asked for. Out: a sealed `NAME.cascade` folder. The way:
merge, export each stage once, build each target's engines, compare them with the network, run them
over `val_select` and `val_calib`, certify, record golden vectors, write the report, seal. All of it
happens in a hidden folder beside the output, which is renamed when it is whole.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from safetensors.numpy import save_file

from cascade_calib.certify import Request, certify
from cascade_calib.collect import Collected, collect
from cascade_calib.labelled import Loaded, Progress
from cascade_calib.provenance import made_by
from cascade_calib.report import Evidence, render_report
from cascade_compile import parity, targets
from cascade_compile.export import export_stages
from cascade_compile.ledger import count_use
from cascade_compile.stages import describe
from cascade_compile.targets import TargetName
from cascade_runtime import golden
from cascade_runtime.bundle import Bundle, engine_files, pack, seal
from cascade_runtime.engines import unavailable
from cascade_runtime.errors import BundleError, CascadeError, ConfigError, TargetError
from cascade_runtime.manifest import (
    FORMAT,
    FORMAT_VERSION,
    Certificate,
    Decision,
    Manifest,
    Model,
    StageInfo,
    Target,
    TargetStage,
    encode,
)
from cascade_runtime.stages import Stages, load_target
from cascade_train.checkpoint import RunConfig, load_network
from cascade_train.data.sources import SPLITS_NAME, load_split_pixels
from cascade_train.exits import CascadeModel

PARITY_IMAGES = 128
GOLDEN_IMAGES = 8
SPEED_IMAGES = 512


class ParityError(CascadeError):
    """An engine differs from the network by more than its precision explains."""


@dataclass(frozen=True)
class BundleRequest:
    """What to build. `splits` is the splits.json to certify on, default the run's own."""

    run: Path
    out: Path
    targets: tuple[TargetName, ...]
    promise: Request
    splits: Path | None = None
    name: str | None = None
    threads: int | None = None
    overwrite: bool = False
    force: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Built:
    """One finished target and the evidence of its certificate."""

    target: Target
    decision: Decision
    certificate: Certificate
    evidence: Evidence
    tensors: dict[str, np.ndarray]


Say = Callable[[str], None]


def build(
    request: BundleRequest, *, progress: Progress | None = None, say: Say = print
) -> Manifest:
    """Make the bundle and return its manifest.

    Raises:
        ParityError: an engine is wrong (`force` writes the bundle all the same, and it says so).
        TargetError: a target cannot be run here, so nothing about it could be certified.
        ConfigError, DataError: the run, the splits or the output are not usable.
    """
    _check_out(request)
    model, config = load_network(request.run)
    if config.adapter is not None:
        say(f"merged the {config.adapter.kind} adapter of {request.run} into its base, in float32")
    data = _load_data(request, config, progress)
    part = request.out.with_name(f".{request.out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        manifest = _build_in(part, request, model, config, data, progress, say)
        Bundle.open(part)  # the reader's own checks, before anyone else meets the bundle
        _publish(part, request.out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def _build_in(
    folder: Path,
    request: BundleRequest,
    model: CascadeModel,
    config: RunConfig,
    data: dict[str, Loaded],
    progress: Progress | None,
    say: Say,
) -> Manifest:
    size = config.preprocess.height
    stages = describe(model, size)
    exported = folder / ".onnx"
    exported.mkdir(parents=True)
    say(f"exporting {len(stages)} stages to ONNX")
    onnx_files = export_stages(model, size, exported)
    uses = count_use(request.run, data["val_calib"])
    built = {}
    for name in request.targets:
        say(f"{name}: building engines and running them over val_select and val_calib")
        built[str(name)] = _build_target(
            folder, name, onnx_files, request, model, config, data, stages, uses, progress
        )
        say(f"{name}: {_outcome(built[str(name)].certificate)}")
    shutil.rmtree(exported)
    manifest = Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        made_by=made_by(request.seed),
        model=Model(
            name=request.name or _stem(request.out),
            preset=config.preset,
            classes=config.classes,
            parameters=sum(stage.parameters for stage in stages),
            exits=config.exits,
            data=config.data,
        ),
        preprocess=config.preprocess,
        stages=stages,
        targets={name: b.target for name, b in built.items()},
        decision={name: b.decision for name, b in built.items()},
        certificates={name: b.certificate for name, b in built.items()},
    )
    (folder / "manifest.json").write_bytes(encode(manifest))
    tensors = {key: value for b in built.values() for key, value in b.tensors.items()}
    save_file(tensors, folder / "golden.safetensors")
    report = render_report(manifest, {name: b.evidence for name, b in built.items()})
    (folder / "report.html").write_text(report, encoding="utf-8")
    seal(folder)
    return manifest


def _build_target(
    folder: Path,
    name: TargetName,
    onnx_files: list[Path],
    request: BundleRequest,
    model: CascadeModel,
    config: RunConfig,
    data: dict[str, Loaded],
    infos: tuple[StageInfo, ...],
    uses: int,
    progress: Progress | None,
) -> Built:
    target = _build_engines(folder, name, onnx_files)
    reason = unavailable(target)
    if reason is not None:
        raise TargetError(
            f"{name} cannot run on this machine, so it cannot be certified here: {reason}"
        )
    stages = load_target(target, lambda path: (folder / path).read_bytes(), request.threads)
    select_pixels = data["val_select"].pixels
    compared = parity.measure(model, stages, select_pixels[:PARITY_IMAGES], name.precision)
    if not compared.finite:  # nothing that --force could record, or anyone could use
        raise ParityError(
            f"{name}: engine or network gives outputs that are not numbers on some of the first "
            f"{compared.images} images of val_select; choose another precision, or train again"
        )
    if not compared.ok and not request.force:
        raise ParityError(
            f"{name}: the engine differs from the network by {compared.max_difference:.3g} at "
            f"logits up to {compared.scale:.3g} (limit {compared.limit:g} of that); this engine is "
            "not what was trained. Choose another precision, or --force to write it all the same"
        )
    select = _collected(stages, data["val_select"], f"{name} val_select", progress)
    calib = _collected(stages, data["val_calib"], f"{name} val_calib", progress)
    decision, certificate = certify(
        select,
        calib,
        stage_costs=[float(info.macs) for info in infos],
        request=request.promise,
        preprocess=config.preprocess,
        engines={path: _sha256(folder / path) for path in engine_files(target)},
        calibration_uses=uses,
    )
    target = msgspec.structs.replace(
        target,
        images_per_s=round(_speed(stages, decision, select_pixels[:SPEED_IMAGES]), 1),
        parity=compared.figures(decision),
    )
    tensors = golden.record(stages, decision, _golden_images(data["val_select"]), str(name))
    return Built(target, decision, certificate, Evidence(select, calib), tensors)


def _build_engines(folder: Path, name: TargetName, onnx_files: list[Path]) -> Target:
    place = folder / "targets" / name.folder
    place.mkdir(parents=True)
    builder = targets.builder(name.backend)
    stages = tuple(
        TargetStage(
            files=tuple(
                f"targets/{name.folder}/{file}"
                for file in builder.build(onnx_file, place, name.precision)
            )
        )
        for onnx_file in onnx_files
    )
    return Target(
        backend=name.backend,
        precision=name.precision,
        device=name.device,
        stages=stages,
        images_per_s=0.0,
        parity={},
    )


def _collected(stages: Stages, data: Loaded, what: str, progress: Progress | None) -> Collected:
    def step(_: str, done: int, total: int) -> None:
        if progress is not None:
            progress(what, done, total)

    return collect(stages, data, step)


def _speed(stages: Stages, decision: Decision, pixels: np.ndarray) -> float:
    """Images a second of the whole cascade at batch 32, best of three, for `--target auto`."""
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        for start in range(0, len(pixels), 32):
            stages.forward(pixels[start : start + 32], decision)
        best = max(best, len(pixels) / (time.perf_counter() - started))
    return best


def _golden_images(data: Loaded) -> np.ndarray:
    """The first few images of each class, alternating."""
    half = GOLDEN_IMAGES // 2
    rows = [np.flatnonzero(data.labels == label)[:half] for label in (0, 1)]
    return np.ascontiguousarray(data.pixels[np.concatenate(rows)])


def _outcome(certificate: Certificate) -> str:
    c = certificate
    counts = (
        f"{c.errors} errors among {c.accepted} acted on of {c.n}, coverage {100 * c.coverage:.1f} %"
    )
    if c.status == "CERTIFIED":
        return f"CERTIFIED at alpha {100 * c.alpha:g} %: {counts}"
    return f"INFEASIBLE at alpha {100 * c.alpha:g} %. {c.advice}"


def _load_data(
    request: BundleRequest, config: RunConfig, progress: Progress | None
) -> dict[str, Loaded]:
    path = request.splits or request.run / SPLITS_NAME
    return {
        split: load_split_pixels(path, split, config.preprocess, progress=progress)
        for split in ("val_select", "val_calib")
    }


def _stem(out: Path) -> str:
    """The model's name when none was given: `--out` without its endings."""
    return out.name.removesuffix(".zip").removesuffix(".cascade")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_out(request: BundleRequest) -> None:
    name = request.out.name
    if not name.endswith((".cascade", ".zip")) or not _stem(request.out):
        raise ConfigError(f"--out {name!r} must end in .cascade (a folder) or .zip (one file)")
    if not request.out.parent.is_dir():
        raise ConfigError(f"--out: the folder {request.out.parent} does not exist; make it first")
    if not request.out.exists():
        return
    if not request.overwrite:
        raise ConfigError(f"{request.out} exists; pass --overwrite to replace it")
    if request.out.is_dir() == name.endswith(".zip"):
        raise ConfigError(
            f"{request.out} is {'a folder' if request.out.is_dir() else 'a file'}, which this "
            "would not replace by its like; move it away yourself"
        )
    try:  # never delete a folder that is no bundle
        Bundle.open(request.out)
    except BundleError as error:
        raise ConfigError(
            f"{request.out} is no valid bundle, move it away yourself: {error}"
        ) from error


def _publish(part: Path, out: Path) -> None:
    """Put the finished folder (or its zip) in place; an old bundle goes only when the new is in."""
    if out.name.endswith(".zip"):
        pack(part, out)
        return
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if not out.exists():
        part.rename(out)
        return
    out.rename(old)
    try:
        part.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
