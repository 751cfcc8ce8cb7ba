"""Before the first step: the backbone to adapt, a folder to write, and a record of both.

In: an `ExploraRequest`. Out: the backbone, and `Explored` in OUT; or, on `--resume`, the one that
is there, if the same is asked for now.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from transformers import DINOv3ViTModel

from cascade_calib.provenance import made_by
from cascade_calib.splits_file import SPLITS_NAME
from cascade_runtime.errors import ConfigError
from cascade_runtime.manifest import Preprocess
from cascade_train import checkpoint
from cascade_train.backbone import build_backbone
from cascade_train.checkpoint import InitFrom
from cascade_train.explora import output
from cascade_train.explora.config import ExploraConfig
from cascade_train.explora.health import Health
from cascade_train.explora.images import Unlabelled
from cascade_train.explora.masking import patch_side
from cascade_train.explora.output import Explored
from cascade_train.presets import preset


@dataclass(frozen=True)
class ExploraRequest:
    """What `explora` was asked for. The start is `init` (a run, or an earlier adaptation), or
    `preset` with `weights`. `keep_out`: splits files whose val images must not take part."""

    data: str
    out: Path
    preset: str | None = None
    image_size: int | None = None
    weights: str = "random"
    init: Path | None = None
    keep_out: tuple[Path, ...] = ()
    threads: int | None = None
    resume: bool = False


@dataclass(frozen=True)
class Start:
    """What adaptation starts from, as explora.json says it."""

    preset: str
    preprocess: Preprocess
    init: InitFrom | None


def starting_backbone(request: ExploraRequest) -> tuple[DINOv3ViTModel, Start]:
    """The backbone to adapt, in float32 and eval mode."""
    if request.init is None:
        if request.weights == "random":
            raise ConfigError(
                "adaptation needs a trained backbone: give --init RUN, or --weights with a "
                "checkpoint's folder (or hub)"
            )
        name = preset(request.preset or "tiny")
        backbone = build_backbone(name, image_size=request.image_size, weights=request.weights)
        size = request.image_size or name.image_size
        return backbone.eval(), Start(name.name, Preprocess(height=size, width=size), None)
    for field in ("preset", "image_size"):
        if getattr(request, field) is not None:
            raise ConfigError(f"{field} comes from the --init run; leave it out")
    if request.weights != "random":
        raise ConfigError("weights come from the --init run; leave --weights out")
    where = output.relative(request.init, request.out)
    if output.is_explored(request.init):
        earlier = output.read_explored(request.init)
        init = InitFrom(where, output.adapted_sha256(request.init))
        start = Start(earlier.preset, earlier.preprocess, init)
        return output.load_adapted(request.init), start
    model, run = checkpoint.load_trained(request.init, scores=False)
    init = InitFrom(where, checkpoint.weights_sha256(request.init))
    return model.backbone, Start(run.preset, run.preprocess, init)


def kept_out(request: ExploraRequest) -> list[Path]:
    """Splits whose val images stay out: those named, and that of the run started from."""
    paths = list(request.keep_out)
    if request.init is not None and (request.init / SPLITS_NAME).is_file():
        paths.append(request.init)
    return paths


def check_size(side: int, backbone: DINOv3ViTModel, config: ExploraConfig) -> None:
    """That images and small crops are whole patches, and more than one.

    Raises:
        ConfigError: they are not.
    """
    patch = patch_side(backbone.config)
    small = config.distill.local_size
    if side < 2 * patch:
        raise ConfigError(
            f"image size {side} is a single patch of {patch}; nothing could be hidden. Use at "
            f"least {2 * patch}"
        )
    if config.objective == "distill" and small % patch:
        raise ConfigError(
            f"explora: distill.local_size is {small}, which is not a multiple of the patch size "
            f"{patch}; try {max(1, round(small / patch)) * patch}"
        )


def claim(request: ExploraRequest) -> None:
    """Make OUT; never write over another run."""
    out, exists = request.out, output.is_explored(request.out)
    if request.resume and not exists:
        raise ConfigError(f"{out} holds no adaptation to resume; leave --resume out to start one")
    if not request.resume and (exists or (out / "config.json").exists()):
        raise ConfigError(f"{out} already holds a run; go on with --resume or choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: the folder cannot be made ({error.strerror})") from error


def described(
    request: ExploraRequest,
    config: ExploraConfig,
    start: Start,
    images: Unlabelled,
    before: Health,
) -> Explored:
    """explora.json as it is while adaptation goes on."""
    return Explored(
        preset=start.preset,
        preprocess=start.preprocess,
        data=request.data,
        keep_out=tuple(str(path) for path in request.keep_out),
        images=len(images),
        images_sha256=images.content_sha256,
        weights=request.weights,
        init=start.init,
        settings=config,
        before=before,
        made_by=made_by(config.seed),
    )


def begin(request: ExploraRequest, explored: Explored, images: Unlabelled) -> None:
    """Write what holds from the start: who took part, then the settings."""
    seen = set(images.hashes)
    if request.init is not None and output.is_explored(request.init):
        seen |= output.seen_images(request.init)
    output.write_seen(request.out, seen)
    output.write_explored(request.out, explored)


def same(asked: Explored, had: Explored, out: Path) -> Explored:
    """What was begun, if the same is asked for now; also the images must be the same.

    Raises:
        ConfigError: a setting, the start or an image has changed; names the first.
    """
    now, then = _settings(asked), _settings(had)
    changed = [key for key in now if now[key] != then.get(key)]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"--resume goes on with the settings of {out / output.NAME}, but {key} is "
            f"{now[key]!r} now and was {then.get(key)!r}; give the same as before"
        )
    return had


def _settings(explored: Explored) -> dict[str, Any]:
    """What must not change between the parts of a run, flat, as plain JSON values."""
    kept: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(explored))
    for name in ("format", "version", "before", "after", "backbone_sha256", "made_by"):
        del kept[name]
    return {**kept.pop("settings"), **kept}
