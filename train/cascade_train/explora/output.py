"""The folder that adaptation leaves behind.

    OUT/explora.json        Explored: settings, start, images, provenance, hash of the result
    OUT/seen.txt            `pixels_sha256` of every image that took part, sorted, one a line
    OUT/log.jsonl           one line an epoch
    OUT/last.safetensors    what a resumed run needs
    OUT/backbone/           config.json and model.safetensors, as transformers saves them

`backbone/` is what `--weights` takes; it is there when the last epoch has ended.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path

import msgspec
from safetensors import SafetensorError
from transformers import DINOv3ViTModel

from cascade_runtime.errors import ConfigError
from cascade_runtime.manifest import MadeBy, Preprocess
from cascade_train.backbone import build_backbone, quiet
from cascade_train.checkpoint import InitFrom, write_atomic
from cascade_train.explora.config import ExploraConfig
from cascade_train.explora.health import Health
from cascade_train.presets import preset

FORMAT = "cascade-edge.explora"
NAME = "explora.json"
BACKBONE = "backbone"
SEEN = "seen.txt"


class Explored(msgspec.Struct, frozen=True, kw_only=True):
    """`explora.json`. `after` and `backbone_sha256` are there once adaptation has ended."""

    format: str = FORMAT
    version: int = 1
    preset: str
    preprocess: Preprocess
    data: str
    keep_out: tuple[str, ...] = ()
    images: int
    images_sha256: str
    weights: str = "random"
    init: InitFrom | None = None
    settings: ExploraConfig
    before: Health
    after: Health | None = None
    backbone_sha256: str | None = None
    made_by: MadeBy


def write_explored(out: Path, explored: Explored) -> None:
    """Write explora.json."""
    write_atomic(out / NAME, msgspec.json.format(msgspec.json.encode(explored), indent=2) + b"\n")


def read_explored(out: Path) -> Explored:
    """Read explora.json.

    Raises:
        ConfigError: none there, or not one of ours.
    """
    path = out / NAME
    if not path.is_file():
        raise ConfigError(f"{out} holds no {NAME}; make it with cascade-train explora")
    try:
        explored = msgspec.json.decode(path.read_bytes(), type=Explored)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if explored.format != FORMAT or explored.version != 1:
        raise ConfigError(f"{path}: unknown format {explored.format!r} version {explored.version}")
    return explored


def is_explored(folder: Path) -> bool:
    """Whether the folder is one that adaptation made."""
    return (folder / NAME).is_file()


def save_backbone(out: Path, backbone: DINOv3ViTModel) -> str:
    """Write OUT/backbone whole or not at all; returns the SHA-256 of its weights.

    Raises:
        ConfigError: it cannot be written.
    """
    half, old, folder = (out / name for name in (".backbone.part", ".backbone.old", BACKBONE))
    shutil.rmtree(half, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the library's, about itself
            backbone.save_pretrained(half, max_shard_size="1TB")  # one file, one hash
        digest = _sha256(half / "model.safetensors")
        if folder.exists():
            folder.rename(old)
        half.rename(folder)
    except SafetensorError as error:  # what a full disk is called there
        raise ConfigError(f"{folder}: cannot be written ({error}); make room, --resume") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return digest


def adapted_sha256(out: Path) -> str:
    """SHA-256 of the weights in OUT/backbone.

    Raises:
        ConfigError: adaptation has not ended yet, or the weights are gone or others than it wrote.
    """
    wanted = read_explored(out).backbone_sha256
    if wanted is None:
        raise ConfigError(f"{out} is not finished; go on with cascade-train explora --resume")
    path = out / BACKBONE / "model.safetensors"
    if not path.is_file() or _sha256(path) != wanted:
        raise ConfigError(f"{path} is missing or changed; bring it back, or adapt again")
    return wanted


def load_adapted(out: Path, image_size: int | None = None) -> DINOv3ViTModel:
    """The adapted backbone, float32, in eval mode.

    Args:
        image_size: side in pixels; default the one it was adapted at.

    Raises:
        ConfigError: not finished, changed since, or not exactly the preset's keys and shapes.
    """
    explored = read_explored(out)
    adapted_sha256(out)
    size = image_size or explored.preprocess.height
    name = preset(explored.preset)
    return build_backbone(name, image_size=size, weights=str(out / BACKBONE)).eval()


def write_seen(out: Path, hashes: Iterable[str]) -> None:
    """Write seen.txt."""
    write_atomic(out / SEEN, "".join(f"{digest}\n" for digest in sorted(set(hashes))).encode())


def seen_images(out: Path) -> frozenset[str]:
    """`pixels_sha256` of every image that shaped OUT/backbone by adaptation, earlier ones too.

    No image of a split that certifies or measures may be among them.
    """
    path = out / SEEN
    try:
        return frozenset(path.read_text(encoding="ascii").split())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); adapt again") from error


def relative(path: Path, out: Path) -> str:
    """`path` as written into OUT: both may be moved together."""
    return os.path.relpath(path.resolve(), out.resolve())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
