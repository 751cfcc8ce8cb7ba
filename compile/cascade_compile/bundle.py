"""`cascade-compile bundle`: from a run folder to a certified bundle.

In: a run, a target list, the promise asked for. Out: a sealed `NAME.cascade` folder. The way:
merge, export each stage once, build each target's engines, compare them with the network, run them
over `val_select` and `val_calib`, certify, record golden vectors, write the report, seal. All of it
happens in a hidden folder beside the output, which is renamed when it is whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from cascade_calib.certify_engines import CertifiedTarget, outcome
from cascade_calib.certify_target import Request
from cascade_calib.labelled import Loaded, Progress, load_split_pixels
from cascade_calib.provenance import made_by
from cascade_calib.publish import part_of, publish, write_contents
from cascade_compile import parity, recipes
from cascade_compile.build_target import Job, build_target, spread, stage_sources
from cascade_compile.ledger import count_use
from cascade_compile.merging import merge_tokens
from cascade_compile.search import SearchRequest, check_promise, search
from cascade_compile.stages import describe
from cascade_compile.targets import TargetName
from cascade_runtime.bundle import Bundle
from cascade_runtime.errors import BundleError, ConfigError
from cascade_runtime.manifest import (
    FORMAT,
    FORMAT_VERSION,
    Manifest,
    Model,
    Recipe,
    Search,
    stage_inputs,
)
from cascade_train.checkpoint import RunConfig, load_network
from cascade_train.data.sources import SPLITS_NAME
from cascade_train.exits import Network


@dataclass(frozen=True)
class BundleRequest:
    """What to build. `splits` is the splits.json to certify on, default the run's own.

    search: choose one of `targets` by measurement, and ship that; None ships all of them.
    recipes: backend/precision of what other devices finish (`cascade_compile.recipes`).
    jpeg: how the bundle decodes JPEGs; whatever it is, it is what the engines are certified on.
    merge_tokens: patches to merge behind the attention of every block; 0 for none.
    """

    run: Path
    out: Path
    targets: tuple[TargetName, ...]
    promise: Request
    splits: Path | None = None
    name: str | None = None
    threads: int | None = None
    thumbnails: bool = True
    overwrite: bool = False
    force: bool = False
    seed: int = 0
    search: SearchRequest | None = None
    recipes: tuple[str, ...] = ()
    jpeg: Literal["full", "reduced"] = "full"
    merge_tokens: int = 0


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
    _check_merging(request)
    if request.search is not None:
        check_promise(request.promise)
        if request.force:
            raise ConfigError("--force: a search leaves out engines that differ from the network")
    model, config = load_network(request.run)
    preprocess = msgspec.structs.replace(config.preprocess, jpeg=request.jpeg)
    config = msgspec.structs.replace(config, preprocess=preprocess)
    if config.adapter is not None:
        say(f"merged the {config.adapter.kind} adapter of {request.run} into its base, in float32")
    merge_tokens(model, request.merge_tokens, config.preprocess.height)
    data = _load_data(request, config, progress)
    part = part_of(request.out)
    try:
        manifest = _build_in(part, request, model, config, data, progress, say)
        Bundle.open(part)  # the reader's own checks, before anyone else meets the bundle
        publish(part, request.out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def _build_in(
    folder: Path,
    request: BundleRequest,
    model: Network,
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
    sources = stage_sources(model, size, exported, data["val_select"].pixels)
    parts = [request.run / part.path for part in config.joined]
    job = Job(
        folder=folder,
        sources=sources,
        infos=stages,
        model=model,
        preprocess=config.preprocess,
        select=data["val_select"],
        calib=data["val_calib"],
        promise=request.promise,
        calibration_uses=count_use(request.run, data["val_calib"], parts),
        threads=request.threads,
        thumbnails=request.thumbnails,
        force=request.force,
        progress=progress,
    )
    built, table = _targets(job, request, say)
    written = _recipes(job, request, say)
    shutil.rmtree(exported)
    manifest = Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        made_by=made_by(request.seed),
        model=Model(
            name=request.name or _stem(request.out),
            preset=_network(config, request),
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
        search=table,
        recipes=written,
    )
    write_contents(folder, manifest, built)
    return manifest


def _targets(
    job: Job, request: BundleRequest, say: Say
) -> tuple[dict[str, CertifiedTarget], Search | None]:
    """Every target that was named, or the one that a search finds and its table."""
    if request.search is not None:
        found, table = search(job, request.targets, request.search, say)
        for name, made in found.items():
            say(f"{name}: {outcome(made.certificate)}")
        return found, table
    built = {}
    for target in request.targets:
        say(f"{target}: building engines and running them over val_select and val_calib")
        built[str(target)] = build_target(job, target)
        say(f"{target}: {outcome(built[str(target)].certificate)}")
    return built, None


def _recipes(job: Job, request: BundleRequest, say: Say) -> dict[str, Recipe]:
    """The build recipes that were asked for, in the bundle's folder."""
    if not request.recipes:
        return {}
    pixels = spread(job.select.pixels, recipes.REFERENCE_IMAGES)
    reference = recipes.Reference(pixels, parity.run_network(job.model, pixels)[0])
    inputs, written = stage_inputs(job.infos), {}
    for name in request.recipes:
        say(f"{name}: writing the recipe that cascade-compile engines finishes on the device")
        written[name] = recipes.write(
            job.folder, name, list(job.sources), reference, inputs, force=request.force
        )
    return written


def _load_data(
    request: BundleRequest, config: RunConfig, progress: Progress | None
) -> dict[str, Loaded]:
    path = request.splits or request.run / SPLITS_NAME
    return {
        split: load_split_pixels(path, split, config.preprocess, progress=progress)
        for split in ("val_select", "val_calib")
    }


def _check_merging(request: BundleRequest) -> None:
    """Merging goes with the precisions and the forms whose engines can be compared with it."""
    if not request.merge_tokens:
        return
    if any(target.precision == "int8" for target in request.targets):
        raise ConfigError(
            "--merge-tokens: int8 engines are made by comparing hidden tokens one by one, and "
            "merging changes their order; name other targets (with --precision auto, candidates), "
            "for example openvino/bf16/cpu"
        )
    if request.recipes:
        raise ConfigError(
            "--merge-tokens: a recipe does not say how far merging may move its device's engines; "
            "name targets that can be built here"
        )


def _network(config: RunConfig, request: BundleRequest) -> str:
    """The preset, and what was done to it that changes its answers."""
    count = request.merge_tokens
    return f"{config.preset}, {count} patches merged a block" if count else config.preset


def _stem(out: Path) -> str:
    """The model's name when none was given: `--out` without its endings."""
    return out.name.removesuffix(".zip").removesuffix(".cascade")


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
